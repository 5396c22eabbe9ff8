// The kernels in AVX2 and FMA.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "kernels/linear_tile-inl.h"

namespace fp4dit {
namespace {

// Two vectors of eight 32-bit lanes: one lane an output channel.
constexpr size_t kPanelWidth = 16;

__m256i Load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
__m128i LoadHalf(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
void Store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

// sum = fma(group_scale, dot, sum) for one row's sixteen channels.
void FoldGroup(const float* group_scale, __m256 low, __m256 high, float* sum) {
  _mm256_storeu_ps(sum, _mm256_fmadd_ps(_mm256_loadu_ps(group_scale), low, _mm256_loadu_ps(sum)));
  _mm256_storeu_ps(
      sum + 8, _mm256_fmadd_ps(_mm256_loadu_ps(group_scale + 8), high, _mm256_loadu_ps(sum + 8)));
}

// What the three dots share.
struct PanelDot {
  static constexpr size_t kPanel = kPanelWidth;
  static constexpr size_t kRows = 4;
  static constexpr size_t kExtra = 0;

  static void Finish(const LinearTile& tile, const float* sum) {
    const __m256 bias_low = _mm256_loadu_ps(tile.bias);
    const __m256 bias_high = _mm256_loadu_ps(tile.bias + 8);
    for (size_t r = 0; r < tile.rows; ++r, sum += kPanelWidth) {
      const __m256 scale = _mm256_set1_ps(tile.scale[r * tile.scale_stride]);
      alignas(32) float y[kPanelWidth];
      float* target = tile.y + r * tile.y_stride;
      float* result = tile.columns == kPanelWidth ? target : y;
      _mm256_storeu_ps(result, _mm256_fmadd_ps(scale, _mm256_loadu_ps(sum), bias_low));
      _mm256_storeu_ps(result + 8, _mm256_fmadd_ps(scale, _mm256_loadu_ps(sum + 8), bias_high));
      for (size_t n = 0; result == y && n < tile.columns; ++n) target[n] = y[n];
    }
  }
};

// Starts R rows of integer accumulators: zero, or what the group's previous chunk left.
template <size_t R, typename Dot>
void LoadTotals(const DotRows<Dot>& rows, __m256i total[R][2]) {
  const int32_t* stored = rows.accumulator + rows.row * kPanelWidth;
  for (size_t r = 0; r < R; ++r) {
    total[r][0] = rows.first ? _mm256_setzero_si256() : Load(stored + r * kPanelWidth);
    total[r][1] = rows.first ? _mm256_setzero_si256() : Load(stored + r * kPanelWidth + 8);
  }
}

// Folds R rows of a finished group into the sums, or keeps them for its next chunk.
template <size_t R, typename Dot>
void StoreTotals(const DotRows<Dot>& rows, const __m256i total[R][2]) {
  for (size_t r = 0; r < R; ++r) {
    const size_t at = (rows.row + r) * kPanelWidth;
    if (rows.last) {
      FoldGroup(rows.group_scale, _mm256_cvtepi32_ps(total[r][0]), _mm256_cvtepi32_ps(total[r][1]),
                rows.sum + at);
    } else {
      Store(rows.accumulator + at, total[r][0]);
      Store(rows.accumulator + at + 8, total[r][1]);
    }
  }
}

// int8 x int8. vpmaddubsw wants one unsigned operand and saturates its sums of two products at
// 32767. Narrow weights (4-bit ones) are multiplied by q + 128 in 0..255: one product pair is at
// most 2 * 255 * max_weight, so 64 / max_weight of them may be added in 16 bits
// (64 * 510 = 32640). What the 128 adds, 128 * sum of weights, is subtracted once a chunk.
// Wide weights are multiplied as |q| * (weight with q's sign): 2 * 128 * 127 = 32512 fits, one at
// a time.
struct Int8Dot : PanelDot {
  using Operand = int8_t;
  using Accumulator = int32_t;
  static constexpr size_t kUnit = 4;
  static constexpr size_t kExtra = 64;  // bytes for the corrections

  static bool IsNarrow(const LinearTile& tile) { return tile.max_weight <= 64; }

  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, int8_t* out) {
    size_t bytes = 64 * blocks;
    if (tile.storage == kBytes) {
      for (size_t i = 0; i < bytes; i += 32) Store(out + i, Load(packed + i));
    } else {
      DecodeBlocks(packed, blocks, LoadHalf(tile.table), out);
      bytes /= 2;
    }
    if (IsNarrow(tile)) StoreCorrection(out, blocks);
    return bytes;
  }

  static void DecodeBlocks(const uint8_t* packed, size_t blocks, __m128i grid, int8_t* out) {
    const __m256i table = _mm256_broadcastsi128_si256(grid);
    const __m256i mask = _mm256_set1_epi8(15);
    for (size_t b = 0; b < blocks; ++b) {
      const __m256i codes = Load(packed + 32 * b);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask);
      Store(out + 64 * b, _mm256_shuffle_epi8(table, _mm256_and_si256(codes, mask)));
      Store(out + 64 * b + 32, _mm256_shuffle_epi8(table, high));
    }
  }

