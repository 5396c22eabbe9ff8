// How FpQuantize and its like run on a GPU.

#ifndef FP4DIT_GPU_QUANTIZE_H_
#define FP4DIT_GPU_QUANTIZE_H_

#include <cstddef>

#include "core/formats.h"
#include "gpu/arguments.h"
#include "gpu/launch.h"

namespace fp4dit::gpu {

// `rows` rows of `k` inputs, in groups of `group_size`, 1 to k, to integers of `format`. The caller
// has checked attributes as the CPU's operator does.
struct QuantizeCall {
  const Format* format;
  size_t rows, k, group_size;
  float largest = 0.0f;               // see QuantizeArguments
  const float* candidates = nullptr;  // null: the format's largest integer
  size_t candidate_count = 1;
  bool gelu = false;  // of the GELU of x; integers of 8 or 16 bits
  const float* x;
  void* q;
  float* scale;
};

Launch PlanQuantize(const QuantizeCall& call);

}  // namespace fp4dit::gpu

#endif  // FP4DIT_GPU_QUANTIZE_H_
