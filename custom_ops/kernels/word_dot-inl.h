// Dots of x86, whose inner loop multiplies vectors of weights, one 32-bit word a channel, by one
// broadcast word of activations: four int8, two int16 or one float. Included by files of kernels
// only; see linear_tile-inl.h on the anonymous namespace.
//
// `V` is a Vector256 or what has the same members. A `Multiply` is the instruction:
//   Act, Accumulator, Total    types of an activation, a sum in memory, a vector of sums
//   kReach                     see Reach
//   kSums, Start(sum)          whether sums begin at what the sum of a group's activations says
//   Decode<kPanel>             see linear_tile-inl.h
//   Zero, Load, Store          of totals
//   Step(total, weight, act)   total plus the products of two vectors of words
//   ToFloat(total)

#ifndef FP4DIT_KERNELS_WORD_DOT_INL_H_
#define FP4DIT_KERNELS_WORD_DOT_INL_H_

#include "kernels/linear_tile-inl.h"
#include "kernels/vector256-inl.h"

namespace fp4dit {
namespace {

constexpr size_t kWordBytes = 4;

// Decoding int8: bytes to bytes. `flip` is xored to what is stored as bytes.
template <typename V, size_t kPanel>
size_t DecodeToBytes(const LinearTile& tile, const uint8_t* packed, size_t blocks,
                     typename V::Int table, uint8_t flip, void* out) {
  constexpr size_t kBlock = kPanel * kWordBytes;
  constexpr size_t kVector = V::kLanes * kWordBytes;
  uint8_t* to = static_cast<uint8_t*>(out);
  if (tile.storage == kBytes) {
    const auto flips = V::Bytes(flip);
    for (size_t i = 0; i < kBlock * blocks; i += kVector) {
      V::Store(to + i, V::Xor(V::Load(packed + i), flips));
    }
    return kBlock * blocks;
  }
  const auto mask = V::Bytes(15);
  for (size_t b = 0; b < blocks; ++b, packed += kBlock / 2, to += kBlock) {
    for (size_t i = 0; i < kBlock / 2; i += kVector) {
      const auto codes = V::Load(packed + i);
      V::Store(to + i, V::Lookup(table, V::And(codes, mask)));
      V::Store(to + kBlock / 2 + i, V::Lookup(table, V::And(V::ShiftRight4(codes), mask)));
    }
  }
  return kBlock / 2 * blocks;
}

// Decoding int16: of 4-bit codes, bytes or shorts.
template <typename V, size_t kPanel>
size_t DecodeToShorts(const LinearTile& tile, const uint8_t* packed, size_t blocks, int16_t* out) {
  constexpr size_t kBlock = kPanel * 2;
  constexpr size_t kVector = V::kLanes * 2;
  const size_t bytes = tile.storage == kNibbles ? kBlock / 2
                       : tile.storage == kBytes ? kBlock
                                                : 2 * kBlock;
  const auto table = V::Table2(tile.table);
  for (size_t b = 0; b < blocks; ++b, packed += bytes, out += kBlock) {
    if (tile.storage == kNibbles) {
      for (size_t i = 0; i < kBlock / 2; i += kVector) {
        const auto codes = V::LoadBytes2(packed + i);
        V::Store(out + i, V::ToShorts(V::LookupLow2(table, codes)));
        V::Store(out + kBlock / 2 + i, V::ToShorts(V::LookupHigh2(table, codes)));
      }
      continue;
    }
    for (size_t i = 0; i < kBlock; i += kVector) {
      V::Store(out + i, tile.storage == kBytes ? V::ToShorts(V::LoadBytes2(packed + i))
                                               : V::Load(packed + 2 * i));
    }
  }
  return blocks * bytes;
}

// Decoding float: of any storage.
template <typename V, size_t kPanel>
size_t DecodeToFloats(const LinearTile& tile, const uint8_t* packed, size_t blocks, float* out) {
  const size_t bytes = tile.storage == kNibbles ? kPanel / 2
                       : tile.storage == kBytes ? kPanel
                                                : 2 * kPanel;
  const __m128i table = LoadTable(tile.table);
  for (size_t b = 0; b < blocks; ++b, packed += bytes, out += kPanel) {
    if (tile.storage == kNibbles) {
      for (size_t i = 0; i < kPanel / 2; i += V::kLanes) {
        const __m128i codes = V::LoadBytes(packed + i);
        V::StoreFloats(out + i, V::FromBytes(LookupLow(table, codes)));
        V::StoreFloats(out + kPanel / 2 + i, V::FromBytes(LookupHigh(table, codes)));
      }
      continue;
    }
    for (size_t i = 0; i < kPanel; i += V::kLanes) {
      V::StoreFloats(out + i, tile.storage == kBytes    ? V::FromBytes(V::LoadBytes(packed + i))
                              : tile.storage == kShorts ? V::FromShorts(packed + 2 * i)
                                                        : V::FromBfloats(packed + 2 * i));
    }
  }
  return blocks * bytes;
}

// Bytes of no pattern, for the loops that measure: processors that compute on zeros or ones use
// less power than at work, and run faster. As floats their exponents are ordinary.
inline void FillWithNoise(uint8_t* bytes, size_t size) {
  uint32_t state = 1;
  for (size_t i = 0; i < size; ++i) {
    state = state * 1664525u + 1013904223u;
    bytes[i] = i % 4 == 3 ? 0x3f : static_cast<uint8_t>(state >> 24);
  }
}

// The bytes are results that somebody wants.
inline void Use(const uint8_t* bytes, size_t size) {
  const volatile uint8_t* read = bytes;
  for (size_t i = 0; i < size; ++i) static_cast<void>(read[i]);
}

// y = fma(scale, sum, bias).
template <typename V, size_t kPanel>
void FinishRows(const LinearTile& tile, const float* sum) {
  for (size_t r = 0; r < tile.rows; ++r, sum += kPanel) {
    const auto scale = V::Splat(tile.scale[r * tile.scale_stride]);
    float* const target = tile.y + r * tile.y_stride;
    float rest[kPanel];
    float* const y = tile.columns == kPanel ? target : rest;
    for (size_t n = 0; n < kPanel; n += V::kLanes) {
      V::StoreFloats(y + n, V::Fma(scale, V::LoadFloats(sum + n), V::LoadFloats(tile.bias + n)));
    }
    if (y == rest) std::memcpy(target, rest, tile.columns * sizeof(float));
  }
}

// Products of float32, one fma a channel and input.
template <typename V>
struct FloatMultiply {
  using Act = float;
  using Accumulator = float;
  using Total = typename V::Float;
  static constexpr Reach kReach = {1, 0};
  static constexpr bool kSums = false;

