// FpAttention: attention.attention is the definition, which says in what order sums are made.
//
// A warp makes 16 rows of y of one head. Of a tile of 256 keys it holds the scores in registers: in
// the order that the mma leaves them, two keys of each eight a lane, their quantized exponentials
// are the fragments of the second product. Values come in that order too: two transposed loads of
// keys 0 to 7 and 8 to 15 give a lane the same four keys. Keys and values come through shared
// memory, 32 at a time, as they lie in memory.

#include "gpu/arguments.h"
#include "gpu/device.h"
#include "gpu/kernels/attention_chunks.h"
#include "gpu/kernels/exp.h"
#include "gpu/kernels/floats.h"

namespace attention {

constexpr float kMostProbability = 32767.0f;

DEVICE float Larger(float a, float b) { return b > a ? b : a; }  // passes over a NaN in b

DEVICE float ShuffleXorFloat(float v, int mask) { return AsFloat(ShuffleXor(AsBits(v), mask)); }

// Splits two registers of 16-bit integers: four low bytes, four high bytes.
DEVICE uint32_t LowBytes(uint32_t a, uint32_t b) { return Permute(a, b, 0x6420); }
DEVICE uint32_t HighBytes(uint32_t a, uint32_t b) { return Permute(a, b, 0x7531); }

// Exact products of the warp's queries and 32 keys: sums[tile of eight keys].
template <typename C>
DEVICE void ScoreChunk(const AttentionArguments& a, const Place& place, const uint8_t* keys,
                       int32_t (&sums)[kChunkTiles][4]) {
  const int lane = place.lane;
  const uint8_t* const queries =
      place.queries + (Thread() / 32 * 16 + lane % 16) * a.key_stride * 16 + lane / 16 * 16;
  // Matrices: eight keys, one piece; the next piece; then eight more keys.
  const uint8_t* const mine =
      keys + (lane / 16 * 8 + lane % 8) * a.key_stride * 16 + lane / 8 % 2 * 16;
  UNROLL for (int t = 0; t < kChunkTiles; ++t) {
    UNROLL for (int e = 0; e < 4; ++e) sums[t][e] = 0;
  }
  ROLLED for (int step = 0; step < StepsOf(a); ++step) {
    if constexpr (!C::kWide) {
      uint32_t q[4];
      LoadMatrices(queries + step * 32, q);
      UNROLL for (int pair = 0; pair < kChunkTiles / 2; ++pair) {
        uint32_t k[4];
        LoadMatrices(mine + pair * 16 * a.key_stride * 16 + step * 32, k);
        const uint32_t first[2] = {k[0], k[1]};
        const uint32_t second[2] = {k[2], k[3]};
        Mma(sums[pair * 2], q, first);
        Mma(sums[pair * 2 + 1], q, second);
      }
    } else {
      uint32_t wide[2][4], low[4], high[4];
      UNROLL for (int half = 0; half < 2; ++half) {
        LoadMatrices(queries + step * 64 + half * 32, wide[half]);
        UNROLL for (int i = 0; i < 2; ++i) {
          low[half * 2 + i] = LowBytes(wide[half][i], wide[half][i + 2]);
          high[half * 2 + i] = HighBytes(wide[half][i], wide[half][i + 2]);
        }
      }
      UNROLL for (int pair = 0; pair < kChunkTiles / 2; ++pair) {
        uint32_t k[2][4];
        UNROLL for (int half = 0; half < 2; ++half) {
          LoadMatrices(mine + pair * 16 * a.key_stride * 16 + step * 64 + half * 32, k[half]);
        }
        UNROLL for (int t = 0; t < 2; ++t) {
          uint32_t key_low[2], key_high[2];
          UNROLL for (int half = 0; half < 2; ++half) {
            key_low[half] = LowBytes(k[half][t * 2], k[half][t * 2 + 1]);
            key_high[half] = HighBytes(k[half][t * 2], k[half][t * 2 + 1]);
          }
          int32_t middle[4] = {}, upper[4] = {};
          Mma<true, true>(sums[pair * 2 + t], low, key_low);
          Mma<false, true>(middle, high, key_low);
          Mma<true, false>(middle, low, key_high);
          Mma(upper, high, key_high);
          UNROLL for (int e = 0; e < 4; ++e) {
            const uint32_t more =
                (static_cast<uint32_t>(middle[e]) << 8) + (static_cast<uint32_t>(upper[e]) << 16);
            sums[pair * 2 + t][e] =
                static_cast<int32_t>(static_cast<uint32_t>(sums[pair * 2 + t][e]) + more);
          }
        }
      }
    }
  }
}

// What is known of the two rows of a lane: l / 4, and eight on.
struct RowState {
  float query_scale[2];
  float most[2], total[2];    // of all keys so far
  float shrink[2], scale[2];  // of what was before; of the tile's integers
};

// The tile's exponentials, times the values' scales: in place of scores. Gives what makes them
// integers.
DEVICE void Softmax(const Place& place, float (&score)[kTiles][4], RowState& rows,
                    float (&factor)[2]) {
  const int quad = place.lane % 4;
  UNROLL for (int r = 0; r < 2; ++r) {
    float largest = AsFloat(kMinusInfinity);
    UNROLL for (int t = 0; t < kTiles; ++t) {
      UNROLL for (int e = 0; e < 2; ++e) largest = Larger(largest, score[t][r * 2 + e]);
    }
    UNROLL for (int mask = 1; mask < 4; mask *= 2) {
      largest = Larger(largest, ShuffleXorFloat(largest, mask));
    }
    const float most = Larger(rows.most[r], largest);
    const float base = AsBits(most) == kMinusInfinity ? 0.0f : most;
    rows.shrink[r] = Exp(Sub(rows.most[r], base));
    rows.most[r] = most;
    float sums[2][2] = {};  // of sixteen: key % 16 = 8 * (t % 2) + 2 * quad + e
    uint32_t amax = 0;
    UNROLL for (int t = 0; t < kTiles; ++t) {
      UNROLL for (int e = 0; e < 2; ++e) {
        float& at = score[t][r * 2 + e];
        const float x = Exp(Sub(at, base));
        sums[t % 2][e] = Add(sums[t % 2][e], x);
        at = Mul(x, place.value_scale[t * 8 + quad * 2 + e]);
        const uint32_t magnitude = AsBits(at) & 0x7fffffffu;
        amax = magnitude > amax ? magnitude : amax;
      }
    }
    float folded[2];
    UNROLL for (int e = 0; e < 2; ++e) {
      folded[e] = Add(sums[0][e], sums[1][e]);
      folded[e] = Add(folded[e], ShuffleXorFloat(folded[e], 2));
      folded[e] = Add(folded[e], ShuffleXorFloat(folded[e], 1));
    }
    rows.total[r] = Add(Mul(rows.total[r], rows.shrink[r]), Add(folded[0], folded[1]));
    UNROLL for (int mask = 1; mask < 4; mask *= 2) {
      const uint32_t other = ShuffleXor(amax, mask);
      amax = other > amax ? other : amax;
    }
    const bool finite = amax < kInfinity;
    const bool live = finite && AsFloat(amax) >= kSmallestAmax;
    factor[r] = live ? Div(kMostProbability, AsFloat(amax)) : 0.0f;
    rows.scale[r] = live ? Div(AsFloat(amax), kMostProbability) : finite ? 0.0f : AsFloat(kNan);
  }
}

// The tile's integers as fragments: low and high bytes of each 32 keys.
DEVICE void QuantizeScores(const float (&score)[kTiles][4], const float (&factor)[2],
                           uint32_t (&low)[kChunks][4], uint32_t (&high)[kChunks][4]) {
  UNROLL for (int c = 0; c < kChunks; ++c) {
    UNROLL for (int i = 0; i < 4; ++i) {  // row i % 2, 16 keys from i / 2
      const int r = i % 2;
      uint32_t bits[4];
      UNROLL for (int b = 0; b < 4; ++b) {
        const float w = score[c * 4 + i / 2 * 2 + b / 2][r * 2 + b % 2];
        // Of a row that is not finite products would not be zeros.
        const float t = factor[r] == 0.0f ? 0.0f : Mul(w, factor[r]);
        bits[b] = AsBits(Add(t, kMagic)) - AsBits(kMagic);
      }
      const uint32_t first = Permute(bits[0], bits[1], 0x5410);
      const uint32_t second = Permute(bits[2], bits[3], 0x5410);
      low[c][i] = LowBytes(first, second);
      high[c][i] = HighBytes(first, second);
    }
  }
}

// sums += integers of 32 keys * values, of int8: eight channels, of which a lane's columns are
// every other of sixteen.
DEVICE void AddProducts(const uint32_t (&low)[4], const uint32_t (&high)[4],
                        const uint32_t (&values)[2], int32_t (&sums)[4]) {
  int32_t upper[4] = {};
  Mma<true, false>(sums, low, values);
  Mma(upper, high, values);
  UNROLL for (int e = 0; e < 4; ++e) {
    sums[e] = static_cast<int32_t>(static_cast<uint32_t>(sums[e]) +
                                   (static_cast<uint32_t>(upper[e]) << 8));
  }
}

// The same of int16.
DEVICE void AddWideProducts(const uint32_t (&low)[4], const uint32_t (&high)[4],
                            const uint32_t (&values_low)[2], const uint32_t (&values_high)[2],
                            int32_t (&sums)[4]) {
  int32_t middle[4] = {}, upper[4] = {};
  Mma<true, true>(sums, low, values_low);
  Mma<false, true>(middle, high, values_low);
  Mma<true, false>(middle, low, values_high);
  Mma(upper, high, values_high);
  UNROLL for (int e = 0; e < 4; ++e) {
    sums[e] = static_cast<int32_t>(static_cast<uint32_t>(sums[e]) +
                                   (static_cast<uint32_t>(middle[e]) << 8) +
                                   (static_cast<uint32_t>(upper[e]) << 16));
  }
}

// sums[tile of eight channels] += integers * values of one chunk.
template <typename C>
DEVICE void WeighChunk(const AttentionArguments& a, const Place& place, const uint8_t* values,
                       const uint32_t (&low)[4], const uint32_t (&high)[4], int channels,
                       int32_t (&sums)[C::kTilesD][4]) {
  const uint8_t* const mine = values + place.lane * a.value_stride * 16;
  constexpr int kPieceTiles = C::kWide ? 1 : 2;
  UNROLL for (int d = 0; d < C::kTilesD; d += kPieceTiles) {
    if (d * 8 >= channels) continue;
    uint32_t v[4];
    LoadMatricesTransposed(mine + d / kPieceTiles * 16, v);
    const uint32_t first[2] = {LowBytes(v[0], v[1]), LowBytes(v[2], v[3])};
    const uint32_t second[2] = {HighBytes(v[0], v[1]), HighBytes(v[2], v[3])};
    if constexpr (C::kWide) {
      AddWideProducts(low, high, first, second, sums[d]);
    } else {
      AddProducts(low, high, first, sums[d]);  // even channels
      AddProducts(low, high, second, sums[d + 1]);
    }
  }
}

// Channel of a lane's element e of tile d.
template <typename C>
DEVICE int ChannelOf(int lane, int d, int e) {
  const int column = lane % 4 * 2 + e % 2;
  return C::kWide ? d * 8 + column : d / 2 * 16 + column * 2 + d % 2;
}

DEVICE void LoadScales(const AttentionArguments& a, const Place& place, int threads, int first) {
  for (int i = Thread(); i < kKeyTile; i += threads) {
    const bool live = first + i < a.keys;
    const int64_t row = place.Row(a, a.keys, live ? first + i : 0);
    const int64_t bias = place.batch * a.bias_batch + int64_t{first + i} * a.bias_key;
    place.key_scale[i] = live ? Mul(a.k_scale[row], a.attention_scale) : 0.0f;
    place.value_scale[i] = live ? a.v_scale[row] : 0.0f;
    place.key_bias[i] = live ? a.bias[bias] : AsFloat(kMinusInfinity);
  }
}

template <typename C>
DEVICE Place PlaceOf(const AttentionArguments& a) {
  Place place;
  const int64_t rows = Block() / a.parts;
  const int64_t head = rows / a.row_blocks;
  place.head = static_cast<int>(head % a.heads);
  place.batch = static_cast<int>(head / a.heads);
  place.first_row = static_cast<int>(rows % a.row_blocks) * C::kWarps * 16;
  place.first_channel = static_cast<int>(Block() % a.parts) * C::kChannels;
  place.lane = Thread() % 32;
  place.queries = Shared();
  place.key_scale = reinterpret_cast<float*>(place.queries + C::kWarps * 16 * a.key_stride * 16);
  place.key_bias = place.key_scale + kKeyTile;
  place.value_scale = place.key_bias + kKeyTile;
  place.chunks = reinterpret_cast<uint8_t*>(place.value_scale + kKeyTile);
  return place;
}

template <typename C>
DEVICE void StageQueries(const AttentionArguments& a, const Place& place) {
  ROLLED for (int row = 0; row < C::kWarps * 16; row += kKeyChunk) {
    const int64_t first = place.Row(a, a.queries, place.first_row + row) * a.size;
    CopyRows<C>(a, static_cast<const uint8_t*>(a.q) + first * C::kBytes,
                a.queries - place.first_row - row, a.size * C::kBytes, StepsOf(a) * 2 * C::kBytes,
                a.key_stride, place.queries + row * a.key_stride * 16);
  }
}

// The scores of the next tile, of `count` keys.
template <typename C>
DEVICE void ScoreTile(const AttentionArguments& a, const Place& place, int count, int chunks,
                      Chunks& next, const RowState& rows, float (&score)[kTiles][4]) {
  UNROLL for (int c = 0; c < kChunks; ++c) {
    int32_t sums[kChunkTiles][4];
    const bool live = c < chunks;
    if (live) ScoreChunk<C>(a, place, NextChunk<C>(a, place, next), sums);
    UNROLL for (int t = 0; t < kChunkTiles; ++t) {
      UNROLL for (int e = 0; e < 4; ++e) {
        const int key = (c * kChunkTiles + t) * 8 + place.lane % 4 * 2 + e % 2;
        float& at = score[c * kChunkTiles + t][e];
        at = AsFloat(kMinusInfinity);
        if (live && key < count) {
          at = Fma(rows.query_scale[e / 2], Mul(place.key_scale[key], ToFloat(sums[t][e])),
                   place.key_bias[key]);
        }
      }
    }
  }
}

// y = y * shrink + scale * (integers * values) of the tile.
template <typename C>
DEVICE void WeighTile(const AttentionArguments& a, const Place& place, int chunks, Chunks& next,
                      const float (&score)[kTiles][4], const float (&factor)[2],
                      const RowState& rows, float (&y)[C::kTilesD][4]) {
  uint32_t low[kChunks][4], high[kChunks][4];
  QuantizeScores(score, factor, low, high);
  const int channels = ChannelsOf<C>(a, place);
  int32_t sums[C::kTilesD][4] = {};
  float groups[C::kWide ? C::kTilesD : 1][4] = {};
  UNROLL for (int c = 0; c < kChunks; ++c) {
    if (c >= chunks) continue;
    WeighChunk<C>(a, place, NextChunk<C>(a, place, next), low[c], high[c], channels, sums);
    if constexpr (C::kWide) {
      if ((c + 1) * kKeyChunk % a.value_group != 0 && c + 1 < chunks) continue;
      UNROLL for (int d = 0; d < C::kTilesD; ++d) {
        UNROLL for (int e = 0; e < 4; ++e) {
          groups[d][e] = Add(groups[d][e], ToFloat(sums[d][e]));
          sums[d][e] = 0;
        }
      }
    }
  }
  UNROLL for (int d = 0; d < C::kTilesD; ++d) {
    UNROLL for (int e = 0; e < 4; ++e) {
      float sum;
      if constexpr (C::kWide) {
        sum = groups[d][e];
      } else {
        sum = ToFloat(sums[d][e]);
      }
      const float tile = Fma(rows.scale[e / 2], sum, 0.0f);
      y[d][e] = Add(Mul(y[d][e], rows.shrink[e / 2]), tile);
    }
  }
}

template <typename C>
DEVICE void Run(const AttentionArguments& a) {
  Place place = PlaceOf<C>(a);
  StageQueries<C>(a, place);
  const int row = place.first_row + Thread() / 32 * 16 + place.lane / 4;
  RowState rows;
  UNROLL for (int r = 0; r < 2; ++r) {
    const bool live = row + r * 8 < a.queries;
    rows.query_scale[r] = live ? a.q_scale[place.Row(a, a.queries, row + r * 8)] : 0.0f;
    rows.most[r] = AsFloat(kMinusInfinity);
    rows.total[r] = 0.0f;
  }
  float y[C::kTilesD][4] = {};
  Chunks next;
  if (a.stages > 1) {
    StageChunk<C>(a, place, next);  // its group has the queries too
    StageChunk<C>(a, place, next);
  }
  ROLLED for (int first = 0; first < a.keys; first += kKeyTile) {
    const int count = a.keys - first < kKeyTile ? a.keys - first : kKeyTile;
    const int chunks = (count + kKeyChunk - 1) / kKeyChunk;
    LoadScales(a, place, C::kThreads, first);  // the last tile's have been read
    float score[kTiles][4], factor[2];
    ScoreTile<C>(a, place, count, chunks, next, rows, score);
    Softmax(place, score, rows, factor);
    WeighTile<C>(a, place, chunks, next, score, factor, rows, y);
  }
  const int channels = ChannelsOf<C>(a, place);
  UNROLL for (int r = 0; r < 2; ++r) {
    if (row + r * 8 >= a.queries) continue;
    float* const to = a.y + place.Row(a, a.queries, row + r * 8) * a.size + place.first_channel;
    UNROLL for (int d = 0; d < C::kTilesD; ++d) {
      UNROLL for (int e = r * 2; e < r * 2 + 2; ++e) {
        const int channel = ChannelOf<C>(place.lane, d, e);
        if (channel < channels) to[channel] = Div(y[d][e], rows.total[r]);
      }
    }
  }
}

}  // namespace attention

#define FP4DIT_ATTENTION(name, integer, channels, warps)            \
  KERNEL(warps * 32) name(fp4dit::gpu::AttentionArguments a) {      \
    attention::Run<attention::Config<integer, channels, warps>>(a); \
  }
FP4DIT_ATTENTION(fp4dit_attention_int8, int8_t, 128, 4)
FP4DIT_ATTENTION(fp4dit_attention_int16, int16_t, 64, 2)
