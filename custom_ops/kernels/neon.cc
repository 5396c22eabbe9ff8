// The kernels in the instructions that every aarch64 processor has.

#include <arm_neon.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"
#include "kernels/neon-inl.h"

namespace fp4dit {
namespace {

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

  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, int8_t* out) {
    return DecodeToBytes<kPanel>(tile, packed, blocks, out);
  }

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void Step(const int8_t* q, size_t stride, const int8_t* weight,
                                        Shorts<R>& sums) {
    int8x16_t w[kVectors / 2];
    Unroll<kVectors / 2>(
        [](size_t v, int8x16_t(&to)[kVectors / 2], const int8_t* from) {
          to[v] = vld1q_s8(from + 16 * v);
          FP4DIT_KEEP("w", to[v]);
        },
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

  // Adds 16-bit sums to the accumulators, or starts these with them.
  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void Widen(RowsOf& rows, bool start, Shorts<R>& sums) {
    Unroll<R * kVectors>(
        [](size_t i, Shorts<R>& s, RowsOf& all, const bool& fresh) {
          int32_t* const to = all.accumulator + i / kVectors * kPanel + i % kVectors * 8;
          const int16x8_t sum = s[i / kVectors][i % kVectors];
          const int32x4_t zero = vdupq_n_s32(0);
          vst1q_s32(to, vaddw_s16(fresh ? zero : vld1q_s32(to), vget_low_s16(sum)));
          vst1q_s32(to + 4, vaddw_high_s16(fresh ? zero : vld1q_s32(to + 4), sum));
        },
        sums, rows, start);
  }

  template <size_t R>
  static void Rows(RowsOf& rows) {
    const int32_t max_act = rows.tile->max_act > 0 ? rows.tile->max_act : 1;
    const size_t run = static_cast<size_t>(32767 / (rows.tile->max_weight * max_act));
    const int8_t* weight = rows.operand;
    const int8_t* q = rows.q;
    bool start = rows.first;
    for (size_t left = rows.blocks; left > 0; start = false) {
      const size_t count = left < run ? left : run;
      left -= count;
      Shorts<R> sums;
      Unroll<R * kVectors>(
          [](size_t i, Shorts<R>& s) { s[i / kVectors][i % kVectors] = vdupq_n_s16(0); }, sums);
      for (size_t b = 0; b < count; ++b, weight += kPanel, ++q) {
        Step<R>(q, rows.q_stride, weight, sums);
      }
      Widen<R>(rows, start, sums);
    }
    for (size_t i = 0; rows.last && i < R * kPanel; i += kLanes) {
      EndFour(rows, i / kPanel, i % kPanel, vld1q_s32(rows.accumulator + i));
    }
  }

  static void Finish(const LinearTile& tile, const float* sum) { FinishRows<kPanel>(tile, sum); }

  static double Peak(size_t rounds) {
    const int8x8_t one = vdup_n_s8(1);
    return RepeatStep(rounds, 8.0, vdupq_n_s16(0), [one](int16x8_t t) {
      return vmlal_s8(t, vget_low_s8(vreinterpretq_s8_s16(t)), one);
    });
  }
};

// int16 x int16 by smlal; the op has checked that a whole group fits int32.
struct ShortMultiply : IntTotals {
  using Act = int16_t;
  using Weight = int16x4_t;
  using Factor = int16x4_t;
  static constexpr size_t kUnit = 1;

  template <size_t kPanel>
  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, int16_t* out) {
    return DecodeWide<kPanel>(tile, packed, blocks, out);
  }
  static Weight Load(const int16_t* p) { return vld1_s16(p); }
  static Factor Broadcast(const int16_t* q) { return vld1_dup_s16(q); }
  static Total Step(Total t, Weight w, Factor a) { return vmlal_s16(t, w, a); }
  static Weight AsWeight(Total t) { return vget_low_s16(vreinterpretq_s16_s32(t)); }
};

struct FloatMultiply {
  using Act = float;
  using Accumulator = float;
  using Total = float32x4_t;
  using Weight = float32x4_t;
  using Factor = float32x4_t;
  static constexpr size_t kUnit = 1;