  template <size_t kPanel>
  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, float* out) {
    return DecodeToFloats<V, kPanel>(tile, packed, blocks, out);
  }
  static Total Zero() { return V::Splat(0.0f); }
  static Total Load(const float* p) { return V::LoadFloats(p); }
  static void Store(float* p, Total v) { V::StoreFloats(p, v); }
  static Total Step(Total total, typename V::Int weight, typename V::Int act) {
    return V::Fma(V::AsFloats(act), V::AsFloats(weight), total);
  }
  static typename V::Float ToFloat(Total total) { return total; }
};

// What sums of integers share.
template <typename V, typename Act_>
struct IntMultiply {
  using Act = Act_;
  using Accumulator = int32_t;
  using Total = typename V::Int;
  static constexpr Reach kReach = {1, 0};
  static constexpr bool kSums = false;

  static Total Zero() { return V::SplatInt(0); }
  static Total Load(const int32_t* p) { return V::Load(p); }
  static void Store(int32_t* p, Total v) { V::Store(p, v); }
  static typename V::Float ToFloat(Total total) { return V::FromInts(total); }
};

// Products of int16, two a channel.
template <typename V>
struct ShortMultiply : IntMultiply<V, int16_t> {
  template <size_t kPanel>
  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, int16_t* out) {
    return DecodeToShorts<V, kPanel>(tile, packed, blocks, out);
  }
};

// Products of int8, four a channel, by an instruction whose first operand is unsigned: that is the
// weight plus 128. What the 128 adds, 128 * sum of the activations, is subtracted at the start.
template <typename V>
struct ByteMultiply : IntMultiply<V, int8_t> {
  static constexpr Reach kReach = {1, 128};
  static constexpr bool kSums = true;

  template <size_t kPanel>
  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, int8_t* out) {
    const auto table = V::Xor(V::Table(tile.table), V::Bytes(0x80));
    return DecodeToBytes<V, kPanel>(tile, packed, blocks, table, 0x80, out);
  }
  static typename V::Int Start(int32_t sum) { return V::SplatInt(Wrapped(-128, sum)); }
};

