// What the linear kernels share: staging, and the loop over groups and chunks. Included by files of
// kernels only.
//
// All of it is in an anonymous namespace on purpose: each file gets its own copy, compiled for its
// own instruction set, and the linker cannot merge them (see kernels.h).
//
// A `Dot` supplies
//   Act, Operand, Accumulator               types of an activation, a decoded weight, and a sum
//   kPanel, kUnit, kStep, kRows             panel width, k_unit, k_step, rows at a time
//   kChunk                                  inputs decoded at once, a multiple of kStep
//   kReach                                  see Reach
//   kSums                                   whether a group's sum of activations is wanted
//   Decode(tile, packed, k, blocks, operand)  decodes blocks of the panel, from input k on; returns
//                                           the bytes read
//   Rows<R>(DotRows)                        R rows (1 to kRows) times one chunk
//   FoldPanel(scale, sum, y)                y = fma(scale, sum, y) of a panel
//   FoldPanel(scale, accumulator, y)        the same under one scale
//   Finish(tile, sum)                       y of scale, sum and bias, see LinearTile
//   Peak(rounds)                            see LinearKernel
// and may supply, if its kReadsCodes is true
//   RunCodes(DotRows, packed)               one row times a whole group straight from 4-bit codes;
//                                           returns the bytes read. Of weights with multipliers, a
//                                           group's row is staged as one group a multiplier
// and, if its kSumsRows is true, a faster
//   SumRow(q, size, largest)                SumPlainly; the largest magnitude only if Rows uses it
// and, if its kShiftsRows is true,
//   ShiftRow(q, size, by)                   makes staged rows unsigned: with multipliers, and more
//                                           than one row, they are staged plus the largest
//                                           magnitude
// and kFoldsActs, true if Rows folds a group under rows' scales too, not from accumulators;
// and kColumns, of a panel, if it does not multiply all of its channels;
// and kFinishes, true if Rows finishes y of a tile that has but one group;
// and, if its kExtra is not 0, so many elements of its own behind a chunk's operand, of weights
// with multipliers.

#ifndef FP4DIT_CPU_KERNELS_LINEAR_TILE_INL_H_
#define FP4DIT_CPU_KERNELS_LINEAR_TILE_INL_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/stage_rows-inl.h"

namespace fp4dit {
namespace {

// One chunk of one group for a few rows. Arrays of accumulators are [row][panel].
template <typename Dot>
struct DotRows {
  const LinearTile* tile;
  const typename Dot::Act* q;  // the first row's part of the chunk
  size_t q_stride;             // activations from row to row
  const int32_t* group_sum;    // of the rows, if kSums
  size_t k;                    // inputs before the chunk
  size_t blocks;               // of kUnit inputs; whole steps of kStep
  bool first;                  // chunk of its group: accumulators start anew
  bool last;                   // chunk of its group: fold into `sum`
  const typename Dot::Operand* operand;
  const float* group_scale;                // [panel]
  const float* act_scale;                  // null, or of the first row: see LinearTile
  typename Dot::Accumulator* accumulator;  // of the rows
  float* sum;                              // of the rows
  size_t finishes = SIZE_MAX;  // the first row in the tile, if `last` is to finish y, not to fold
};

// A function of its own: inlined into the loops around it, it would compete for registers with
// them.
template <typename Dot, size_t R>
FP4DIT_NEVER_INLINE void RunSomeRows(const DotRows<Dot>& rows) {
  Dot::template Rows<R>(rows);
}

template <typename Dot, size_t R = Dot::kRows>
void RunRows(const DotRows<Dot>& rows, size_t count) {
  if (count == R) {
    RunSomeRows<Dot, R>(rows);
  } else if constexpr (R > 1) {
    RunRows<Dot, R - 1>(rows, count);
  }
}

template <typename Dot>
void RunChunk(DotRows<Dot> rows) {
  for (size_t left = rows.tile->rows; left > 0;) {
    const size_t count = left < Dot::kRows ? left : Dot::kRows;
    RunRows<Dot>(rows, count);
    left -= count;
    rows.q += count * rows.q_stride;
    rows.group_sum += Dot::kSums ? count : 0;
    rows.accumulator += count * Dot::kPanel;
    rows.sum += count * Dot::kPanel;
    if (rows.act_scale != nullptr) rows.act_scale += count * rows.tile->act_stride;
    if (rows.finishes != SIZE_MAX) rows.finishes += count;
  }
}

template <typename Dot>
constexpr DotKind kKind = sizeof(typename Dot::Act) == 1   ? kDotInt8
                          : sizeof(typename Dot::Act) == 2 ? kDotInt16
                                                           : kDotFloat;

template <typename Dot, typename = void>
constexpr size_t kExtraOf = 0;
template <typename Dot>
constexpr size_t kExtraOf<Dot, std::enable_if_t<(Dot::kExtra > 0)>> = Dot::kExtra;

// The sums of rows under scales of their own, see LinearTile::act_scale.
template <typename Dot, size_t kPanel = Dot::kPanel>
struct FoldedRows {
  alignas(64) float y[kMaxTileRows * kPanel];

