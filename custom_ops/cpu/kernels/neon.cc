// The kernels in the instructions that every aarch64 processor has.

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "cpu/kernels/gelu-inl.h"
#include "cpu/kernels/hadamard-inl.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/neon-inl.h"
#include "cpu/kernels/norm-inl.h"
#include "cpu/kernels/quantize_row-inl.h"
#include "cpu/kernels/softmax-inl.h"

namespace fp4dit {
namespace {

// What weights without multipliers are multiplied by: a panel of ones.
constexpr uint8_t kOnes[32] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                               1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// int8 x int8 by smlal, one input of eight channels at a time, into 16-bit sums. A product is at
// most max_weight * max_act, so 32767 / that many fit (45 for e2m1 and e2m3, never less than 2)
// before the sums are widened into the accumulators in memory. kSums is set for max_act's sake:
// staging finds both at once.
struct BytesDot {
  using Act = int8_t;
  using Operand = int8_t;
  using Accumulator = int32_t;
  static constexpr size_t kPanel = 32;
  static constexpr size_t kRows = 6;
  static constexpr size_t kUnit = 1;
  static constexpr size_t kStep = 4;  // keeps the staged sums, int32, aligned
  static constexpr size_t kChunk = 256;
  static constexpr Reach kReach = {1, 0};
  static constexpr bool kSums = true;
  static constexpr size_t kVectors = kPanel / 8;

  template <size_t R>
  using Shorts = int16x8_t[R][kVectors];
  using RowsOf = const DotRows<BytesDot>;

  // Without their multipliers, which Widen has.
  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t, size_t blocks,
                       int8_t* out) {
    return DecodeToBytes<Neon, kPanel>(tile, packed, blocks, Neon::Table(tile.table), 0, out);
  }

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void Step(const int8_t* q, size_t stride, const int8_t* weight,
                                        Shorts<R>& sums) {
    int8x16_t w[kVectors / 2];
    Unroll<kVectors / 2>([](size_t v, int8x16_t(&to)[kVectors / 2],
                            const int8_t* from) { to[v] = Neon::Kept(vld1q_s8(from + 16 * v)); },
                         w, weight);
    Unroll<R>(
        [](size_t r, Shorts<R>& s, int8x16_t(&weights)[kVectors / 2], const int8_t* acts,
           size_t distance) {
          const int8x16_t factor = vld1q_dup_s8(acts + r * distance);
          Unroll<kVectors / 2>(
              [](size_t v, int16x8_t(&row)[kVectors], int8x16_t(&all)[kVectors / 2],
                 const int8x16_t& f) {
                row[2 * v] = vmlal_s8(row[2 * v], vget_low_s8(all[v]), vget_low_s8(f));
                row[2 * v + 1] = vmlal_high_s8(row[2 * v + 1], all[v], f);
              },
              s[r], weights, factor);
        },
        sums, w, q, stride);
  }

  // Adds 16-bit sums times the channels' multipliers to the accumulators, or starts these with
  // them.
  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void Widen(RowsOf& rows, bool start, const uint8_t* multipliers,
                                         Shorts<R>& sums) {
    Unroll<R * kVectors>(
        [](size_t i, Shorts<R>& s, RowsOf& all, const bool& fresh, const uint8_t* from) {
          int32_t* const to = all.accumulator + i / kVectors * kPanel + i % kVectors * 8;
          const int16x8_t sum = s[i / kVectors][i % kVectors];
          const int16x8_t factor =
              vreinterpretq_s16_u16(vmovl_u8(vld1_u8(from + i % kVectors * 8)));
          const int32x4_t zero = vdupq_n_s32(0);
          vst1q_s32(
              to, vmlal_s16(fresh ? zero : vld1q_s32(to), vget_low_s16(sum), vget_low_s16(factor)));
          vst1q_s32(to + 4, vmlal_high_s16(fresh ? zero : vld1q_s32(to + 4), sum, factor));
        },
        sums, rows, start, multipliers);
  }

  template <size_t R>
  static void Rows(RowsOf& rows) {
    const int32_t max_act = rows.tile->max_act > 0 ? rows.tile->max_act : 1;
    const size_t run = static_cast<size_t>(32767 / (rows.tile->max_weight * max_act));
    const LinearTile& tile = *rows.tile;
    const int8_t* weight = rows.operand;
    const int8_t* q = rows.q;
    bool start = rows.first;
    size_t k = rows.k;
    for (size_t left = rows.blocks; left > 0; start = false) {
      size_t count = left < run ? left : run;
      const uint8_t* multipliers = kOnes;
      if (tile.multipliers != nullptr) {
        multipliers = tile.multipliers + k / tile.multiplier_group * kPanel;
        const size_t same = tile.multiplier_group - k % tile.multiplier_group;
        count = count < same ? count : same;
      }
      left -= count;
      k += count;
      Shorts<R> sums;
      Unroll<R * kVectors>(
          [](size_t i, Shorts<R>& s) { s[i / kVectors][i % kVectors] = vdupq_n_s16(0); }, sums);
      for (size_t b = 0; b < count; ++b, weight += kPanel, ++q) {
        Step<R>(q, rows.q_stride, weight, sums);
      }
      Widen<R>(rows, start, multipliers, sums);
    }
    for (size_t i = 0; rows.last && i < R * kPanel; i += Neon::kLanes) {
      FoldSum<Neon>(rows, i, vcvtq_f32_s32(vld1q_s32(rows.accumulator + i)));
    }
  }

