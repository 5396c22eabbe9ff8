// Registers of x86, and the multiplications of words of 32 bits in them: four int8, two int16 or
// one float an input word. Included by files of kernels only; see linear_tile-inl.h on the
// anonymous namespace.

#ifndef FP4DIT_CPU_KERNELS_X86_INL_H_
#define FP4DIT_CPU_KERNELS_X86_INL_H_

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/broadcast_dot-inl.h"
#include "cpu/kernels/linear_tile-inl.h"
#include "cpu/kernels/run_codes-inl.h"

namespace fp4dit {
namespace {

// Registers of so many bits. 128 has what looks up sixteen bytes.
template <int kBits>
struct Vector;

template <>
struct Vector<128> {
  using Int = __m128i;
  static Int Load(const void* p) { return _mm_loadu_si128(static_cast<const Int*>(p)); }
  static void Store(void* p, Int v) { _mm_storeu_si128(static_cast<Int*>(p), v); }
  static Int And(Int a, Int b) { return _mm_and_si128(a, b); }
  static constexpr bool kShiftsBytes = false;  // but words
  static Int ShiftRight4(Int v) { return _mm_srli_epi16(v, 4); }
  static Int Bytes(uint8_t b) { return _mm_set1_epi8(static_cast<char>(b)); }
  static Int Table(const int8_t* table) { return Load(table); }
  static Int Lookup(Int table, Int indices) { return _mm_shuffle_epi8(table, indices); }
};

#define FP4DIT_BITS 256
#include "cpu/kernels/x86_registers.inc"
#if defined(__AVX512F__)
#define FP4DIT_BITS 512
#include "cpu/kernels/x86_registers.inc"
#endif

// Weights as shorts and as floats, see DecodeWide.
template <typename V>
struct ToShorts {
  using Bytes = typename V::Half;
  static constexpr size_t kCount = 2 * V::kLanes;
  static typename Bytes::Int Load(const void* p) { return Bytes::Load(p); }
  static void Store(int16_t* out, typename Bytes::Int bytes) { V::Store(out, V::ToShorts(bytes)); }
  static void StoreWide(int16_t* out, const uint8_t* p, WeightStorage) {
    V::Store(out, V::Load(p));
  }
};

template <typename V>
struct ToFloats {
  using Bytes = Vector<128>;
  static constexpr size_t kCount = V::kLanes;
  static __m128i Load(const void* p) { return V::LoadBytes(p); }
  static void Store(float* out, __m128i bytes) { V::StoreFloats(out, V::FromBytes(bytes)); }
  static void StoreWide(float* out, const uint8_t* p, WeightStorage storage) {
    V::StoreFloats(out, storage == kShorts ? V::FromShorts(p) : V::FromBfloats(p));
  }
};

// What multiplications share, see BroadcastDot.
template <typename V, typename Act_>
struct WordMultiply {
  using Registers = V;
  using Act = Act_;
  using Weight = typename V::Int;
  using Factor = typename V::Int;
  static constexpr size_t kUnit = kWordBytes / sizeof(Act);
  static constexpr Reach kReach = {1, 0};
  static constexpr bool kSums = false;
  static constexpr bool kReadsCodes = false;
  static constexpr size_t kFactors = 1;

  static Weight Load(const Act* p) { return V::Kept(V::Load(p)); }
  static Factor Broadcast(const Act* q) { return V::Kept(V::Word(q)); }
};

template <typename V, typename Act>
struct IntMultiply : WordMultiply<V, Act> {
  using Accumulator = int32_t;
  using Total = typename V::Int;

  static Total Zero() { return V::SplatInt(0); }
  static Total LoadTotal(const int32_t* p) { return V::Load(p); }
  static void StoreTotal(int32_t* p, Total v) { V::Store(p, v); }
  static typename V::Float ToFloat(Total total) { return V::FromInts(total); }
};

// Products of float32, one fma a channel and input.
template <typename V>
struct FloatMultiply : WordMultiply<V, float> {
  using Accumulator = float;
  using Total = typename V::Float;

  template <size_t kBlock>
  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, float* out) {
    return DecodeWide<ToFloats<V>, kBlock>(tile, packed, blocks, out);
  }
  static Total Zero() { return V::Splat(0.0f); }
  static Total LoadTotal(const float* p) { return V::LoadFloats(p); }
  static void StoreTotal(float* p, Total v) { V::StoreFloats(p, v); }
  static Total Step(Total total, typename V::Int weight, typename V::Int act) {
    return V::Fma(V::AsFloats(act), V::AsFloats(weight), total);
  }
  static typename V::Float ToFloat(Total total) { return total; }
};

// Products of int16, two a channel.
template <typename V>
struct ShortMultiply : IntMultiply<V, int16_t> {
  template <size_t kBlock>
  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, int16_t* out) {
    return DecodeWide<ToShorts<V>, kBlock>(tile, packed, blocks, out);
  }
};

// Products of int8, four a channel, by an instruction whose first operand is unsigned: that is the
// weight plus 128. What the 128 adds, 128 * sum of the activations, is subtracted at the start.
template <typename V>
struct ByteMultiply : IntMultiply<V, int8_t> {
  static constexpr Reach kReach = {1, 128};
  static constexpr uint8_t kFlip = 0x80;
  static constexpr bool kSums = true;
  static constexpr bool kReadsCodes = true;

  static typename V::Int Table(const LinearTile& tile) {
    return V::Xor(V::Table(tile.table), V::Bytes(kFlip));
  }
  template <size_t kBlock>
  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, int8_t* out) {
    return DecodeToBytes<V, kBlock>(tile, packed, blocks, Table(tile), kFlip, out);
  }
  static typename V::Int Start(int32_t sum) { return V::SplatInt(Wrapped(-128, sum)); }

  // The same instruction adds bytes up; no sum of products has a bound to mind.
  template <typename Multiply>
  static int32_t SumRow(const int8_t* q, size_t size, int32_t* largest) {
    constexpr size_t kBytesAtOnce = V::kLanes * kWordBytes;
    auto total = Multiply::Zero();
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

  static constexpr size_t kBlocksAtOnce = 2;
  static typename V::Int Repeated(const int8_t* q) { return V::Word(q); }
  template <size_t kVectors>
  static void Sums(const typename V::Int (&total)[2][kVectors], int32_t act_sum,
                   typename V::Int (&sums)[kVectors]) {
    const auto start = Start(act_sum);
    for (size_t v = 0; v < kVectors; ++v) {
      sums[v] = V::AddInts(start, V::AddInts(total[0][v], total[1][v]));
    }
  }
};

#if defined(__AVX512VNNI__)
struct VnniBytes512 : ByteMultiply<Vector<512>> {
  static __m512i Step(__m512i total, __m512i weight, __m512i act) {
    return _mm512_dpbusd_epi32(total, weight, act);
  }
};
#endif

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_X86_INL_H_