  // 128 * sum of the chunk's weights, for each channel.
  static void StoreCorrection(int8_t* operand, size_t blocks) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i half = _mm256_set1_epi8(static_cast<char>(0x80));
    for (size_t v = 0; v < 2; ++v) {
      __m256i sum = _mm256_setzero_si256();
      for (size_t b = 0; b < blocks; ++b) {
        const __m256i pairs = _mm256_maddubs_epi16(half, Load(operand + 64 * b + 32 * v));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
      }
      Store(operand + kChunk * kPanel + 32 * v, sum);
    }
  }

  // Copies q of one row, padded with zeros to whole blocks; `flip` 0x80 makes it q + 128.
  static void Stage(const int8_t* q, size_t count, uint8_t flip, uint8_t* staged) {
    const __m256i flips = _mm256_set1_epi8(static_cast<char>(flip));
    size_t i = 0;
    for (; i + 32 <= count; i += 32) Store(staged + i, _mm256_xor_si256(Load(q + i), flips));
    for (; i < count; ++i) staged[i] = static_cast<uint8_t>(static_cast<uint8_t>(q[i]) ^ flip);
    for (; i % kUnit != 0; ++i) staged[i] = flip;
  }

  template <bool kNarrow>
  static __m256i Pairs(__m256i q, __m256i weight) {
    if constexpr (kNarrow) return _mm256_maddubs_epi16(q, weight);
    return _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(weight, q));
  }

  template <size_t R, bool kNarrow>
  static void Multiply(const DotRows<Int8Dot>& rows, __m256i total[R][2]) {
    alignas(32) uint8_t staged[R][kChunk];
    const int8_t* q = static_cast<const int8_t*>(rows.tile->q) + rows.row * rows.tile->k + rows.k;
    for (size_t r = 0; r < R; ++r) {
      Stage(q + r * rows.tile->k, rows.count, kNarrow ? 0x80 : 0, staged[r]);
    }
    const size_t blocks = (rows.count + kUnit - 1) / kUnit;
    const size_t run = kNarrow ? static_cast<size_t>(64 / rows.tile->max_weight) : 1;
    const __m256i ones = _mm256_set1_epi16(1);
    for (size_t b = 0; b < blocks;) {
      const size_t end = blocks - b < run ? blocks : b + run;
      __m256i pairs[R][2];
      for (size_t r = 0; r < R; ++r) pairs[r][0] = pairs[r][1] = _mm256_setzero_si256();
      for (; b < end; ++b) {
        const __m256i low = Load(rows.operand + 64 * b);
        const __m256i high = Load(rows.operand + 64 * b + 32);
        for (size_t r = 0; r < R; ++r) {
          const __m256i four = _mm256_broadcastd_epi32(_mm_loadu_si32(staged[r] + kUnit * b));
          pairs[r][0] = _mm256_add_epi16(pairs[r][0], Pairs<kNarrow>(four, low));
          pairs[r][1] = _mm256_add_epi16(pairs[r][1], Pairs<kNarrow>(four, high));
        }
      }
      for (size_t r = 0; r < R; ++r) {
        total[r][0] = _mm256_add_epi32(total[r][0], _mm256_madd_epi16(pairs[r][0], ones));
        total[r][1] = _mm256_add_epi32(total[r][1], _mm256_madd_epi16(pairs[r][1], ones));
      }
    }
  }

  template <size_t R>
  static void Rows(const DotRows<Int8Dot>& rows) {
    __m256i total[R][2];
    LoadTotals<R>(rows, total);
    if (IsNarrow(*rows.tile)) {
      const int8_t* correction = rows.operand + kChunk * kPanel;
      Multiply<R, true>(rows, total);
      for (size_t r = 0; r < R; ++r) {
        total[r][0] = _mm256_sub_epi32(total[r][0], Load(correction));
        total[r][1] = _mm256_sub_epi32(total[r][1], Load(correction + 32));
      }
    } else {
      Multiply<R, false>(rows, total);
    }
    StoreTotals<R>(rows, total);
  }
};

