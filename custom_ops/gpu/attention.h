// How FpAttention runs on a GPU.

#ifndef FP4DIT_GPU_ATTENTION_H_
#define FP4DIT_GPU_ATTENTION_H_

#include <cstddef>

#include "cpu/kernels/kernels.h"
#include "gpu/arguments.h"
#include "gpu/launch.h"

namespace fp4dit::gpu {

// A call whose shapes the CPU's operator would take, on the device: size is 1 to 256, and there is
// a key at least.
struct AttentionCall {
  const void *q, *k, *v;
  const float *q_scale, *k_scale, *v_scale, *bias;
  float* y;
  size_t batch, queries, keys, heads, size;
  bool bias_by_batch, bias_by_key;  // or one for all
  float attention_scale;
  IntegerType type;    // int8 or int16
  size_t value_group;  // keys whose products with v fit a sum: whole chunks, at most a tile
};

Launch PlanAttention(const AttentionCall& call);

}  // namespace fp4dit::gpu

#endif  // FP4DIT_GPU_ATTENTION_H_
