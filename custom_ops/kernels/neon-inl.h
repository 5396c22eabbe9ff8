// What the kernels of aarch64 share. Included by files of kernels only; see linear_tile-inl.h on
// the anonymous namespace.

#ifndef FP4DIT_KERNELS_NEON_INL_H_
#define FP4DIT_KERNELS_NEON_INL_H_

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"
#include "kernels/linear_tile-inl.h"

namespace fp4dit {
namespace {

constexpr size_t kLanes = 4;  // 32-bit sums of a vector

// Decoding int8 from 4-bit codes or bytes; a block has kBlock elements.
template <size_t kBlock>
size_t DecodeToBytes(const LinearTile& tile, const uint8_t* packed, size_t blocks, int8_t* out) {
  if (tile.storage == kBytes) {
    std::memcpy(out, packed, kBlock * blocks);
    return kBlock * blocks;
  }
  const int8x16_t table = vld1q_s8(tile.table);
  const uint8x16_t mask = vdupq_n_u8(15);
  for (size_t b = 0; b < blocks; ++b, packed += kBlock / 2, out += kBlock) {
    for (size_t i = 0; i < kBlock / 2; i += 16) {
      const uint8x16_t codes = vld1q_u8(packed + i);
      vst1q_s8(out + i, vqtbl1q_s8(table, vandq_u8(codes, mask)));
      vst1q_s8(out + kBlock / 2 + i, vqtbl1q_s8(table, vshrq_n_u8(codes, 4)));
    }
  }
  return kBlock / 2 * blocks;
}

// Eight integers to memory of each type.
template <typename Operand>
void StoreEight(int16x8_t v, Operand* out) {
  if constexpr (sizeof(Operand) == sizeof(int16_t)) {
    vst1q_s16(out, v);
  } else {
    vst1q_f32(out, vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))));
    vst1q_f32(out + kLanes, vcvtq_f32_s32(vmovl_s16(vget_high_s16(v))));
  }
}

// Eight weights that are not stored as 4-bit codes.
template <typename Operand>
void DecodeEight(WeightStorage storage, const uint8_t* packed, Operand* out) {
  if (storage == kBytes) {
    StoreEight(vmovl_s8(vld1_s8(reinterpret_cast<const int8_t*>(packed))), out);
    return;
  }
  const uint16x8_t wide = vreinterpretq_u16_u8(vld1q_u8(packed));
  if constexpr (sizeof(Operand) == sizeof(float)) {
    if (storage == kBfloats) {
      vst1q_f32(out, vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(wide), 16)));
      vst1q_f32(out + kLanes, vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(wide), 16)));
      return;
    }
  }
  StoreEight(vreinterpretq_s16_u16(wide), out);
}

// Decoding int16 or float, a block of kPanel elements being one input.
template <size_t kPanel, typename Operand>
size_t DecodeWide(const LinearTile& tile, const uint8_t* packed, size_t blocks, Operand* out) {
  const size_t bytes = tile.storage == kNibbles ? kPanel / 2
                       : tile.storage == kBytes ? kPanel
                                                : 2 * kPanel;
  const int8x16_t table = vld1q_s8(tile.table);
  for (size_t b = 0; b < blocks; ++b, packed += bytes, out += kPanel) {
    if (tile.storage != kNibbles) {
      for (size_t i = 0; i < kPanel; i += 8) {
        DecodeEight(tile.storage, packed + i * (bytes / kPanel), out + i);
      }
      continue;
    }
    for (size_t i = 0; i < kPanel / 2; i += 8) {
      const uint8x8_t codes = vld1_u8(packed + i);
      StoreEight(vmovl_s8(vqtbl1_s8(table, vand_u8(codes, vdup_n_u8(15)))), out + i);
      StoreEight(vmovl_s8(vqtbl1_s8(table, vshr_n_u8(codes, 4))), out + kPanel / 2 + i);
    }
  }
  return blocks * bytes;
}

// Four sums of one group of one row: added to the row's results, or kept for the next chunk.
template <typename Dot>
FP4DIT_ALWAYS_INLINE void EndFour(const DotRows<Dot>& rows, size_t row, size_t channel,
                                  float32x4_t total) {
  float* const sum = rows.sum + row * Dot::kPanel + channel;
  vst1q_f32(sum, vfmaq_f32(vld1q_f32(sum), vld1q_f32(rows.group_scale + channel), total));
}

template <typename Dot>
FP4DIT_ALWAYS_INLINE void EndFour(const DotRows<Dot>& rows, size_t row, size_t channel,
                                  int32x4_t total) {
  EndFour(rows, row, channel, vcvtq_f32_s32(total));
}

// y = fma(scale, sum, bias).
template <size_t kPanel>
void FinishRows(const LinearTile& tile, const float* sum) {
  for (size_t r = 0; r < tile.rows; ++r, sum += kPanel) {
    const float32x4_t scale = vdupq_n_f32(tile.scale[r * tile.scale_stride]);
    float* const target = tile.y + r * tile.y_stride;
    float rest[kPanel];
    float* const y = tile.columns == kPanel ? target : rest;
    for (size_t n = 0; n < kPanel; n += kLanes) {
      vst1q_f32(y + n, vfmaq_f32(vld1q_f32(tile.bias + n), scale, vld1q_f32(sum + n)));
    }
    if (y == rest) std::memcpy(target, rest, tile.columns * sizeof(float));
  }
}

