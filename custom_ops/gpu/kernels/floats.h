// Floats that several kernels share; included by kernels.

#ifndef FP4DIT_GPU_KERNELS_FLOATS_H_
#define FP4DIT_GPU_KERNELS_FLOATS_H_

#include "gpu/types.h"

namespace {

constexpr uint32_t kInfinity = 0x7f800000;  // bits, as the next two
constexpr uint32_t kMinusInfinity = 0xff800000;
constexpr uint32_t kNan = 0x7fc00000;
// 1.5 * 2^23, whose float's last bits are an integer's: what is added to it is rounded to one, and
// sums of integers that start from its bits are floats.
constexpr float kMagic = 12582912.0f;
constexpr int32_t kMagicBits = 0x4b400000;
// Below it a group's largest magnitude makes all its integers zeros: as in cpu/kernels/kernels.h.
constexpr float kSmallestAmax = 0x1p-90f;

}  // namespace

#endif  // FP4DIT_GPU_KERNELS_FLOATS_H_
