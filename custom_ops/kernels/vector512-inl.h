// 512-bit registers for the dots of word_dot-inl.h, and the dot products of VNNI in them. Included
// by files of kernels only; see linear_tile-inl.h on the anonymous namespace.

#ifndef FP4DIT_KERNELS_VECTOR512_INL_H_
#define FP4DIT_KERNELS_VECTOR512_INL_H_

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/vector256-inl.h"
#include "kernels/word_dot-inl.h"

namespace fp4dit {
namespace {

struct Vector512 {
  using Int = __m512i;
  using Float = __m512;
  static constexpr size_t kLanes = 16;

  static Int Load(const void* p) { return _mm512_loadu_si512(p); }
  static void Store(void* p, Int v) { _mm512_storeu_si512(p, v); }
  static Int Word(const void* p) { return _mm512_broadcastd_epi32(_mm_loadu_si32(p)); }
  template <typename T>
  static T Kept(T v) {
    FP4DIT_KEEP("v", v);
    return v;
  }
  static Int And(Int a, Int b) { return _mm512_and_si512(a, b); }
  static Int Xor(Int a, Int b) { return _mm512_xor_si512(a, b); }
  static Int ShiftRight4(Int v) { return _mm512_srli_epi16(v, 4); }
  static Int Bytes(uint8_t b) { return _mm512_set1_epi8(static_cast<char>(b)); }
  static Int Table(const int8_t* table) { return _mm512_broadcast_i32x4(LoadTable(table)); }
  static Int Lookup(Int table, Int indices) { return _mm512_shuffle_epi8(table, indices); }

  static __m256i Table2(const int8_t* table) { return Vector256::Table(table); }
  static __m256i LoadBytes2(const void* p) { return Vector256::Load(p); }
  static __m256i LookupLow2(__m256i table, __m256i codes) {
    return Vector256::Lookup(table, Vector256::And(codes, Vector256::Bytes(15)));
  }
  static __m256i LookupHigh2(__m256i table, __m256i codes) {
    return LookupLow2(table, Vector256::ShiftRight4(codes));
  }
  static Int ToShorts(__m256i bytes) { return _mm512_cvtepi8_epi16(bytes); }

  static __m128i LoadBytes(const void* p) { return Vector256::LoadBytes2(p); }
  static Float FromBytes(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)); }
  static Float FromShorts(const void* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(Vector256::Load(p)));
  }
  static Float FromBfloats(const void* p) {
    return AsFloats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(Vector256::Load(p)), 16));
  }

  static Float LoadFloats(const float* p) { return _mm512_loadu_ps(p); }
  static void StoreFloats(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static Float Splat(float v) { return _mm512_set1_ps(v); }
  static Float Fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }

  static Int SplatInt(int32_t v) { return _mm512_set1_epi32(v); }
  static Float FromInts(Int v) { return _mm512_cvtepi32_ps(v); }
  static Float AsFloats(Int v) { return _mm512_castsi512_ps(v); }
  static Int AsInts(Float v) { return _mm512_castps_si512(v); }
  static Int AddInts(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int MaxInts(Int a, Int b) { return _mm512_max_epi32(a, b); }
  static Float Add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float Sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float Mul(Float a, Float b) { return _mm512_mul_ps(a, b); }

  static Float Max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Int ShiftLeft23(Int v) { return _mm512_slli_epi32(v, 23); }
  static Float ZeroIfBelow(Float v, Float x, Float limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), v);
  }

  static Float LoadFirst(const float* x, size_t count) {
    const auto first = count < kLanes ? (1u << count) - 1u : 0xffffu;
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>(first), x);
  }
  static void StoreIntegers(Float v, Float t, float* q) {
    StoreFloats(q, _mm512_or_ps(v, _mm512_and_ps(Splat(-0.0f), t)));
  }
  static void StoreIntegers(Float v, Float, int16_t* q) {
    Vector256::Store(q, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v)));
  }
  static void StoreIntegers(Float v, Float, int8_t* q) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
  }
};

struct VnniBytes : ByteMultiply<Vector512> {
  static __m512i Step(__m512i total, __m512i weight, __m512i act) {
    return _mm512_dpbusd_epi32(total, weight, act);
  }
};

struct VnniShorts : ShortMultiply<Vector512> {
  static __m512i Step(__m512i total, __m512i weight, __m512i act) {
    return _mm512_dpwssd_epi32(total, weight, act);
  }
};

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_KERNELS_VECTOR512_INL_H_
