// The scales of a linear's weights.

#ifndef FP4DIT_GPU_KERNELS_WEIGHT_SCALE_H_
#define FP4DIT_GPU_KERNELS_WEIGHT_SCALE_H_

#include "gpu/arguments.h"
#include "gpu/device.h"

namespace linear {

DEVICE float WeightScale(const fp4dit::gpu::LinearArguments& a, int64_t group, int64_t channel) {
  const int64_t at = group * a.n_padded + channel;
  if (a.scale_is_half != 0) return HalfToFloat(static_cast<const uint16_t*>(a.weight_scale)[at]);
  return static_cast<const float*>(a.weight_scale)[at];
}

}  // namespace linear

#endif  // FP4DIT_GPU_KERNELS_WEIGHT_SCALE_H_