// `rounds` times twelve independent steps of an instruction: more than its latency times the units
// that there are. The sums are factors too, or the compiler would see that nothing changes.
template <typename Total, typename Step>
double RepeatStep(size_t rounds, double products, const Total& zero, const Step& step) {
  constexpr size_t kTotals = 12;
  Total total[kTotals];
  Unroll<kTotals>([](size_t i, Total(&t)[kTotals], const Total& z) { t[i] = z; }, total, zero);
  for (size_t round = 0; round < rounds; ++round) {
    Unroll<kTotals>([](size_t i, Total(&t)[kTotals], const Step& f) { t[i] = f(t[i]); }, total,
                    step);
  }
  for (const Total& t : total) FP4DIT_KEEP("w", const_cast<Total&>(t));
  return static_cast<double>(rounds) * static_cast<double>(kTotals) * products;
}

// A dot whose inner loop multiplies vectors of weights, four channels each, by the kUnit
// activations of one row, broadcast. A `Multiply` is the instruction:
//   Act, Total, Weight, Factor   an activation; a vector of sums, of weights, of activations
//   kUnit                        inputs that it sums a channel
//   Decode<kPanel>               see linear_tile-inl.h
//   Load(weights), Broadcast(q), Zero(), Step(total, weight, factor), AsWeight(total)
template <typename Multiply, size_t kPanel_, size_t kRows_>
struct BroadcastDot {
  using Act = typename Multiply::Act;
  using Operand = Act;
  using Total = typename Multiply::Total;
  using Accumulator = typename Multiply::Accumulator;
  static constexpr size_t kPanel = kPanel_;
  static constexpr size_t kRows = kRows_;
  static constexpr size_t kUnit = Multiply::kUnit;
  static constexpr size_t kStep = kUnit;
  static constexpr size_t kChunk = 64 * kUnit;
  static constexpr Reach kReach = {1, 0};
  static constexpr bool kSums = false;
  static constexpr size_t kVectors = kPanel / kLanes;

  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, Operand* out) {
    return Multiply::template Decode<kPanel>(tile, packed, blocks, out);
  }

  // The totals of R rows live in registers: only unrolled loops may index them.
  template <size_t R>
  using Totals = Total[R][kVectors];
  using RowsOf = const DotRows<BroadcastDot>;

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void Begin(RowsOf& rows, Totals<R>& total) {
    Unroll<R * kVectors>(
        [](size_t i, Totals<R>& t, RowsOf& all) {
          const size_t at = i / kVectors * kPanel + i % kVectors * kLanes;
          t[i / kVectors][i % kVectors] =
              all.first ? Multiply::Zero() : Multiply::LoadTotal(all.accumulator + at);
        },
        total, rows);
  }

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void Step(const Act* q, size_t stride, const Operand* weight,
                                        Totals<R>& total) {
    typename Multiply::Weight w[kVectors];
    Unroll<kVectors>(
        [](size_t v, typename Multiply::Weight(&to)[kVectors], const Operand* from) {
          to[v] = Multiply::Load(from + v * kLanes * kUnit);
          FP4DIT_KEEP("w", to[v]);
        },
        w, weight);
    Unroll<R>(
        [](size_t r, Totals<R>& t, typename Multiply::Weight(&weights)[kVectors], const Act* acts,
           size_t distance) {
          const typename Multiply::Factor factor = Multiply::Broadcast(acts + r * distance);
          Unroll<kVectors>(
              [](size_t v, Total(&row)[kVectors], typename Multiply::Weight(&all)[kVectors],
                 const typename Multiply::Factor& f) {
                row[v] = Multiply::Step(row[v], all[v], f);
              },
              t[r], weights, factor);
        },
        total, w, q, stride);
  }

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void End(RowsOf& rows, Totals<R>& total) {
    Unroll<R * kVectors>(
        [](size_t i, Totals<R>& t, RowsOf& all) {
          const size_t r = i / kVectors;
          const size_t channel = i % kVectors * kLanes;
          const Total& done = t[r][i % kVectors];
          if (all.last) {
            EndFour(all, r, channel, done);
          } else {
            Multiply::StoreTotal(all.accumulator + r * kPanel + channel, done);
          }
        },
        total, rows);
  }

  template <size_t R>
  static void Rows(RowsOf& rows) {
    Totals<R> total;
    Begin<R>(rows, total);
    const Operand* weight = rows.operand;
    const Act* q = rows.q;
    for (size_t b = 0; b < rows.blocks; ++b, weight += kPanel * kUnit, q += kUnit) {
      Step<R>(q, rows.q_stride, weight, total);
    }
    End<R>(rows, total);
  }

  static void Finish(const LinearTile& tile, const float* sum) { FinishRows<kPanel>(tile, sum); }

  static double Peak(size_t rounds) {
    const Act ones[kUnit] = {1};
    const typename Multiply::Factor one = Multiply::Broadcast(ones);
    return RepeatStep(rounds, double{kLanes * kUnit}, Multiply::Zero(),
                      [one](Total t) { return Multiply::Step(t, Multiply::AsWeight(t), one); });
  }
};

// Sums of integers, in memory and at their start.
struct IntTotals {
  using Total = int32x4_t;
  using Accumulator = int32_t;
  static Total Zero() { return vdupq_n_s32(0); }
  static Total LoadTotal(const int32_t* p) { return vld1q_s32(p); }
  static void StoreTotal(int32_t* p, Total v) { vst1q_s32(p, v); }
};

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_KERNELS_NEON_INL_H_
