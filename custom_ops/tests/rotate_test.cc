// Rotations, GELUs, norms and rounding errors of rows, every instruction set against plain oracles,
// on buffers that end at a page nobody may touch.

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "core/formats.h"
#include "cpu/kernels/registry.h"
#include "guarded_memory.h"

namespace fp4dit::test {
namespace {

// The rule of the runs in one sentence: the stage of distance h acts on the first floor(K / 2h) *
// 2h elements, if h is less than the block. An element is in as large a run as stages that reached
// it.
std::vector<float> Rotated(std::vector<float> x, size_t block) {
  const size_t k = x.size();
  std::vector<size_t> exponent(k, 0);
  for (size_t h = 1; h < block; h *= 2) {
    for (size_t i = 0; i < k / (2 * h) * (2 * h); ++i) {
      ++exponent[i];
      if ((i & h) != 0) continue;
      const float sum = x[i] + x[i + h];
      x[i + h] = x[i] - x[i + h];
      x[i] = sum;
    }
  }
  for (size_t i = 0; i < k; ++i) {
    float factor = std::ldexp(1.0f, -static_cast<int>(exponent[i] / 2));
    if (exponent[i] % 2 == 1) factor *= std::sqrt(0.5f);
    x[i] *= factor;
  }
  return x;
}

struct Memory {
  GuardedMemory x{1 << 14}, y{1 << 14};
};

void CheckHadamard(const Isa& isa, std::vector<float> row, size_t block, Memory* m) {
  const size_t k = row.size();
  const float* x = m->x.Copy(row.data(), k);
  float* y = m->y.Place<float>(k);
  isa.kernels->hadamard(x, k, block, y);
  const std::vector<float> wanted = Rotated(row, block);
  for (size_t i = 0; i < k; ++i) {
    CHECK(Same(y[i], wanted[i]), "%s: %zu in blocks of %zu: y[%zu] = %.9g, wanted %.9g", isa.name,
          k, block, i, static_cast<double>(y[i]), static_cast<double>(wanted[i]));
  }
  CHECK(m->y.FenceIsWhole() && m->x.FenceIsWhole(), "%s: %zu in blocks of %zu", isa.name, k, block);
}

void CheckHadamards(const Isa& isa, Memory* m) {
  static constexpr float kOdd[] = {NAN, INFINITY, -INFINITY, -0.0f, 3e38f, 1e-45f};
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  for (size_t block = 2; block <= kMostBlock; block *= 2) {
    std::vector<size_t> sizes = {block - 1, block, block + 1, 2 * block + 3, 3 * block - 1};
    for (size_t k = 1; k <= 70; ++k) sizes.push_back(k);
    for (const size_t k : sizes) {
      std::vector<float> x(k);
      for (float& v : x) v = normal(random);
      CheckHadamard(isa, x, block, m);
      x[random() % k] = kOdd[random() % 6];
      CheckHadamard(isa, x, block, m);
    }
  }
  CheckHadamard(isa, std::vector<float>(203, -0.0f), 64, m);
}

// What the tests in Python hold to the definition is the scalar kernel.
void CheckGelus(const Isa& isa, const Isa& scalar, Memory* m) {
  static constexpr float kOdd[] = {NAN,   INFINITY, -INFINITY, -0.0f, 3e38f, -3e38f,
                                   1e20f, -1e20f,   1e-45f,    -9.0f, 9.0f,  -100.0f};
  std::mt19937 random(13);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  for (size_t k = 1; k <= 200; ++k) {
    std::vector<float> row(k);
    std::vector<float> wanted(k);
    for (float& v : row) v = normal(random);
    row[random() % k] = kOdd[random() % 12];
    scalar.kernels->gelu(row.data(), k, wanted.data());
    float* y = m->y.Place<float>(k);
    isa.kernels->gelu(m->x.Copy(row.data(), k), k, y);
    for (size_t i = 0; i < k; ++i) {
      CHECK(Same(y[i], wanted[i]), "%s: the GELU of %.9g is %.9g, wanted %.9g", isa.name,
            static_cast<double>(row[i]), static_cast<double>(y[i]), static_cast<double>(wanted[i]));
    }
    CHECK(m->y.FenceIsWhole() && m->x.FenceIsWhole(), "%s: the GELU of %zu", isa.name, k);
  }
}

// Likewise; what is centered is modulated in its place.
void CheckNorms(const Isa& isa, const Isa& scalar, Memory* m) {
  std::mt19937 random(14);
  std::normal_distribution<float> normal(1.0f, 3.0f);
  GuardedMemory gains{1 << 14}, shifts{1 << 14};
  for (size_t k = 1; k <= 300; ++k) {
    std::vector<float> x(k), gain(k), shift(k), wanted(k);
    for (auto* row : {&x, &gain, &shift}) {
      for (float& v : *row) v = normal(random);
    }
    if (k % 7 == 0) x[random() % k] = k % 2 == 0 ? NAN : INFINITY;
    const float expected = scalar.kernels->norm.center(x.data(), k, 1e-6f, wanted.data());
    scalar.kernels->norm.modulate(wanted.data(), expected, gain.data(), shift.data(), k,
                                  wanted.data());
    float* y = m->y.Place<float>(k);
    const float factor = isa.kernels->norm.center(m->x.Copy(x.data(), k), k, 1e-6f, y);
    isa.kernels->norm.modulate(y, factor, gains.Copy(gain.data(), k), shifts.Copy(shift.data(), k),
                               k, y);
    CHECK(Same(factor, expected), "%s: the norm of %zu", isa.name, k);
    for (size_t i = 0; i < k; ++i) {
      CHECK(Same(y[i], wanted[i]), "%s: the norm of %zu at %zu is %.9g, wanted %.9g", isa.name, k,
            i, static_cast<double>(y[i]), static_cast<double>(wanted[i]));
    }
    CHECK(m->y.FenceIsWhole() && m->x.FenceIsWhole(), "%s: the norm of %zu", isa.name, k);
  }
}

// Of a row whose scale is `amax` by the grid's largest integer.
int64_t ErrorOf(const std::vector<float>& x, const QuantizeGrid& grid, const Format& format) {
  float amax = 0.0f;
  for (const float v : x) amax = std::fmax(amax, std::fabs(v));
  if (amax < kSmallestAmax) return 0;
  const float factor = grid.max_integer / amax;
  int64_t sum = 0;
  for (const float v : x) {
    const float t = v * factor;
    float best = 0.0f;  // the nearest; of two as near, either has the same square
    for (int i = 0; i < format.magnitude_count && format.magnitudes[i] <= grid.max_integer; ++i) {
      const float q = std::copysign(format.magnitudes[i], t);
      if (std::fabs(t - q) < std::fabs(t - best)) best = q;
    }
    const auto error = static_cast<int64_t>(std::nearbyint((t - best) * 64.0f));
    sum += error * error;
  }
  return sum;
}

void CheckErrors(const Isa& isa, const Format& format, Memory* m) {
  std::mt19937 random(12);
  std::normal_distribution<float> normal;
  for (const size_t k : {1u, 2u, 7u, 8u, 15u, 16u, 17u, 31u, 32u, 33u, 64u, 100u, 1000u, 1024u}) {
    for (int largest = 1; largest < format.magnitude_count; largest += 3) {
      const QuantizeGrid grid = {format.magnitudes[largest], format.mantissa_bits};
      std::vector<float> x(k);
      for (float& v : x) v = normal(random);
      if (largest % 2 == 0) std::fill(x.begin(), x.end(), random() % 2 == 0 ? 0.0f : 1e-30f);
      const int64_t wanted = ErrorOf(x, grid, format);
      const int32_t found = isa.kernels->error(m->x.Copy(x.data(), k), k, grid);
      CHECK(found == wanted, "%s %s: a row of %zu to %g: %d, wanted %lld", isa.name, format.name, k,
            static_cast<double>(grid.max_integer), found, static_cast<long long>(wanted));
      x[random() % k] = NAN;
      CHECK(isa.kernels->error(m->x.Copy(x.data(), k), k, grid) == 0, "%s: NaN", isa.name);
    }
  }
}

}  // namespace

void TestRotations() {
  Memory memory;
  size_t isa_count = 0;
  size_t format_count = 0;
  const Isa* isas = AllIsas(&isa_count);
  const Format* formats = AllFormats(&format_count);
  for (size_t i = 0; i < isa_count; ++i) {
    if (!isas[i].is_supported()) continue;
    CHECK(ChooseHadamard(i).run != nullptr && ChooseError(i).run != nullptr &&
              ChooseGelu(i).run != nullptr && ChooseNorm(i).run.center != nullptr,
          "%s", isas[i].name);
    if (isas[i].kernels->gelu != nullptr) CheckGelus(isas[i], isas[isa_count - 1], &memory);
    if (isas[i].kernels->norm.center != nullptr) CheckNorms(isas[i], isas[isa_count - 1], &memory);
    if (isas[i].kernels->hadamard != nullptr) CheckHadamards(isas[i], &memory);
    for (size_t f = 0; isas[i].kernels->error != nullptr && f < format_count; ++f) {
      if (formats[f].max_integer() <= 127.0f) CheckErrors(isas[i], formats[f], &memory);
    }
  }
}

}  // namespace fp4dit::test
