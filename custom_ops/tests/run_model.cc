// Runs an ONNX model with an ONNX Runtime that is loaded by path, so that it needs no headers and
// runs wherever the runtime does, an emulator included.
//
//   fp4dit_run_model [--library OPS] [--threads N] RUNTIME MODEL [FOLDER]...
//
// It prints a line for each input and output, with its index, and for the library's instruction
// set, then "ready". Each folder, or without any each line of standard input, names one run: it
// holds input_0.npy, input_1.npy, ... and receives output_0.npy, ... A line "done" follows. At the
// end come the library's counters.
//
// Exit codes: 2 for usage, 1 for anything that fails, with a line on standard error.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "abi/ort_session_abi.h"
#include "core/shared_library.h"
#include "npy.h"

namespace fp4dit::test {
namespace {

[[noreturn]] void Fail(const std::string& text) {
  std::fflush(stdout);
  std::fprintf(stderr, "error: %s\n", text.substr(0, text.find('\n')).c_str());
  std::exit(1);
}

struct Options {
  std::filesystem::path library;
  int threads = 1;
  std::vector<std::filesystem::path> places;  // runtime, model, folders
};

bool ParseOptions(int count, char** arguments, Options* options) {
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    if (argument == "--library" && i + 1 < count) {
      options->library = arguments[++i];
    } else if (argument == "--threads" && i + 1 < count) {
      char* end = nullptr;
      const long threads = std::strtol(arguments[++i], &end, 10);
      if (*end != '\0' || threads < 1 || threads > 1024) return false;
      options->threads = static_cast<int>(threads);
    } else if (argument.compare(0, 2, "--") == 0) {
      return false;
    } else {
      options->places.push_back(arguments[i]);
    }
  }
  return options->places.size() >= 2;
}

void* Open(const std::filesystem::path& path) {
  void* const handle = OpenLibrary(path.c_str());
  if (handle == nullptr) Fail(path.string() + ": " + LibraryError());
  return handle;
}

template <typename Function>
Function Symbol(void* handle, const char* name) {
  void* const found = FindSymbol(handle, name);
  if (found == nullptr) Fail(LibraryError());
  return reinterpret_cast<Function>(found);
}

class Runner {
 public:
  explicit Runner(const Options& options) : api_(LoadRuntime(options.places[0])) {
    OrtSessionOptions* session_options = nullptr;
    Check(api_.CreateEnv()(ort::kLogErrors, "run_model", &env_));
    Check(api_.CreateSessionOptions()(&session_options));
    Check(api_.SetIntraOpNumThreads()(session_options, options.threads));
    // As fp4dit_onnx.runtime.session has them.
    Check(api_.DisableMemPattern()(session_options));
    Check(api_.AddSessionConfigEntry()(session_options, "session.qdq_matmulnbits_accuracy_level",
                                       "0"));
    if (!options.library.empty()) {
      library_ = Open(options.library);
      Check(api_.RegisterCustomOpsLibrary_V2()(session_options, options.library.c_str()));
    }
    Check(api_.CreateSession()(env_, options.places[1].c_str(), session_options, &session_));
    Check(api_.CreateCpuMemoryInfo()(ort::kDeviceAllocator, ort::kDefaultMemory, &memory_));
    api_.ReleaseSessionOptions()(session_options);
    ReadNames();
  }
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;
  ~Runner() {
    api_.ReleaseMemoryInfo()(memory_);
    api_.ReleaseSession()(session_);
    api_.ReleaseEnv()(env_);
  }

  void Describe() const {
    for (size_t i = 0; i < inputs_.size(); ++i) std::printf("input %zu %s\n", i, inputs_[i]);
    for (size_t i = 0; i < outputs_.size(); ++i) std::printf("output %zu %s\n", i, outputs_[i]);
    if (library_ != nullptr) {
      std::printf("isa %s\n", Symbol<const char* (*)()>(library_, "fp4dit_isa")());
    }
    std::printf("ready\n");
    std::fflush(stdout);
  }

  void Run(const std::string& folder) const {
    std::vector<NpyArray> arrays(inputs_.size());
    std::vector<OrtValue*> values(inputs_.size(), nullptr);
    for (size_t i = 0; i < arrays.size(); ++i) {
      const std::string error =
          ReadNpy(folder + "/input_" + std::to_string(i) + ".npy", &arrays[i]);
      if (!error.empty()) Fail(error);
      Check(api_.CreateTensorWithDataAsOrtValue()(
          memory_, arrays[i].data.data(), arrays[i].data.size(), arrays[i].dims.data(),
          arrays[i].dims.size(), arrays[i].type, &values[i]));
    }
    std::vector<OrtValue*> results(outputs_.size(), nullptr);
    Check(api_.Run()(session_, nullptr, inputs_.data(), values.data(), values.size(),
                     outputs_.data(), outputs_.size(), results.data()));
    for (size_t i = 0; i < results.size(); ++i) {
      const std::string error =
          WriteNpy(folder + "/output_" + std::to_string(i) + ".npy", ReadValue(i, results[i]));
      if (!error.empty()) Fail(error);
      api_.ReleaseValue()(results[i]);
    }
    for (OrtValue* value : values) api_.ReleaseValue()(value);
    std::printf("done\n");
    std::fflush(stdout);
  }

