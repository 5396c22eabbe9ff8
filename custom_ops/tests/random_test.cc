// FpQuantize and FpLinear through the fake runtime: every instruction set gives the bits of the
// scalar kernels, and those are what the definition says.

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/formats.h"
#include "cpu/kernels/registry.h"
#include "fake_ort.h"
#include "linear_sample.h"
#include "sample_node.h"

namespace fp4dit::test {
namespace {

using fake::Outcome;
using fake::Value;

std::vector<const char*> RunnableIsas() {
  std::vector<const char*> names;
  size_t count = 0;
  const Isa* isas = AllIsas(&count);
  for (size_t i = 0; i < count; ++i) {
    if (isas[i].is_supported()) names.push_back(isas[i].name);
  }
  return names;
}

// In the place of an instruction set: the operators of the CUDA provider.
constexpr const char kGpu[] = "cuda";

// The operator called `name`: the GPU's, if it is tested and has one.
const ort::CustomOp* FindOp(const char* isa, const char* name) {
  std::string error;
  static const auto cpu = fake::RegisterAll(&error);
  static const auto gpu = fake::RegisterAll(&error, "CUDAExecutionProvider");
  const auto found = gpu.find(name);
  return std::strcmp(isa, kGpu) != 0 || found == gpu.end() ? cpu.at(name) : found->second;
}

struct Case {
  const Format* act = nullptr;  // null: weight-only
  const Format* weight = nullptr;
  size_t rows = 0, k = 0, n = 0, group_size = 0;
  bool constant = true;  // weights, scales and bias
  bool multiplied = false;
  size_t act_group = SIZE_MAX;
  size_t block = 0;  // of a rotation before quantizing; 0: none
  std::vector<float> candidates = {};
  const char* before = "";  // "Gelu" or "Norm": of x before quantizing

