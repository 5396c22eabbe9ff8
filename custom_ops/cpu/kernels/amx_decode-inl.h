// How weights are decoded for tiles. Included by amx_int8.cc only; see linear_tile-inl.h on the
// anonymous namespace.

#ifndef FP4DIT_CPU_KERNELS_AMX_DECODE_INL_H_
#define FP4DIT_CPU_KERNELS_AMX_DECODE_INL_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/amx_staging-inl.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/x86-inl.h"

namespace fp4dit {
namespace {

using Vector512 = Vector<512>;

constexpr size_t kPanel = 64;
constexpr size_t kUnit = 4;
constexpr size_t kChunk = 256;  // inputs decoded at once

// Makes `count` inputs of the panel, from `k` on, int8, with zeros up to whole steps, and advances
// `packed` over them. The result is `decoded`, or the panel itself.
const int8_t* Decode(const LinearTile& tile, size_t k, size_t count, const uint8_t** packed,
                     int8_t* decoded) {
  const uint8_t* from = *packed;
  const size_t blocks = RoundUp(count, kUnit) / kUnit;
  if (tile.storage == kBytes && count % kStep == 0) {
    *packed += count * kPanel;
    return reinterpret_cast<const int8_t*>(from);
  }
  const __m512i table = Vector512::Table(tile.table);
  *packed += tile.multipliers != nullptr
                 ? DecodeMultiplied<Vector512, kUnit, kPanel>(tile, from, k, blocks, 0, decoded)
                 : DecodeToBytes<Vector512, kUnit * kPanel>(tile, from, blocks, table, 0, decoded);
  const size_t done = blocks * kUnit;
  std::memset(decoded + done * kPanel, 0, (RoundUp(count, kStep) - done) * kPanel);
  return decoded;
}

// Whole panels, chunk by chunk as Decode leaves them.
struct TileSteps {
  static constexpr size_t kUnit = 1;
  static constexpr size_t kPanel = fp4dit::kPanel;
  static constexpr size_t kStep = fp4dit::kStep;
  static constexpr size_t kChunk = fp4dit::kChunk;
  using Operand = int8_t;
};

void DecodeSteps(const LinearTile& tile, void* to) {
  auto* decoded = static_cast<int8_t*>(to);
  const uint8_t* packed = tile.panel;
  for (size_t begin = 0; begin < tile.k; begin += tile.group_size) {
    const size_t end = tile.k - begin < tile.group_size ? tile.k : begin + tile.group_size;
    for (size_t k = begin; k < end; k += kChunk) {
      const size_t count = end - k < kChunk ? end - k : kChunk;
      const int8_t* const chunk = Decode(tile, k, count, &packed, decoded);
      const size_t bytes = RoundUp(count, kStep) * kPanel;
      if (chunk != decoded) std::memcpy(decoded, chunk, bytes);
      decoded += bytes;
    }
  }
}

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_AMX_DECODE_INL_H_