  template <size_t kPanel>
  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, float* out) {
    return DecodeWide<kPanel>(tile, packed, blocks, out);
  }
  static Total Zero() { return vdupq_n_f32(0.0f); }
  static Total LoadTotal(const float* p) { return vld1q_f32(p); }
  static void StoreTotal(float* p, Total v) { vst1q_f32(p, v); }
  static Weight Load(const float* p) { return vld1q_f32(p); }
  static Factor Broadcast(const float* q) { return vld1q_dup_f32(q); }
  static Total Step(Total t, Weight w, Factor a) { return vfmaq_f32(t, w, a); }
  static Weight AsWeight(Total t) { return t; }
};

// 6 rows x 4 vectors of totals, 4 weights and an activation fill 29 of 32 registers.
constexpr size_t kPanelWidth = 16;
constexpr size_t kRowStep = 6;

// Bits of the largest magnitude. They are ordered as magnitudes are, with NaN above all.
uint32_t LargestMagnitude(const float* x, size_t k) {
  uint32x4_t largest = vdupq_n_u32(0);
  const uint32x4_t mask = vdupq_n_u32(0x7fffffffu);
  size_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    largest = vmaxq_u32(largest, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), mask));
  }
  uint32_t result = vmaxvq_u32(largest);
  for (; i < k; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    bits &= 0x7fffffffu;
    result = bits > result ? bits : result;
  }
  return result;
}

// See RoundToGrid in scalar.cc.
float32x4_t RoundToGrid(float32x4_t t, const QuantizeGrid& grid) {
  const int32x4_t one = vdupq_n_s32(127 << 23);
  const float32x4_t magnitude = vabsq_f32(t);
  const int32x4_t biased = vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_f32(magnitude), 23));
  const int32x4_t binade = vsubq_s32(biased, vdupq_n_s32(127 + grid.mantissa_bits));
  const int32x4_t exponent = vshlq_n_s32(vmaxq_s32(binade, vdupq_n_s32(0)), 23);
  const float32x4_t down = vreinterpretq_f32_s32(vsubq_s32(one, exponent));
  const float32x4_t up = vreinterpretq_f32_s32(vaddq_s32(one, exponent));
  const float32x4_t rounded = vmulq_f32(vrndnq_f32(vmulq_f32(magnitude, down)), up);
  const float32x4_t clipped = vminq_f32(rounded, vdupq_n_f32(grid.max_integer));
  const uint32x4_t number = vandq_u32(vreinterpretq_u32_f32(clipped), vceqq_f32(t, t));
  const uint32x4_t sign = vdupq_n_u32(0x80000000u);
  return vreinterpretq_f32_u32(vbslq_u32(sign, vreinterpretq_u32_f32(t), number));
}

// Eight grid integers to memory of each type.
template <typename Integer>
void StoreIntegers(float32x4_t low, float32x4_t high, Integer* q) {
  if constexpr (sizeof(Integer) == sizeof(float)) {
    vst1q_f32(q, low);
    vst1q_f32(q + kLanes, high);
  } else {
    const int16x8_t shorts =
        vcombine_s16(vmovn_s32(vcvtq_s32_f32(low)), vmovn_s32(vcvtq_s32_f32(high)));
    if constexpr (sizeof(Integer) == sizeof(int16_t)) {
      vst1q_s16(q, shorts);
    } else {
      vst1_s8(q, vmovn_s16(shorts));
    }
  }
}

template <typename Integer>
void QuantizeEight(const float* x, float factor, const QuantizeGrid& grid, Integer* q) {
  const float32x4_t factors = vdupq_n_f32(factor);
  StoreIntegers(RoundToGrid(vmulq_f32(vld1q_f32(x), factors), grid),
                RoundToGrid(vmulq_f32(vld1q_f32(x + kLanes), factors), grid), q);
}

