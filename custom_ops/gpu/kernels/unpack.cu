// FpUnpack and FpUnpackSigns: stored codes to grid integers.

#include "gpu/arguments.h"
#include "gpu/device.h"

namespace {

using fp4dit::gpu::UnpackArguments;

DEVICE float Unpacked(const UnpackArguments& a, const uint8_t* codes, int64_t i) {
  if (i >= a.wide) {
    const int64_t bit = i - a.wide;
    return (codes[a.wide / 2 + bit / 8] >> bit % 8 & 1) != 0 ? -1.0f : 1.0f;
  }
  if (a.code_bits == 8) return a.grid[codes[i]];
  return a.grid[codes[i / 2] >> (i % 2 * 4) & 15];
}

}  // namespace

KERNEL(256) fp4dit_unpack(UnpackArguments a) {
  const int64_t row = Block() / a.rows.parts;
  const int64_t first = Block() % a.rows.parts * a.rows.part;
  const int64_t end = a.rows.k - first < a.rows.part ? a.rows.k : first + a.rows.part;
  for (int64_t i = first + Thread(); i < end; i += Threads()) {
    a.q[row * a.rows.k + i] = Unpacked(a, a.codes + row * a.row_bytes, i);
  }
}
