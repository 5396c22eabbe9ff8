// fp4dit_tests [ISA]: runs all tests, and prints which instruction sets ran; fails if the one asked
// for cannot run. fp4dit_tests --random COUNT [SEED]: that many random cases only; --gpu COUNT
// [SEED]: those on a GPU; --create OP: says why the GPU's kernel of that operator cannot be
// created.

#include <cstdlib>
#include <cstring>

#include "check.h"
#include "cpu/kernels/registry.h"

namespace fp4dit::test {
namespace {

void RunAll() {
  TestComparator();
  TestFormats();
  TestRegistry();
  TestQuantizeKernels();
  TestLinearKernels();
  TestGuards();
  TestRotations();
#if defined(FP4DIT_EMULATE_AMX)
  TestAmxEmulation();
#endif
  TestOps();
  TestIntegers();
  TestOddRows();
  TestLongestGroups();
  TestRandom(1, 500);
  TestAttention(1, 60);
}

// Whether this machine runs the instruction set called `wanted`.
bool Runs(const char* wanted) {
  size_t isa_count = 0;
  const Isa* isas = AllIsas(&isa_count);
  for (size_t i = 0; i < isa_count; ++i) {
    if (std::strcmp(isas[i].name, wanted) == 0) return isas[i].is_supported();
  }
  return false;
}

void ReportIsas() {
  size_t isa_count = 0;
  const Isa* isas = AllIsas(&isa_count);
  for (size_t i = 0; i < isa_count; ++i) {
    const bool ran = isas[i].is_supported();
    std::printf("%s: %s\n", isas[i].name, ran ? "ran" : "skipped, this machine does not have it");
  }
}

unsigned Number(const char* text) { return static_cast<unsigned>(std::strtoul(text, nullptr, 10)); }

}  // namespace
}  // namespace fp4dit::test

int main(int count, char** arguments) {
  using namespace fp4dit::test;
  if (count > 2 && std::strcmp(arguments[1], "--random") == 0) {
    const unsigned cases = Number(arguments[2]);
    TestRandom(count > 3 ? Number(arguments[3]) : 1, cases);
    TestAttention(count > 3 ? Number(arguments[3]) : 1, cases);
    std::printf("%u random cases\n", cases);
  } else if (count > 2 && std::strcmp(arguments[1], "--gpu") == 0) {
    TestRandom(count > 3 ? Number(arguments[3]) : 1, Number(arguments[2]), true);
    TestGpuOps(Number(arguments[2]));
    TestGpuScratch();
  } else if (count > 2 && std::strcmp(arguments[1], "--create") == 0) {
    const std::string error = CreateOnGpu(arguments[2]);
    std::printf("%s\n", error.empty() ? "created" : error.c_str());
    return 0;
  } else if (count > 1 && !Runs(arguments[1])) {
    std::printf("%s: asked for, and did not run\n", arguments[1]);
    return 1;
  } else {
    RunAll();
  }
  ReportIsas();
  std::printf("%ld checks, %ld failures\n", tally.checks, tally.failures);
  return tally.failures == 0 ? 0 : 1;
}
