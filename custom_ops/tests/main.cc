// Runs all tests; prints which instruction sets ran, and fails if the one asked for as an argument
// is not among them.

#include <cstring>

#include "check.h"
#include "kernels/registry.h"

int main(int count, char** arguments) {
  using namespace fp4dit;
  test::TestComparator();
  test::TestFormats();
  test::TestRegistry();
  test::TestQuantizeKernels();
  test::TestLinearKernels();
  test::TestOps();
  size_t isa_count = 0;
  const Isa* isas = AllIsas(&isa_count);
  bool found = count < 2;
  for (size_t i = 0; i < isa_count; ++i) {
    const bool ran = isas[i].is_supported();
    std::printf("%s: %s\n", isas[i].name, ran ? "ran" : "skipped, this machine does not have it");
    found = found || (ran && std::strcmp(isas[i].name, arguments[1]) == 0);
  }
  if (!found) std::printf("%s: asked for, and did not run\n", arguments[1]);
  std::printf("%ld checks, %ld failures\n", test::tally.checks, test::tally.failures);
  return test::tally.failures == 0 && found ? 0 : 1;
}
