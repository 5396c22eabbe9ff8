// FpHadamard: numerics.hadamard is the definition.

#include "gpu/kernels/rotate.h"

KERNEL(128) fp4dit_hadamard(fp4dit::gpu::HadamardArguments a) {
  const int warp = Thread() / 32;
  const int64_t at = Block() * (Threads() / 32) + warp;
  if (at >= a.count) return;  // whole warps
  auto* const buffer = reinterpret_cast<float*>(Shared()) + warp * fp4dit::gpu::kMostRotated;
  const int64_t row = at / a.rows.parts * a.rows.k;
  const int64_t index = at % a.rows.parts;
  RotatePart(a.rows, index, a.x + row, buffer);
  float* const y = a.y + row + index * a.rows.part;
  const int64_t left = a.rows.k - index * a.rows.part;
  for (int64_t i = Thread() % 32; i < left && i < a.rows.part; i += 32) y[i] = buffer[i];
}