  void Finish() const {
    if (library_ == nullptr) return;
    const auto counters = Symbol<size_t (*)(char*, size_t)>(library_, "fp4dit_counters_json");
    std::string text(counters(nullptr, 0) + 1, '\0');
    counters(&text[0], text.size());
    std::printf("counters %s\n", text.c_str());
  }

 private:
  static ort::SessionApi LoadRuntime(const std::filesystem::path& path) {
    const auto get_base = Symbol<const ort::ApiBase* (*)()>(Open(path), "OrtGetApiBase");
    const ort::ApiBase* const base = get_base();
    const ort::Api* const api = base->GetApi(ort::kApiVersion);
    if (api == nullptr) {
      Fail(path.string() + ": ONNX Runtime " + base->GetVersionString() +
           " is too old: expected 1." + std::to_string(ort::kApiVersion) + " or newer");
    }
    std::printf("runtime %s\n", base->GetVersionString());
    return ort::SessionApi(api);
  }

  void Check(OrtStatus* status) const {
    if (status != nullptr) Fail(api_.GetErrorMessage()(status));
  }

  // Names live as long as the process, as the runtime's strings do that nobody frees.
  void ReadNames() {
    OrtAllocator* allocator = nullptr;
    Check(api_.GetAllocatorWithDefaultOptions()(&allocator));
    size_t count = 0;
    Check(api_.SessionGetInputCount()(session_, &count));
    inputs_.resize(count);
    for (size_t i = 0; i < count; ++i) {
      Check(api_.SessionGetInputName()(session_, i, allocator, &inputs_[i]));
    }
    Check(api_.SessionGetOutputCount()(session_, &count));
    outputs_.resize(count);
    for (size_t i = 0; i < count; ++i) {
      Check(api_.SessionGetOutputName()(session_, i, allocator, &outputs_[i]));
    }
  }

  NpyArray ReadValue(size_t index, OrtValue* value) const {
    NpyArray array;
    int is_tensor = 0;
    size_t rank = 0;
    void* data = nullptr;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    Check(api_.IsTensor()(value, &is_tensor));
    if (is_tensor == 0) Fail(std::string("output ") + outputs_[index] + " is no tensor");
    const ort::Api& base = *api_.base();
    Check(base.GetTensorTypeAndShape()(value, &info));
    Check(base.GetTensorElementType()(info, &array.type));
    Check(base.GetDimensionsCount()(info, &rank));
    array.dims.resize(rank);
    Check(base.GetDimensions()(info, array.dims.data(), rank));
    base.ReleaseTensorTypeAndShapeInfo()(info);
    Check(base.GetTensorMutableData()(value, &data));
    size_t size = ElementSize(array.type);
    if (size == 0) Fail(std::string("output ") + outputs_[index] + " has a type unknown here");
    for (const int64_t dim : array.dims) size *= static_cast<size_t>(dim);
    array.data.resize(size);
    if (size != 0) std::memcpy(array.data.data(), data, size);
    return array;
  }

  ort::SessionApi api_;
  void* library_ = nullptr;
  OrtEnv* env_ = nullptr;
  OrtSession* session_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
  std::vector<char*> inputs_;
  std::vector<char*> outputs_;
};

}  // namespace
}  // namespace fp4dit::test

int main(int count, char** arguments) {
  using namespace fp4dit::test;
  Options options;
  if (!ParseOptions(count, arguments, &options)) {
    std::fprintf(stderr,
                 "usage: %s [--library OPS] [--threads N] RUNTIME MODEL [FOLDER]...\n"
                 "FOLDER has input_0.npy, ...; without any, folders are read from standard input\n",
                 arguments[0]);
    return 2;
  }
  const Runner runner(options);
  runner.Describe();
  for (size_t i = 2; i < options.places.size(); ++i) runner.Run(options.places[i].string());
  char line[4096];
  while (options.places.size() == 2 && std::fgets(line, sizeof(line), stdin) != nullptr) {
    line[std::strcspn(line, "\n")] = '\0';
    runner.Run(line);
  }
  runner.Finish();
  return 0;
}
