// How the sums of a row and channel become y, one at a time: the order of numerics.linear, which
// linear_sums.h has for the fragments of a warp.

#ifndef FP4DIT_GPU_KERNELS_FOLD_H_
#define FP4DIT_GPU_KERNELS_FOLD_H_

#include "gpu/arguments.h"
#include "gpu/device.h"
#include "gpu/kernels/weight_scale.h"

namespace linear {

struct Fold {
  float group = 0.0f;
  float y = 0.0f;  // where a row has several scales, it starts from the bias

  // The sum of a run under the scales of its groups; `ends`: it is the last of its group of
  // weights.
  DEVICE void Add(bool several, float act_scale, float weight_scale, bool ends, float sum) {
    if (several) {
      group = Fma(act_scale, sum, group);
      if (!ends) return;
      sum = group;
      group = 0.0f;
    }
    y = Fma(weight_scale, sum, y);
  }
  DEVICE float Result(const fp4dit::gpu::LinearArguments& a, float scale, float bias) const {
    if (a.several != 0) return y;
    return a.plain != 0 ? ::Add(Mul(scale, y), bias) : Fma(scale, y, bias);
  }
};

}  // namespace linear

#endif  // FP4DIT_GPU_KERNELS_FOLD_H_
