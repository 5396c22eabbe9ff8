// Rows rotated by a warp's Hadamard matrices; included by kernels.

#ifndef FP4DIT_GPU_KERNELS_ROTATE_H_
#define FP4DIT_GPU_KERNELS_ROTATE_H_

#include "gpu/arguments.h"
#include "gpu/device.h"
#include "gpu/kernels/exp.h"

namespace {

using fp4dit::gpu::RowParts;

// 1 / sqrt(size), as kHadamardFactors: a power of two, times the root of 1/2 where its exponent is
// odd.
DEVICE float FactorOf(int size) {
  int exponent = 0;
  while (size > 1 << exponent) ++exponent;
  const float power = AsFloat(static_cast<uint32_t>(127 - exponent / 2) << 23);
  return exponent % 2 == 0 ? power : Mul(power, 0.70710678118654752440f);
}

// One matrix, by one warp, of x or its GELU: sums and differences of elements a power of two apart,
// ascending.
template <bool kGelu>
DEVICE void RotateBlock(const float* x, int size, float* y) {
  const int lane = Thread() % 32;
  for (int i = lane; i < size; i += 32) y[i] = kGelu ? Gelu(x[i]) : x[i];
  SyncWarp();
  for (int distance = 1; distance < size; distance *= 2) {
    for (int pair = lane; pair < size / 2; pair += 32) {
      float* const at = y + pair / distance * 2 * distance + pair % distance;
      const float a = at[0];
      const float b = at[distance];
      at[0] = Add(a, b);
      at[distance] = Sub(a, b);
    }
    SyncWarp();
  }
  const float factor = FactorOf(size);
  for (int i = lane; i < size; i += 32) y[i] = Mul(y[i], factor);
  SyncWarp();
}

// Part `index` of the row x, which is a block or the rest, to y: where that part goes.
template <bool kGelu = false>
DEVICE void RotatePart(const RowParts& parts, int64_t index, const float* x, float* y) {
  x += index * parts.part;
  int64_t left = parts.k - index * parts.part;
  if (left > parts.part) left = parts.part;
  for (int64_t size = parts.part; left > 0; size /= 2) {
    if (size > left) continue;
    RotateBlock<kGelu>(x, static_cast<int>(size), y);
    x += size;
    y += size;
    left -= size;
  }
}

}  // namespace

#endif  // FP4DIT_GPU_KERNELS_ROTATE_H_
