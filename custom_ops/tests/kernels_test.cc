// Every kernel of every instruction set that this machine has, bit for bit against slow oracles.
// Buffers have their exact sizes, so that an address sanitizer sees what lies outside.

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/formats.h"
#include "cpu/kernels/registry.h"
#include "cpu/packing/packed_weights.h"
#include "linear_sample.h"

namespace fp4dit::test {
namespace {

// The nearest grid integer by table: ties to an even significand, as numerics.round_to_grid has it.
float Nearest(float t, const Format& format) {
  const double magnitude = std::fabs(static_cast<double>(t));
  int best = 0;
  for (int i = 1; i < format.magnitude_count; ++i) {
    const double low = static_cast<double>(format.magnitudes[i - 1]);
    const double high = static_cast<double>(format.magnitudes[i]);
    const double middle = (low + high) / 2;
    const bool low_is_odd = std::fmod(low / (high - low), 2.0) == 1.0;
    if (magnitude > middle || (magnitude == middle && low_is_odd)) best = i;
  }
  return std::copysign(format.magnitudes[best], t);
}

struct QuantizeCase {
  const char* isa;
  const Format* format;
  QuantizeRow run;
};

template <typename Integer>
void CheckRow(const QuantizeCase& c, const std::vector<float>& x) {
  std::vector<Integer> q(x.size());
  float scale = -1.0f;
  const float limit = c.format->max_integer();
  c.run(x.data(), x.size(), {limit, c.format->mantissa_bits}, q.data(), &scale);
  float amax = 0.0f;
  bool finite = true;
  for (const float v : x) {
    finite = finite && std::isfinite(v);
    amax = std::fmax(amax, std::fabs(v));
  }
  const bool live = finite && amax >= kSmallestAmax;
  const float wanted_scale = !finite ? NAN : live ? amax / limit : 0.0f;
  CHECK(Same(scale, wanted_scale), "%s %s scale %g, wanted %g", c.isa, c.format->name,
        static_cast<double>(scale), static_cast<double>(wanted_scale));
  for (size_t i = 0; i < x.size(); ++i) {
    const float wanted = live ? Nearest(x[i] * (limit / amax), *c.format) : 0.0f;
    const bool same = sizeof(Integer) == 4 ? Same(static_cast<float>(q[i]), wanted)
                                           : static_cast<float>(q[i]) == wanted;
    CHECK(same, "%s %s row of %zu at %zu: x %.9g gives %g, wanted %g", c.isa, c.format->name,
          x.size(), i, static_cast<double>(x[i]), static_cast<double>(q[i]),
          static_cast<double>(wanted));
  }
}

// Every grid value, every midpoint, and the float neighbours of both, with either sign. The row's
// maximum is the format's, so that the factor is 1 and the values arrive as they are.
std::vector<float> HardValues(const Format& format) {
  std::vector<float> x = {0.0f, -0.0f};
  for (int i = 0; i < format.magnitude_count; ++i) {
    const float low = format.magnitudes[i > 0 ? i - 1 : 0];
    for (const float center : {format.magnitudes[i], (low + format.magnitudes[i]) / 2}) {
      for (const float v : {center, std::nextafter(center, 0.0f), std::nextafter(center, 1e30f)}) {
        if (v > format.max_integer()) continue;
        x.push_back(v);
        x.push_back(-v);
      }
    }
  }
  return x;
}

template <typename Integer>
void CheckQuantize(const QuantizeCase& c, std::mt19937* random) {
  const std::vector<float> hard = HardValues(*c.format);
  CheckRow<Integer>(c, hard);
  for (const float power : {0x1p-60f, 0x1p60f}) {
    std::vector<float> scaled = hard;
    for (float& v : scaled) v *= power;
    CheckRow<Integer>(c, scaled);
  }
  std::normal_distribution<float> normal;
  for (size_t size = 1; size <= 40; ++size) {
    std::vector<float> x(size);
    for (float& v : x) v = normal(*random);
    CheckRow<Integer>(c, x);
    for (const float odd : {NAN, INFINITY, -INFINITY, 3.4028234e38f, -3.4028234e38f}) {
      std::vector<float> poisoned = x;
      poisoned[(*random)() % size] = odd;
      CheckRow<Integer>(c, poisoned);
    }
    for (const float amax : {0.0f, 1e-45f, kSmallestAmax, std::nextafter(kSmallestAmax, 0.0f)}) {
      std::vector<float> small(size, 0.0f);
      small[(*random)() % size] = -amax;
      CheckRow<Integer>(c, small);
    }
  }
}

struct LinearCase {
  const char* isa;
  const LinearKernel* kernel;
  const Format* format;
  size_t rows, k, group_size, columns;
  bool multiplied;
  size_t act_group;
};

template <typename Act>
void CheckTile(const LinearCase& c, std::mt19937* random) {
  Weights w = MakeWeights(*c.format, c.columns, c.k, c.group_size, random);
  w.source.act_group = c.act_group;
  if (c.multiplied) Multiply(&w, random);
  PackedWeights packed;
  CHECK(packed.Pack(w.source, c.kernel->layout) == PackResult::kDone, "%s", c.format->name);
  const bool extreme = (*random)() % 2 == 0;
  std::vector<Act> q(c.rows * c.k);
  // Narrow limits let a kernel add more products before it widens the sums.
  static constexpr int kByteLimits[] = {7, 31, 60, 128};
  const int limit = sizeof(Act) == 1 ? kByteLimits[(*random)() % 4] : 1984;
  for (Act& v : q) v = RandomAct<Act>(random, extreme, limit);
  const size_t scale_stride = (*random)() % 2 * w.act_groups();
  std::vector<float> scale(scale_stride == 0 ? w.act_groups() : c.rows * scale_stride);
  for (float& v : scale)
    v = (*random)() % 16 == 0 ? NAN : std::normal_distribution<float>()(*random);
  const size_t y_stride = c.columns + 3;
  constexpr float kUntouched = 12345.0f;
  std::vector<float> y(c.rows * y_stride, kUntouched);
  LinearTile tile = {};
  packed.SetPanel(0, nullptr, &tile);
  const Activations rows = {q.data(), kTypeOf<Act>,        c.rows,
                            c.k,      packed.group_size(), packed.multiplier_group()};
  AlignedBuffer staged;
  CHECK(staged.Allocate(c.kernel->staged_bytes(rows)), "%zu", c.rows);
  tile.max_act = c.kernel->stage(rows, staged.data());
  tile.staged = staged.data();
  tile.scale = scale.data();
  tile.scale_stride = scale_stride;
  tile.plain = c.multiplied;
  if (c.act_group < c.k) tile.act_scale = scale.data();
  tile.act_stride = scale_stride;
  tile.y = y.data();
  tile.y_stride = y_stride;
  tile.rows = c.rows;
  c.kernel->run(tile);
  for (size_t m = 0; m < c.rows; ++m) {
    const float* const row_scale = scale.data() + m * scale_stride;
    for (size_t n = 0; n < y_stride; ++n) {
      const float wanted =
          n < c.columns ? LinearOf(w, q.data() + m * c.k, row_scale, n) : kUntouched;
      CHECK(Same(y[m * y_stride + n], wanted),
            "%s %s%s [%zu, %zu] x %zu, groups of %zu and %zu: y[%zu, %zu] = %.9g, wanted %.9g",
            c.isa, c.format->name, c.multiplied ? " multiplied" : "", c.rows, c.k, c.columns,
            c.group_size, c.act_group, m, n, static_cast<double>(y[m * y_stride + n]),
            static_cast<double>(wanted));
    }
  }
}

void CheckTypes(const LinearCase& c, DotKind kind, std::mt19937* random) {
  if (kind == kDotInt8) CheckTile<int8_t>(c, random);
  if (kind == kDotInt16) CheckTile<int16_t>(c, random);
  if (kind == kDotInt16) CheckTile<int8_t>(c, random);
  if (kind == kDotFloat) CheckTile<float>(c, random);
}

void CheckKind(LinearCase c, DotKind kind, std::mt19937* random) {
  const size_t panel = c.kernel->layout.panel_width;
  const size_t unit = c.kernel->layout.k_unit;
  // Up to 256 inputs are decoded at once.
  for (const size_t k :
       {size_t{1}, unit, unit + 1, 2 * unit + 1, size_t{37}, size_t{256}, size_t{257}}) {
    for (const size_t group : {size_t{1}, size_t{3}, size_t{32}, k}) {
      for (const size_t columns : {size_t{1}, panel - 1, panel}) {
        if (columns > c.kernel->most_columns) continue;
        // Blocks of rows: at most 8, and of tiles 16 and 32. All remainders, and a full tile.
        static constexpr size_t kRows[] = {1,  2,  3,  4,  5,  6,  7,  8,  9,           15,
                                           16, 17, 31, 32, 33, 47, 48, 49, kMaxTileRows};
        c.rows = kRows[(*random)() % (sizeof(kRows) / sizeof(kRows[0]))];
        if (k < 40 || c.rows < 10 || (*random)() % 8 == 0) {
          c.k = k;
          c.group_size = std::min(group, k);
          c.columns = columns;
          c.multiplied = false;
          c.act_group = k;
          CheckTypes(c, kind, random);
          c.act_group = AnyActGroup(k, c.group_size, false, random);
          CheckTypes(c, kind, random);
          if (kind != kDotInt8) continue;
          c.multiplied = true;
          c.group_size = AnyMultiplierGroup(k, random);
          c.act_group = AnyActGroup(k, c.group_size, true, random);
          CheckTypes(c, kind, random);
        }
      }
    }
  }
}

}  // namespace

void TestQuantizeKernels() {
  std::mt19937 random(1);
  size_t isa_count = 0;
  size_t format_count = 0;
  const Isa* isas = AllIsas(&isa_count);
  const Format* formats = AllFormats(&format_count);
  for (size_t i = 0; i < isa_count; ++i) {
    if (!isas[i].is_supported()) continue;
    for (size_t f = 0; f < format_count; ++f) {
      const float limit = formats[f].max_integer();
      const QuantizeRow* entries = isas[i].kernels->quantize;
      QuantizeCase c = {isas[i].name, &formats[f], entries[kInt8Type]};
      if (limit <= 127.0f && c.run != nullptr) CheckQuantize<int8_t>(c, &random);
      c.run = entries[kInt16Type];
      if (limit <= 32767.0f && c.run != nullptr) CheckQuantize<int16_t>(c, &random);
      c.run = entries[kFloatType];
      if (c.run != nullptr) CheckQuantize<float>(c, &random);
    }
  }
}

void TestLinearKernels() {
  std::mt19937 random(2);
  size_t isa_count = 0;
  size_t format_count = 0;
  const Isa* isas = AllIsas(&isa_count);
  const Format* formats = AllFormats(&format_count);
  for (size_t i = 0; i < isa_count; ++i) {
    if (!isas[i].is_supported()) continue;
    for (int kind = 0; kind < kDotKinds; ++kind) {
      const LinearKernel& kernel = isas[i].kernels->linear[kind];
      for (size_t f = 0; kernel.run != nullptr && f < format_count; ++f) {
        if (StorageOf(formats[f]) > kernel.widest) continue;
        CheckKind({isas[i].name, &kernel, &formats[f], 0, 0, 0, 0, false, 0},
                  static_cast<DotKind>(kind), &random);
      }
    }
    for (const LinearKernel& narrow : isas[i].kernels->narrow) {
      if (narrow.run == nullptr) continue;
      CheckKind({isas[i].name, &narrow, FindFormat("e3m2"), 0, 0, 0, 0, false, 0}, kDotInt16,
                &random);
    }
  }
}

}  // namespace fp4dit::test