// One row of int8 times a group of 4-bit codes: what is used once is not worth storing decoded. Two
// blocks at a time, as one alone waits for its sums.
template <typename Dot, typename V, typename Multiply>
size_t RunByteCodes(const DotRows<Dot>& rows, const uint8_t* packed) {
  constexpr size_t kVectors = Dot::kPanel / V::kLanes;
  constexpr size_t kHalf = kVectors / 2;
  constexpr size_t kBlock = Dot::kPanel * kWordBytes / 2;
  using Totals = typename V::Int[2][kVectors];
  const auto table = V::Xor(V::Table(rows.tile->table), V::Bytes(0x80));
  Totals total;
  for (auto& totals : total) {
    for (auto& t : totals) t = V::SplatInt(0);
  }
  const auto add = [](size_t i, Totals& t, const uint8_t* from, const int8_t* q,
                      const typename V::Int& grid) {
    const size_t block = i / kHalf;
    const size_t v = i % kHalf;
    const auto act = V::Word(q + block * kWordBytes);
    const auto codes = V::Load(from + block * kBlock + v * V::kLanes * kWordBytes);
    const auto mask = V::Bytes(15);
    t[block][v] = Multiply::Step(t[block][v], V::Lookup(grid, V::And(codes, mask)), act);
    t[block][v + kHalf] = Multiply::Step(t[block][v + kHalf],
                                         V::Lookup(grid, V::And(V::ShiftRight4(codes), mask)), act);
  };
  const uint8_t* from = packed;
  const int8_t* q = rows.q;
  size_t left = rows.blocks;
  for (; left >= 2; left -= 2, from += 2 * kBlock, q += 2 * kWordBytes) {
    Unroll<2 * kHalf>(add, total, from, q, table);
  }
  if (left != 0) Unroll<kHalf>(add, total, from, q, table);
  const auto start = Multiply::Start(rows.group_sum[0]);
  for (size_t v = 0; v < kVectors; ++v) {
    const auto sum = V::AddInts(start, V::AddInts(total[0][v], total[1][v]));
    float* const at = rows.sum + v * V::kLanes;
    V::StoreFloats(at, V::Fma(V::LoadFloats(rows.group_scale + v * V::kLanes), V::FromInts(sum),
                              V::LoadFloats(at)));
  }
  return rows.blocks * kBlock;
}