  template <typename Scale, typename Sum>
  static void FoldPanel(Scale scale, const Sum* sum, float* y) {
    FoldVectors<Neon, kPanel>(scale, sum, y);
  }
  static void Finish(const LinearTile& tile, const float* sum) {
    FinishRows<Neon, kPanel>(tile, sum);
  }

  struct Multiply16 {
    using Registers = Neon;
    using Act = int8_t;
    using Total = int16x8_t;
    using Weight = int8x8_t;
    using Factor = int8x8_t;
    static Total Zero() { return vdupq_n_s16(0); }
    static Weight Load(const int8_t* p) { return vld1_s8(p); }
    static Factor Broadcast(const int8_t* q) { return vld1_dup_s8(q); }
    static Total Step(Total t, Weight w, Factor a) { return vmlal_s8(t, w, a); }
  };
  static double Peak(size_t rounds) { return RepeatStep<Multiply16>(rounds, 8.0); }
};

// int16 x int16 by smlal; the op has checked that a whole group fits int32.
struct ShortMultiply : IntTotals {
  using Act = int16_t;
  using Weight = int16x4_t;
  using Factor = int16x4_t;
  static constexpr size_t kUnit = 1;

  template <size_t kBlock>
  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, int16_t* out) {
    return DecodeWide<EightOf<int16_t>, kBlock>(tile, packed, blocks, out);
  }
  static Weight Load(const int16_t* p) { return Neon::Kept(vld1_s16(p)); }
  static Factor Broadcast(const int16_t* q) { return vld1_dup_s16(q); }
  static Total Step(Total t, Weight w, Factor a) { return vmlal_s16(t, w, a); }

  static constexpr size_t kFactors = 4;
  static Factor LoadFactors(const int16_t* q) { return Neon::Kept(vld1_s16(q)); }
  template <size_t I>
  static Total StepOf(Total t, Weight w, Factor a) {
    return vmlal_lane_s16(t, w, a, I);
  }
};

struct FloatMultiply {
  using Registers = Neon;
  using Act = float;
  using Accumulator = float;
  using Total = float32x4_t;
  using Weight = float32x4_t;
  using Factor = float32x4_t;
  static constexpr size_t kUnit = 1;
  static constexpr Reach kReach = {1, 0};
  static constexpr bool kSums = false;
  static constexpr bool kReadsCodes = false;

  template <size_t kBlock>
  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, float* out) {
    return DecodeWide<EightOf<float>, kBlock>(tile, packed, blocks, out);
  }
  static Total Zero() { return vdupq_n_f32(0.0f); }
  static Total LoadTotal(const float* p) { return vld1q_f32(p); }
  static void StoreTotal(float* p, Total v) { vst1q_f32(p, v); }
  static Weight Load(const float* p) { return Neon::Kept(vld1q_f32(p)); }
  static Factor Broadcast(const float* q) { return vld1q_dup_f32(q); }
  static Total Step(Total t, Weight w, Factor a) { return vfmaq_f32(t, w, a); }

  static constexpr size_t kFactors = 4;
  static Factor LoadFactors(const float* q) { return Neon::Kept(vld1q_f32(q)); }
  // GCC spreads the lane to a register of its own for vfmaq_laneq_f32, and runs out of them.
  template <size_t I>
  static Total StepOf(Total t, Weight w, Factor a) {
    __asm__("fmla %0.4s, %1.4s, %2.s[%c3]" : "+w"(t) : "w"(w), "w"(a), "i"(I));
    return t;
  }
  static float32x4_t ToFloat(Total total) { return total; }
};

// 6 rows x 4 vectors of totals, 4 weights and an activation fill 29 of 32 registers.
constexpr size_t kPanelWidth = 16;
constexpr size_t kRowStep = 6;

}  // namespace

extern const Kernels kNeonKernels;
const Kernels kNeonKernels = {
    {kLinear<BytesDot>, kLinear<BroadcastDot<ShortMultiply, kPanelWidth, kRowStep>>,
     kLinear<BroadcastDot<FloatMultiply, kPanelWidth, kRowStep>>},
    {Quantize<Neon, int8_t>, Quantize<Neon, int16_t>, Quantize<Neon, float>},
    {},  // dequantizing is memory-bound: the scalar loop does
    Softmax<Neon>,
    {kLinear<BroadcastDot<ShortMultiply, 24, 4>>},  // heads of 72 channels have three of them
    RoundingError<Neon>,
    Hadamard<Neon>,
    Gelu<Neon>,
    {Center<Neon>, Modulate<Neon>},
};

}  // namespace fp4dit
