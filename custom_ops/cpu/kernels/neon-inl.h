// What the kernels of aarch64 share. Included by files of kernels only; see linear_tile-inl.h on
// the anonymous namespace.

#ifndef FP4DIT_CPU_KERNELS_NEON_INL_H_
#define FP4DIT_CPU_KERNELS_NEON_INL_H_

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/broadcast_dot-inl.h"
#include "cpu/kernels/linear_tile-inl.h"
#include "cpu/kernels/run_codes-inl.h"

namespace fp4dit {
namespace {

// What aarch64 has in place of Vector<256> of x86-inl.h.
struct Neon {
  using Int = int8x16_t;
  using Float = float32x4_t;
  static constexpr size_t kLanes = 4;

  static Int Load(const void* p) { return vld1q_s8(static_cast<const int8_t*>(p)); }
  static void Store(void* p, Int v) { vst1q_s8(static_cast<int8_t*>(p), v); }
  template <typename T>
  static T Kept(T v) {
    FP4DIT_KEEP("w", v);
    return v;
  }
  // Sums and products are of unsigned numbers: modulo 2^8 and 2^32. The signed ones are C in GCC's
  // header, where what does not fit is undefined.
  static uint8x16_t Unsigned(Int v) { return vreinterpretq_u8_s8(v); }
  static Int Signed(uint8x16_t v) { return vreinterpretq_s8_u8(v); }
  static uint32x4_t Words(Int v) { return vreinterpretq_u32_s8(v); }
  static Int Signed(uint32x4_t v) { return vreinterpretq_s8_u32(v); }
  static Int And(Int a, Int b) { return vandq_s8(a, b); }
  static Int Xor(Int a, Int b) { return veorq_s8(a, b); }
  static constexpr bool kShiftsBytes = true;
  static Int ShiftRight4(Int v) { return Signed(vshrq_n_u8(Unsigned(v), 4)); }
  static Int Bytes(uint8_t b) { return vdupq_n_s8(static_cast<int8_t>(b)); }
  static Int Table(const int8_t* table) { return Load(table); }
  static Int Lookup(Int table, Int indices) { return vqtbl1q_s8(table, Unsigned(indices)); }

  static Int AddBytes(Int a, Int b) { return Signed(vaddq_u8(Unsigned(a), Unsigned(b))); }
  static Int SubBytes(Int a, Int b) { return Signed(vsubq_u8(Unsigned(a), Unsigned(b))); }
  static Int MulBytes(Int a, Int factors) {
    return Signed(vmulq_u8(Unsigned(a), Unsigned(factors)));
  }
  static Int Factors(Int bytes) { return bytes; }

  static Float LoadFloats(const float* p) { return vld1q_f32(p); }
  static void StoreFloats(float* p, Float v) { vst1q_f32(p, v); }
  static Float Splat(float v) { return vdupq_n_f32(v); }
  static Float Fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static Float Add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float Sub(Float a, Float b) { return vsubq_f32(a, b); }
  static Float Mul(Float a, Float b) { return vmulq_f32(a, b); }
  static Float Div(Float a, Float b) { return vdivq_f32(a, b); }
  static Float Max(Float a, Float b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }  // b of NaN

  static int32x4_t Ints(Int v) { return vreinterpretq_s32_s8(v); }
  static Int Lanes(int32x4_t v) { return vreinterpretq_s8_s32(v); }
  static Int SplatInt(int32_t v) { return Lanes(vdupq_n_s32(v)); }
  static Float FromInts(Int v) { return vcvtq_f32_s32(Ints(v)); }
  static Float AsFloats(Int v) { return vreinterpretq_f32_s8(v); }
  static Int AsInts(Float v) { return vreinterpretq_s8_f32(v); }
  static Int AddInts(Int a, Int b) { return Signed(vaddq_u32(Words(a), Words(b))); }
  static Int MaxInts(Int a, Int b) { return Lanes(vmaxq_s32(Ints(a), Ints(b))); }
  static Int ShiftLeft23(Int v) { return Lanes(vshlq_n_s32(Ints(v), 23)); }

