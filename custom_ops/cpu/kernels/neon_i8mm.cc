// The int8 kernel in the matrix instruction of Armv8.6, smmla: two rows of eight activations times
// two channels of eight weights.

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/neon-inl.h"

namespace fp4dit {
namespace {

struct MatrixDot {
  using Act = int8_t;
  using Operand = int8_t;
  using Accumulator = int32_t;
  static constexpr size_t kPanel = 16;
  static constexpr size_t kRows = 6;
  static constexpr size_t kUnit = 8;
  static constexpr size_t kStep = kUnit;
  static constexpr size_t kChunk = 256;
  static constexpr Reach kReach = {1, 0};
  static constexpr bool kSums = false;
  static constexpr size_t kPairs = kPanel / 2;  // of channels

  // 3 pairs of rows x 8 of channels, 3 activations and a weight fill 28 of 32 registers. A total is
  // {row 0 channel 0, row 0 channel 1, row 1 channel 0, row 1 channel 1}.
  template <size_t R>
  using Totals = int32x4_t[(R + 1) / 2][kPairs];
  using RowsOf = const DotRows<MatrixDot>;

  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t k, size_t blocks,
                       int8_t* out) {
    if (tile.multipliers != nullptr) {
      return DecodeMultiplied<Neon, kUnit, kPanel>(tile, packed, k, blocks, 0, out);
    }
    return DecodeToBytes<Neon, kPanel * kUnit>(tile, packed, blocks, Neon::Table(tile.table), 0,
                                               out);
  }

  // The second row of a pair; the last of an odd number is its own partner.
  template <size_t R>
  static constexpr size_t Partner(size_t pair) {
    return 2 * pair + 1 < R ? 2 * pair + 1 : 2 * pair;
  }

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void Begin(RowsOf& rows, Totals<R>& total) {
    Unroll<(R + 1) / 2 * kPairs>(
        [](size_t i, Totals<R>& t, RowsOf& all) {
          const size_t pair = i / kPairs;
          const int32_t* from = all.accumulator + i % kPairs * 2;
          t[pair][i % kPairs] = all.first
                                    ? vdupq_n_s32(0)
                                    : vcombine_s32(vld1_s32(from + 2 * pair * kPanel),
                                                   vld1_s32(from + Partner<R>(pair) * kPanel));
        },
        total, rows);
  }

  // A block of eight inputs of pairs of rows.
  template <size_t R>
  using Acts = int8x16_t[(R + 1) / 2];

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void Multiplied(Acts<R>& acts, const int8_t* weight,
                                              Totals<R>& total) {
    Unroll<kPairs>(
        [](size_t v, Totals<R>& t, Acts<R>& all, const int8_t* from) {
          const int8x16_t w = Neon::Kept(vld1q_s8(from + 16 * v));
          Unroll<(R + 1) / 2>(
              [](size_t pair, Totals<R>& sums, Acts<R>& factors, const int8x16_t& f,
                 const size_t& at) {
                // In this order, or the compiler would hold more weights than there are registers.
                sums[pair][at] = Neon::Kept(vmmlaq_s32(sums[pair][at], factors[pair], f));
              },
              t, all, w, v);
        },
        total, acts, weight);
  }

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void Step(const int8_t* q, size_t stride, const int8_t* weight,
                                        Totals<R>& total) {
    Acts<R> acts;
    Unroll<(R + 1) / 2>(
        [](size_t pair, Acts<R>& to, const int8_t* from, size_t distance) {
          to[pair] = vcombine_s8(vld1_s8(from + 2 * pair * distance),
                                 vld1_s8(from + Partner<R>(pair) * distance));
        },
        acts, q, stride);
    Multiplied<R>(acts, weight, total);
  }

  // Two blocks: whole registers are loaded.
  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void StepTwo(const int8_t* q, size_t stride, const int8_t* weight,
                                           Totals<R>& total) {
    Acts<R> first;
    Acts<R> second;
    Unroll<(R + 1) / 2>(
        [](size_t pair, Acts<R>& to, Acts<R>& after, const int8_t* from, size_t distance) {
          const int64x2_t row = vreinterpretq_s64_s8(vld1q_s8(from + 2 * pair * distance));
          const int64x2_t other =
              vreinterpretq_s64_s8(vld1q_s8(from + Partner<R>(pair) * distance));
          to[pair] = Neon::Kept(vreinterpretq_s8_s64(vzip1q_s64(row, other)));
          after[pair] = Neon::Kept(vreinterpretq_s8_s64(vzip2q_s64(row, other)));
        },
        first, second, q, stride);
    Multiplied<R>(first, weight, total);
    Multiplied<R>(second, weight + kPanel * kUnit, total);
  }

