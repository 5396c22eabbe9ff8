// The command line of text_to_image.

#ifndef FP4DIT_EXAMPLES_OPTIONS_H_
#define FP4DIT_EXAMPLES_OPTIONS_H_

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#if defined(_WIN32)
#include <shellapi.h>
#endif

#include "ort.h"

namespace example {

constexpr const char* kUsage =
    "usage: text_to_image [options] BUNDLE PROMPT OUT.bmp\n"
    "  --library PATH    the custom-op library (default: the environment's FP4DIT_LIBRARY)\n"
    "  --no-library      run the quantized layers through the models' own function bodies\n"
    "  --runtime PATH    ONNX Runtime's shared library (default: what the loader finds)\n"
    "  --seed N          of the noise (default: 0)\n"
    "  --threads N       that run one operator (default: ONNX Runtime's choice)\n"
    "  --ids 1,2,3       the prompt's token ids with its special tokens, in place of PROMPT\n"
    "  --image FILE.bmp  to begin with in place of noise alone; of the size that is generated\n"
    "  --strength SHARE  of --image that is changed, above 0 and at most 1 (default: 0.6)\n"
    "  --mask FILE.bmp   white where --image is made anew, black where it stays\n";

#if defined(_WIN32)
constexpr const char* kRuntime = "onnxruntime.dll";
#elif defined(__APPLE__)
constexpr const char* kRuntime = "libonnxruntime.dylib";
#else
constexpr const char* kRuntime = "libonnxruntime.so";
#endif

struct Options {
  std::filesystem::path bundle, picture, library, runtime = kRuntime;
  std::string prompt;
  uint64_t seed = 0;
  int threads = 0;
  std::vector<int64_t> ids;
  std::filesystem::path image, mask;  // none if empty
  double strength = 0.6;
};

// Threads that may be asked for, as fp4dit_onnx/resources.py has it.
inline uint64_t MostThreads() { return std::max(16u, 4 * std::thread::hardware_concurrency()); }

inline uint64_t WholeNumber(const std::string& option, const std::string& text, uint64_t most) {
  errno = 0;
  char* end = nullptr;
  const unsigned long long value = std::strtoull(text.c_str(), &end, 10);
  const bool digits = !text.empty() && std::isdigit(static_cast<unsigned char>(text[0])) != 0;
  if (!digits || *end != '\0' || errno != 0 || value > most) {
    throw Error(option + " " + text + ": expected a whole number from 0 to " +
                std::to_string(most));
  }
  return value;
}

inline double Strength(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value > 0 && value <= 1)) {
    throw Error("--strength " + text + ": expected more than 0 and at most 1");
  }
  return value;
}

// The program's arguments in UTF-8. Windows gives main() those of an older encoding.
#if defined(_WIN32)
inline std::vector<std::string> Arguments(int, char**) {
  int count = 0;
  wchar_t** const words = CommandLineToArgvW(GetCommandLineW(), &count);
  if (words == nullptr) throw Error("the command line cannot be read");
  std::vector<std::string> arguments;
  for (int i = 0; i < count; ++i) {
    arguments.push_back(std::filesystem::path(words[i]).u8string());
  }
  LocalFree(words);
  return arguments;
}
#else
inline std::vector<std::string> Arguments(int count, char** words) {
  return {words, words + count};
}
#endif

inline Options ParseOptions(const std::vector<std::string>& arguments) {
  Options options;
  std::vector<std::string> places;
  const char* const known = std::getenv("FP4DIT_LIBRARY");
  if (known != nullptr) options.library = known;
  bool library = true, strength = false;
  for (size_t i = 1; i < arguments.size(); ++i) {
    const std::string& name = arguments[i];
    if (name == "--help") {
      std::fputs(kUsage, stdout);
      std::exit(0);
    }
    if (name == "--no-library") {
      library = false;
      continue;
    }
    if (name.rfind("--", 0) != 0) {
      places.push_back(name);
      continue;
    }
    if (i + 1 == arguments.size())
      throw Error(name + " needs a value, or is unknown; --help lists options");
    const std::string& value = arguments[++i];
    if (name == "--library") {
      options.library = std::filesystem::u8path(value);
    } else if (name == "--runtime") {
      options.runtime = std::filesystem::u8path(value);
    } else if (name == "--seed") {
      options.seed = WholeNumber(name, value, UINT64_MAX);
    } else if (name == "--threads") {
      options.threads = static_cast<int>(WholeNumber(name, value, MostThreads()));
    } else if (name == "--image") {
      options.image = std::filesystem::u8path(value);
    } else if (name == "--mask") {
      options.mask = std::filesystem::u8path(value);
    } else if (name == "--strength") {
      options.strength = Strength(value);
      strength = true;
    } else if (name == "--ids") {
      std::istringstream list(value);
      for (std::string id; std::getline(list, id, ',');) {
        options.ids.push_back(static_cast<int64_t>(WholeNumber(name, id, 1u << 30)));
      }
      if (options.ids.empty()) throw Error("--ids is empty: expected numbers such as 1,2,3");
    } else {
      throw Error(name + " is unknown; --help lists the options");
    }
  }
  if (places.size() != 3) throw Error("expected BUNDLE, PROMPT and OUT.bmp; see --help");
  if (options.image.empty() && (strength || !options.mask.empty())) {
    throw Error("--strength or --mask without an image: expected --image FILE.bmp with it");
  }
  if (!library) options.library.clear();
  if (library && options.library.empty()) throw Error("give --library PATH, or --no-library");
  options.bundle = std::filesystem::u8path(places[0]);
  options.prompt = places[1];
  options.picture = std::filesystem::u8path(places[2]);
  return options;
}

// A prompt as PixArt takes it: lower-case, without spaces around it.
inline std::string Cleaned(const std::string& prompt) {
  constexpr const char* kSpaces = " \t\n\r\v\f";
  const size_t first = prompt.find_first_not_of(kSpaces);
  if (first == std::string::npos) return "";
  std::string text = prompt.substr(first, prompt.find_last_not_of(kSpaces) - first + 1);
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

}  // namespace example

#endif  // FP4DIT_EXAMPLES_OPTIONS_H_