// The int8 grid integers of sixteen codes: the low nibble of each byte.
__m128i DecodeNibbles(__m128i codes, __m128i table) {
  return _mm_shuffle_epi8(table, _mm_and_si128(codes, _mm_set1_epi8(15)));
}

// int16 x int16 by vpmaddwd; the op has checked that a whole group fits int32.
struct Int16Dot : PanelDot {
  using Operand = int16_t;
  using Accumulator = int32_t;
  static constexpr size_t kUnit = 2;

  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, int16_t* out) {
    const __m128i table = LoadHalf(tile.table);
    const size_t bytes = tile.storage == kNibbles ? 16 : tile.storage == kBytes ? 32 : 64;
    for (size_t b = 0; b < blocks; ++b, packed += bytes, out += 32) {
      if (tile.storage == kShorts) {
        Store(out, Load(packed));
        Store(out + 16, Load(packed + 32));
        continue;
      }
      const bool nibbles = tile.storage == kNibbles;
      const __m128i first = LoadHalf(packed);
      const __m128i high =
          nibbles ? DecodeNibbles(_mm_srli_epi16(first, 4), table) : LoadHalf(packed + 16);
      Store(out, _mm256_cvtepi8_epi16(nibbles ? DecodeNibbles(first, table) : first));
      Store(out + 16, _mm256_cvtepi8_epi16(high));
    }
    return blocks * bytes;
  }

  // Copies q of one row as int16, padded with zeros to whole blocks.
  static void Stage(const LinearTile& tile, size_t start, size_t count, int16_t* staged) {
    const int8_t* bytes = static_cast<const int8_t*>(tile.q) + start;
    const int16_t* shorts = static_cast<const int16_t*>(tile.q) + start;
    const bool is_bytes = tile.q_type == kInt8Type;
    size_t i = 0;
    for (; i + 16 <= count; i += 16) {
      Store(staged + i, is_bytes ? _mm256_cvtepi8_epi16(LoadHalf(bytes + i)) : Load(shorts + i));
    }
    for (; i < count; ++i) staged[i] = is_bytes ? bytes[i] : shorts[i];
    if (i % kUnit != 0) staged[i] = 0;
  }

  template <size_t R>
  static void Rows(const DotRows<Int16Dot>& rows) {
    __m256i total[R][2];
    LoadTotals<R>(rows, total);
    alignas(32) int16_t staged[R][kChunk];
    const size_t start = rows.row * rows.tile->k + rows.k;
    for (size_t r = 0; r < R; ++r)
      Stage(*rows.tile, start + r * rows.tile->k, rows.count, staged[r]);
    for (size_t b = 0; b < (rows.count + 1) / 2; ++b) {
      const __m256i low = Load(rows.operand + 32 * b);
      const __m256i high = Load(rows.operand + 32 * b + 16);
      for (size_t r = 0; r < R; ++r) {
        const __m256i two = _mm256_broadcastd_epi32(_mm_loadu_si32(staged[r] + 2 * b));
        total[r][0] = _mm256_add_epi32(total[r][0], _mm256_madd_epi16(two, low));
        total[r][1] = _mm256_add_epi32(total[r][1], _mm256_madd_epi16(two, high));
      }
    }
    StoreTotals<R>(rows, total);
  }
};

