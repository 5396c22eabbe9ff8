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

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void Step(const int8_t* q, size_t stride, const int8_t* weight,
                                        Totals<R>& total) {
    using Acts = int8x16_t[(R + 1) / 2];
    Acts acts;
    Unroll<(R + 1) / 2>(
        [](size_t pair, Acts& to, const int8_t* from, size_t distance) {
          to[pair] = vcombine_s8(vld1_s8(from + 2 * pair * distance),
                                 vld1_s8(from + Partner<R>(pair) * distance));
          FP4DIT_KEEP("w", to[pair]);
        },
        acts, q, stride);
    Unroll<kPairs>(
        [](size_t v, Totals<R>& t, Acts& all, const int8_t* from) {
          const int8x16_t w = Neon::Kept(vld1q_s8(from + 16 * v));
          Unroll<(R + 1) / 2>(
              [](size_t pair, Totals<R>& sums, Acts& factors, const int8x16_t& f,
                 const size_t& at) {
                sums[pair][at] = vmmlaq_s32(sums[pair][at], factors[pair], f);
              },
              t, all, w, v);
        },
        total, acts, weight);
  }

  static FP4DIT_ALWAYS_INLINE void EndRow(RowsOf& rows, size_t row, size_t channel,
                                          int32x4_t total) {
    if (rows.last) {
      FoldSum<Neon>(rows, row * kPanel + channel, vcvtq_f32_s32(total));
    } else {
      vst1q_s32(rows.accumulator + row * kPanel + channel, total);
    }
  }

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void End(RowsOf& rows, Totals<R>& total) {
    Unroll<(R + 1) / 2 * kPairs / 2>(
        [](size_t i, Totals<R>& t, RowsOf& all) {
          const size_t pair = i / (kPairs / 2);
          const size_t v = i % (kPairs / 2) * 2;
          const int32x4_t left = t[pair][v];
          const int32x4_t right = t[pair][v + 1];
          EndRow(all, 2 * pair, 2 * v, vcombine_s32(vget_low_s32(left), vget_low_s32(right)));
          if (2 * pair + 1 < R) {
            EndRow(all, 2 * pair + 1, 2 * v,
                   vcombine_s32(vget_high_s32(left), vget_high_s32(right)));
          }
        },
        total, rows);
  }

  template <size_t R>
  static void Rows(RowsOf& rows) {
    Totals<R> total;
    Begin<R>(rows, total);
    const int8_t* weight = rows.operand;
    const int8_t* q = rows.q;
    for (size_t b = 0; b < rows.blocks; ++b, weight += kPanel * kUnit, q += kUnit) {
      Step<R>(q, rows.q_stride, weight, total);
    }
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
    static Weight Load(const int8_t* p) { return vld1q_s8(p); }
    static Factor Broadcast(const int8_t* q) { return vld1q_s8(q); }
    static Total Step(Total t, Weight w, Factor a) { return vmmlaq_s32(t, a, w); }
  };
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
