// How rows of activations are staged for tiles. Included by amx_int8.cc only; see linear_tile-inl.h
// on the anonymous namespace.

#ifndef FP4DIT_CPU_KERNELS_AMX_STAGING_INL_H_
#define FP4DIT_CPU_KERNELS_AMX_STAGING_INL_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/amx_tiles-inl.h"
#include "cpu/kernels/linear_tile-inl.h"

namespace fp4dit {
namespace {

constexpr size_t kStep = kTileBytes;  // inputs of one tile; memory holds no more than whole units

// How both are staged, but that int16 become two planes of bytes a group.
template <typename T>
struct StagedRows {
  using Act = T;
  static constexpr size_t kStep = fp4dit::kStep;
  static constexpr bool kSums = false;
};

// One row of a group, and zeros up to the padded size.
template <typename T>
void StagePlanes(const T* q, size_t size, uint8_t* high, uint8_t* low) {
  for (size_t i = 0; i < size; ++i) {
    high[i] = static_cast<uint8_t>(q[i] >> 8);
    low[i] = static_cast<uint8_t>(q[i]);
  }
  const size_t rest = RoundUp(size, kStep) - size;
  std::memset(high + size, 0, rest);
  std::memset(low + size, 0, rest);
}

int32_t StageShorts(const Activations& a, void* staged) {
  uint8_t* to = static_cast<uint8_t*>(staged);
  for (size_t begin = 0; begin < a.k; begin += a.group_size) {
    const size_t size = a.k - begin < a.group_size ? a.k - begin : a.group_size;
    const size_t padded = RoundUp(size, kStep);
    const size_t plane = a.rows * padded;
    for (size_t r = 0; r < a.rows; ++r, to += padded) {
      const size_t first = r * a.k + begin;
      if (a.q_type == kInt8Type) {
        StagePlanes(static_cast<const int8_t*>(a.q) + first, size, to, to + plane);
      } else {
        StagePlanes(static_cast<const int16_t*>(a.q) + first, size, to, to + plane);
      }
    }
    to += plane;
  }
  return 0;
}

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_AMX_STAGING_INL_H_
