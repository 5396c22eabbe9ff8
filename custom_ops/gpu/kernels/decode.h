// Codes of weights to bytes.

#ifndef FP4DIT_GPU_KERNELS_DECODE_H_
#define FP4DIT_GPU_KERNELS_DECODE_H_

#include "gpu/arguments.h"
#include "gpu/device.h"

namespace linear {

// Magnitudes of codes 0 to 7, a byte each.
struct Table {
  uint32_t low, high;
};

// Eight codes to the bytes of a lane's fragment: the lower four nibbles to b[0]. No code of zero
// has a sign: minus a magnitude is its complement and 1, and no byte carries.
DEVICE void Decode(uint32_t codes, const Table& table, uint32_t (&b)[2]) {
  const uint32_t index = codes & 0x77777777u;
  const uint32_t sign = codes >> 1 & 0x44444444u;
  UNROLL for (int i = 0; i < 2; ++i) {
    const uint32_t minus = Permute(0, ~0u, sign >> (16 * i) & 0xffffu);
    const uint32_t magnitude = Permute(table.low, table.high, index >> (16 * i) & 0xffffu);
    b[i] = (magnitude ^ minus) + (minus & 0x01010101u);
  }
}

}  // namespace linear

#endif  // FP4DIT_GPU_KERNELS_DECODE_H_
