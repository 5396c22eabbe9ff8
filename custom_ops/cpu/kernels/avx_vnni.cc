// The integer kernels in AVX-VNNI: 256-bit dot products without AVX-512, as client processors have.

#include "cpu/kernels/kernels.h"
#include "cpu/kernels/x86-inl.h"

namespace fp4dit {
namespace {

struct Bytes : ByteMultiply<Vector<256>> {
  static __m256i Step(__m256i total, __m256i weight, __m256i act) {
    return _mm256_dpbusd_avx_epi32(total, weight, act);
  }
};

struct Shorts : ShortMultiply<Vector<256>> {
  static __m256i Step(__m256i total, __m256i weight, __m256i act) {
    return _mm256_dpwssd_avx_epi32(total, weight, act);
  }
};

}  // namespace

extern const Kernels kAvxVnniKernels;
const Kernels kAvxVnniKernels = {
    {kLinear<BroadcastDot<Bytes, 16, 6>>, kLinear<BroadcastDot<Shorts, 16, 6>>, {}},
    {},
    {},
};

}  // namespace fp4dit
