// The loop over groups and chunks that the linear kernels share; included by files of kernels only.
//
// All of it is in an anonymous namespace on purpose: each file gets its own copy, compiled for its
// own instruction set, and the linker cannot merge them (see kernels.h).
//
// A `Dot` supplies
//   Operand, Accumulator                    types of a decoded weight and of a sum
//   kPanel, kUnit, kRows                    panel width, inputs a block, rows at a time
//   kExtra                                  operands that Decode may store behind a chunk's
//   Decode(tile, packed, blocks, operand)   decodes blocks of the panel; returns the bytes read
//   Rows<R>(DotRows)                        R rows (1 to kRows) times one chunk
//   Finish(tile, sum)                       y = fma(scale, sum, bias)

#ifndef FP4DIT_KERNELS_LINEAR_TILE_INL_H_
#define FP4DIT_KERNELS_LINEAR_TILE_INL_H_

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

namespace fp4dit {
namespace {

// One chunk of one group for a few rows. Arrays of accumulators are [row][panel].
template <typename Dot>
struct DotRows {
  const LinearTile* tile;
  size_t row;  // the first
  size_t k;    // the chunk's first input
  size_t count;
  bool first;  // chunk of its group: accumulators start from zero
  bool last;   // chunk of its group: fold into `sum`
  const typename Dot::Operand* operand;
  const float* group_scale;  // [panel]
  typename Dot::Accumulator* accumulator;
  float* sum;
};

template <typename Dot, size_t R = Dot::kRows>
void RunRows(const DotRows<Dot>& rows, size_t count) {
  if (count == R) {
    Dot::template Rows<R>(rows);
  } else if constexpr (R > 1) {
    RunRows<Dot, R - 1>(rows, count);
  }
}

template <typename Dot>
void RunChunk(DotRows<Dot> rows) {
  for (size_t row = 0; row < rows.tile->rows; row += Dot::kRows) {
    const size_t left = rows.tile->rows - row;
    rows.row = row;
    RunRows<Dot>(rows, left < Dot::kRows ? left : Dot::kRows);
  }
}

template <typename Dot>
void RunLinearTile(const LinearTile& tile) {
  static_assert(kChunk % Dot::kUnit == 0, "a chunk is whole blocks");
  alignas(64) typename Dot::Operand operand[kChunk * Dot::kPanel + Dot::kExtra];
  alignas(64) typename Dot::Accumulator accumulator[kMaxTileRows * Dot::kPanel];
  alignas(64) float sum[kMaxTileRows * Dot::kPanel];
  for (size_t i = 0; i < tile.rows * Dot::kPanel; ++i) sum[i] = 0.0f;
  const uint8_t* packed = tile.panel;
  const float* group_scale = tile.group_scale;
  for (size_t begin = 0; begin < tile.k; begin += tile.group_size) {
    const size_t left = tile.k - begin;
    const size_t size = left < tile.group_size ? left : tile.group_size;
    for (size_t done = 0; done < size; done += kChunk) {
      const size_t count = size - done < kChunk ? size - done : kChunk;
      packed += Dot::Decode(tile, packed, (count + Dot::kUnit - 1) / Dot::kUnit, operand);
      RunChunk<Dot>({&tile, 0, begin + done, count, done == 0, done + count == size, operand,
                     group_scale, accumulator, sum});
    }
    group_scale += Dot::kPanel;
  }
  Dot::Finish(tile, sum);
}

// The table entry of a dot.
template <typename Dot>
constexpr LinearKernel kLinear = {{Dot::kPanel, Dot::kUnit}, RunLinearTile<Dot>};

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_KERNELS_LINEAR_TILE_INL_H_
