// FpQuantize, its like for int16 and float integers, and those under one scale: numerics.quantize
// and quantize_static are the definitions. And FpGeluQuantize and its like.

#include "gpu/kernels/quantize_group.h"

namespace {

template <typename Integer, bool kGelu = false>
DEVICE void Quantize(const QuantizeArguments& a) {
  const bool alone = a.warps == 1;
  const int64_t at = alone ? Block() * (Threads() / 32) + Thread() / 32 : Block();
  if (at >= a.count) return;  // whole warps, or the block
  const int64_t row = at / a.groups;
  auto* const warps = reinterpret_cast<uint32_t*>(Shared());
  QuantizeGroupAt<Integer, kGelu>(a, a.x + row * a.k, row, at % a.groups, alone, warps);
}

}  // namespace

KERNEL(256) fp4dit_quantize_int8(QuantizeArguments a) { Quantize<int8_t>(a); }
KERNEL(256) fp4dit_quantize_int16(QuantizeArguments a) { Quantize<int16_t>(a); }
KERNEL(256) fp4dit_gelu_quantize_int8(QuantizeArguments a) { Quantize<int8_t, true>(a); }
KERNEL(256) fp4dit_gelu_quantize_int16(QuantizeArguments a) { Quantize<int16_t, true>(a); }
KERNEL(256) fp4dit_quantize_float(QuantizeArguments a) { Quantize<float>(a); }
