// FpDequantize: grid integers times their group's scale.

#include "gpu/arguments.h"
#include "gpu/device.h"

namespace {

using fp4dit::gpu::DequantizeArguments;

template <typename Integer>
DEVICE void Dequantize(const DequantizeArguments& a) {
  const int64_t row = Block() / a.rows.parts;
  const int64_t first = Block() % a.rows.parts * a.rows.part;
  const int64_t end = a.rows.k - first < a.rows.part ? a.rows.k : first + a.rows.part;
  const Integer* const q = static_cast<const Integer*>(a.q) + row * a.rows.k;
  float* const y = a.y + row * a.rows.k;
  for (int64_t i = first + Thread(); i < end; i += Threads()) {
    const int64_t at = row * a.scale_stride + i / a.group_size;
    const float scale = a.scale_is_half != 0
                            ? HalfToFloat(static_cast<const uint16_t*>(a.scale)[at])
                            : static_cast<const float*>(a.scale)[at];
    y[i] = Mul(static_cast<float>(q[i]), scale);
  }
}

}  // namespace

KERNEL(256) fp4dit_dequantize_int8(DequantizeArguments a) { Dequantize<int8_t>(a); }
KERNEL(256) fp4dit_dequantize_int16(DequantizeArguments a) { Dequantize<int16_t>(a); }
KERNEL(256) fp4dit_dequantize_float(DequantizeArguments a) { Dequantize<float>(a); }