template <typename Integer>
void Quantize(const float* x, size_t k, const QuantizeGrid& grid, void* result, float* scale) {
  Integer* q = static_cast<Integer*>(result);
  const uint32_t largest = LargestMagnitude(x, k);
  const float amax = vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(largest)), 0);
  const bool finite = largest < 0x7f800000u;
  if (!finite || amax < kSmallestAmax) {
    std::memset(q, 0, k * sizeof(Integer));
    *scale = finite ? 0.0f : vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(0x7fc00000u)), 0);
    return;
  }
  const float factor = grid.max_integer / amax;
  size_t i = 0;
  for (; i + 8 <= k; i += 8) QuantizeEight(x + i, factor, grid, q + i);
  if (i < k) {
    float last[8] = {};
    Integer rest[8];
    std::memcpy(last, x + i, (k - i) * sizeof(float));
    QuantizeEight(last, factor, grid, rest);
    std::memcpy(q + i, rest, (k - i) * sizeof(Integer));
  }
  *scale = amax / grid.max_integer;
}

// numerics.exp of x <= 0, or NaN: 2^n * exp(r) with n the nearest integer of x / ln 2.
float32x4_t Exp(float32x4_t x) {
  const float32x4_t rounder = vdupq_n_f32(kExpRounder);
  const float32x4_t z = vfmaq_f32(rounder, x, vdupq_n_f32(kExpLog2E));  // n in the lowest bits
  const float32x4_t n = vsubq_f32(z, rounder);
  const float32x4_t high = vfmaq_f32(x, n, vdupq_n_f32(-kExpLn2High));
  const float32x4_t r = vfmaq_f32(high, n, vdupq_n_f32(-kExpLn2Low));
  float32x4_t p = vdupq_n_f32(kExpTerms[0]);
  for (size_t i = 1; i < kExpTermCount; ++i) p = vfmaq_f32(vdupq_n_f32(kExpTerms[i]), p, r);
  const int32x4_t power =
      vaddq_s32(vshlq_n_s32(vreinterpretq_s32_f32(z), 23), vdupq_n_s32(127 << 23));
  const uint32x4_t value = vreinterpretq_u32_f32(vmulq_f32(p, vreinterpretq_f32_s32(power)));
  return vreinterpretq_f32_u32(vbicq_u32(value, vcltq_f32(x, vdupq_n_f32(kExpLeast))));
}

// Sixteen partial sums, folded in halves.
float FoldLanes(const float32x4_t (&part)[kSoftmaxLanes / kLanes]) {
  const float32x4_t four = vaddq_f32(vaddq_f32(part[0], part[2]), vaddq_f32(part[1], part[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

void Softmax(SoftmaxRow* row) {
  float32x4_t most = vdupq_n_f32(row->max);
  for (size_t i = 0; i < row->count; i += kLanes) {
    const float32x4_t x = vld1q_f32(row->scores + i);
    most = vbslq_f32(vcgtq_f32(x, most), x, most);
  }
  const float max = vmaxnmvq_f32(most);
  const float base = max == -INFINITY ? 0.0f : max;
  const float32x4_t bases = vdupq_n_f32(base);
  float32x4_t sum[kSoftmaxLanes / kLanes];
  for (float32x4_t& s : sum) s = vdupq_n_f32(0.0f);
  for (size_t i = 0; i < row->count; i += kSoftmaxLanes) {
    for (size_t v = 0; v < kSoftmaxLanes / kLanes; ++v) {
      float* const at = row->scores + i + v * kLanes;
      const float32x4_t e = Exp(vsubq_f32(vld1q_f32(at), bases));
      sum[v] = vaddq_f32(sum[v], e);
      vst1q_f32(at, vmulq_f32(e, vld1q_f32(row->value_scale + i + v * kLanes)));
    }
  }
  row->shrink = vgetq_lane_f32(Exp(vdupq_n_f32(row->max - base)), 0);
  row->sum = FoldLanes(sum);
  row->max = max;
}

}  // namespace

extern const Kernels kNeonKernels;
const Kernels kNeonKernels = {
    {kLinear<BytesDot>, kLinear<BroadcastDot<ShortMultiply, kPanelWidth, kRowStep>>,
     kLinear<BroadcastDot<FloatMultiply, kPanelWidth, kRowStep>>},
    {Quantize<int8_t>, Quantize<int16_t>, Quantize<float>},
    {},  // dequantizing is memory-bound: the scalar loop does
    Softmax,
};

}  // namespace fp4dit
