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
  std::vector<uint8_t> codes;        // packed
  std::vector<float> grid;           // [n, k], times multipliers
  std::vector<uint8_t> multipliers;  // empty, or packed
  std::vector<float> scales;         // [n, groups], or [n]
  std::vector<float> bias;
  WeightSource source;  // points into the above

  size_t act_groups() const { return (source.k + source.act_group - 1) / source.act_group; }
};

// Multipliers for a format's weights: any whose products are int8.
inline void Multiply(Weights* w, std::mt19937* random) {
  WeightSource& source = w->source;
  const size_t groups = source.groups();
  const auto most = static_cast<size_t>(127.0f / source.format->max_integer());
  const bool extreme = (*random)() % 2 == 0;
  w->multipliers.resize(source.n * ((groups + 1) / 2));
  source.multipliers = w->multipliers.data();
  for (size_t n = 0; n < source.n; ++n) {
    for (size_t g = 0; g < groups; ++g) {
      const size_t limit = std::min(most, size_t{15});
      const size_t m = extreme ? limit : (*random)() % (limit + 1);
      uint8_t& byte = w->multipliers[n * ((groups + 1) / 2) + g / 2];
      byte = static_cast<uint8_t>(byte | m << g % 2 * 4);
      const size_t end = std::min(source.k, (g + 1) * source.group_size);
      for (size_t k = g * source.group_size; k < end; ++k) {
        w->grid[n * source.k + k] *= static_cast<float>(m);
      }
    }
  }
  w->scales.resize(source.n);
}

inline Weights MakeWeights(const Format& format, size_t columns, size_t k, size_t group_size,
                           std::mt19937* random) {
  std::normal_distribution<float> normal;
  Weights w;
  w.source = {&format, columns, k, group_size, nullptr, nullptr, false, nullptr, nullptr, k};
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

// Groups of activations for weights in groups of `group`: all of k, or what goes with those.
inline size_t AnyActGroup(size_t k, size_t group, bool multiplied, std::mt19937* random) {
  size_t size = k;
  switch ((*random)() % 5) {
    case 0:
      size = group;
      break;
    case 1:
      size = group * (1 + (*random)() % 3);
      break;
    case 2:
      size = group % 2 == 0 ? group / 2 : 1;
      break;
    case 3:
      size = multiplied ? 1 + (*random)() % k : k;
      break;
    default:
      break;
  }
  return std::min(size, k);
}

// A group of weights' multipliers: most of them of a size that kernels read as codes.
inline size_t AnyMultiplierGroup(size_t k, std::mt19937* random) {
  static constexpr size_t kSizes[] = {8, 16, 24, 32, 64, 5};
  const size_t choice = (*random)() % 7;
  return std::min(k, choice == 6 ? k : kSizes[choice]);
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

// What FpLinear, or with multipliers FpLinearInteger, is for one row and channel `n`; the row has
// one scale, or one for each group of its own.
template <typename Act>
float LinearOf(const Weights& w, const Act* q, const float* scale, size_t n) {
  const size_t k = w.source.k;
  const size_t size = w.source.scale_group();
  const size_t act_size = w.source.act_group;
  const size_t groups = (k + size - 1) / size;
  const float* grid = w.grid.data() + n * k;
  float sum = act_size < k ? w.bias[n] : 0.0f;
  for (size_t g = 0; g < groups; ++g) {
    const size_t end = std::min(k, (g + 1) * size);
    float total = act_size < k ? 0.0f : Dot(q, grid, g * size, end);
    for (size_t begin = g * size; act_size < k && begin < end;) {
      const size_t run_end = std::min(end, (begin / act_size + 1) * act_size);
      total = std::fma(scale[begin / act_size], Dot(q, grid, begin, run_end), total);
      begin = run_end;
    }
    sum = std::fma(w.scales[n * groups + g], total, sum);
  }
  if (act_size < k) return sum;
  return w.multipliers.empty() ? std::fma(*scale, sum, w.bias[n]) : *scale * sum + w.bias[n];
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