  void Begin(const LinearTile& tile) {
    for (size_t r = 0; r < tile.rows; ++r) {
      std::memcpy(y + r * kPanel, tile.bias, kPanel * sizeof(float));
    }
  }
  // Ends a scale group: its sums start anew.
  void Fold(const LinearTile& tile, const float* group_scale, float* sum) {
    for (size_t r = 0; r < tile.rows; ++r) {
      Dot::FoldPanel(group_scale, sum + r * kPanel, y + r * kPanel);
    }
    std::memset(sum, 0, tile.rows * kPanel * sizeof(float));
  }
  void End(const LinearTile& tile) const {
    for (size_t r = 0; r < tile.rows; ++r) {
      std::memcpy(tile.y + r * tile.y_stride, y + r * kPanel, tile.columns * sizeof(float));
    }
  }
};

// Inputs of a chunk of a panel that is decoded before: a whole group, whose sums then stay in
// registers, but where chunks have something behind them.
template <typename Dot>
constexpr size_t kDecodedChunk =
    kExtraOf<Dot> > 0 ? Dot::kChunk : ~size_t{0} / Dot::kUnit * Dot::kUnit;

// Elements that blocks are decoded to.
template <typename Dot>
size_t OperandSize(const LinearTile& tile, size_t blocks) {
  return blocks * Dot::kUnit * Dot::kPanel + (tile.multipliers != nullptr ? kExtraOf<Dot> : 0);
}

// f(first input, blocks) for all chunks of a panel that is decoded before.
template <typename Dot, typename Function>
void ForChunks(const LinearTile& tile, const Function& f) {
  for (size_t begin = 0; begin < tile.k; begin += tile.group_size) {
    const size_t left = tile.k - begin;
    const size_t size = left < tile.group_size ? left : tile.group_size;
    for (size_t done = 0, count = 0; done < size; done += count) {
      count = size - done < kDecodedChunk<Dot> ? size - done : kDecodedChunk<Dot>;
      f(begin + done, RoundUp(count, Dot::kStep) / Dot::kUnit);
    }
  }
}

template <typename Dot>
size_t DecodedBytes(const LinearTile& tile) {
  size_t size = 0;
  ForChunks<Dot>(tile, [&](size_t, size_t blocks) { size += OperandSize<Dot>(tile, blocks); });
  return size * sizeof(typename Dot::Operand);
}

template <typename Dot>
void DecodePanel(const LinearTile& tile, void* to) {
  auto* operand = static_cast<typename Dot::Operand*>(to);
  const uint8_t* packed = tile.panel;
  ForChunks<Dot>(tile, [&](size_t k, size_t blocks) {
    packed += Dot::Decode(tile, packed, k, blocks, operand);
    operand += OperandSize<Dot>(tile, blocks);
  });
}

// Where the weights of the next group begin.
template <typename Dot>
struct Weights {
  const uint8_t* packed;
  const typename Dot::Operand* decoded;  // null: chunks are to be decoded, to
  typename Dot::Operand* operand;

