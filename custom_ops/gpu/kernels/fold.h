// How the sums of a row and channel become y, one at a time: the order of numerics.linear, which
// linear_sums.h has for the fragments of a warp.

#ifndef FP4DIT_GPU_KERNELS_FOLD_H_
#define FP4DIT_GPU_KERNELS_FOLD_H_

#include "gpu/arguments.h"
#include "gpu/device.h"
#include "gpu/kernels/weight_scale.h"

namespace linear {

struct Fold {
  float group, y;

  DEVICE void Start(const fp4dit::gpu::LinearArguments& a, int64_t channel) {
    group = 0.0f;
    y = a.several != 0 ? a.bias[channel] : 0.0f;
  }
  // The sum of run `run`; `last` of all.
  DEVICE void Add(const fp4dit::gpu::LinearArguments& a, int64_t row, int64_t channel, int run,
                  bool last, float sum) {
    if (a.several != 0) {
      group = Fma(a.scale[row * a.scale_stride + run / a.act_runs], sum, group);
      if ((run + 1) % a.scale_runs != 0 && !last) return;
      sum = group;
      group = 0.0f;
    }
    y = Fma(WeightScale(a, run / a.scale_runs, channel), sum, y);
  }
  DEVICE float Result(const fp4dit::gpu::LinearArguments& a, int64_t row, int64_t channel) const {
    if (a.several != 0) return y;
    const float scale = a.scale[row * a.scale_stride];
    const float bias = a.bias[channel];
    return a.plain != 0 ? ::Add(Mul(scale, y), bias) : Fma(scale, y, bias);
  }
};

}  // namespace linear

#endif  // FP4DIT_GPU_KERNELS_FOLD_H_
