// The kernels in AVX2 and FMA.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/kernels/gelu-inl.h"
#include "cpu/kernels/hadamard-inl.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/norm-inl.h"
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
//
// Weights with multipliers stay narrow: it is the sums of 16 bits that are multiplied, where they
// are widened. As these sums may not be known by channel when rows start, it is the activations
// that are made unsigned, by adding their largest magnitude; what that did, the same times the sum
// of a channel's weights, is subtracted chunk by chunk.
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
  static constexpr size_t kExtra = kPanel * sizeof(int32_t);  // sums of a chunk's channels

  // How products are made: of weights that are unsigned, of any, of activations that are unsigned.
  enum Mode { kNarrow, kWide, kMultiplied };

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

  static constexpr bool kShiftsRows = true;
  static void ShiftRow(int8_t* q, size_t size, int32_t by) {
    for (size_t i = 0; i < size; ++i) q[i] = static_cast<int8_t>(static_cast<uint8_t>(q[i] + by));
  }

  // Product pairs of narrow weights that 16 bits hold; at least one. With the activations unsigned
  // they are of the same size.
  static size_t MostPairs(const LinearTile& tile) {
    const int32_t max_act = tile.max_act > 0 ? tile.max_act : 1;
    const int32_t most = 32767 / (4 * tile.max_weight * max_act);
    return most > 0 ? static_cast<size_t>(most) : 1;
  }

  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t k, size_t blocks,
                       int8_t* out) {
    if (tile.multipliers != nullptr) return DecodeCodes(tile, packed, k, blocks, out);
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

  // Grid integers as they are, and behind a whole chunk the channels' sums of them times
  // multipliers.
  static size_t DecodeCodes(const LinearTile& tile, const uint8_t* packed, size_t k, size_t blocks,
                            int8_t* out) {
    const size_t bytes = DecodeToBytes<Vector256, kUnit * kPanel>(
        tile, packed, blocks, Vector256::Table(tile.table), 0, out);
    const __m256i ones = Vector256::Bytes(1);
    __m256i sums[2] = {};
    for (size_t b = 0; b < blocks; ++b) {
      const Factors factors(tile, k + b * kUnit);
      for (size_t v = 0; v < 2; ++v) {
        const __m256i pairs = _mm256_maddubs_epi16(ones, Vector256::Load(out + 64 * b + 32 * v));
        sums[v] = _mm256_add_epi32(sums[v], _mm256_madd_epi16(pairs, factors.of[v]));
      }
    }
    Vector256::Store(out + 64 * blocks, sums[0]);
    Vector256::Store(out + 64 * blocks + 32, sums[1]);
    return bytes;
  }

  // What pairs of 16-bit sums are multiplied by where they are added: ones, or the multipliers at
  // input `k`.
  struct Factors {
    __m256i of[2];

    Factors() : of{_mm256_set1_epi16(1), _mm256_set1_epi16(1)} {}
    Factors(const LinearTile& tile, size_t k) {
      const uint8_t* const from = tile.multipliers + k / tile.multiplier_group * kPanel;
      for (size_t v = 0; v < 2; ++v) {
        const __m256i words = Vector256::FromUnsigned(from + 8 * v);
        of[v] = _mm256_or_si256(words, _mm256_slli_epi32(words, 16));
      }
    }
  };

  template <Mode kMode>
  static __m256i Pairs(__m256i weight, __m256i q) {
    if constexpr (kMode == kNarrow) return _mm256_maddubs_epi16(weight, q);
    if constexpr (kMode == kMultiplied) return _mm256_maddubs_epi16(q, weight);
    return _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(weight, q));
  }

  // Sums of R rows, which live in registers: only unrolled loops may index them.
  template <size_t R>
  using Sums = __m256i[R][2];

  template <size_t R, Mode kMode>
  static FP4DIT_ALWAYS_INLINE void Step(const int8_t* q, size_t stride, const int8_t* weight,
                                        Sums<R>& pairs) {
    const __m256i low = Vector256::Kept(Vector256::Load(weight));
    const __m256i high = Vector256::Kept(Vector256::Load(weight + 32));
    Unroll<R>(
        [](size_t r, Sums<R>& p, const int8_t* acts, size_t distance, const __m256i& w0,
           const __m256i& w1) {
          const __m256i a = Vector256::Kept(Vector256::Word(acts + r * distance));
          p[r][0] = Vector256::Kept(_mm256_add_epi16(p[r][0], Pairs<kMode>(w0, a)));
          p[r][1] = Vector256::Kept(_mm256_add_epi16(p[r][1], Pairs<kMode>(w1, a)));
        },
        pairs, q, stride, low, high);
  }

  // kRun blocks: their pairs are added in 16 bits, then in 32.
  template <size_t R, size_t kRun, Mode kMode>
  static FP4DIT_ALWAYS_INLINE void Run(const int8_t* q, size_t stride, const int8_t* weight,
                                       const Factors& factors, Sums<R>& total) {
    Sums<R> pairs;
    Unroll<R>([](size_t r, Sums<R>& p) { p[r][0] = p[r][1] = _mm256_setzero_si256(); }, pairs);
    Unroll<kRun>(
        [](size_t b, Sums<R>& p, const int8_t* acts, size_t distance, const int8_t* w) {
          Step<R, kMode>(acts + kUnit * b, distance, w + kUnit * kPanel * b, p);
        },
        pairs, q, stride, weight);
    Unroll<R>(
        [](size_t r, Sums<R>& t, Sums<R>& p, const Factors& by) {
          t[r][0] = _mm256_add_epi32(t[r][0], _mm256_madd_epi16(p[r][0], by.of[0]));
          t[r][1] = _mm256_add_epi32(t[r][1], _mm256_madd_epi16(p[r][1], by.of[1]));
        },
        total, pairs, factors);
  }

  // All blocks of a chunk, or of a multiplier's group in it, in runs of kRun: a fixed number, as a
  // loop's end costs a wrong guess.
  template <size_t R, size_t kRun, Mode kMode>
  static FP4DIT_ALWAYS_INLINE void Multiply(const DotRows<BytesDot>& rows, Sums<R>& total) {
    const LinearTile& tile = *rows.tile;
    const int8_t* weight = rows.operand;
    const int8_t* q = rows.q;
    size_t k = rows.k;
    for (size_t left = rows.blocks; left > 0;) {
      size_t group = left;
      Factors factors;
      if constexpr (kMode == kMultiplied) {
        const size_t same = (tile.multiplier_group - k % tile.multiplier_group) / kUnit;
        group = left < same ? left : same;
        factors = Factors(tile, k);
      }
      left -= group;
      k += group * kUnit;
      for (; group >= kRun; group -= kRun, weight += kRun * kUnit * kPanel, q += kRun * kUnit) {
        Run<R, kRun, kMode>(q, rows.q_stride, weight, factors, total);
      }
      for (; group > 0; --group, weight += kUnit * kPanel, q += kUnit) {
        Run<R, 1, kMode>(q, rows.q_stride, weight, factors, total);
      }
    }
  }

  template <size_t R, Mode kMode>
  static FP4DIT_ALWAYS_INLINE void MultiplyRuns(const DotRows<BytesDot>& rows, Sums<R>& total) {
    const size_t run = MostPairs(*rows.tile);
    if (run >= 8) {
      Multiply<R, 8, kMode>(rows, total);
    } else if (run >= 4) {
      Multiply<R, 4, kMode>(rows, total);
    } else {
      Multiply<R, 1, kMode>(rows, total);
    }
  }

  // What sums of row `r` start at, beside what earlier chunks left.
  static __m256i Start(const DotRows<BytesDot>& rows, Mode mode, size_t r, size_t v) {
    if (mode == kMultiplied) {
      const __m256i sums = Vector256::Load(rows.operand + 64 * rows.blocks + 32 * v);
      return _mm256_mullo_epi32(sums, _mm256_set1_epi32(-rows.tile->max_act));
    }
    const int32_t offset = mode == kNarrow && rows.first ? rows.tile->max_weight : 0;
    return _mm256_set1_epi32(Wrapped(-offset, rows.group_sum[r]));
  }

  template <size_t R>
  static void Rows(const DotRows<BytesDot>& rows) {
    const Mode mode = rows.tile->multipliers != nullptr ? kMultiplied
                      : IsNarrow(*rows.tile)            ? kNarrow
                                                        : kWide;
    __m256i total[R][2];
    for (size_t r = 0; r < R; ++r) {
      for (size_t v = 0; v < 2; ++v) {
        const int32_t* const earlier = rows.accumulator + r * kPanel + 8 * v;
        total[r][v] = Start(rows, mode, r, v);
        if (!rows.first) total[r][v] = _mm256_add_epi32(total[r][v], Vector256::Load(earlier));
      }
    }
    if (mode == kMultiplied) {
      MultiplyRuns<R, kMultiplied>(rows, total);
    } else if (mode == kNarrow) {
      MultiplyRuns<R, kNarrow>(rows, total);
    } else {
      Multiply<R, 1, kWide>(rows, total);
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
  template <Mode kMode>
  static void RunCodes(const int8_t* q, const uint8_t* packed, size_t blocks, size_t run,
                       const __m256i& table, const Factors& factors, __m256i (&total)[2]) {
    for (size_t left = blocks; left > 0;) {
      const size_t count = left < run ? left : run;
      left -= count;
      __m256i low = _mm256_setzero_si256();
      __m256i high = low;
      for (size_t b = 0; b < count; ++b, packed += 32, q += kUnit) {
        const __m256i codes = Vector256::Load(packed);
        const __m256i a = Vector256::Word(q);
        low = _mm256_add_epi16(low, Pairs<kMode>(LowCodes<Vector256>(table, codes), a));
        high = _mm256_add_epi16(high, Pairs<kMode>(HighCodes<Vector256>(table, codes), a));
      }
      total[0] = _mm256_add_epi32(total[0], _mm256_madd_epi16(low, factors.of[0]));
      total[1] = _mm256_add_epi32(total[1], _mm256_madd_epi16(high, factors.of[1]));
    }
  }

  static size_t RunCodes(const DotRows<BytesDot>& rows, const uint8_t* packed) {
    const LinearTile& tile = *rows.tile;
    const size_t run = MostPairs(tile);
    __m256i table = Vector256::Table(tile.table);
    __m256i total[2] = {};
    if (tile.multipliers == nullptr) {
      const int32_t offset = tile.max_weight;
      table = _mm256_add_epi8(table, Vector256::Bytes(static_cast<uint8_t>(offset)));
      total[0] = total[1] = _mm256_set1_epi32(Wrapped(-offset, rows.group_sum[0]));
      RunCodes<kNarrow>(rows.q, packed, rows.blocks, run, table, Factors(), total);
    } else {
      RunMultiplied(rows, packed, run, table, total);
    }
    for (size_t v = 0; v < 2; ++v) {
      FoldSum<Vector256>(rows, 8 * v, Vector256::FromInts(total[v]));
    }
    return rows.blocks * 32;
  }

  // The row is staged one group a multiplier, each behind its sum, and not shifted.
  static void RunMultiplied(const DotRows<BytesDot>& rows, const uint8_t* packed, size_t run,
                            const __m256i& table, __m256i (&total)[2]) {
    const size_t group = rows.tile->multiplier_group / kUnit;
    const int8_t* q = rows.q;
    size_t k = rows.k;
    for (size_t left = rows.blocks; left > 0;) {
      const size_t count = left < group ? left : group;
      RunCodes<kWide>(q, packed, count, run, table, Factors(*rows.tile, k), total);
      left -= count;
      k += count * kUnit;
      packed += count * 32;
      q += count * kUnit + sizeof(int32_t);
    }
  }

  template <typename Scale, typename Sum>
  static void FoldPanel(Scale scale, const Sum* sum, float* y) {
    FoldVectors<Vector256, kPanel>(scale, sum, y);
  }
  static void Finish(const LinearTile& tile, const float* sum) {
    FinishRows<Vector256, kPanel>(tile, sum);
  }

  struct Multiply16 : IntMultiply<Vector256, int8_t> {
    static __m256i Step(__m256i total, __m256i weight, __m256i act) {
      return _mm256_add_epi16(total, Pairs<kNarrow>(weight, act));
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
    {},
    RoundingError<Vector256>,
    Hadamard<Vector256>,
    Gelu<Vector256>,
    {Center<Vector256>, Modulate<Vector256>},
};

}  // namespace fp4dit
