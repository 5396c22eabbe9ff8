// The kernels in AVX-512 with VNNI.

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "kernels/quantize_row-inl.h"
#include "kernels/softmax-inl.h"
#include "kernels/vector512-inl.h"
#include "kernels/word_dot-inl.h"

namespace fp4dit {
namespace {

// 6 rows x 4 vectors of totals, 4 weights and an activation fill 29 of 32 registers.
constexpr size_t kPanelWidth = 64;
constexpr size_t kRowStep = 6;

}  // namespace

extern const Kernels kAvx512VnniKernels;
const Kernels kAvx512VnniKernels = {
    {kLinear<WordDot<Vector512, VnniBytes, kPanelWidth, kRowStep>>,
     kLinear<WordDot<Vector512, VnniShorts, kPanelWidth, kRowStep>>,
     kLinear<WordDot<Vector512, FloatMultiply<Vector512>, kPanelWidth, kRowStep>>},
    {Quantize<Vector512, int8_t>, Quantize<Vector512, int16_t>, Quantize<Vector512, float>},
    {},
    Softmax<Vector512>,
    kLinear<WordDot<Vector512, VnniShorts, 16, 12>>,
};

}  // namespace fp4dit
