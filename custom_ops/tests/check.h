// The smallest test harness: CHECK counts and prints failures; every test file has one entry.

#ifndef FP4DIT_TESTS_CHECK_H_
#define FP4DIT_TESTS_CHECK_H_

#include <cstdio>
#include <cstring>
#include <string>

namespace fp4dit::test {

struct Tally {
  long checks = 0;
  long failures = 0;
};
inline Tally tally;

#define CHECK(condition, ...)                                              \
  do {                                                                     \
    ++::fp4dit::test::tally.checks;                                        \
    if (!(condition) && ++::fp4dit::test::tally.failures <= 20) {          \
      std::printf("%s:%d: %s is false: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                            \
      std::printf("\n");                                                   \
    }                                                                      \
  } while (false)

// The same bits; all NaN count as the same.
inline bool Same(float a, float b) {
  return (a != a && b != b) || std::memcmp(&a, &b, sizeof(a)) == 0;
}

void TestComparator();
void TestFormats();
void TestRegistry();
void TestQuantizeKernels();
void TestLinearKernels();
void TestRotations();
void TestOps();
void TestIntegers();
void TestGuards();
void TestAmxEmulation();
// Random cases through the ops on every instruction set; see random_test.cc.
void TestRandom(unsigned seed, unsigned count, bool on_gpu = false);
void TestAttention(unsigned seed, unsigned count);  // random cases too
// The other operators of the CUDA provider.
void TestGpuOps(unsigned cases);
// Memory that kernels on a GPU share.
void TestGpuScratch();
// Why the GPU's kernel of an operator cannot be created; empty: it can.
std::string CreateOnGpu(const char* op);
void TestOddRows();
void TestLongestGroups();

}  // namespace fp4dit::test

#endif  // FP4DIT_TESTS_CHECK_H_