  size_t act_groups() const { return act_group >= k ? 1 : (k + act_group - 1) / act_group; }
};

std::string Text(const Case& c) {
  char text[200];
  std::snprintf(
      text, sizeof(text), "%s x %s%s [%zu, %zu] x %zu, groups of %zu and %zu, block %zu %s",
      c.act == nullptr ? "''" : c.act->name, c.weight->name, c.multiplied ? " multiplied" : "",
      c.rows, c.k, c.n, c.group_size, c.act_group, c.block, c.before);
  return text;
}

template <typename T>
Value Copy(ort::ElementType type, std::vector<size_t> sizes, const std::vector<T>& items) {
  return Value::Of<T>(type, std::vector<int64_t>(sizes.begin(), sizes.end()), items);
}

// What the quantizer made of the rows.
struct Rows {
  Value q;
  Value scale;
};

// The op that quantizes to `format`, on the instruction set that is selected, or the GPU.
Rows Quantize(const Case& c, const std::vector<float>& x, const char* isa = "") {
  if (c.act == nullptr) {
    const std::vector<float> ones(c.rows, 1.0f);
    return {Copy(ort::kFloat, {c.rows, c.k}, x), Copy(ort::kFloat, {c.rows, 1}, ones)};
  }
  const ort::ElementType type = ActivationType(c.act);
  const std::string first = std::string("Fp") + c.before + "Quantize";
  Sample sample = MakeSample(first, c.act->name, "e2m1", static_cast<int64_t>(c.rows),
                             static_cast<int64_t>(c.k), 1, 1);
  std::memcpy(sample.values[0]->data.get(), x.data(), x.size() * sizeof(float));
  for (size_t i = 1; i < sample.values.size(); ++i) {  // gain and shift
    float* const own = reinterpret_cast<float*>(sample.values[i]->data.get());
    for (size_t j = 0; j < sample.values[i]->Bytes() / sizeof(float); ++j) {
      own[j] = std::sin(static_cast<float>(i * j));
    }
  }
  std::string op = c.block != 0          ? "FpHadamardQuantize"
                   : type == ort::kInt8  ? "FpQuantize"
                   : type == ort::kInt16 ? "FpQuantizeInt16"
                                         : "FpQuantizeFloat";
  op.insert(2, c.before);
  if (c.act_group < c.k) sample.node.ints["group_size"] = static_cast<int64_t>(c.act_group);
  if (c.block != 0) sample.node.ints["block"] = static_cast<int64_t>(c.block);
  if (!c.candidates.empty()) sample.node.lists["candidates"] = c.candidates;
  Outcome outcome = fake::Run(FindOp(isa, op.c_str()), &sample.node);
  CHECK(outcome.error.empty(), "%s: %s", Text(c).c_str(), outcome.error.c_str());
  return {std::move(outcome.outputs[0]), std::move(outcome.outputs[1])};
}

// FpLinear, on the instruction set that is selected, or the GPU.
Value RunLinear(const Case& c, Rows* rows, const Weights& w, const char* isa = "") {
  Value codes = Copy(ort::kUint8, {c.n, w.source.row_bytes()}, w.codes);
  Value scales = Copy(ort::kFloat, {c.n, w.source.groups()}, w.scales);
  Value multipliers = Copy(ort::kUint8, {c.n, (w.source.groups() + 1) / 2}, w.multipliers);
  Value bias = Copy(ort::kFloat, {c.n}, w.bias);
  fake::Node node;
  node.texts = {{"act_format", c.act == nullptr ? "" : c.act->name},
                {"weight_format", c.weight->name}};
  node.ints["group_size"] = static_cast<int64_t>(c.group_size);
  SetGrid(*c.weight, static_cast<int64_t>(c.k), &node);
  if (c.act_group < c.k) node.ints["act_group_size"] = static_cast<int64_t>(c.act_group);
  node.inputs = {&rows->q, &rows->scale, &codes, &scales, &bias};
  node.constant = {false, false, c.constant, c.constant, c.constant};
  if (c.multiplied) {
    scales = Copy(ort::kFloat, {c.n}, w.scales);
    node.inputs.insert(node.inputs.begin() + 3, &multipliers);
    node.constant.push_back(c.constant);
  }
  Outcome outcome = fake::Run(FindOp(isa, c.multiplied ? "FpLinearInteger" : "FpLinear"), &node);
  CHECK(outcome.error.empty(), "%s: %s", Text(c).c_str(), outcome.error.c_str());
  return std::move(outcome.outputs[0]);
}

// The first float that differs, or the count.
size_t FirstDifference(const Value& a, const Value& b, size_t count) {
  size_t i = 0;
  while (i < count && Same(a.As<float>()[i], b.As<float>()[i])) ++i;
  return i;
}

void CheckSame(const char* isa, const Case& c, const Value& got, const Value& wanted) {
  const size_t count = wanted.Bytes() / sizeof(float);
  const size_t i = FirstDifference(got, wanted, count);
  CHECK(i == count, "%s %s: value %zu is %.9g, and %.9g of the scalar kernels", isa,
        Text(c).c_str(), i, static_cast<double>(got.As<float>()[i]),
        static_cast<double>(wanted.As<float>()[i]));
}

template <typename Act>
void CheckDefinition(const Case& c, const Rows& rows, const Weights& w, const Value& y) {
  for (size_t r = 0; r < c.rows; ++r) {
    const Act* q = rows.q.As<Act>() + r * c.k;
    for (size_t n = 0; n < c.n; ++n) {
      const float wanted = LinearOf(w, q, rows.scale.As<float>() + r * c.act_groups(), n);
      const float got = y.As<float>()[r * c.n + n];
      CHECK(Same(got, wanted), "%s: y[%zu, %zu] = %.9g, defined as %.9g", Text(c).c_str(), r, n,
            static_cast<double>(got), static_cast<double>(wanted));
    }
  }
}

void CheckCase(const Case& c, const std::vector<float>& x, const Weights& w, bool by_definition,
               const std::vector<const char*>& isas = RunnableIsas()) {
  CHECK(SelectIsa("scalar"), "scalar runs everywhere");
  Rows rows = Quantize(c, x);
  const Value y = RunLinear(c, &rows, w);
  if (by_definition) {
    if (rows.q.type == ort::kInt8) CheckDefinition<int8_t>(c, rows, w, y);
    if (rows.q.type == ort::kInt16) CheckDefinition<int16_t>(c, rows, w, y);
    if (rows.q.type == ort::kFloat) CheckDefinition<float>(c, rows, w, y);
  }
  for (const char* isa : isas) {
    CHECK(SelectIsa(std::strcmp(isa, kGpu) == 0 ? "scalar" : isa), "%s", isa);
    Rows other = Quantize(c, x, isa);
    CHECK(std::memcmp(other.q.data.get(), rows.q.data.get(), rows.q.Bytes()) == 0,
          "%s %s: integers differ from the scalar kernels'", isa, Text(c).c_str());
    CheckSame(isa, c, other.scale, rows.scale);
    CheckSame(isa, c, RunLinear(c, &other, w, isa), y);
  }
  SelectIsa(nullptr);
}

class Chance {
 public:
  explicit Chance(unsigned seed) : random(seed) {}

