// The int8 kernel in the dot-product instruction of Armv8.2, sdot.

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/neon-inl.h"

namespace fp4dit {
namespace {

struct ByteMultiply : IntTotals {
  using Act = int8_t;
  using Weight = int8x16_t;
  using Factor = int8x16_t;
  static constexpr size_t kUnit = 4;
  static constexpr uint8_t kFlip = 0;
  static constexpr bool kReadsCodes = true;
  static constexpr size_t kBlocksAtOnce = 2;
  static constexpr size_t kFactors = 4;

  template <size_t kBlock>
  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t blocks, int8_t* out) {
    return DecodeToBytes<Neon, kBlock>(tile, packed, blocks, Neon::Table(tile.table), 0, out);
  }
  static Weight Load(const int8_t* p) { return Neon::Kept(vld1q_s8(p)); }
  static Factor Broadcast(const int8_t* q) {
    int32_t word;
    std::memcpy(&word, q, sizeof(word));
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
  }
  static Total Step(Total t, Weight w, Factor a) { return vdotq_s32(t, w, a); }
  static Factor LoadFactors(const int8_t* q) { return Neon::Kept(vld1q_s8(q)); }
  template <size_t I>
  static Total StepOf(Total t, Weight w, Factor a) {
    return vdotq_laneq_s32(t, w, a, I);
  }

  static int8x16_t Table(const LinearTile& tile) { return Neon::Table(tile.table); }
  static int8x16_t Repeated(const int8_t* q) { return Broadcast(q); }
  static int8x16_t Step(int8x16_t t, int8x16_t w, int8x16_t a) {
    return Neon::Kept(Neon::Lanes(vdotq_s32(Neon::Ints(t), w, a)));
  }
  template <size_t kVectors>
  static void Sums(const int8x16_t (&total)[2][kVectors], int32_t, int8x16_t (&sums)[kVectors]) {
    for (size_t v = 0; v < kVectors; ++v) sums[v] = Neon::AddInts(total[0][v], total[1][v]);
  }
};

}  // namespace

extern const Kernels kNeonDotprodKernels;
const Kernels kNeonDotprodKernels = {
    // 6 rows x 4 vectors of totals, 4 weights and an activation fill 29 of 32 registers.
    {kLinear<BroadcastDot<ByteMultiply, 16, 6>>, {}, {}},
    {},
    {},
};

}  // namespace fp4dit
