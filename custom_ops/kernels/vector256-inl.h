// 256-bit registers for the dots of word_dot-inl.h, and what they and the 512-bit ones share.

#ifndef FP4DIT_KERNELS_VECTOR256_INL_H_
#define FP4DIT_KERNELS_VECTOR256_INL_H_

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/linear_tile-inl.h"

namespace fp4dit {
namespace {

__m128i LoadTable(const int8_t* table) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
}
// Entries of the low and of the high nibbles of sixteen bytes.
__m128i LookupLow(__m128i table, __m128i codes) {
  return _mm_shuffle_epi8(table, _mm_and_si128(codes, _mm_set1_epi8(15)));
}
__m128i LookupHigh(__m128i table, __m128i codes) {
  return LookupLow(table, _mm_srli_epi16(codes, 4));
}

struct Vector256 {
  using Int = __m256i;
  using Float = __m256;
  static constexpr size_t kLanes = 8;

  static Int Load(const void* p) { return _mm256_loadu_si256(static_cast<const Int*>(p)); }
  static void Store(void* p, Int v) { _mm256_storeu_si256(static_cast<Int*>(p), v); }
  static Int Word(const void* p) { return _mm256_broadcastd_epi32(_mm_loadu_si32(p)); }
  template <typename T>
  static T Kept(T v) {
    FP4DIT_KEEP("x", v);
    return v;
  }
  static Int And(Int a, Int b) { return _mm256_and_si256(a, b); }
  static Int Xor(Int a, Int b) { return _mm256_xor_si256(a, b); }
  static Int ShiftRight4(Int v) { return _mm256_srli_epi16(v, 4); }
  static Int Bytes(uint8_t b) { return _mm256_set1_epi8(static_cast<char>(b)); }
  static Int Table(const int8_t* table) { return _mm256_broadcastsi128_si256(LoadTable(table)); }
  static Int Lookup(Int table, Int indices) { return _mm256_shuffle_epi8(table, indices); }

  static __m128i Table2(const int8_t* table) { return LoadTable(table); }
  static __m128i LoadBytes2(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
  }
  static __m128i LookupLow2(__m128i table, __m128i codes) { return LookupLow(table, codes); }
  static __m128i LookupHigh2(__m128i table, __m128i codes) { return LookupHigh(table, codes); }
  static Int ToShorts(__m128i bytes) { return _mm256_cvtepi8_epi16(bytes); }

  static __m128i LoadBytes(const void* p) {
    return _mm_loadl_epi64(static_cast<const __m128i*>(p));
  }
  static Float FromBytes(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }
  static Float FromShorts(const void* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(LoadBytes2(p)));
  }
  static Float FromBfloats(const void* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(LoadBytes2(p)), 16));
  }

  static Float LoadFloats(const float* p) { return _mm256_loadu_ps(p); }
  static void StoreFloats(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static Float Splat(float v) { return _mm256_set1_ps(v); }
  static Float Fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }

  static Int SplatInt(int32_t v) { return _mm256_set1_epi32(v); }
  static Float FromInts(Int v) { return _mm256_cvtepi32_ps(v); }
  static Float AsFloats(Int v) { return _mm256_castsi256_ps(v); }
  static Int AsInts(Float v) { return _mm256_castps_si256(v); }
  static Int AddInts(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int MaxInts(Int a, Int b) { return _mm256_max_epi32(a, b); }
  static Float Add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float Sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float Mul(Float a, Float b) { return _mm256_mul_ps(a, b); }

  static Float Max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Int ShiftLeft23(Int v) { return _mm256_slli_epi32(v, 23); }
  static Float ZeroIfBelow(Float v, Float x, Float limit) {
    return _mm256_andnot_ps(_mm256_cmp_ps(x, limit, _CMP_LT_OQ), v);
  }

  // The first `count` floats; the others are zero, and their memory is not touched.
  static Float LoadFirst(const float* x, size_t count) {
    const Int lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const int first = count < kLanes ? static_cast<int>(count) : static_cast<int>(kLanes);
    return _mm256_maskload_ps(x, _mm256_cmpgt_epi32(SplatInt(first), lane));
  }
  // Grid integers `v`, which is `t` rounded, to memory of each type; floats have t's sign at zero.
  static void StoreIntegers(Float v, Float t, float* q) {
    StoreFloats(q, _mm256_or_ps(v, _mm256_and_ps(Splat(-0.0f), t)));
  }
  static __m128i Shorts(Float v) {
    const Int wide = _mm256_cvtps_epi32(v);
    return _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  }
  static void StoreIntegers(Float v, Float, int16_t* q) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), Shorts(v));
  }
  static void StoreIntegers(Float v, Float, int8_t* q) {
    const __m128i shorts = Shorts(v);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(q), _mm_packs_epi16(shorts, shorts));
  }
};

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_KERNELS_VECTOR256_INL_H_