template <typename V, typename Multiply, size_t kPanel_, size_t kRows_>
struct WordDot {
  using Act = typename Multiply::Act;
  using Operand = typename Multiply::Act;
  using Accumulator = typename Multiply::Accumulator;
  using Total = typename Multiply::Total;
  static constexpr size_t kPanel = kPanel_;
  static constexpr size_t kRows = kRows_;
  static constexpr size_t kUnit = kWordBytes / sizeof(Act);
  static constexpr size_t kStep = kUnit;
  static constexpr size_t kChunk = 64 * kUnit;
  static constexpr Reach kReach = Multiply::kReach;
  static constexpr bool kSums = Multiply::kSums;
  static constexpr size_t kVectors = kPanel / V::kLanes;

  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, Operand* out) {
    return Multiply::template Decode<kPanel>(tile, packed, blocks, out);
  }

  static Total First(const DotRows<WordDot>& rows, size_t r) {
    if constexpr (kSums) {
      return Multiply::Start(rows.group_sum[r]);
    } else {
      return Multiply::Zero();
    }
  }

  // The totals of R rows live in registers: only unrolled loops may index them.
  template <size_t R>
  using Totals = Total[R][kVectors];
  using Rest = const DotRows<WordDot>;

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void Begin(Rest& rows, Totals<R>& total) {
    Unroll<R * kVectors>(
        [](size_t i, Totals<R>& t, Rest& rest) {
          const size_t r = i / kVectors;
          const size_t at = r * kPanel + i % kVectors * V::kLanes;
          t[r][i % kVectors] = rest.first ? First(rest, r) : Multiply::Load(rest.accumulator + at);
        },
        total, rows);
  }

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void Step(const Act* q, size_t stride, const Operand* weight,
                                        Totals<R>& total) {
    typename V::Int w[kVectors];
    Unroll<kVectors>(
        [](size_t v, typename V::Int(&to)[kVectors], const Operand* from) {
          to[v] = V::Kept(V::Load(from + v * V::kLanes * kUnit));
        },
        w, weight);
    Unroll<R>(
        [](size_t r, Totals<R>& t, typename V::Int(&factors)[kVectors], const Act* acts,
           size_t distance) {
          const typename V::Int act = V::Kept(V::Word(acts + r * distance));
          Unroll<kVectors>(
              [](size_t v, Total(&row)[kVectors], typename V::Int(&f)[kVectors],
                 const typename V::Int& a) { row[v] = Multiply::Step(row[v], f[v], a); },
              t[r], factors, act);
        },
        total, w, q, stride);
  }

  template <size_t R>
  static FP4DIT_ALWAYS_INLINE void End(Rest& rows, Totals<R>& total) {
    Unroll<R * kVectors>(
        [](size_t i, Totals<R>& t, Rest& rest) {
          const Total& done = t[i / kVectors][i % kVectors];
          const size_t v = i % kVectors * V::kLanes;
          const size_t at = i / kVectors * kPanel + v;
          if (rest.last) {
            const auto scale = V::LoadFloats(rest.group_scale + v);
            V::StoreFloats(rest.sum + at,
                           V::Fma(scale, Multiply::ToFloat(done), V::LoadFloats(rest.sum + at)));
          } else {
            Multiply::Store(rest.accumulator + at, done);
          }
        },
        total, rows);
  }

  template <size_t R>
  static void Rows(const DotRows<WordDot>& rows) {
    Totals<R> total;
    Begin<R>(rows, total);
    const Operand* weight = rows.operand;
    const Act* q = rows.q;
    for (size_t b = 0; b < rows.blocks; ++b, weight += kPanel * kUnit, q += kUnit) {
      Step<R>(q, rows.q_stride, weight, total);
    }
    End<R>(rows, total);
  }

  // The same instruction adds bytes up; no sum of products has a bound to mind.
  static constexpr bool kSumsRows = kSums;
  static int32_t SumRow(const int8_t* q, size_t size, int32_t* largest) {
    constexpr size_t kBytesAtOnce = V::kLanes * kWordBytes;
    Total total = Multiply::Zero();
    size_t i = 0;
    for (; i + kBytesAtOnce <= size; i += kBytesAtOnce) {
      total = Multiply::Step(total, V::Bytes(1), V::Load(q + i));
    }
    alignas(64) int32_t lanes[V::kLanes];
    V::Store(lanes, total);
    int32_t sum = SumPlainly(q + i, size - i, largest);
    for (const int32_t lane : lanes) sum += lane;
    return sum;
  }

  static constexpr bool kReadsCodes = kSums;
  static size_t RunCodes(const DotRows<WordDot>& rows, const uint8_t* packed) {
    return RunByteCodes<WordDot, V, Multiply>(rows, packed);
  }

  static void Finish(const LinearTile& tile, const float* sum) { FinishRows<V, kPanel>(tile, sum); }

  static double Peak(size_t rounds) {
    constexpr size_t kTotals = 10;  // as many as an instruction's latency times the units
    alignas(64) uint8_t bytes[kTotals][V::kLanes * kWordBytes];
    FillWithNoise(bytes[0], sizeof(bytes));
    const typename V::Int act = V::Load(bytes[0]);
    typename V::Int weight = V::Load(bytes[1]);
    Total total[kTotals];
    Unroll<kTotals>([](size_t i, Total(&t)[kTotals]) { t[i] = Multiply::Zero(); }, total);
    for (size_t i = 0; i < rounds; ++i) {
      Unroll<kTotals>(
          [](size_t j, Total(&t)[kTotals], typename V::Int& w, const typename V::Int& a) {
            w = V::Kept(w);  // or the compiler would see that the products never change
            t[j] = V::Kept(Multiply::Step(t[j], w, a));
          },
          total, weight, act);
    }
    for (size_t i = 0; i < kTotals; ++i) {
      Multiply::Store(reinterpret_cast<Accumulator*>(bytes[i]), total[i]);
    }
    Use(bytes[0], sizeof(bytes));
    return static_cast<double>(rounds) * static_cast<double>(kTotals * V::kLanes * kUnit);
  }
};

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_KERNELS_WORD_DOT_INL_H_
