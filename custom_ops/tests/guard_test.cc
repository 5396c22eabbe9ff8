// Every kernel of every instruction set on buffers that end at a page nobody may touch. A kernel
// that reads or writes one byte too many ends the test there, with the case on the screen.

#if defined(_WIN32)
#include <io.h>
#else
#include <unistd.h>
#endif

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/kernels/registry.h"
#include "guarded_memory.h"
#include "linear_sample.h"

namespace fp4dit::test {
namespace {

char current_case[256];

// In a signal handler: nothing that the program may be in the middle of.
void SayWhere(int) {
#if defined(_WIN32)
  const bool said = _write(1, current_case, static_cast<unsigned>(std::strlen(current_case))) > 0;
#else
  const bool said = write(1, current_case, std::strlen(current_case)) > 0;
#endif
  std::_Exit(said ? 1 : 2);
}

template <typename... Arguments>
void Say(const char* format, Arguments... arguments) {
  const int length = std::snprintf(current_case, sizeof(current_case), format, arguments...);
  std::snprintf(current_case + length, sizeof(current_case) - static_cast<size_t>(length), "%s",
                ": touched memory that is not its own\n");
}

struct Buffers {
  GuardedMemory q{1 << 18}, staged{1 << 23}, panel{1 << 20}, table{16}, group_scale{1 << 18};
  GuardedMemory bias{1 << 10}, scale{1 << 18}, y{1 << 18}, multipliers{1 << 16};
};

struct Case {
  const char* isa;
  const LinearKernel* kernel;
  const Weights* weights;
  const PackedWeights* packed;
  size_t rows;
};

size_t PanelBytes(const LinearTile& tile, const PanelLayout& layout) {
  size_t elements = 0;
  for (size_t begin = 0; begin < tile.k; begin += tile.group_size) {
    const size_t size = std::min(tile.group_size, tile.k - begin);
    elements += (size + layout.k_step - 1) / layout.k_step * layout.k_step * layout.panel_width;
  }
  const WeightStorage storage = tile.storage;
  return storage == kNibbles ? elements / 2 : storage == kBytes ? elements : 2 * elements;
}

// One panel, from copies of all that the kernel reads.
void RunPanel(const Case& c, size_t panel, const LinearTile& rows, Buffers* b) {
  const PanelLayout& layout = c.kernel->layout;
  const WeightSource& source = c.weights->source;
  LinearTile tile = rows;
  c.packed->SetPanel(panel, nullptr, &tile);
  const size_t width = layout.panel_width;
  tile.panel = b->panel.Copy(tile.panel, PanelBytes(tile, layout));
  tile.table = b->table.Copy(tile.table, 16);
  const size_t scales = (tile.k + tile.scale_group - 1) / tile.scale_group;
  tile.group_scale = b->group_scale.Copy(tile.group_scale, scales * width);
  if (tile.multipliers != nullptr) {
    tile.multipliers = b->multipliers.Copy(tile.multipliers, source.groups() * width);
  }
  tile.bias = b->bias.Copy(tile.bias, width);
  tile.y += panel * width;
  c.kernel->run(tile);
}

template <typename Act>
void CheckRows(const Case& c, std::mt19937* random, Buffers* b) {
  const WeightSource& source = c.weights->source;
  Act* q = b->q.Place<Act>(c.rows * source.k);
  const int limit = sizeof(Act) == 1 ? 128 : 1984;
  for (size_t i = 0; i < c.rows * source.k; ++i) q[i] = RandomAct<Act>(random, false, limit);
  const Activations rows = {q,        kTypeOf<Act>,           c.rows,
                            source.k, c.packed->group_size(), c.packed->multiplier_group()};
  uint8_t* staged = b->staged.Place(c.kernel->staged_bytes(rows), 64);
  LinearTile tile = {};
  tile.max_act = c.kernel->stage(rows, staged);
  tile.staged = staged;
  const size_t act_groups = c.weights->act_groups();
  const size_t scales = (c.rows % 2 == 0 ? 1 : c.rows) * act_groups;
  float* scale = b->scale.Place<float>(scales);
  for (size_t i = 0; i < scales; ++i) scale[i] = std::normal_distribution<float>()(*random);
  tile.scale = scale;
  tile.scale_stride = tile.act_stride = c.rows % 2 * act_groups;
  if (act_groups > 1) tile.act_scale = scale;
  tile.plain = source.multipliers != nullptr;
  tile.y_stride = source.n + 3;
  const size_t count = (c.rows - 1) * tile.y_stride + source.n;
  tile.y = b->y.Place<float>(count);
  tile.rows = c.rows;
  for (size_t panel = 0; panel < c.packed->panel_count(); ++panel) RunPanel(c, panel, tile, b);
  // All of y is compared elsewhere: here its corners and a few more, and what is between rows.
  for (size_t i = 0; i < 12; ++i) {
    const size_t r = i < 4 ? i % 2 * (c.rows - 1) : (*random)() % c.rows;
    const size_t n = i < 4 ? i / 2 * (source.n - 1) : (*random)() % source.n;
    const float wanted = LinearOf(*c.weights, q + r * source.k, scale + r * tile.scale_stride, n);
    CHECK(Same(tile.y[r * tile.y_stride + n], wanted), "%s y[%zu, %zu] = %g, wanted %g",
          current_case, r, n, static_cast<double>(tile.y[r * tile.y_stride + n]),
          static_cast<double>(wanted));
  }
  float untouched;
  std::memset(&untouched, GuardedMemory::kUntouched, sizeof(untouched));
  for (size_t r = 0; r + 1 < c.rows; ++r) {
    for (size_t n = source.n; n < tile.y_stride; ++n) {
      CHECK(Same(tile.y[r * tile.y_stride + n], untouched), "%s y[%zu, %zu]", current_case, r, n);
    }
  }
  CHECK(b->y.FenceIsWhole() && b->staged.FenceIsWhole(), "%s", current_case);
}

// 1, one less than a step, the step, one more, and two steps and a rest.
std::vector<size_t> AroundStep(size_t step) {
  std::vector<size_t> sizes = {1, step - 1, step, step + 1, 2 * step + 3};
  if (step == 1) sizes = {1, 2, 5};
  return sizes;
}

void CheckKernel(const Isa& isa, DotKind kind, const Format& format, Buffers* b) {
  std::mt19937 random(3);
  const LinearKernel& kernel = isa.kernels->linear[kind];
  const PanelLayout& layout = kernel.layout;
  std::vector<size_t> inner = AroundStep(64);  // a step of tiles
  for (const size_t k : AroundStep(layout.k_unit)) inner.push_back(k);
  inner.push_back(257);  // inputs decoded at once, and one
  std::vector<size_t> outer = AroundStep(kernel.row_step);
  for (const size_t rows : AroundStep(16)) outer.push_back(rows);  // a tile
  for (const size_t k : inner) {
    for (const size_t n : AroundStep(layout.panel_width)) {
      const bool multiplied = kind == kDotInt8 && random() % 2 == 0;
      const size_t group_size = multiplied          ? AnyMultiplierGroup(k, &random)
                                : random() % 2 == 0 ? k
                                                    : 1 + random() % k;
      Weights weights = MakeWeights(format, n, k, group_size, &random);
      weights.source.act_group = AnyActGroup(k, group_size, multiplied, &random);
      if (multiplied) Multiply(&weights, &random);
      PackedWeights packed;
      CHECK(packed.Pack(weights.source, layout) == PackResult::kDone, "%s", format.name);
      for (const size_t rows : outer) {
        const Case c = {isa.name, &kernel, &weights, &packed, std::min(rows, kMaxTileRows)};
        Say("%s %s kind %d%s: [%zu, %zu] x %zu, groups of %zu and %zu", isa.name, format.name, kind,
            multiplied ? " multiplied" : "", c.rows, k, n, group_size, weights.source.act_group);
        if (kind == kDotInt8) CheckRows<int8_t>(c, &random, b);
        if (kind == kDotInt16) CheckRows<int16_t>(c, &random, b);
        if (kind == kDotInt16) CheckRows<int8_t>(c, &random, b);
        if (kind == kDotFloat) CheckRows<float>(c, &random, b);
      }
    }
  }
}

template <typename Integer>
void CheckQuantize(const Isa& isa, const char* format_name) {
  const Format& format = *FindFormat(format_name);
  const IntegerType type = kTypeOf<Integer>;
  const QuantizeRow quantize = isa.kernels->quantize[type];
  const DequantizeRun dequantize = isa.kernels->dequantize[type];
  std::mt19937 random(4);
  GuardedMemory x_memory(1 << 12), q_memory(1 << 12), y_memory(1 << 12), scale_memory(8);
  for (size_t k = 1; k <= 100; ++k) {
    Say("%s %s: a row of %zu", isa.name, format.name, k);
    float* x = x_memory.Place<float>(k);
    for (size_t i = 0; i < k; ++i) x[i] = std::normal_distribution<float>()(random);
    Integer* q = q_memory.Place<Integer>(k);
    float* scale = scale_memory.Place<float>(1);
    if (quantize != nullptr) {
      quantize(x, k, {format.max_integer(), format.mantissa_bits}, q, scale);
      CHECK(q_memory.FenceIsWhole() && scale_memory.FenceIsWhole(), "%s", current_case);
    }
    if (dequantize == nullptr) continue;
    for (size_t i = 0; i < k; ++i) q[i] = static_cast<Integer>(i % 100);
    float* y = y_memory.Place<float>(k);
    dequantize(q, k, 0.5f, y);
    for (size_t i = 0; i < k; ++i) {
      CHECK(Same(y[i], 0.5f * static_cast<float>(i % 100)), "%s y[%zu]", current_case, i);
    }
    CHECK(y_memory.FenceIsWhole(), "%s", current_case);
  }
}

// A fence that does not notice would make the rest worthless.
void TestFence() {
  GuardedMemory memory(100);
  uint8_t* bytes = memory.Place(20, 64);
  CHECK(memory.FenceIsWhole(), "nothing was written");
  bytes[20] = 0;
  CHECK(!memory.FenceIsWhole(), "one byte past the end");
  bytes = memory.Place(20, 1);
  bytes[-1] = 0;
  CHECK(!memory.FenceIsWhole(), "one byte before the start");
}

}  // namespace

void TestGuards() {
  // One format of every storage.
  static constexpr const char* kFormats[] = {"e2m1", "int8", "e3m2", "e5m2"};
  TestFence();
  const auto before = signal(SIGSEGV, SayWhere);
  Buffers buffers;
  size_t count = 0;
  const Isa* isas = AllIsas(&count);
  for (size_t i = 0; i < count; ++i) {
    if (!isas[i].is_supported()) continue;
    for (int kind = 0; kind < kDotKinds; ++kind) {
      const LinearKernel& kernel = isas[i].kernels->linear[kind];
      for (const char* name : kFormats) {
        const Format& format = *FindFormat(name);
        if (kernel.run == nullptr || StorageOf(format) > kernel.widest) continue;
        CheckKernel(isas[i], static_cast<DotKind>(kind), format, &buffers);
      }
    }
    CheckQuantize<int8_t>(isas[i], "e2m3");
    CheckQuantize<int16_t>(isas[i], "e3m4");
    CheckQuantize<float>(isas[i], "e4m3");
  }
  signal(SIGSEGV, before);
}

}  // namespace fp4dit::test
