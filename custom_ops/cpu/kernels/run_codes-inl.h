// One row straight from 4-bit codes: what is used once is not worth storing decoded. Included by
// files of kernels only; see linear_tile-inl.h on the anonymous namespace, and on RunCodes.
//
// A `Multiply` has, beside what broadcast_dot-inl.h wants or in its place,
//   Registers                        V
//   kUnit                            inputs of a block
//   kBlocksAtOnce                    blocks with totals of their own, as one alone waits for its
//                                    sums
//   Table(tile)                      what codes are looked up in
//   Repeated(q)                      kUnit activations, as often as a vector holds them
//   Step(total, weight, factor)      total plus products
//   Sums(totals, act_sum, sums)      of the channels; act_sum is the activations', if kSums

#ifndef FP4DIT_CPU_KERNELS_RUN_CODES_INL_H_
#define FP4DIT_CPU_KERNELS_RUN_CODES_INL_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/decode_panel-inl.h"
#include "cpu/kernels/fold-inl.h"
#include "cpu/kernels/linear_tile-inl.h"

namespace fp4dit {
namespace {

template <typename Multiply, typename Dot>
struct CodesRow {
  using V = typename Multiply::Registers;
  using Int = typename V::Int;
  static constexpr size_t kVector = V::kLanes * kWordBytes;
  static constexpr size_t kBlockVectors = Dot::kPanel * Dot::kUnit / kVector;
  static constexpr size_t kCodes = Dot::kPanel * Dot::kUnit / 2;  // bytes of a block
  static constexpr size_t kSumVectors = Dot::kPanel / V::kLanes;
  using Totals = Int[Multiply::kBlocksAtOnce][kBlockVectors];
  using Sums = Int[kSumVectors];

  static FP4DIT_ALWAYS_INLINE void Add(const int8_t* q, const uint8_t* from, size_t blocks,
                                       const Int& table, Totals& total) {
    constexpr size_t kHalf = kBlockVectors / 2;
    constexpr size_t kMany = Multiply::kBlocksAtOnce;
    const auto add = [](size_t i, Totals& t, const uint8_t* codes_at, const int8_t* acts,
                        const Int& grid) {
      const size_t block = i / kHalf;
      const size_t v = i % kHalf;
      const auto act = Multiply::Repeated(acts + block * Dot::kUnit);
      const auto codes = V::Load(codes_at + block * kCodes + v * kVector);
      t[block][v] = Multiply::Step(t[block][v], LowCodes<V>(grid, codes), act);
      t[block][v + kHalf] = Multiply::Step(t[block][v + kHalf], HighCodes<V>(grid, codes), act);
    };
    for (; blocks >= kMany; blocks -= kMany, from += kMany * kCodes, q += kMany * Dot::kUnit) {
      Unroll<kMany * kHalf>(add, total, from, q, table);
    }
    for (; blocks > 0; --blocks, from += kCodes, q += Dot::kUnit) {
      Unroll<kHalf>(add, total, from, q, table);
    }
  }

  static size_t Run(const DotRows<Dot>& rows, const uint8_t* packed) {
    if (rows.tile->multipliers != nullptr) return RunMultiplied(rows, packed);
    Totals total = {};
    Add(rows.q, packed, rows.blocks, Multiply::Table(*rows.tile), total);
    Sums sum;
    Multiply::Sums(total, Dot::kSums ? rows.group_sum[0] : 0, sum);
    Fold(rows, sum);
    return rows.blocks * kCodes;
  }

  // The same with multipliers, of what the sums of their groups are multiplied.
  static size_t RunMultiplied(const DotRows<Dot>& rows, const uint8_t* packed) {
    constexpr size_t kHead = Dot::kSums ? sizeof(int32_t) : 0;
    const size_t group = rows.tile->multiplier_group / Dot::kUnit;
    const uint8_t* from = packed;
    const int8_t* staged = rows.q - kHead;
    size_t k = rows.k;
    Sums sum = {};
    for (size_t left = rows.blocks; left > 0;) {
      const size_t count = left < group ? left : group;
      int32_t act_sum = 0;
      std::memcpy(&act_sum, staged, kHead);
      Totals total = {};
      Add(staged + kHead, from, count, Multiply::Table(*rows.tile), total);
      Sums products;
      Multiply::Sums(total, act_sum, products);
      const uint8_t* const multipliers =
          rows.tile->multipliers + k / rows.tile->multiplier_group * Dot::kPanel;
      for (size_t v = 0; v < kSumVectors; ++v) {
        const auto factors = V::FromUnsigned(multipliers + v * V::kLanes);
        sum[v] = V::AddInts(sum[v], V::MulInts(products[v], factors));
      }
      left -= count;
      k += count * Dot::kUnit;
      from += count * kCodes;
      staged += kHead + count * Dot::kUnit;
    }
    Fold(rows, sum);
    return static_cast<size_t>(from - packed);
  }

  static void Fold(const DotRows<Dot>& rows, const Sums& sum) {
    for (size_t v = 0; v < kSumVectors; ++v) FoldSum<V>(rows, v * V::kLanes, V::FromInts(sum[v]));
  }
};

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_RUN_CODES_INL_H_