  size_t Below(size_t limit) { return random() % limit; }
  // From 1 to `most`, half of them below its square root.
  size_t Size(size_t most) {
    const double exponent = static_cast<double>(Below(1001)) / 1000.0;
    return static_cast<size_t>(std::pow(static_cast<double>(most), exponent));
  }

  std::mt19937 random;
};

// The longest group that FpLinear takes of these formats.
size_t LongestGroup(const Format* act, const Format& weight) {
  if (act == nullptr || act->max_integer() > 32767.0f) return SIZE_MAX;
  if (weight.max_integer() > 32767.0f) return 0;
  const double a = static_cast<double>(act->max_integer());
  const double w = static_cast<double>(weight.max_integer());
  const DotKind kind = std::max(a, w) <= 127.0 ? kDotInt8 : kDotInt16;
  return static_cast<size_t>((kSumLimit - 1) / LargestSum(kind, a, w, 1));
}

// Multipliers, and activations in groups, rotated or with candidates.
void Enrich(Case* c, Chance* chance) {
  const float widest = c->act == nullptr ? 1e9f : c->act->max_integer();
  c->multiplied = std::max(widest, c->weight->max_integer()) <= 127.0f && chance->Below(2) == 0;
  if (c->multiplied) c->group_size = AnyMultiplierGroup(c->k, &chance->random);
  const size_t group = std::min(c->k, c->group_size);
  if (c->act != nullptr) c->act_group = AnyActGroup(c->k, group, c->multiplied, &chance->random);
  if (widest > 127.0f) return;
  if (chance->Below(2) == 0) c->block = size_t{2} << chance->Below(9);
  if (widest == 12.0f && chance->Below(2) == 0) c->candidates = {12.0f, 8.0f};
}

Case RandomCase(Chance* chance) {
  size_t count = 0;
  const Format* formats = AllFormats(&count);
  Case c;
  do {
    c = {};
    const size_t act = chance->Below(count + 1);
    c.act = act == count ? nullptr : &formats[act];
    c.weight = &formats[chance->Below(count)];
    c.rows = chance->Size(160);
    c.k = chance->Size(400);
    c.n = chance->Size(200);
    static constexpr size_t kGroups[] = {16, 32, 64, 128, 1000};
    const size_t kind = chance->Below(8);
    c.group_size = kind < 5 ? kGroups[kind] : 1 + chance->Below(c.k);
    c.constant = chance->Below(4) != 0;
    if (chance->Below(2) == 0) Enrich(&c, chance);
    static constexpr const char* kBefore[] = {"Gelu", "Norm", "", ""};
    if (c.act != nullptr && c.act->max_integer() <= 32767.0f) c.before = kBefore[chance->Below(4)];
  } while (std::min(c.group_size, c.k) > LongestGroup(c.act, *c.weight));
  constexpr size_t kLong = 20000;  // as far as there is time for
  if (chance->Below(200) == 0) {
    c.multiplied = false;
    c.act_group = SIZE_MAX;
    c.candidates.clear();
    c.rows = 1 + chance->Below(5);
    c.n = 1 + chance->Below(3);
    c.k = c.group_size = std::min(kLong, LongestGroup(c.act, *c.weight));
  }
  return c;
}

// Rows of ordinary values, and some that are not.
std::vector<float> RandomRows(const Case& c, Chance* chance) {
  static constexpr float kSpecial[] = {NAN, INFINITY, -INFINITY, 3.4028234e38f, 1e-40f};
  std::normal_distribution<float> normal;
  std::vector<float> x(c.rows * c.k);
  for (size_t r = 0; r < c.rows; ++r) {
    const size_t kind = c.act == nullptr ? 99 : chance->Below(40);
    for (size_t i = 0; i < c.k; ++i) {
      float& v = x[r * c.k + i];
      v = normal(chance->random);
      if (kind == 0) v = 0.0f;
      if (kind == 1) v = 1.0f;  // the largest integers there are
      if (kind == 2) v *= 0x1p-130f;
    }
    if (kind == 3) x[r * c.k + chance->Below(c.k)] = kSpecial[chance->Below(5)];
  }
  return x;
}

Weights WeightsOf(const Case& c, Chance* chance) {
  Weights w = MakeWeights(*c.weight, c.n, c.k, std::min(c.group_size, c.k), &chance->random);
  w.source.act_group = std::min(c.act_group, c.k);
  if (c.multiplied) Multiply(&w, &chance->random);
  return w;
}

// Channels of the largest and of the smallest weights, in turn.
Weights ExtremeWeights(const Case& c) {
  std::mt19937 random(6);
  Weights w = MakeWeights(*c.weight, c.n, c.k, c.group_size, &random);
  const size_t largest = static_cast<size_t>(c.weight->magnitude_count) - 1;
  for (size_t n = 0; n < c.n; ++n) {
    const size_t code = n % 2 == 0 ? largest : largest + c.weight->code_count() / 2;
    const size_t stored = c.weight->storage_bits == 4 ? code << 4 | code : code;
    std::memset(w.codes.data() + n * w.source.row_bytes(), static_cast<int>(stored),
                w.source.row_bytes());
    std::fill_n(w.grid.begin() + static_cast<std::ptrdiff_t>(n * c.k), c.k,
                c.weight->GridInteger(code));
  }
  return w;
}

// The longest group there is, of the largest integers; and of bytes that no format has, whose sums
// leave int32: they wrap, and nothing else happens.
void CheckLongestGroup(const char* act, const char* weight) {
  Case c = {FindFormat(act), FindFormat(weight), 5, 0, 3, 0, true};  // more rows than AMX calls few
  c.k = c.group_size = LongestGroup(c.act, *c.weight);
  const Weights w = ExtremeWeights(c);
  std::vector<float> x(c.rows * c.k, 1.0f);
  for (size_t r = 1; r < c.rows; r += 2) std::fill_n(x.data() + r * c.k, c.k, -1.0f);
  CheckCase(c, x, w, true);
  Rows rows = Quantize(c, x);
  std::memset(rows.q.data.get(), 0x80, rows.q.Bytes());
  CHECK(SelectIsa("scalar"), "scalar runs everywhere");
  const Value wanted = RunLinear(c, &rows, w);
  for (const char* isa : RunnableIsas()) {
    CHECK(SelectIsa(isa), "%s", isa);
    CheckSame(isa, c, RunLinear(c, &rows, w), wanted);
  }
  SelectIsa(nullptr);
}

// Row `row` of a case becomes `value` somewhere, or everywhere if `all`.
struct OddRow {
  size_t row;
  float value;
  bool all;
  bool gives_nan;  // else what a row of zeros gives: the bias
};

constexpr OddRow kOddRows[] = {{3, NAN, false, true},        {17, INFINITY, false, true},
                               {40, -INFINITY, false, true}, {41, NAN, true, true},
                               {5, 0.0f, true, false},       {33, -0.0f, true, false},
                               {6, 1e-40f, true, false},     {69, -0x1p-91f, true, false}};

void CheckOddRows(const char* isa, const char* act) {
  Chance chance(5);
  const Case c = {FindFormat(act), FindFormat("e2m1"), 70, 130, 67, 64, true};
  const Weights w = WeightsOf(c, &chance);
  std::vector<float> x(c.rows * c.k);
  for (float& v : x) v = std::normal_distribution<float>()(chance.random);
  CHECK(SelectIsa(isa), "%s", isa);
  Rows rows = Quantize(c, x);
  const Value clean = RunLinear(c, &rows, w);
  std::vector<const OddRow*> odd(c.rows);
  for (const OddRow& o : kOddRows) {
    odd[o.row] = &o;
    for (size_t i = 0; i < c.k; ++i) {
      if (o.all || i == 77) x[o.row * c.k + i] = o.value;
    }
  }
  rows = Quantize(c, x);
  const Value y = RunLinear(c, &rows, w);
  for (size_t r = 0; r < c.rows; ++r) {
    for (size_t n = 0; n < c.n; ++n) {
      const float wanted = odd[r] == nullptr   ? clean.As<float>()[r * c.n + n]
                           : odd[r]->gives_nan ? NAN
                                               : w.bias[n];
      CHECK(Same(y.As<float>()[r * c.n + n], wanted), "%s %s: y[%zu, %zu] = %g, wanted %g", isa,
            act, r, n, static_cast<double>(y.As<float>()[r * c.n + n]),
            static_cast<double>(wanted));
    }
  }
  SelectIsa(nullptr);
}

}  // namespace

void TestOddRows() {
  for (const char* isa : RunnableIsas()) {
    for (const char* act : {"e2m3", "e3m4", "e4m3"}) CheckOddRows(isa, act);
  }
}

void TestLongestGroups() {
  CheckLongestGroup("e2m3", "e2m1");  // weights made unsigned
  CheckLongestGroup("e3m0", "e3m0");  // AVX2's widest that it makes unsigned
  CheckLongestGroup("int8", "int8");
  CheckLongestGroup("e2m3", "e3m2");  // int8 activations of the int16 kernels
  CheckLongestGroup("e3m4", "int8");  // planes of bytes
  CheckLongestGroup("e3m4", "e3m4");
}

void TestRandom(unsigned seed, unsigned count, bool on_gpu) {
  const std::vector<const char*> isas = on_gpu ? std::vector<const char*>{kGpu} : RunnableIsas();
  for (unsigned i = 0; i < count; ++i) {
    const long failures = tally.failures;
    Chance chance(seed + i);
    Case c = RandomCase(&chance);
    if (on_gpu) {  // which is emulated, a thread at a time
      c.rows = std::min(c.rows, size_t{20});
      c.n = std::min(c.n, size_t{40});
    }
    const Weights w = WeightsOf(c, &chance);
    CheckCase(c, RandomRows(c, &chance), w, i % 4 == 0, isas);
    if (tally.failures == failures) continue;
    std::printf("again: fp4dit_tests %s 1 %u  (%s)\n", on_gpu ? "--gpu" : "--random", seed + i,
                Text(c).c_str());
    return;
  }
}

std::string CreateOnGpu(const char* op) {
  Sample sample = MakeSample(op, "e2m3", "e2m1", 3, 10, 5, 4);
  return fake::Run(FindOp(kGpu, op), &sample.node, 0).error;
}

}  // namespace fp4dit::test