// float32 fma chains, one a channel: vectors run across channels, never along k.
struct FloatDot : PanelDot {
  using Operand = float;
  using Accumulator = float;
  static constexpr size_t kUnit = 1;

  // Eight grid integers of a block's first (`half` 0) or second half.
  static __m256 DecodeHalf(const LinearTile& tile, const uint8_t* block, size_t half) {
    if (tile.storage == kBfloats) {
      const __m256i wide = _mm256_cvtepu16_epi32(LoadHalf(block + 16 * half));
      return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    if (tile.storage == kShorts) {
      return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(LoadHalf(block + 16 * half)));
    }
    const uint8_t* at = block + (tile.storage == kBytes ? 8 * half : 0);
    __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
    if (tile.storage == kNibbles) {
      if (half != 0) bytes = _mm_srli_epi16(bytes, 4);
      bytes = DecodeNibbles(bytes, LoadHalf(tile.table));
    }
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }

  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, float* out) {
    const size_t bytes = tile.storage == kNibbles ? 8 : tile.storage == kBytes ? 16 : 32;
    for (size_t b = 0; b < blocks; ++b) {
      _mm256_storeu_ps(out + 16 * b, DecodeHalf(tile, packed + bytes * b, 0));
      _mm256_storeu_ps(out + 16 * b + 8, DecodeHalf(tile, packed + bytes * b, 1));
    }
    return blocks * bytes;
  }

  template <size_t R>
  static void Rows(const DotRows<FloatDot>& rows) {
    const float* q = static_cast<const float*>(rows.tile->q) + rows.row * rows.tile->k + rows.k;
    float* stored = rows.accumulator + rows.row * kPanel;
    __m256 total[R][2];
    for (size_t r = 0; r < R; ++r) {
      total[r][0] = rows.first ? _mm256_setzero_ps() : _mm256_loadu_ps(stored + r * kPanel);
      total[r][1] = rows.first ? _mm256_setzero_ps() : _mm256_loadu_ps(stored + r * kPanel + 8);
    }
    for (size_t i = 0; i < rows.count; ++i) {
      const __m256 low = _mm256_loadu_ps(rows.operand + 16 * i);
      const __m256 high = _mm256_loadu_ps(rows.operand + 16 * i + 8);
      for (size_t r = 0; r < R; ++r) {
        const __m256 one = _mm256_broadcast_ss(q + r * rows.tile->k + i);
        total[r][0] = _mm256_fmadd_ps(one, low, total[r][0]);
        total[r][1] = _mm256_fmadd_ps(one, high, total[r][1]);
      }
    }
    for (size_t r = 0; r < R; ++r) {
      if (rows.last) {
        FoldGroup(rows.group_scale, total[r][0], total[r][1], rows.sum + (rows.row + r) * kPanel);
      } else {
        _mm256_storeu_ps(stored + r * kPanel, total[r][0]);
        _mm256_storeu_ps(stored + r * kPanel + 8, total[r][1]);
      }
    }
  }
};

// The first `count` of eight floats; the others are zero, and their memory is not touched.
__m256 LoadFirst(const float* x, size_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(x,
                            _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane));
}

