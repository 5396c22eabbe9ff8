// FpLinearInteger, groups of activations, rotations and candidates through the fake runtime: every
// product that there is, and what is refused.

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "core/formats.h"
#include "cpu/kernels/registry.h"
#include "fake_ort.h"
#include "sample_node.h"

namespace fp4dit::test {
namespace {

using fake::Outcome;
using fake::Value;

std::map<std::string, const ort::CustomOp*> ops;

// Rows that each have a single one: y is the decoded weights.
Sample OneHot(const Format& format, size_t multiplier, size_t rows, size_t k, size_t n) {
  const auto size = [](size_t i) { return static_cast<int64_t>(i); };
  Sample s = MakeSample("FpLinearInteger", "int8", format.name, size(rows), size(k), size(n), 8);
  for (auto& value : s.values) std::memset(value->data.get(), 0, value->Bytes());
  float* floats[] = {reinterpret_cast<float*>(s.values[1]->data.get()),
                     reinterpret_cast<float*>(s.values[4]->data.get())};
  for (size_t r = 0; r < rows; ++r) floats[0][r] = 1.0f;
  for (size_t i = 0; i < n; ++i) floats[1][i] = 1.0f;
  const size_t bytes = s.values[2]->Bytes() / n;
  for (size_t i = 0; i < n * k; ++i) {
    const size_t code = (i / k + i % k) % format.code_count();
    uint8_t& byte =
        s.values[2]->data[i / k * bytes + (format.storage_bits == 4 ? i % k / 2 : i % k)];
    const size_t shift = format.storage_bits == 4 ? i % k % 2 * 4 : 0;
    byte = static_cast<uint8_t>(byte | code << shift);
  }
  std::memset(s.values[3]->data.get(), static_cast<int>(multiplier * 17), s.values[3]->Bytes());
  return s;
}

// Row r, starting at `first`, has its one at input first + r.
void CheckProducts(const char* isa, const Format& format, size_t multiplier, size_t rows) {
  const size_t k = format.code_count() + 7;
  constexpr size_t kChannels = 67;  // more than any panel
  for (size_t first = 0; first < k; first += rows) {
    Sample s = OneHot(format, multiplier, rows, k, kChannels);
    for (size_t r = 0; r < rows && first + r < k; ++r) s.values[0]->data[r * k + first + r] = 1;
    const Outcome outcome = fake::Run(ops["FpLinearInteger"], &s.node);
    CHECK(outcome.error.empty(), "%s", outcome.error.c_str());
    if (!outcome.error.empty()) return;
    for (size_t r = 0; r < rows && first + r < k; ++r) {
      for (size_t n = 0; n < kChannels; ++n) {
        const float wanted = format.GridInteger((n + first + r) % format.code_count()) *
                             static_cast<float>(multiplier);
        const float found = outcome.outputs[0].As<float>()[r * kChannels + n];
        CHECK(found == wanted, "%s %s times %zu: code %zu gives %g, wanted %g", isa, format.name,
              multiplier, (n + first + r) % format.code_count(), static_cast<double>(found),
              static_cast<double>(wanted));
      }
    }
  }
}

void TestAllProducts() {
  size_t isa_count = 0;
  size_t format_count = 0;
  const Isa* isas = AllIsas(&isa_count);
  const Format* formats = AllFormats(&format_count);
  for (size_t i = 0; i < isa_count; ++i) {
    if (!isas[i].is_supported()) continue;
    CHECK(SelectIsa(isas[i].name), "%s", isas[i].name);
    for (size_t f = 0; f < format_count; ++f) {
      if (formats[f].max_integer() > 127.0f) continue;
      const auto most = static_cast<size_t>(127.0f / formats[f].max_integer());
      for (size_t m = 0; m <= std::min(most, size_t{15}); ++m) {
        CheckProducts(isas[i].name, formats[f], m, formats[f].code_count() + 7);
        if (formats[f].bits == 4) CheckProducts(isas[i].name, formats[f], m, 1);
      }
    }
  }
  SelectIsa(nullptr);
}

using Change = std::function<void(Sample*)>;

Change SetInput(size_t index, ort::ElementType type, std::vector<int64_t> dims) {
  return [=](Sample* s) { *s->values[index] = Value(type, dims); };
}
Change SetInt(const char* name, int64_t value) {
  return [=](Sample* s) { s->node.ints[name] = value; };
}
Change SetList(std::vector<float> values) {
  return [=](Sample* s) { s->node.lists["candidates"] = values; };
}

// The op must refuse the changed sample, of activations [3, 10] of e2m3 and 5 channels of e2m1 in
// groups of 4, with a message that has all of `words`; without a change it runs.
void Refuses(const char* op, const Change& change, const std::vector<const char*>& words) {
  for (const bool constant : {true, false}) {
    for (const bool changed : {false, true}) {
      Sample sample = MakeSample(op, "e2m3", "e2m1", 3, 10, 5, 4);
      for (size_t i = 2; i < sample.node.inputs.size(); ++i) sample.node.constant[i] = constant;
      if (changed) change(&sample);
      const Outcome outcome = fake::Run(ops[op], &sample.node);
      CHECK(outcome.error.empty() != changed, "%s %s", words[0], outcome.error.c_str());
      if (!changed) continue;
      CHECK(outcome.error.find(std::string(op) + " node 'fc1': ") == 0, "%s",
            outcome.error.c_str());
      for (const char* word : words) {
        CHECK(outcome.error.find(word) != std::string::npos, "'%s' is not in '%s'", word,
              outcome.error.c_str());
      }
    }
  }
}

void TestIntegerRefusals() {
  const char* op = "FpLinearInteger";
  Refuses(op, [](Sample* s) { s->values[3]->data[2] = 0x0b; },
          {"'multipliers'", "11", "e2m1", "10"});
  Refuses(op, [](Sample* s) { s->values[3]->data[0] = 0xf0; }, {"15 times 12", "at most 10"});
  Refuses(op, SetInput(3, ort::kUint8, {5, 3}), {"'multipliers'", "[5, 3]", "[5, 2]"});
  Refuses(op, SetInput(3, ort::kUint8, {4, 2}), {"'multipliers'", "[4, 2]", "[5, 2]"});
  Refuses(op, SetInput(3, ort::kUint8, {10}), {"'multipliers'", "[10]"});
  Refuses(op, SetInput(3, ort::kInt8, {5, 2}), {"'multipliers'", "int8", "uint8"});
  Refuses(op, SetInput(4, ort::kFloat, {5, 1}), {"'channel_scale'", "[5, 1]", "[5]"});
  Refuses(op, SetInput(4, ort::kFloat, {4}), {"'channel_scale'", "[4]"});
  Refuses(op, SetInput(4, ort::kInt8, {5}), {"'channel_scale'", "int8"});
  Refuses(op, SetInput(5, ort::kFloat, {4}), {"'bias'", "[4]"});
  Refuses(op, SetInput(2, ort::kUint8, {5, 4}), {"'codes'", "[5, 4]"});
  Refuses(op, SetInput(1, ort::kFloat, {3, 2}), {"'scale'", "[3, 2]", "one scale per row"});
  Refuses(op, SetInput(0, ort::kInt16, {3, 10}), {"'q'", "int16"});
  Refuses(op, [](Sample* s) { s->node.texts["act_format"] = ""; }, {"''", "int8"});
  Refuses(op, [](Sample* s) { s->node.texts["act_format"] = "e3m4"; }, {"'e3m4'", "int8"});
  Refuses(op, [](Sample* s) { s->node.inputs.pop_back(); }, {"5 inputs", "6"});
  Refuses(op, SetInt("act_group_size", 0), {"'act_group_size'", "0"});
  Refuses(op, SetInt("act_group_size", INT64_MIN), {"'act_group_size'"});
  Refuses(op, SetInt("act_group_size", 4), {"'scale'", "[3, 1]", "groups in K = 3"});
  Refuses(op, [](Sample* s) { s->node.floats["act_group_size"] = 4.0f; }, {"'act_group_size'"});
  Refuses("FpLinear", SetInt("act_group_size", 6), {"4 and 6", "multiple"});
  Refuses("FpLinear", SetInt("act_group_size", 2), {"'scale'", "[3, 1]", "groups in K = 5"});
}

// Padding is no multiplier: the high nibble of an odd number of groups.
void TestPadding() {
  Sample sample = MakeSample("FpLinearInteger", "e2m3", "e2m1", 3, 10, 5, 4);
  for (size_t n = 0; n < 5; ++n) sample.values[3]->data[2 * n + 1] = 0xf3;
  const Outcome outcome = fake::Run(ops["FpLinearInteger"], &sample.node);
  CHECK(outcome.error.empty(), "%s", outcome.error.c_str());
}

// A sum of K products of activations and any int8: 127 * 255 * K < 2^31.
void TestLongestRow() {
  for (const int64_t k : {66311, 66312}) {
    Sample sample = MakeSample("FpLinearInteger", "int8", "e2m1", 1, k, 1, 32);
    Outcome outcome = fake::Run(ops["FpLinearInteger"], &sample.node);
    CHECK(outcome.error.empty() == (k == 66311), "%s", outcome.error.c_str());
    CHECK(
        k == 66311 || outcome.error.find("an act_group_size of at most 66311") != std::string::npos,
        "%s", outcome.error.c_str());
    sample.node.ints["act_group_size"] = 1 << 16;  // two groups
    *sample.values[1] = Value(ort::kFloat, {1, 2});
    outcome = fake::Run(ops["FpLinearInteger"], &sample.node);
    CHECK(outcome.error.empty(), "%s", outcome.error.c_str());
  }
}

void TestQuantizeRefusals() {
  for (const char* op : {"FpQuantize", "FpHadamardQuantize", "FpGeluHadamardQuantize"}) {
    Refuses(op, SetInt("group_size", 0), {"'group_size'", "0"});
    Refuses(op, SetInt("group_size", -4), {"'group_size'", "-4"});
    Refuses(op, [](Sample* s) { s->node.texts["group_size"] = "4"; }, {"'group_size'"});
    Refuses(op, SetList({}), {"'candidates'", "0 entries", "1 to 4"});
    Refuses(op, SetList({60, 56, 52, 48, 44}), {"'candidates'", "5 entries"});
    Refuses(op, SetList({56, 60}), {"'candidates'", "56 at entry 0", "60 first"});
    Refuses(op, SetList({60, 60}), {"'candidates'", "60 at entry 1"});
    Refuses(op, SetList({60, 17}), {"17 at entry 1", "e2m3"});
    Refuses(op, SetList({60, 0}), {"0 at entry 1"});
    Refuses(op, SetList({60, NAN}), {"at entry 1"});
    Refuses(op, SetInt("candidates", 60), {"'candidates'", "no list"});
    Refuses(op, [](Sample* s) { s->node.int_lists["candidates"] = {60}; }, {"no list of floats"});
    Refuses(op, [](Sample* s) { s->node.int_lists["group_size"] = {4}; }, {"'group_size'"});
    const Change wide = SetInput(0, ort::kFloat, {1, 1025});
    Refuses(op, [&](Sample* s) { wide(s), SetList({60, 56})(s); }, {"1025", "candidates", "1024"});
  }
  for (const float largest : {0.0f, -1.0f, 1e-30f, NAN, INFINITY}) {
    Refuses("FpQuantizeStatic", [=](Sample* s) { s->node.floats["largest"] = largest; },
            {"'largest'", "finite"});
  }
  Refuses("FpQuantizeStatic", [](Sample* s) { s->node.floats.erase("largest"); }, {"'largest'"});
  Refuses("FpQuantizeStatic", [](Sample* s) { s->node.texts["format"] = "e3m4"; },
          {"'e3m4'", "FpQuantizeStaticInt16"});
  for (const char* op : {"FpHadamard", "FpHadamardQuantize", "FpGeluHadamardQuantize"}) {
    for (const int64_t block : {0, -2, 1, 3, 96, 2048}) {
      Refuses(op, SetInt("block", block), {"'block'", std::to_string(block).c_str()});
    }
    Refuses(op, [](Sample* s) { s->node.ints.erase("block"); }, {"'block'", "missing"});
    Refuses(op, SetInput(0, ort::kFloat, {3, 0}), {"'x'", "[3, 0]"});
    Refuses(op, SetInput(0, ort::kInt8, {3, 10}), {"'x'", "int8", "float"});
  }
}

// Under the scale that each row has of itself, a row is quantized as it is; one that holds infinity
// anywhere, and is longer than the stack has room for, has no scale at all.
void TestStatic() {
  for (const int64_t k : {1, 10, 9000}) {
    Sample dynamic = MakeSample("FpQuantize", "e2m3", "e2m1", 3, k, 1, 4);
    Sample fixed = MakeSample("FpQuantizeStatic", "e2m3", "e2m1", 3, k, 1, 4);
    for (Sample* sample : {&dynamic, &fixed}) {
      float* x = reinterpret_cast<float*>(sample->values[0]->data.get());
      for (int64_t i = 0; i < 3 * k; ++i) x[i] = std::sin(static_cast<float>(i));
      for (int64_t r = 0; r < 3; ++r) x[r * k + k / 2] = -2.0f;
      x[2 * k + k - 1] = INFINITY;
    }
    fixed.node.floats["largest"] = 2.0f;
    const Outcome one = fake::Run(ops["FpQuantize"], &dynamic.node);
    const Outcome two = fake::Run(ops["FpQuantizeStatic"], &fixed.node);
    CHECK(two.error.empty(), "%s", two.error.c_str());
    for (size_t i = 0; i < 2; ++i) {
      CHECK(std::memcmp(two.outputs[i].data.get(), one.outputs[i].data.get(),
                        two.outputs[i].Bytes()) == 0,
            "under a given scale, of %lld", static_cast<long long>(k));
    }
    fixed.node.floats["largest"] = 1.0f;
    const Outcome cut = fake::Run(ops["FpQuantizeStatic"], &fixed.node);
    CHECK(cut.outputs[0].As<int8_t>()[k / 2] == -60, "cut off, of %lld", static_cast<long long>(k));
  }
}

// Shapes of scales, and rows longer than the stack has room for.
void TestShapes() {
  for (const int64_t k : {10, 9000}) {
    Sample sample = MakeSample("FpHadamardQuantize", "e2m3", "e2m1", 3, k, 1, 4);
    sample.node.ints["group_size"] = 4;
    const Outcome outcome = fake::Run(ops["FpHadamardQuantize"], &sample.node);
    CHECK(outcome.error.empty(), "%s", outcome.error.c_str());
    CHECK(outcome.outputs[1].dims == std::vector<int64_t>({3, (k + 3) / 4}), "scales");
    Sample rotated = MakeSample("FpHadamard", "e2m3", "e2m1", 3, k, 1, 4);
    Outcome plain = fake::Run(ops["FpHadamard"], &rotated.node);
    Sample other = MakeSample("FpQuantize", "e2m3", "e2m1", 3, k, 1, 4);
    other.node.ints["group_size"] = 4;
    *other.values[0] = std::move(plain.outputs[0]);
    const Outcome two = fake::Run(ops["FpQuantize"], &other.node);
    for (size_t i = 0; i < 2; ++i) {
      CHECK(std::memcmp(two.outputs[i].data.get(), outcome.outputs[i].data.get(),
                        two.outputs[i].Bytes()) == 0,
            "rotated and quantized at once, of %lld", static_cast<long long>(k));
    }
  }
}

}  // namespace

void TestIntegers() {
  std::string error;
  ops = fake::RegisterAll(&error);
  TestAllProducts();
  TestIntegerRefusals();
  TestPadding();
  TestLongestRow();
  TestQuantizeRefusals();
  TestStatic();
  TestShapes();
}

}  // namespace fp4dit::test
