// fp4dit_tests [ISA]: runs all tests; prints which instruction sets ran, and fails if the one asked
// for is not among them.
// fp4dit_tests --random COUNT [SEED]: that many random cases only.

#include <cstdlib>
#include <cstring>

#include "check.h"
#include "kernels/registry.h"

namespace fp4dit::test {
namespace {

void RunAll() {
  TestComparator();
  TestFormats();
  TestRegistry();
  TestQuantizeKernels();
  TestLinearKernels();
#if !defined(_WIN32)
  TestGuards();
#endif
  TestOps();
  TestOddRows();
  TestRandom(1, 500);
}

// Prints which instruction sets ran; whether `wanted` (null: any) did.
bool ReportIsas(const char* wanted) {
  size_t isa_count = 0;
  const Isa* isas = AllIsas(&isa_count);
  bool found = wanted == nullptr;
  for (size_t i = 0; i < isa_count; ++i) {
    const bool ran = isas[i].is_supported();
    std::printf("%s: %s\n", isas[i].name, ran ? "ran" : "skipped, this machine does not have it");
    found = found || (ran && std::strcmp(isas[i].name, wanted) == 0);
  }
  if (!found) std::printf("%s: asked for, and did not run\n", wanted);
  return found;
}

unsigned Number(const char* text) { return static_cast<unsigned>(std::strtoul(text, nullptr, 10)); }

}  // namespace
}  // namespace fp4dit::test

int main(int count, char** arguments) {
  using namespace fp4dit::test;
  const char* wanted = nullptr;
  if (count > 2 && std::strcmp(arguments[1], "--random") == 0) {
    const unsigned cases = Number(arguments[2]);
    TestRandom(count > 3 ? Number(arguments[3]) : 1, cases);
    std::printf("%u random cases\n", cases);
  } else {
    wanted = count > 1 ? arguments[1] : nullptr;
    RunAll();
  }
  const bool found = ReportIsas(wanted);
  std::printf("%ld checks, %ld failures\n", tally.checks, tally.failures);
  return tally.failures == 0 && found ? 0 : 1;
}
