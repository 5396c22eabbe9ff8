// Which kernels there are, which run here, and which were chosen.

#ifndef FP4DIT_CPU_KERNELS_REGISTRY_H_
#define FP4DIT_CPU_KERNELS_REGISTRY_H_

#include <cstddef>

#include "cpu/kernels/kernels.h"

namespace fp4dit {

struct Isa {
  const char* name;
  const Kernels* kernels;
  bool (*is_supported)();
};

// All instruction sets of this build, best first; the last one runs everywhere.
const Isa* AllIsas(size_t* count);

// The names of those that this machine runs, comma separated.
const char* SupportedIsas();

// A kernel and the instruction set that it came from (an index into AllIsas).
struct ChosenLinear {
  const LinearKernel* kernel;
  size_t isa;
};
template <typename Function>
struct Chosen {
  Function run;
  size_t isa;
};

// The best supported kernels from instruction set `isa` downwards, for weights held as `storage`.
ChosenLinear ChooseLinear(size_t isa, DotKind kind, WeightStorage storage);
// Of int16, that of `chosen`'s instruction set whose panels fit `channels` best.
const LinearKernel* ChooseNarrow(const ChosenLinear& chosen, WeightStorage storage,
                                 size_t channels);
Chosen<QuantizeRow> ChooseQuantize(size_t isa, IntegerType type);
Chosen<SoftmaxKernel> ChooseSoftmax(size_t isa);
Chosen<QuantizeError> ChooseError(size_t isa);
Chosen<HadamardRow> ChooseHadamard(size_t isa);
Chosen<GeluRow> ChooseGelu(size_t isa);
Chosen<NormKernels> ChooseNorm(size_t isa);
Chosen<DequantizeRun> ChooseDequantize(size_t isa, IntegerType type);

// The largest sum that `size` products can be on the way to, in any kernel of any machine; must be
// below kSumLimit. numerics.largest_sum is the same.
double LargestSum(DotKind kind, double max_act, double max_weight, size_t size);
constexpr double kSumLimit = 2147483648.0;

// Where kernels come from.
struct Selection {
  size_t isa;
  char error[256];  // empty, or why FP4DIT_ISA cannot be followed
};

// The instruction set that nodes created from now on use: the one last selected here, else the one
// that the environment's FP4DIT_ISA names, else the best supported.
Selection Selected();
// Selects `name`; null goes back to the environment's. False, and nothing selected, if this machine
// or build does not have it.
bool SelectIsa(const char* name);

// `rounds` of the loop that measures the instruction set called `isa`; see LinearKernel::peak. 0 if
// it is not supported here or has no such loop.
double Peak(const char* isa, int kind, size_t rounds);

// What `requested` (null or empty: the best) selects.
Selection Select(const char* requested);

}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_REGISTRY_H_
