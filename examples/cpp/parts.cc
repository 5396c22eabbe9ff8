// What the example's parts compute, for the tests:
//
//   parts noise COUNT SEED...          COUNT numbers of the seeds, as bytes
//   parts ids TOKENIZER LENGTH         for each line of standard input its token ids in a line

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "noise.h"
#include "options.h"
#include "tokenizer.h"

namespace example {
namespace {

void PrintNoise(const std::vector<std::string>& words) {
  std::vector<uint64_t> seeds;
  for (size_t i = 1; i < words.size(); ++i) {
    seeds.push_back(WholeNumber("seed", words[i], UINT64_MAX));
  }
  const std::vector<float> noise =
      StandardNormal(seeds, WholeNumber("count", words.at(0), 1u << 28));
  std::fwrite(noise.data(), sizeof(float), noise.size(), stdout);
}

void PrintIds(const std::vector<std::string>& words) {
  const Tokenizer tokenizer(words.at(0));
  const size_t length = WholeNumber("length", words.at(1), 4096);
  for (std::string line; std::getline(std::cin, line);) {
    for (const int64_t id : tokenizer.Encode(Cleaned(line), length)) std::cout << id << ' ';
    std::cout << '\n';
  }
}

}  // namespace
}  // namespace example

int main(int count, char** arguments) {
  const std::vector<std::string> words(arguments + std::min(count, 2), arguments + count);
  const std::string part = count > 1 ? arguments[1] : "";
  try {
    if (part != "noise" && part != "ids") throw example::Error("expected noise or ids");
    part == "noise" ? example::PrintNoise(words) : example::PrintIds(words);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
