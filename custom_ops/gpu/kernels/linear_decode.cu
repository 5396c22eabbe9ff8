// The fragments of 4-bit codes to those of bytes, for calls of so many rows that it pays: see
// LinearWeights.

#include "gpu/arguments.h"
#include "gpu/device.h"
#include "gpu/kernels/decode.h"

namespace linear {

// A thread decodes what a lane has of a stage and eight channels, with a multiplier for each step
// or none; `a.scratch` gets it.
template <bool kHasMultipliers>
DEVICE void DecodeFragments(const fp4dit::gpu::LinearArguments& a) {
  constexpr int kTiles = 8;  // of eight channels, that a block decodes
  const int block = static_cast<int>(Block());
  const int tiles = static_cast<int>(a.n_padded / 8);
  const int stage = block / (tiles / kTiles);
  const int tile = block % (tiles / kTiles) * kTiles + Thread() / 32;
  const int lane = Thread() % 32;
  const int64_t at = int64_t{stage} * tiles + tile;
  const Word4 codes = reinterpret_cast<const Word4*>(a.codes)[at * 32 + lane];
  Word4* const to = static_cast<Word4*>(a.scratch) + at * 64 + lane;
  Table table = {a.low, a.high};
  UNROLL for (int half = 0; half < 2; ++half) {
    Word4 bytes;
    UNROLL for (int i = 0; i < 2; ++i) {
      const int step = stage * 4 + half * 2 + i;
      if constexpr (kHasMultipliers) {
        const int64_t group = step / a.multiplier_steps;
        // Steps beyond the last have codes of zero, and perhaps no group.
        const uint32_t multiplier =
            step < a.steps ? a.multipliers[group * a.n_padded + tile * 8 + lane / 4] : 0;
        table = {a.low * multiplier, a.high * multiplier};  // each byte is at most 127
      }
      uint32_t b[2];
      Decode(codes.word[half * 2 + i], table, b);
      bytes.word[i * 2] = b[0];
      bytes.word[i * 2 + 1] = b[1];
    }
    to[half * 32] = bytes;
  }
}

}  // namespace linear

KERNEL(256) fp4dit_linear_decode_codes(fp4dit::gpu::LinearArguments a) {
  linear::DecodeFragments<false>(a);
}
KERNEL(256) fp4dit_linear_decode_multiplied(fp4dit::gpu::LinearArguments a) {
  linear::DecodeFragments<true>(a);
}