// Bits of the largest magnitude. They are ordered as magnitudes are, with NaN above all.
uint32_t LargestMagnitude(const float* x, size_t k) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
  for (size_t i = 0; i < k; i += 8) {
    const __m256 part = k - i < 8 ? LoadFirst(x + i, k - i) : _mm256_loadu_ps(x + i);
    largest = _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(part), mask));
  }
  alignas(32) uint32_t lanes[8];
  Store(lanes, largest);
  uint32_t result = 0;
  for (uint32_t bits : lanes) result = bits > result ? bits : result;
  return result;
}

// See RoundToGrid in scalar.cc.
__m256 RoundToGrid(__m256 t, const QuantizeGrid& grid) {
  const __m256 sign_bit = _mm256_set1_ps(-0.0f);
  const __m256i one = _mm256_set1_epi32(127 << 23);
  const __m256 magnitude = _mm256_andnot_ps(sign_bit, t);
  const __m256i biased = _mm256_srli_epi32(_mm256_castps_si256(magnitude), 23);
  const __m256i binade = _mm256_sub_epi32(biased, _mm256_set1_epi32(127 + grid.mantissa_bits));
  const __m256i exponent = _mm256_slli_epi32(_mm256_max_epi32(binade, _mm256_setzero_si256()), 23);
  const __m256 down = _mm256_castsi256_ps(_mm256_sub_epi32(one, exponent));
  const __m256 up = _mm256_castsi256_ps(_mm256_add_epi32(one, exponent));
  const __m256 rounded =
      _mm256_mul_ps(_mm256_round_ps(_mm256_mul_ps(magnitude, down),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                    up);
  const __m256 clipped = _mm256_min_ps(rounded, _mm256_set1_ps(grid.max_integer));
  const __m256 number = _mm256_and_ps(clipped, _mm256_cmp_ps(t, t, _CMP_ORD_Q));
  return _mm256_or_ps(number, _mm256_and_ps(sign_bit, t));
}

// Eight grid integers to memory of each type.
void StoreIntegers(__m256 v, float* q) { _mm256_storeu_ps(q, v); }
__m128i ToShorts(__m256 v) {
  const __m256i wide = _mm256_cvtps_epi32(v);
  return _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
}
void StoreIntegers(__m256 v, int16_t* q) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), ToShorts(v));
}
void StoreIntegers(__m256 v, int8_t* q) {
  const __m128i shorts = ToShorts(v);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(q), _mm_packs_epi16(shorts, shorts));
}

template <typename Integer>
void Quantize(const float* x, size_t k, const QuantizeGrid& grid, void* result, float* scale) {
  Integer* q = static_cast<Integer*>(result);
  const uint32_t largest = LargestMagnitude(x, k);
  const float amax = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int>(largest))));
  const bool finite = largest < 0x7f800000u;
  if (!finite || amax < kSmallestAmax) {
    for (size_t i = 0; i < k; ++i) q[i] = 0;
    *scale = finite ? 0.0f : _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(0x7fc00000)));
    return;
  }
  const __m256 factor = _mm256_set1_ps(grid.max_integer / amax);
  size_t i = 0;
  for (; i + 8 <= k; i += 8) {
    StoreIntegers(RoundToGrid(_mm256_mul_ps(_mm256_loadu_ps(x + i), factor), grid), q + i);
  }
  Integer rest[8];
  StoreIntegers(RoundToGrid(_mm256_mul_ps(LoadFirst(x + i, k - i), factor), grid), rest);
  for (size_t j = 0; i + j < k; ++j) q[i + j] = rest[j];
  *scale = amax / grid.max_integer;
}

}  // namespace

extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels = {
    {kLinear<Int8Dot>, kLinear<Int16Dot>, kLinear<FloatDot>},
    {Quantize<int8_t>, Quantize<int16_t>, Quantize<float>},
    {nullptr, nullptr, nullptr},  // memory-bound: the scalar loop does
};

}  // namespace fp4dit
