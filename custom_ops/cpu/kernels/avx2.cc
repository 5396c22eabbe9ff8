// The kernels in AVX2 and FMA.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/quantize_row-inl.h"
#include "cpu/kernels/softmax-inl.h"
#include "cpu/kernels/x86-inl.h"

namespace fp4dit {
namespace {

using Vector256 = Vector<256>;

// int8 x int8. vpmaddubsw wants one unsigned operand and saturates its sums of two products at
// 32767. Narrow weights are made unsigned by adding their largest magnitude: a product pair is then
// at most 2 * (2 * max_weight) * max_act, and as many pairs as fit are added in 16 bits. What the
// addition did, max_weight * sum of the activations, is subtracted at the start. Wide weights are
// multiplied as |q| * (weight with q's sign): 2 * 128 * 127 = 32512 fits, one at a time.
struct BytesDot {
  using Act = int8_t;
  using Operand = int8_t;
  using Accumulator = int32_t;
  static constexpr size_t kPanel = 16;
  static constexpr size_t kRows = 6;
  static constexpr size_t kUnit = 4;
  static constexpr size_t kStep = kUnit;
  static constexpr size_t kChunk = 256;
  static constexpr Reach kReach = {1, 64};
  static constexpr bool kSums = true;

  static bool IsNarrow(const LinearTile& tile) { return tile.max_weight <= kReach.weight_offset; }