  static Int FromUnsigned(const uint8_t* p) {
    uint32_t word;
    std::memcpy(&word, p, sizeof(word));
    const uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(word));
    return Signed(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
  }
  static Int MulInts(Int a, Int b) { return Signed(vmulq_u32(Words(a), Words(b))); }
  static Int Rounded(Float v) { return Lanes(vcvtnq_s32_f32(v)); }
  template <size_t kDistance>
  static Float Swapped(Float v) {
    return kDistance == 1 ? vrev64q_f32(v) : vextq_f32(v, v, 2);
  }

  // v * 2^n, or 0 where x is below the limit; n is in the lowest bits of z.
  static Float ScaleUnlessBelow(Float v, Float z, Float, Float x, Float limit) {
    const Float power = AsFloats(AddInts(ShiftLeft23(AsInts(z)), SplatInt(127 << 23)));
    const uint32x4_t found = vreinterpretq_u32_f32(Mul(v, power));
    return vreinterpretq_f32_u32(vbicq_u32(found, vcltq_f32(x, limit)));
  }
  static Float LoadFirst(const float* x, size_t count) {
    if (count >= kLanes) return LoadFloats(x);
    float first[kLanes] = {};
    std::memcpy(first, x, count * sizeof(float));
    return vld1q_f32(first);
  }
  static void StoreFirst(float* y, Float v, size_t count) {
    if (count >= kLanes) return StoreFloats(y, v);
    float first[kLanes];
    vst1q_f32(first, v);
    std::memcpy(y, first, count * sizeof(float));
  }
  static void StoreRounded(Float v, int16_t* q) { vst1_s16(q, vmovn_s32(vcvtnq_s32_f32(v))); }
  static int16x4_t Shorts(Float v) { return vmovn_s32(vcvtq_s32_f32(v)); }
  static void StoreIntegers(Float v, Float, int16_t* q) { vst1_s16(q, Shorts(v)); }
  static void StoreIntegers(Float v, Float, int8_t* q) {
    const int8x8_t bytes = vmovn_s16(vcombine_s16(Shorts(v), Shorts(v)));
    const int32_t word = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
    std::memcpy(q, &word, sizeof(word));
  }
  static void StoreIntegers(Float v, Float t, float* q) {
    vst1q_f32(q, vbslq_f32(vdupq_n_u32(0x80000000u), t, v));
  }
};

// Eight weights as shorts or floats, see DecodeWide.
template <typename Operand>
struct EightOf {
  using Bytes = Neon;
  static constexpr size_t kCount = 8;

  static int8x16_t Load(const uint8_t* p) {
    return vcombine_s8(vreinterpret_s8_u8(vld1_u8(p)), vdup_n_s8(0));
  }
  static void Store(Operand* out, int8x16_t bytes) {
    StoreShorts(out, vmovl_s8(vget_low_s8(bytes)));
  }
  static void StoreWide(Operand* out, const uint8_t* p, WeightStorage storage) {
    const uint16x8_t wide = vreinterpretq_u16_u8(vld1q_u8(p));
    if constexpr (sizeof(Operand) == sizeof(float)) {
      if (storage == kBfloats) {
        vst1q_f32(out, vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(wide), 16)));
        vst1q_f32(out + 4, vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(wide), 16)));
        return;
      }
    }
    StoreShorts(out, vreinterpretq_s16_u16(wide));
  }

 private:
  static void StoreShorts(Operand* out, int16x8_t v) {
    if constexpr (sizeof(Operand) == sizeof(int16_t)) {
      vst1q_s16(out, v);
    } else {
      vst1q_f32(out, vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))));
      vst1q_f32(out + 4, vcvtq_f32_s32(vmovl_s16(vget_high_s16(v))));
    }
  }
};

// Sums of integers, see BroadcastDot.
struct IntTotals {
  using Registers = Neon;
  using Total = int32x4_t;
  using Accumulator = int32_t;
  static constexpr Reach kReach = {1, 0};
  static constexpr bool kSums = false;
  static constexpr bool kReadsCodes = false;

  static Total Zero() { return vdupq_n_s32(0); }
  static Total LoadTotal(const int32_t* p) { return vld1q_s32(p); }
  static void StoreTotal(int32_t* p, Total v) { vst1q_s32(p, v); }
  static float32x4_t ToFloat(Total total) { return vcvtq_f32_s32(total); }
};

}  // namespace
}  // namespace fp4dit

#endif  // FP4DIT_CPU_KERNELS_NEON_INL_H_
