// The kernels in plain C++: what every machine runs, and what the others are compared with.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/kernels/hadamard-inl.h"
#include "cpu/kernels/kernels.h"
#include "cpu/kernels/linear_tile-inl.h"

namespace fp4dit {
namespace {

constexpr size_t kPanelWidth = 8;

float BfloatToFloat(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// Grid integer `index` of a block of `half` * 2 elements.
float Element(const LinearTile& tile, const uint8_t* block, size_t index, size_t half) {
  uint16_t wide;
  switch (tile.storage) {
    case kNibbles:
      return tile.table[index < half ? block[index] & 15 : block[index - half] >> 4];
    case kBytes:
      return static_cast<int8_t>(block[index]);
    case kShorts:
      std::memcpy(&wide, block + 2 * index, sizeof(wide));
      return static_cast<int16_t>(wide);
    default:
      std::memcpy(&wide, block + 2 * index, sizeof(wide));
      return BfloatToFloat(wide);
  }
}

// Of input `k` and channel `n` of a panel of units of one input.
template <typename Operand>
Operand Multiplier(const LinearTile& tile, size_t k, size_t n) {
  if (tile.multipliers == nullptr) return 1;
  return static_cast<Operand>(tile.multipliers[k / tile.multiplier_group * kPanelWidth + n]);
}

// Unsigned, so that activations outside their format wrap, as they do in vector registers.
uint32_t MultiplyAdd(int32_t a, int32_t b, uint32_t c) {
  return static_cast<uint32_t>(a) * static_cast<uint32_t>(b) + c;
}
float MultiplyAdd(float a, float b, float c) { return std::fma(a, b, c); }

float ToFloat(uint32_t sum) { return static_cast<float>(static_cast<int32_t>(sum)); }
float ToFloat(float sum) { return sum; }

template <typename Act_, typename Accumulator_>
struct ScalarDot {
  using Act = Act_;
  using Operand = Act_;
  using Accumulator = Accumulator_;
  static constexpr size_t kPanel = kPanelWidth;
  static constexpr size_t kUnit = 1;
  static constexpr size_t kStep = kUnit;
  static constexpr size_t kRows = 1;
  static constexpr size_t kChunk = 256;
  static constexpr Reach kReach = {1, 0};
  static constexpr bool kSums = false;
  static constexpr size_t kBlock = kPanel * kUnit;

  static size_t Decode(const LinearTile& tile, const uint8_t* packed, size_t k, size_t blocks,
                       Operand* operand) {
    const size_t bytes = tile.storage == kNibbles ? kBlock / 2
                         : tile.storage == kBytes ? kBlock
                                                  : 2 * kBlock;
    for (size_t b = 0; b < blocks; ++b) {
      for (size_t i = 0; i < kBlock; ++i) {
        const auto grid = static_cast<Operand>(Element(tile, packed + b * bytes, i, kBlock / 2));
        operand[b * kBlock + i] = static_cast<Operand>(grid * Multiplier<Operand>(tile, k + b, i));
      }
    }
    return blocks * bytes;
  }

  template <size_t R>
  static void Rows(const DotRows<ScalarDot>& rows) {
    Accumulator sum[kPanel];
    for (size_t n = 0; n < kPanel; ++n) sum[n] = rows.first ? Accumulator{} : rows.accumulator[n];
    for (size_t i = 0; i < rows.blocks; ++i) {
      const Operand* weight = rows.operand + i * kPanel;
      for (size_t n = 0; n < kPanel; ++n) sum[n] = MultiplyAdd(rows.q[i], weight[n], sum[n]);
    }
    for (size_t n = 0; n < kPanel; ++n) {
      rows.accumulator[n] = sum[n];
      if (rows.last) rows.sum[n] = std::fma(rows.group_scale[n], ToFloat(sum[n]), rows.sum[n]);
    }
  }

  static void FoldPanel(const float* scale, const float* sum, float* y) {
    for (size_t n = 0; n < kPanel; ++n) y[n] = std::fma(scale[n], sum[n], y[n]);
  }
  static void FoldPanel(float scale, const Accumulator* sum, float* y) {
    for (size_t n = 0; n < kPanel; ++n) y[n] = std::fma(scale, ToFloat(sum[n]), y[n]);
  }

  static void Finish(const LinearTile& tile, const float* sum) {
    for (size_t r = 0; r < tile.rows; ++r) {
      const float scale = tile.scale[r * tile.scale_stride];
      float* const y = tile.y + r * tile.y_stride;
      for (size_t n = 0; n < tile.columns; ++n) {
        const float total = sum[r * kPanel + n];
        const float found =
            tile.plain ? scale * total + tile.bias[n] : std::fma(scale, total, tile.bias[n]);
        y[n] = tile.keep == nullptr ? found : y[n] * tile.keep[r] + found;
      }
    }
  }

  // No instruction of its own to measure.
  static double Peak(size_t) { return 0.0; }
};

uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// The nearest grid integer of `t`. In the binade [2^b, 2^(b+1)) the grid is a multiple of
// 2^max(0, b - mantissa_bits), so scaling by that power of two leaves rounding to an integer, ties
// to even: with the implicit one in the significand, that is numerics.round_to_grid's rule too.
// NaN gives 0: it is 0 times the infinite factor of a tiny row in the widest format.
float RoundToGrid(float t, const QuantizeGrid& grid) {
  if (std::isnan(t)) return std::copysign(0.0f, t);
  const float magnitude = std::fabs(t);
  const int32_t binade = static_cast<int32_t>(Bits(magnitude) >> 23) - 127 - grid.mantissa_bits;
  const uint32_t exponent = binade > 0 ? static_cast<uint32_t>(binade) : 0;
  const float significand = magnitude * FromBits((127 - exponent) << 23);
  // Adding 2^23 rounds to an integer: the significand is below 2^8.
  constexpr float kRounder = 8388608.0f;
  const float rounded = ((significand + kRounder) - kRounder) * FromBits((127 + exponent) << 23);
  return std::copysign(rounded < grid.max_integer ? rounded : grid.max_integer, t);
}

// The bits of magnitudes are ordered as the magnitudes are, NaN above all.
uint32_t LargestMagnitude(const float* x, size_t k) {
  uint32_t largest = 0;
  for (size_t i = 0; i < k; ++i) {
    const uint32_t magnitude = Bits(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

template <typename Integer>
void Quantize(const float* x, size_t k, const QuantizeGrid& grid, void* result, float* scale) {
  Integer* q = static_cast<Integer*>(result);
  const uint32_t largest = LargestMagnitude(x, k);
  const float amax = grid.largest > 0.0f ? grid.largest : FromBits(largest);
  const bool finite = largest < 0x7f800000u;
  if (!finite || amax < kSmallestAmax) {
    for (size_t i = 0; i < k; ++i) q[i] = 0;
    *scale = finite ? 0.0f : FromBits(0x7fc00000u);
    return;
  }
  const float factor = grid.max_integer / amax;
  for (size_t i = 0; i < k; ++i) q[i] = static_cast<Integer>(RoundToGrid(x[i] * factor, grid));
  *scale = amax / grid.max_integer;
}

int32_t RoundingError(const float* x, size_t k, const QuantizeGrid& grid) {
  const uint32_t largest = LargestMagnitude(x, k);
  const float amax = FromBits(largest);
  if (largest >= 0x7f800000u || amax < kSmallestAmax) return 0;
  const float factor = grid.max_integer / amax;
  int32_t sum = 0;
  for (size_t i = 0; i < k; ++i) {
    const float t = x[i] * factor;
    // Ties to even; the error of int8 is below 2^16.
    constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
    const float parts = (t - RoundToGrid(t, grid)) * 64.0f;
    const auto error = static_cast<int32_t>((parts + kRounder) - kRounder);
    sum += error * error;
  }
  return sum;
}

void RotateRow(const float* x, size_t k, size_t block, float* y) {
  for (size_t size = block; k > 0; size /= 2) {
    for (; k >= size; k -= size, x += size, y += size) RotatePlainly(x, size, y);
  }
}

template <typename Integer>
void Dequantize(const void* integers, size_t count, float scale, float* y) {
  const Integer* q = static_cast<const Integer*>(integers);
  for (size_t i = 0; i < count; ++i) y[i] = static_cast<float>(q[i]) * scale;
}

// attention.exp.
float Exp(float x) {
  const float z = std::fma(x, kExpLog2E, kExpRounder);
  const float n = z - kExpRounder;
  const float high = std::fma(n, -kExpLn2High, x);
  const float r = std::fma(n, -kExpLn2Low, high);
  float p = kExpTerms[0];
  for (size_t i = 1; i < kExpTermCount; ++i) p = std::fma(p, r, kExpTerms[i]);
  return x < kExpLeast ? 0.0f : p * FromBits((Bits(z) << 23) + (127u << 23));
}

// activations.gelu.
void GeluOfRow(const float* x, size_t count, float* y) {
  for (size_t i = 0; i < count; ++i) {
    const float slope = std::fma(x[i] * x[i], -kGeluCubic, -kGeluLinear);
    const float e = Exp(std::fabs(x[i]) * slope);
    const float above = 0.0f > x[i] ? 0.0f : x[i];
    y[i] = std::fma(x[i] - above, e, above) / (1.0f + e);
  }
}

// norms.layer_norm.
float SumOfLanes(float (&lanes)[kNormLanes]) {
  for (size_t half = kNormLanes / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

float CenterRow(const float* x, size_t k, float epsilon, float* y) {
  const auto size = static_cast<float>(k);
  float sums[kNormLanes] = {};
  for (size_t i = 0; i < k; ++i) sums[i % kNormLanes] += x[i];
  const float mean = SumOfLanes(sums) / size;
  float squares[kNormLanes] = {};
  for (size_t i = 0; i < k; ++i) {
    y[i] = x[i] - mean;
    squares[i % kNormLanes] = std::fma(y[i], y[i], squares[i % kNormLanes]);
  }
  return 1.0f / std::sqrt(SumOfLanes(squares) / size + epsilon);
}

void ModulateRow(const float* x, float factor, const float* gain, const float* shift, size_t count,
                 float* y) {
  for (size_t i = 0; i < count; ++i) y[i] = std::fma(x[i] * factor, gain[i], shift[i]);
}

void SoftmaxOfRow(const SoftmaxTile& tile, size_t r) {
  float* const scores = tile.scores + r * tile.stride;
  float max = tile.max[r];
  for (size_t i = 0; i < tile.count; ++i) max = scores[i] > max ? scores[i] : max;
  const float base = std::isinf(max) && max < 0 ? 0.0f : max;
  float sum[kSoftmaxLanes] = {};
  for (size_t i = 0; i < tile.count; ++i) {
    const float e = Exp(scores[i] - base);
    sum[i % kSoftmaxLanes] += e;
    scores[i] = e * tile.value_scale[i];
  }
  for (size_t half = kSoftmaxLanes / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) sum[i] += sum[i + half];
  }
  tile.shrink[r] = Exp(tile.max[r] - base);
  tile.sum[r] = tile.sum[r] * tile.shrink[r] + sum[0];
  tile.max[r] = max;
  int16_t* const q = tile.q + r * tile.q_stride;
  Quantize<int16_t>(scores, tile.count, kProbabilities, q, &tile.scale[r]);
}

void Softmax(const SoftmaxTile& tile) {
  for (size_t r = 0; r < tile.rows; ++r) SoftmaxOfRow(tile, r);
}

}  // namespace

extern const Kernels kScalarKernels;
const Kernels kScalarKernels = {
    {kLinear<ScalarDot<int8_t, uint32_t>>, kLinear<ScalarDot<int16_t, uint32_t>>,
     kLinear<ScalarDot<float, float>>},
    {Quantize<int8_t>, Quantize<int16_t>, Quantize<float>},
    {Dequantize<int8_t>, Dequantize<int16_t>, Dequantize<float>},
    Softmax,
    {},
    RoundingError,
    RotateRow,
    GeluOfRow,
    {CenterRow, ModulateRow},
};

}  // namespace fp4dit
