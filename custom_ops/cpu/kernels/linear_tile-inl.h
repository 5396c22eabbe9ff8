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
// and, if Rows wants them, kExtra elements of its own behind a chunk's operand.
//
// Staged rows are, group by group: int32 sums [rows] if wanted, then activations [rows, padded
// group].

#ifndef FP4DIT_CPU_KERNELS_LINEAR_TILE_INL_H_
#define FP4DIT_CPU_KERNELS_LINEAR_TILE_INL_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/kernels/kernels.h"

#if defined(__GNUC__)
#define FP4DIT_ALWAYS_INLINE inline __attribute__((always_inline))
#define FP4DIT_NEVER_INLINE __attribute__((noinline))
#define FP4DIT_PREFETCH(address) __builtin_prefetch(address)
// The compiler must have `value` in a register here, in this order with other such places: it may
// neither load nor compute it again, nor hold more of what comes between than registers do.
#define FP4DIT_KEEP(constraint, value) __asm__ volatile("" : "+" constraint(value))
#else
#define FP4DIT_ALWAYS_INLINE inline
#define FP4DIT_NEVER_INLINE __declspec(noinline)
#define FP4DIT_PREFETCH(address) static_cast<void>(address)
#define FP4DIT_KEEP(constraint, value) static_cast<void>(value)
#endif