  // The totals of four channels, two pairs, of one row of a pair of rows.
  template <size_t R>
  static FP4DIT_ALWAYS_INLINE int32x4_t OfRow(Totals<R>& total, size_t row, size_t channel) {
    const int32x4_t left = total[row / 2][channel / 2];
    const int32x4_t right = total[row / 2][channel / 2 + 1];
    return row % 2 == 0 ? vcombine_s32(vget_low_s32(left), vget_low_s32(right))
                        : vcombine_s32(vget_high_s32(left), vget_high_s32(right));
  }

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE float32x4_t TotalOf(Totals<R>& total, size_t row, size_t v) {
    return vcvtq_f32_s32(OfRow<R>(total, row, v * Neon::kLanes));
  }

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void End(RowsOf& rows, Totals<R>& total) {
    if (rows.last) return FoldTotals<Neon, MatrixDot, R>(rows, total);
    Unroll<R * kPanel / Neon::kLanes>(
        [](size_t i, Totals<R>& t, int32_t* to) {
          vst1q_s32(to + i * Neon::kLanes,
                    OfRow<R>(t, i * Neon::kLanes / kPanel, i * Neon::kLanes % kPanel));
        },
        total, rows.accumulator);
  }

  template <size_t R>
  static void Rows(RowsOf& rows) {
    Totals<R> total;
    Begin<R>(rows, total);
    const int8_t* weight = rows.operand;
    const int8_t* q = rows.q;
    size_t left = rows.blocks;
    for (; left >= 2; left -= 2, weight += 2 * kPanel * kUnit, q += 2 * kUnit) {
      StepTwo<R>(q, rows.q_stride, weight, total);
    }
    if (left > 0) Step<R>(q, rows.q_stride, weight, total);
    End<R>(rows, total);
  }

  template <typename Scale, typename Sum>
  static void FoldPanel(Scale scale, const Sum* sum, float* y) {
    FoldVectors<Neon, kPanel>(scale, sum, y);
  }
  static void Finish(const LinearTile& tile, const float* sum) {
    FinishRows<Neon, kPanel>(tile, sum);
  }

  struct Multiply : IntTotals {
    using Act = int8_t;
    using Weight = int8x16_t;
    using Factor = int8x16_t;
    static constexpr size_t kBlocksAtOnce = 1;
    static Weight Load(const int8_t* p) { return vld1q_s8(p); }
    static Factor Broadcast(const int8_t* q) { return vld1q_s8(q); }
    static Total Step(Total t, Weight w, Factor a) { return vmmlaq_s32(t, a, w); }

    static int8x16_t Table(const LinearTile& tile) { return Neon::Table(tile.table); }
    static int8x16_t Repeated(const int8_t* q) {
      const int8x8_t eight = vld1_s8(q);
      return vcombine_s8(eight, eight);
    }
    static int8x16_t Step(int8x16_t t, int8x16_t w, int8x16_t a) {
      return Neon::Kept(Neon::Lanes(vmmlaq_s32(Neon::Ints(t), a, w)));
    }
    // Both rows are the same.
    template <size_t kVectors>
    static void Sums(const int8x16_t (&total)[1][2 * kVectors], int32_t,
                     int8x16_t (&sums)[kVectors]) {
      for (size_t v = 0; v < kVectors; ++v) {
        sums[v] = vcombine_s8(vget_low_s8(total[0][2 * v]), vget_low_s8(total[0][2 * v + 1]));
      }
    }
  };

  static constexpr bool kReadsCodes = true;
  static size_t RunCodes(RowsOf& rows, const uint8_t* packed) {
    return CodesRow<Multiply, MatrixDot>::Run(rows, packed);
  }
  static double Peak(size_t rounds) { return RepeatStep<Multiply>(rounds, 32.0); }
};

}  // namespace

extern const Kernels kNeonI8mmKernels;
const Kernels kNeonI8mmKernels = {
    {kLinear<MatrixDot>, {}, {}},
    {},
    {},
};

}  // namespace fp4dit
