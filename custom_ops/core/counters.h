// Counts of kernel calls, so that a test can prove which kernel ran. Thread safe.

#ifndef FP4DIT_CORE_COUNTERS_H_
#define FP4DIT_CORE_COUNTERS_H_

#include <cstddef>
#include <cstdint>

namespace fp4dit {

enum CountedOp : int {
#define FP4DIT_OP(name) kCount##name,
#include "ops/ops.inc"
#undef FP4DIT_OP
  kCountedOps
};
constexpr int kCountedKinds = 3;  // int8, int16, float: of DotKind and IntegerType

// In the place of an instruction set: the kernel ran on a GPU.
constexpr size_t kCountGpu = SIZE_MAX;

// One more call of `op`'s kernel of `kind` (0 to 2), from instruction set `isa`. What the kind says
// apart, the three that quantize, is counted under one name.
void Count(CountedOp op, int kind, size_t isa);
void ResetCounters();
// {"FpLinear/int8/avx2": 3, ...} of the counts that are not zero. Returns the length of the whole
// text; writes at most `size` bytes of it, the closing zero included.
size_t WriteCounters(char* text, size_t size);

}  // namespace fp4dit

#endif  // FP4DIT_CORE_COUNTERS_H_