namespace fp4dit {
namespace {

// f(0, arguments...) to f(N - 1, arguments...), written out. Arrays that only such calls index live
// in registers, if `f` captures nothing: a closure would hold their address.
template <size_t N, size_t I = 0, typename Function, typename... Arguments>
FP4DIT_ALWAYS_INLINE void Unroll(const Function& f, Arguments&... arguments) {
  if constexpr (I < N) {
    f(I, arguments...);
    Unroll<N, I + 1>(f, arguments...);
  }
}

// a * b modulo 2^32, as sums in registers are.
inline int32_t Wrapped(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
}

constexpr size_t RoundUp(size_t size, size_t step) { return (size + step - 1) / step * step; }

// Bytes of one group of `size` inputs of `rows` staged rows.
template <typename Dot>
size_t StagedGroupBytes(size_t rows, size_t size) {
  const size_t row = RoundUp(size, Dot::kStep) * sizeof(typename Dot::Act);
  return rows * (row + (Dot::kSums ? sizeof(int32_t) : 0));
}

// Bytes of `size` inputs in groups of `group`.
template <typename Dot>
size_t StagedGroupsBytes(size_t rows, size_t size, size_t group) {
  const size_t rest = size % group;
  return size / group * StagedGroupBytes<Dot>(rows, group) +
         (rest != 0 ? StagedGroupBytes<Dot>(rows, rest) : 0);
}

template <typename Dot, typename = void>
constexpr bool kHasRunCodes = false;
template <typename Dot>
constexpr bool kHasRunCodes<Dot, std::enable_if_t<Dot::kReadsCodes>> = true;

// Inputs of a staged group: of a row that is multiplied from codes, multipliers have their own.
template <typename Dot>
size_t StagedGroup(size_t rows, size_t group_size, size_t multiplier_group) {
  const bool finer = rows == 1 && multiplier_group != 0 && multiplier_group < group_size;
  return kHasRunCodes<Dot> && finer ? multiplier_group : group_size;
}

template <typename Dot>
size_t StagedBytes(const Activations& a) {
  const size_t group = StagedGroup<Dot>(a.rows, a.group_size, a.multiplier_group);
  return StagedGroupsBytes<Dot>(a.rows, a.k, group);
}

// One row of a group: `size` activations, then zeros up to the padded size.
template <typename Dot>
void StageRow(const Activations& a, size_t start, size_t size, typename Dot::Act* out) {
  using Act = typename Dot::Act;
  if (sizeof(Act) == 2 && a.q_type == kInt8Type) {
    const int8_t* q = static_cast<const int8_t*>(a.q) + start;
    for (size_t i = 0; i < size; ++i) out[i] = static_cast<Act>(q[i]);
  } else {
    std::memcpy(out, static_cast<const Act*>(a.q) + start, size * sizeof(Act));
  }
  for (size_t i = size; i < RoundUp(size, Dot::kStep); ++i) out[i] = 0;
}

// The sum of a staged row's group; `largest` becomes the largest magnitude so far.
inline int32_t SumPlainly(const int8_t* q, size_t size, int32_t* largest) {
  int32_t sum = 0;
  int32_t most = *largest;
  for (size_t i = 0; i < size; ++i) {
    const int32_t magnitude = q[i] < 0 ? -q[i] : q[i];
    most = magnitude > most ? magnitude : most;
    sum += q[i];
  }
  *largest = most;
  return sum;
}

template <typename Dot, typename = void>
constexpr bool kHasSumRow = false;
template <typename Dot>
constexpr bool kHasSumRow<Dot, std::enable_if_t<Dot::kSumsRows>> = true;

template <typename Dot>
int32_t SumRow(const int8_t* q, size_t size, int32_t* largest) {
  if constexpr (kHasSumRow<Dot>) {
    return Dot::SumRow(q, size, largest);
  } else {
    return SumPlainly(q, size, largest);
  }
}

template <typename Dot, typename = void>
constexpr bool kShifts = false;
template <typename Dot>
constexpr bool kShifts<Dot, std::enable_if_t<Dot::kShiftsRows>> = true;

template <typename Dot>
int32_t Stage(const Activations& a, void* staged) {
  using Act = typename Dot::Act;
  uint8_t* to = static_cast<uint8_t*>(staged);
  int32_t largest = 0;
  const size_t group = StagedGroup<Dot>(a.rows, a.group_size, a.multiplier_group);
  for (size_t begin = 0; begin < a.k; begin += group) {
    const size_t size = a.k - begin < group ? a.k - begin : group;
    const size_t padded = RoundUp(size, Dot::kStep);
    int32_t* sums = reinterpret_cast<int32_t*>(to);
    Act* rows = reinterpret_cast<Act*>(Dot::kSums ? to + a.rows * sizeof(int32_t) : to);
    for (size_t r = 0; r < a.rows; ++r) {
      StageRow<Dot>(a, r * a.k + begin, size, rows + r * padded);
      if constexpr (Dot::kSums) sums[r] = SumRow<Dot>(rows + r * padded, padded, &largest);
    }
    to += StagedGroupBytes<Dot>(a.rows, size);
  }
  if constexpr (kShifts<Dot>) {
    to = static_cast<uint8_t*>(staged);
    for (size_t begin = 0; begin < a.k && a.multiplier_group != 0 && a.rows > 1; begin += group) {
      const size_t size = a.k - begin < group ? a.k - begin : group;
      Act* rows = reinterpret_cast<Act*>(to + a.rows * sizeof(int32_t));
      Dot::ShiftRow(rows, a.rows * RoundUp(size, Dot::kStep), largest);
      to += StagedGroupBytes<Dot>(a.rows, size);
    }
  }
  return largest;
}

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
  typename Dot::Accumulator* accumulator;  // of the rows
  float* sum;                              // of the rows
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

// One group of all rows, whose weights begin at `packed`; returns the bytes of them.
template <typename Dot>
size_t RunGroup(DotRows<Dot> rows, const uint8_t* packed, typename Dot::Operand* operand) {
  const LinearTile& tile = *rows.tile;
  const float* const act_scale =
      tile.act_scale == nullptr ? nullptr : tile.act_scale + rows.k / tile.act_group;
  if constexpr (kHasRunCodes<Dot>) {
    if (tile.rows == 1 && tile.storage == kNibbles) {
      alignas(64) float scale[Dot::kPanel];
      for (size_t n = 0; n < Dot::kPanel && act_scale != nullptr; ++n) scale[n] = *act_scale;
      if (act_scale != nullptr) rows.group_scale = scale;
      return Dot::RunCodes(rows, packed);
    }
  }
  const uint8_t* const begin = packed;
  for (size_t left_blocks = rows.blocks; left_blocks > 0;) {
    constexpr size_t kMost = Dot::kChunk / Dot::kUnit;
    rows.blocks = left_blocks < kMost ? left_blocks : kMost;
    left_blocks -= rows.blocks;
    rows.last = left_blocks == 0 && act_scale == nullptr;
    const size_t bytes = Dot::Decode(tile, packed, rows.k, rows.blocks, operand);
    packed += bytes;
    // The next codes come while these are multiplied; past the end of all nothing is read.
    for (size_t i = 0; i < bytes; i += 64) FP4DIT_PREFETCH(packed + i);
    RunChunk<Dot>(rows);
    rows.first = false;
    rows.k += rows.blocks * Dot::kUnit;
    rows.q += rows.blocks * Dot::kUnit;
  }
  for (size_t r = 0; r < tile.rows && act_scale != nullptr; ++r) {
    const size_t at = r * Dot::kPanel;
    Dot::FoldPanel(act_scale[r * tile.act_stride], rows.accumulator + at, rows.sum + at);
  }
  return static_cast<size_t>(packed - begin);
}

template <typename Dot>
void RunLinearTile(const LinearTile& tile) {
  static_assert(IsWithin(Dot::kReach, kMostReach[kKind<Dot>]), "see kMostReach");
  static_assert(Dot::kChunk % Dot::kStep == 0 && Dot::kStep % Dot::kUnit == 0, "whole blocks");
  alignas(64) typename Dot::Operand operand[Dot::kChunk * Dot::kPanel + kExtraOf<Dot>];
  alignas(64) typename Dot::Accumulator accumulator[kMaxTileRows * Dot::kPanel];
  alignas(64) float sum[kMaxTileRows * Dot::kPanel];
  FoldedRows<Dot> folded;
  for (size_t i = 0; i < tile.rows * Dot::kPanel; ++i) sum[i] = 0.0f;
  if (tile.act_scale != nullptr) folded.Begin(tile);
  const uint8_t* packed = tile.panel;
  const uint8_t* staged = static_cast<const uint8_t*>(tile.staged);
  for (size_t begin = 0; begin < tile.k; begin += tile.group_size) {
    const size_t left = tile.k - begin;
    const size_t size = left < tile.group_size ? left : tile.group_size;
    const size_t padded = RoundUp(size, Dot::kStep);
    const uint8_t* q = Dot::kSums ? staged + tile.rows * sizeof(int32_t) : staged;
    const float* const scale = tile.group_scale + begin / tile.scale_group * Dot::kPanel;
    packed += RunGroup<Dot>({&tile, reinterpret_cast<const typename Dot::Act*>(q), padded,
                             reinterpret_cast<const int32_t*>(staged), begin, padded / Dot::kUnit,
                             true, true, operand, scale, accumulator, sum},
                            packed, operand);
    staged += StagedGroupsBytes<Dot>(tile.rows, size,
                                     StagedGroup<Dot>(tile.rows, size, tile.multiplier_group));
    const bool ends = size == left || (begin + size) % tile.scale_group == 0;
    if (tile.act_scale != nullptr && ends) folded.Fold(tile, scale, sum);
  }
  if (tile.act_scale != nullptr) {
    folded.End(tile);
  } else {
    Dot::Finish(tile, sum);
  }
}

// The widest weights that a dot decodes to what it multiplies.
template <typename Dot>
constexpr WeightStorage kWidest = kKind<Dot> == kDotInt8    ? kBytes
                                  : kKind<Dot> == kDotInt16 ? kShorts
                                                            : kBfloats;

// The table entry of a dot.
template <typename Dot>
constexpr LinearKernel kLinear = {{Dot::kPanel, Dot::kUnit, Dot::kStep},
                                  Dot::kRows,
                                  kWidest<Dot>,
                                  Dot::kReach,
                                  StagedBytes<Dot>,
                                  Stage<Dot>,
                                  RunLinearTile<Dot>,
                                  Dot::Peak};

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_LINEAR_TILE_INL_H_