  static constexpr bool kSumsRows = true;
  static int32_t SumRow(const int8_t* q, size_t size, int32_t* largest) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i total = _mm256_setzero_si256();
    __m256i most = total;
    size_t i = 0;
    for (; i + 32 <= size; i += 32) {
      const __m256i bytes = Vector256::Load(q + i);
      const __m256i pairs = _mm256_maddubs_epi16(Vector256::Bytes(1), bytes);
      total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, ones));
      most = _mm256_max_epu8(most, _mm256_abs_epi8(bytes));  // of -128, 128 as unsigned
    }
    alignas(32) int32_t lanes[8];
    alignas(32) uint8_t magnitudes[32];
    Vector256::Store(lanes, total);
    Vector256::Store(magnitudes, most);
    int32_t sum = SumPlainly(q + i, size - i, largest);
    for (const int32_t lane : lanes) sum += lane;
    for (const uint8_t magnitude : magnitudes) {
      *largest = magnitude > *largest ? magnitude : *largest;
    }
    return sum;
  }

  // Product pairs of narrow weights that 16 bits hold; at least one.
  static size_t MostPairs(const LinearTile& tile) {
    const int32_t max_act = tile.max_act > 0 ? tile.max_act : 1;
    const int32_t most = 32767 / (4 * tile.max_weight * max_act);
    return most > 0 ? static_cast<size_t>(most) : 1;
  }

  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, int8_t* out) {
    const uint8_t offset = IsNarrow(tile) ? static_cast<uint8_t>(tile.max_weight) : 0;
    const __m256i offsets = Vector256::Bytes(offset);
    if (tile.storage != kBytes) {
      const __m256i table = _mm256_add_epi8(Vector256::Table(tile.table), offsets);
      return DecodeToBytes<Vector256, kUnit * kPanel>(tile, packed, blocks, table, 0, out);
    }
    for (size_t i = 0; i < 64 * blocks; i += 32) {
      Vector256::Store(out + i, _mm256_add_epi8(Vector256::Load(packed + i), offsets));
    }
    return 64 * blocks;
  }

  template <bool kNarrow>
  static __m256i Pairs(__m256i weight, __m256i q) {
    if constexpr (kNarrow) return _mm256_maddubs_epi16(weight, q);
    return _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(weight, q));
  }

  // Sums of R rows, which live in registers: only unrolled loops may index them.
  template <size_t R>
  using Sums = __m256i[R][2];

  template <size_t R, bool kNarrow>
  static FP4DIT_ALWAYS_INLINE void Step(const int8_t* q, size_t stride, const int8_t* weight,
                                        Sums<R>& pairs) {
    const __m256i low = Vector256::Kept(Vector256::Load(weight));
    const __m256i high = Vector256::Kept(Vector256::Load(weight + 32));
    Unroll<R>(
        [](size_t r, Sums<R>& p, const int8_t* acts, size_t distance, const __m256i& w0,
           const __m256i& w1) {
          const __m256i a = Vector256::Kept(Vector256::Word(acts + r * distance));
          p[r][0] = Vector256::Kept(_mm256_add_epi16(p[r][0], Pairs<kNarrow>(w0, a)));
          p[r][1] = Vector256::Kept(_mm256_add_epi16(p[r][1], Pairs<kNarrow>(w1, a)));
        },
        pairs, q, stride, low, high);
  }

  // kRun blocks: their pairs are added in 16 bits, then in 32.
  template <size_t R, size_t kRun, bool kNarrow>
  static FP4DIT_ALWAYS_INLINE void Run(const int8_t* q, size_t stride, const int8_t* weight,
                                       Sums<R>& total) {
    Sums<R> pairs;
    Unroll<R>([](size_t r, Sums<R>& p) { p[r][0] = p[r][1] = _mm256_setzero_si256(); }, pairs);
    Unroll<kRun>(
        [](size_t b, Sums<R>& p, const int8_t* acts, size_t distance, const int8_t* w) {
          Step<R, kNarrow>(acts + kUnit * b, distance, w + kUnit * kPanel * b, p);
        },
        pairs, q, stride, weight);
    Unroll<R>(
        [](size_t r, Sums<R>& t, Sums<R>& p) {
          const __m256i ones = _mm256_set1_epi16(1);
          t[r][0] = _mm256_add_epi32(t[r][0], _mm256_madd_epi16(p[r][0], ones));
          t[r][1] = _mm256_add_epi32(t[r][1], _mm256_madd_epi16(p[r][1], ones));
        },
        total, pairs);
  }

  // All blocks of a chunk, in runs of kRun: a fixed number, as a loop's end costs a wrong guess.
  template <size_t R, size_t kRun, bool kNarrow = true>
  static FP4DIT_ALWAYS_INLINE void Multiply(const DotRows<BytesDot>& rows, Sums<R>& total) {
    const int8_t* weight = rows.operand;
    const int8_t* q = rows.q;
    size_t left = rows.blocks;
    for (; left >= kRun; left -= kRun, weight += kRun * kUnit * kPanel, q += kRun * kUnit) {
      Run<R, kRun, kNarrow>(q, rows.q_stride, weight, total);
    }
    for (; left > 0; --left, weight += kUnit * kPanel, q += kUnit) {
      Run<R, 1, kNarrow>(q, rows.q_stride, weight, total);
    }
  }

  template <size_t R>
  static void Rows(const DotRows<BytesDot>& rows) {
    const bool narrow = IsNarrow(*rows.tile);
    __m256i total[R][2];
    for (size_t r = 0; r < R; ++r) {
      const int32_t start = narrow ? Wrapped(-rows.tile->max_weight, rows.group_sum[r]) : 0;
      for (size_t v = 0; v < 2; ++v) {
        total[r][v] = rows.first ? _mm256_set1_epi32(start)
                                 : Vector256::Load(rows.accumulator + r * kPanel + 8 * v);
      }
    }
    const size_t run = MostPairs(*rows.tile);
    if (!narrow) {
      Multiply<R, 1, false>(rows, total);
    } else if (run >= 8) {
      Multiply<R, 8>(rows, total);
    } else if (run >= 4) {
      Multiply<R, 4>(rows, total);
    } else {
      Multiply<R, 1>(rows, total);
    }
    for (size_t r = 0; r < R; ++r) {
      for (size_t v = 0; v < 2; ++v) {
        const size_t at = r * kPanel + 8 * v;
        if (rows.last) {
          FoldSum<Vector256>(rows, at, Vector256::FromInts(total[r][v]));
        } else {
          Vector256::Store(rows.accumulator + at, total[r][v]);
        }
      }
    }
  }

  // One row straight from 4-bit codes, which are always narrow.
  static constexpr bool kReadsCodes = true;
  static size_t RunCodes(const DotRows<BytesDot>& rows, const uint8_t* packed) {
    const int32_t offset = rows.tile->max_weight;
    const size_t run = MostPairs(*rows.tile);
    const __m256i table = _mm256_add_epi8(Vector256::Table(rows.tile->table),
                                          Vector256::Bytes(static_cast<uint8_t>(offset)));
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i start = _mm256_set1_epi32(Wrapped(-offset, rows.group_sum[0]));
    __m256i total[2] = {start, start};
    const int8_t* q = rows.q;
    for (size_t left = rows.blocks; left > 0;) {
      const size_t count = left < run ? left : run;
      left -= count;
      __m256i low = _mm256_setzero_si256();
      __m256i high = low;
      for (size_t b = 0; b < count; ++b, packed += 32, q += kUnit) {
        const __m256i codes = Vector256::Load(packed);
        const __m256i a = Vector256::Word(q);
        low = _mm256_add_epi16(low, Pairs<true>(LowCodes<Vector256>(table, codes), a));
        high = _mm256_add_epi16(high, Pairs<true>(HighCodes<Vector256>(table, codes), a));
      }
      total[0] = _mm256_add_epi32(total[0], _mm256_madd_epi16(low, ones));
      total[1] = _mm256_add_epi32(total[1], _mm256_madd_epi16(high, ones));
    }
    for (size_t v = 0; v < 2; ++v) {
      FoldSum<Vector256>(rows, 8 * v, Vector256::FromInts(total[v]));
    }
    return rows.blocks * 32;
  }

  static void Finish(const LinearTile& tile, const float* sum) {
    FinishRows<Vector256, kPanel>(tile, sum);
  }

  struct Multiply16 : IntMultiply<Vector256, int8_t> {
    static __m256i Step(__m256i total, __m256i weight, __m256i act) {
      return _mm256_add_epi16(total, Pairs<true>(weight, act));
    }
  };
  static double Peak(size_t rounds) { return RepeatStep<Multiply16>(rounds, 32.0); }
};

// int16 x int16 by vpmaddwd; the op has checked that a whole group fits int32.
struct Shorts : ShortMultiply<Vector256> {
  static __m256i Step(__m256i total, __m256i weight, __m256i act) {
    return _mm256_add_epi32(total, _mm256_madd_epi16(weight, act));
  }
};

}  // namespace

extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels = {
    {kLinear<BytesDot>, kLinear<BroadcastDot<Shorts, 16, 6>>,
     kLinear<BroadcastDot<FloatMultiply<Vector256>, 16, 6>>},
    {Quantize<Vector256, int8_t>, Quantize<Vector256, int16_t>, Quantize<Vector256, float>},
    {},  // dequantizing is memory-bound: the scalar loop does
    Softmax<Vector256>,
};

}  // namespace fp4dit
