// The kernels in AVX-512 with VNNI.

#include <cstddef>

#include "cpu/kernels/gelu-inl.h"
#include "cpu/kernels/hadamard-inl.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/norm-inl.h"
#include "cpu/kernels/quantize_row-inl.h"
#include "cpu/kernels/softmax-inl.h"
#include "cpu/kernels/x86-inl.h"

namespace fp4dit {
namespace {

// 6 rows x 4 vectors of totals, 4 weights and an activation fill 29 of 32 registers.
constexpr size_t kPanelWidth = 64;
constexpr size_t kRowStep = 6;

using Vector512 = Vector<512>;

struct Shorts : ShortMultiply<Vector512> {
  static __m512i Step(__m512i total, __m512i weight, __m512i act) {
    return _mm512_dpwssd_epi32(total, weight, act);
  }
  // Half as long where an instruction of 512 bits is two of 256.
  static __m512i StepHalf(__m512i total, __m512i weight, __m512i act) {
    return _mm512_castsi256_si512(_mm256_dpwssd_epi32(_mm512_castsi512_si256(total),
                                                      _mm512_castsi512_si256(weight),
                                                      _mm512_castsi512_si256(act)));
  }
};

}  // namespace

extern const Kernels kAvx512VnniKernels;
const Kernels kAvx512VnniKernels = {
    {kLinear<BroadcastDot<VnniBytes512, kPanelWidth, kRowStep>>,
     kLinear<BroadcastDot<Shorts, kPanelWidth, kRowStep>>,
     kLinear<BroadcastDot<FloatMultiply<Vector512>, kPanelWidth, kRowStep>>},
    {Quantize<Vector512, int8_t>, Quantize<Vector512, int16_t>, Quantize<Vector512, float>},
    {},
    Softmax<Vector512>,
    {kLinear<BroadcastDot<Shorts, 16, 12>>, kLinear<BroadcastDot<Shorts, 32, 12>>,
     kLinear<BroadcastDot<Shorts, 48, 8>>, kLinear<BroadcastDot<Shorts, 80, 5>>,
     kLinear<BroadcastDot<Shorts, 80, 5, 72>>},
    RoundingError<Vector512>,
    Hadamard<Vector512>,
    Gelu<Vector512>,
    {Center<Vector512>, Modulate<Vector512>},
};

}  // namespace fp4dit
