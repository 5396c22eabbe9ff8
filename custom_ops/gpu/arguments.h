// The arguments of the kernels, one struct each, which the host fills and passes by value. Pointers
// are of the device; tensors are dense, their rows one after the other.

#ifndef FP4DIT_GPU_ARGUMENTS_H_
#define FP4DIT_GPU_ARGUMENTS_H_

#include "gpu/types.h"

namespace fp4dit::gpu {

constexpr int kMostCandidates = 4;

// numerics.quantize and quantize_static: x [rows, k] to q [rows, k] and scale [rows, groups].
struct QuantizeArguments {
  const float* x;
  void* q;
  float* scale;
  int64_t count;  // groups of all rows
  int64_t k, group_size, groups;
  float largest;  // a magnitude that becomes the largest integer; 0: the group's own
  int32_t mantissa_bits;
  int32_t warps;  // that quantize a group: 1, or all of a block
  int32_t candidate_count;
  float candidates[kMostCandidates];  // largest integers to choose from; one: the format's
};

}  // namespace fp4dit::gpu

#endif  // FP4DIT_GPU_ARGUMENTS_H_
