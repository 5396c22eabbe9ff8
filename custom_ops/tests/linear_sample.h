// Random weights for the kernels, and the definition of what the kernels compute from them.

#ifndef FP4DIT_TESTS_LINEAR_SAMPLE_H_
#define FP4DIT_TESTS_LINEAR_SAMPLE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <type_traits>
#include <vector>

#include "core/formats.h"
#include "cpu/packing/packed_weights.h"

namespace fp4dit::test {

struct Weights {
  std::vector<uint8_t> codes;  // packed
  std::vector<float> grid;     // [n, k]
  std::vector<float> scales;   // [n, groups]
  std::vector<float> bias;
  WeightSource source;  // points into the above
};

inline Weights MakeWeights(const Format& format, size_t columns, size_t k, size_t group_size,
                           std::mt19937* random) {
  std::normal_distribution<float> normal;
  Weights w;
  w.source = {&format, columns, k, group_size, nullptr, nullptr, false, nullptr};
  w.codes.resize(columns * w.source.row_bytes());
  const bool extreme = (*random)() % 4 == 0;  // the largest weights only
  for (size_t n = 0; n < columns; ++n) {
    for (size_t i = 0; i < k; ++i) {
      size_t code = (*random)() % format.code_count();
      if (extreme) code = static_cast<size_t>(format.magnitude_count) - 1;
      w.grid.push_back(format.GridInteger(code));
      const size_t byte = n * w.source.row_bytes() + (format.storage_bits == 4 ? i / 2 : i);
      const size_t shift = format.storage_bits == 4 && i % 2 == 1 ? 4 : 0;
      w.codes[byte] = static_cast<uint8_t>(w.codes[byte] | (code << shift));
    }
  }
  for (size_t i = 0; i < columns * w.source.groups(); ++i) w.scales.push_back(normal(*random));
  for (size_t i = 0; i < columns; ++i) w.bias.push_back(normal(*random));
  w.source.codes = w.codes.data();
  w.source.scales = w.scales.data();
  w.source.bias = w.bias.data();
  return w;
}

// The sum of a group: exact, or a chain of fma.
template <typename Act>
float Dot(const Act* q, const float* w, size_t begin, size_t end) {
  if constexpr (std::is_same_v<Act, float>) {
    float sum = 0.0f;
    for (size_t i = begin; i < end; ++i) sum = std::fma(q[i], w[i], sum);
    return sum;
  } else {
    int64_t sum = 0;
    for (size_t i = begin; i < end; ++i) sum += int64_t{q[i]} * static_cast<int64_t>(w[i]);
    return static_cast<float>(sum);
  }
}

// What FpLinear is for one row and channel `n`.
template <typename Act>
float LinearOf(const Weights& w, const Act* q, float scale, size_t n) {
  const size_t k = w.source.k;
  const size_t groups = w.source.groups();
  float sum = 0.0f;
  for (size_t g = 0; g < groups; ++g) {
    const size_t begin = g * w.source.group_size;
    const size_t end = std::min(k, begin + w.source.group_size);
    const float dot = Dot(q, w.grid.data() + n * k, begin, end);
    sum = std::fma(w.scales[n * groups + g], dot, sum);
  }
  return std::fma(scale, sum, w.bias[n]);
}

// Of [-limit, limit), or only the ends of that; of floats, normally distributed.
template <typename Act>
Act RandomAct(std::mt19937* random, bool extreme, int limit) {
  if constexpr (std::is_same_v<Act, float>) return std::normal_distribution<float>()(*random);
  if (extreme) return static_cast<Act>((*random)() % 2 == 0 ? -limit : limit - 1);
  return static_cast<Act>(static_cast<int>((*random)() % static_cast<unsigned>(2 * limit)) - limit);
}

template <typename Act>
constexpr IntegerType kTypeOf = sizeof(Act) == 1   ? kInt8Type
                                : sizeof(Act) == 2 ? kInt16Type
                                                   : kFloatType;

}  // namespace fp4dit::test

#endif  // FP4DIT_TESTS_LINEAR_SAMPLE_H_