  // The operand of the next chunk.
  const typename Dot::Operand* Next(const LinearTile& tile, size_t k, size_t blocks) {
    if (decoded != nullptr) {
      const auto* const chunk = decoded;
      decoded += OperandSize<Dot>(tile, blocks);
      return chunk;
    }
    const size_t bytes = Dot::Decode(tile, packed, k, blocks, operand);
    packed += bytes;
    // The next codes come while these are multiplied; past the end of all nothing is read.
    for (size_t i = 0; i < bytes; i += 64) FP4DIT_PREFETCH(packed + i);
    return operand;
  }
};

template <typename Dot, typename = void>
constexpr bool kFoldsActScales = false;
template <typename Dot>
constexpr bool kFoldsActScales<Dot, std::enable_if_t<Dot::kFoldsActs>> = true;

template <typename Dot, typename = void>
constexpr bool kFinishesTiles = false;
template <typename Dot>
constexpr bool kFinishesTiles<Dot, std::enable_if_t<Dot::kFinishes>> = true;

// Whether a tile is one row straight from its codes.
template <typename Dot>
bool IsRunFromCodes(const LinearTile& tile) {
  return kHasRunCodes<Dot> && tile.rows == 1 && tile.storage == kNibbles;
}

// One group of all rows.
template <typename Dot>
void RunGroup(DotRows<Dot> rows, Weights<Dot>* weights) {
  const LinearTile& tile = *rows.tile;
  const float* const act_scale = rows.act_scale;
  if constexpr (kHasRunCodes<Dot>) {
    if (IsRunFromCodes<Dot>(tile)) {
      alignas(64) float scale[Dot::kPanel];
      for (size_t n = 0; n < Dot::kPanel && act_scale != nullptr; ++n) scale[n] = *act_scale;
      if (act_scale != nullptr) rows.group_scale = scale;
      weights->packed += Dot::RunCodes(rows, weights->packed);
      return;
    }
  }
  const size_t most = (weights->decoded != nullptr ? kDecodedChunk<Dot> : Dot::kChunk) / Dot::kUnit;
  for (size_t left_blocks = rows.blocks; left_blocks > 0;) {
    rows.blocks = left_blocks < most ? left_blocks : most;
    left_blocks -= rows.blocks;
    rows.last = left_blocks == 0 && (act_scale == nullptr || kFoldsActScales<Dot>);
    rows.operand = weights->Next(tile, rows.k, rows.blocks);
    RunChunk<Dot>(rows);
    rows.first = false;
    rows.k += rows.blocks * Dot::kUnit;
    rows.q += rows.blocks * Dot::kUnit;
  }
  if (act_scale == nullptr || kFoldsActScales<Dot>) return;
  for (size_t r = 0; r < tile.rows; ++r) {
    const size_t at = r * Dot::kPanel;
    Dot::FoldPanel(act_scale[r * tile.act_stride], rows.accumulator + at, rows.sum + at);
  }
}

template <typename Dot>
void RunLinearTile(const LinearTile& tile) {
  static_assert(IsWithin(Dot::kReach, kMostReach[kKind<Dot>]), "see kMostReach");
  static_assert(Dot::kChunk % Dot::kStep == 0 && Dot::kStep % Dot::kUnit == 0, "whole blocks");
  alignas(64) typename Dot::Operand operand[Dot::kChunk * Dot::kPanel + kExtraOf<Dot>];
  alignas(64) typename Dot::Accumulator accumulator[kMaxTileRows * Dot::kPanel];
  alignas(64) float sum[kMaxTileRows * Dot::kPanel];
  FoldedRows<Dot> folded;
  const bool finishes = kFinishesTiles<Dot> && tile.k <= tile.group_size &&
                        tile.act_scale == nullptr && !IsRunFromCodes<Dot>(tile);
  for (size_t i = 0; i < tile.rows * Dot::kPanel && !finishes; ++i) sum[i] = 0.0f;
  if (tile.act_scale != nullptr) folded.Begin(tile);
  Weights<Dot> weights = {tile.panel, static_cast<const typename Dot::Operand*>(tile.decoded),
                          operand};
  const uint8_t* staged = static_cast<const uint8_t*>(tile.staged);
  for (size_t begin = 0; begin < tile.k; begin += tile.group_size) {
    const size_t left = tile.k - begin;
    const size_t size = left < tile.group_size ? left : tile.group_size;
    const size_t padded = RoundUp(size, Dot::kStep);
    const uint8_t* q = Dot::kSums ? staged + tile.rows * sizeof(int32_t) : staged;
    const float* const scale = tile.group_scale + begin / tile.scale_group * Dot::kPanel;
    const float* const act_scale =
        tile.act_scale == nullptr ? nullptr : tile.act_scale + begin / tile.act_group;
    RunGroup<Dot>({&tile, reinterpret_cast<const typename Dot::Act*>(q), padded,
                   reinterpret_cast<const int32_t*>(staged), begin, padded / Dot::kUnit, true, true,
                   nullptr, scale, act_scale, accumulator, sum, finishes ? 0 : SIZE_MAX},
                  &weights);
    staged += StagedGroupsBytes<Dot>(tile.rows, size,
                                     StagedGroup<Dot>(tile.rows, size, tile.multiplier_group));
    const bool ends = size == left || (begin + size) % tile.scale_group == 0;
    if (tile.act_scale != nullptr && ends) folded.Fold(tile, scale, sum);
  }
  if (tile.act_scale != nullptr) {
    folded.End(tile);
  } else if (!finishes) {
    Dot::Finish(tile, sum);
  }
}

// The widest weights that a dot decodes to what it multiplies.
template <typename Dot>
constexpr WeightStorage kWidest = kKind<Dot> == kDotInt8    ? kBytes
                                  : kKind<Dot> == kDotInt16 ? kShorts
                                                            : kBfloats;

template <typename Dot, typename = void>
constexpr size_t kMostColumns = Dot::kPanel;
template <typename Dot>
constexpr size_t kMostColumns<Dot, std::enable_if_t<(Dot::kColumns > 0)>> = Dot::kColumns;

// The table entry of a dot.
template <typename Dot>
constexpr LinearKernel kLinear = {{Dot::kPanel, Dot::kUnit, Dot::kStep},
                                  Dot::kRows,
                                  kWidest<Dot>,
                                  Dot::kReach,
                                  StagedBytes<Dot>,
                                  Stage<Dot>,
                                  RunLinearTile<Dot>,
                                  DecodedBytes<Dot>,
                                  DecodePanel<Dot>,
                                  Dot::Peak,
                                  !Dot::kSums && !kShifts<Dot>,
                                  kMostColumns<Dot>};

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_LINEAR_TILE_INL_H_
