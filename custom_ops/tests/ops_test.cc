// The ops through a fake runtime: what they accept, what they refuse, and what they say then.

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "core/counters.h"
#include "core/formats.h"
#include "fake_ort.h"
#include "sample_node.h"

namespace fp4dit::test {
namespace {

using fake::Node;
using fake::Outcome;
using fake::Value;

std::map<std::string, const ort::CustomOp*> ops;

using Change = std::function<void(Sample*)>;

// The op must refuse the changed sample with a message that has all of `words`.
void Refuses(const char* op, const Change& change, const std::vector<const char*>& words) {
  for (const bool constant : {true, false}) {
    Sample sample = MakeSample(op, "e2m3", "e2m1", 3, 10, 5, 4);
    sample.node.constant.assign(sample.node.inputs.size(), constant);
    if (constant) sample.node.constant[0] = false;
    change(&sample);
    const Outcome outcome = fake::Run(ops[op], &sample.node);
    CHECK(!outcome.error.empty(), "%s accepted a node without %s", op, words[0]);
    CHECK(outcome.error.find(op) == 0, "%s", outcome.error.c_str());
    CHECK(outcome.error.find("'fc1'") != std::string::npos, "%s", outcome.error.c_str());
    for (const char* word : words) {
      CHECK(outcome.error.find(word) != std::string::npos, "'%s' is not in '%s'", word,
            outcome.error.c_str());
    }
  }
}

Change SetInput(size_t index, ort::ElementType type, std::vector<int64_t> dims) {
  return [=](Sample* s) { *s->values[index] = Value(type, dims); };
}
Change SetInt(const char* name, int64_t value) {
  return [=](Sample* s) { s->node.ints[name] = value; };
}
Change SetText(const char* name, const char* value) {
  return [=](Sample* s) { s->node.texts[name] = value; };
}

void TestLinearAttributes() {
  Refuses("FpLinear", SetText("weight_format", "e9m9"), {"'weight_format'", "'e9m9'", "e2m1"});
  Refuses("FpLinear", SetText("weight_format", ""), {"'weight_format'", "''"});
  Refuses("FpLinear", [](Sample* s) { s->node.texts.erase("act_format"); }, {"'act_format'"});
  Refuses("FpLinear", SetText("act_format", std::string(200, 'x').c_str()), {"'act_format'"});
  Refuses("FpLinear", SetInt("K", 0), {"'K'", "0"});
  Refuses("FpLinear", SetInt("K", -1), {"'K'", "-1"});
  Refuses("FpLinear", SetInt("K", INT64_MAX), {"K = 9223372036854775807"});
  Refuses("FpLinear", SetInt("K", int64_t{1} << 61), {"K = 2305843009213693952"});
  Refuses("FpLinear", SetInt("group_size", 0), {"'group_size'", "0"});
  Refuses("FpLinear", SetInt("group_size", -128), {"'group_size'", "-128"});
  Refuses("FpLinear", SetInt("bits", 8), {"'bits'", "8", "4", "e2m1"});
  Refuses("FpLinear", [](Sample* s) { s->node.lists["grid"][3] = 3.5f; },
          {"'grid'", "3.5", "entry 3", "e2m1"});
  Refuses("FpLinear", [](Sample* s) { s->node.lists["grid"].pop_back(); },
          {"'grid'", "15", "16", "e2m1"});
  Refuses("FpLinear", [](Sample* s) { s->node.lists["grid"].resize(100000); },
          {"'grid'", "100000"});
  Refuses("FpLinear", [](Sample* s) { s->node.inputs.pop_back(); }, {"4 inputs", "5"});
}

void TestAttention() {
  const char* op = "FpAttention";
  Refuses(op, SetText("format", "e4m3"), {"'format'", "'e4m3'", "int8 or int16"});
  Refuses(op, SetText("format", ""), {"'format'", "''"});
  Refuses(op, [](Sample* s) { s->node.floats.clear(); }, {"'attention_scale'"});
  Refuses(op, [](Sample* s) { s->node.inputs.pop_back(); }, {"6 inputs", "7"});
  Refuses(op, SetInput(0, ort::kInt16, {2, 3, 2, 10}), {"'q'", "int16", "int8", "e2m3"});
  Refuses(op, SetInput(0, ort::kInt8, {2, 3, 20}), {"'q'", "[2, 3, 20]"});
  Refuses(op, SetInput(0, ort::kInt8, {2, 3, 2, 257}), {"'q'", "257", "1 to 256"});
  Refuses(op, SetInput(0, ort::kInt8, {2, 3, 2, 0}), {"'q'", "[2, 3, 2, 0]"});
  Refuses(op, SetInput(1, ort::kFloat, {2, 3, 1, 1}), {"'q_scale'", "[2, 3, 1, 1]"});
  Refuses(op, SetInput(1, ort::kFloat16, {2, 3, 2, 1}), {"'q_scale'", "float16"});
  Refuses(op, SetInput(2, ort::kInt8, {2, 5, 3, 10}), {"'k'", "[2, 5, 3, 10]"});
  Refuses(op, SetInput(2, ort::kInt8, {2, 0, 2, 10}), {"'k_scale'"});
  Refuses(op, SetInput(4, ort::kInt8, {2, 5, 2, 9}), {"'v'", "[2, 5, 2, 9]"});
  Refuses(op, SetInput(6, ort::kFloat, {2, 1, 3, 5}), {"'bias'", "[2, 1, 3, 5]"});
  Refuses(op, SetInput(6, ort::kFloat, {5}), {"'bias'", "[5]"});
}

void TestLinearInputs() {
  Refuses("FpLinear", SetInput(0, ort::kInt8, {3, 9}), {"'q'", "[3, 9]", "K = 10"});
  Refuses("FpLinear", SetInput(0, ort::kInt8, {}), {"'q'", "[]", "K = 10"});
  Refuses("FpLinear", SetInput(0, ort::kInt16, {3, 10}), {"'q'", "int16", "int8", "e2m3"});
  Refuses("FpLinear", SetInput(0, ort::kInt8, {1, 1, 1, 1, 1, 1, 1, 1, 3, 10}), {"'q'", "10 dim"});
  Refuses("FpLinear", SetInput(0, ort::kInt8, {-3, 10}), {"'q'", "[-3, 10]"});
  Refuses("FpLinear", SetInput(0, ort::kInt8, {INT64_MAX, INT64_MAX, 10}), {"'q'", "no tensor"});
  Refuses("FpLinear", SetInput(1, ort::kFloat, {2, 1}), {"'scale'", "[2, 1]", "[3, 10]"});
  Refuses("FpLinear", SetInput(1, ort::kFloat, {3, 2}), {"'scale'", "[3, 2]"});
  Refuses("FpLinear", SetInput(1, ort::kFloat16, {3, 1}), {"'scale'", "float16"});
  Refuses("FpLinear", SetInput(2, ort::kUint8, {5, 4}), {"'codes'", "[5, 4]", "[N, 5]"});
  Refuses("FpLinear", SetInput(2, ort::kUint8, {25}), {"'codes'", "[25]"});
  Refuses("FpLinear", SetInput(2, ort::kInt8, {5, 5}), {"'codes'", "int8", "uint8"});
  Refuses("FpLinear", SetInput(3, ort::kFloat16, {5, 2}), {"'weight_scale'", "[5, 2]", "[5, 3]"});
  Refuses("FpLinear", SetInput(3, ort::kFloat, {4, 3}), {"'weight_scale'", "[4, 3]", "[5, 3]"});
  Refuses("FpLinear", SetInput(3, ort::kInt8, {5, 3}), {"'weight_scale'", "int8"});
  Refuses("FpLinear", SetInput(4, ort::kFloat, {4}), {"'bias'", "[4]", "[5]"});
  Refuses("FpLinear", SetInput(4, ort::kFloat16, {5}), {"'bias'", "float16"});
  for (size_t i = 0; i < 2; ++i) {
    const char* names[] = {"'q'", "'scale'"};
    Refuses("FpLinear",
            [i](Sample* s) {
              s->node.inputs[i] = nullptr;
              s->node.constant[i] = false;
            },
            {names[i], "not connected"});
  }
}

void TestWideFormats() {
  Sample sample = MakeSample("FpLinear", "e2m3", "e4m3", 3, 10, 5, 4);
  Outcome outcome = fake::Run(ops["FpLinear"], &sample.node);
  CHECK(outcome.error.find("float activations") != std::string::npos, "%s", outcome.error.c_str());
  sample = MakeSample("FpLinear", "e2m3", "e2m3", 2, 8, 3, 4);
  sample.values[2]->data[7] = 64;
  outcome = fake::Run(ops["FpLinear"], &sample.node);
  CHECK(outcome.error.find("64 at [0, 7]") != std::string::npos, "%s", outcome.error.c_str());
}

// What is refused depends on no processor: A * (W + 128) * K for int8, else the activations'
// largest rounded up to bytes. A quantity of 2^31 is too many.
void TestLongestGroup(const char* act, const char* weight, int64_t longest) {
  for (const int64_t k : {longest, longest + 1}) {
    Sample sample = MakeSample("FpLinear", act, weight, 1, k, 1, k);
    const Outcome outcome = fake::Run(ops["FpLinear"], &sample.node);
    const std::string most = "at most " + std::to_string(longest);
    CHECK(outcome.error.empty() == (k == longest), "%s %s %s", act, weight, outcome.error.c_str());
    CHECK(k == longest || outcome.error.find(most) != std::string::npos, "%s",
          outcome.error.c_str());
  }
}

// Names are shown, whatever they are; what a terminal would obey, and what is no UTF-8, is not.
void TestNames() {
  static constexpr const char* kNames[][2] = {
      {"blocks.0/ff [\xc3\xa9 \xe6\xbc\xa2 \xf0\x9f\x98\x80]", nullptr},  // as it is
      {"%s%n%*d", nullptr},
      {"a\x1b[2Jb\r\n\x7f", "a?[2Jb???"},
      {"\xc2\x9b"
       "31m",
       "??31m"},  // a control of two bytes
      {"\xff\xfe \xbf\xbf \xc0\xaf", "?? ?? ??"},
      {"\xed\xa0\x80 \xf4\x90\x80\x80", "??? ????"},  // a surrogate; beyond the last character
      {"cut \xe6\xbc", "cut ??"}};
  for (const auto& [name, shown] : kNames) {
    Sample sample = MakeSample("FpLinear", "e2m3", "e2m1", 1, 8, 1, 8);
    sample.node.name = name;
    sample.node.ints["K"] = 0;
    const Outcome outcome = fake::Run(ops["FpLinear"], &sample.node);
    const std::string wanted = std::string("node '") + (shown == nullptr ? name : shown) + "': ";
    CHECK(outcome.error.find(wanted) != std::string::npos, "%s", outcome.error.c_str());
  }
  for (const size_t size : {0u, 1u, 254u, 255u, 256u, 100000u}) {
    Sample sample = MakeSample("FpLinear", "e2m3", "e2m1", 1, 8, 1, 8);
    sample.node.name.assign(size, 'n');
    sample.node.ints["K"] = 0;
    const Outcome outcome = fake::Run(ops["FpLinear"], &sample.node);
    const std::string wanted = size < 256 ? sample.node.name : "(its name is too long to show)";
    CHECK(outcome.error.find("node '" + wanted + "': attribute 'K'") != std::string::npos, "%zu",
          size);
  }
}

void TestOtherOps() {
  Refuses("FpQuantize", SetText("format", "e3m4"), {"'e3m4'", "int16", "FpQuantizeInt16"});
  Refuses("FpQuantize", SetInt("mantissa_bits", 2), {"'mantissa_bits'", "2", "3", "e2m3"});
  Refuses("FpQuantize", [](Sample* s) { s->node.floats["max"] = 7.5f; }, {"'max'", "7.5", "60"});
  Refuses("FpQuantize", SetInput(0, ort::kFloat, {}), {"'x'", "[]"});
  Refuses("FpQuantize", SetInput(0, ort::kFloat, {4, 0}), {"'x'", "[4, 0]"});
  Refuses("FpDequantize", SetInput(0, ort::kUint8, {3, 10}), {"'q'", "uint8"});
  Refuses("FpDequantize", SetInput(1, ort::kFloat, {3, 2}), {"'scale'", "[3, 2]", "groups = 3"});
  Refuses("FpDequantize", SetInput(1, ort::kFloat, {2, 3}), {"'scale'", "[2, 3]", "[3, 10]"});
  Refuses("FpDequantize", SetInt("group_size", 0), {"'group_size'", "0"});
  Refuses("FpUnpack", SetInput(0, ort::kUint8, {5, 6}), {"'codes'", "[5, 6]", "[N, 5]"});
  Refuses("FpUnpack", SetInt("K", 0), {"'K'", "0"});
}

void TestEmpty() {
  Sample sample = MakeSample("FpLinear", "e2m3", "e2m1", 0, 10, 5, 4);
  Outcome outcome = fake::Run(ops["FpLinear"], &sample.node);
  CHECK(outcome.error.empty(), "%s", outcome.error.c_str());
  CHECK(outcome.outputs[0].dims == std::vector<int64_t>({0, 5}), "an empty output");
  sample = MakeSample("FpLinear", "e2m3", "e2m1", 3, 10, 0, 4);
  outcome = fake::Run(ops["FpLinear"], &sample.node);
  CHECK(outcome.error.empty(), "%s", outcome.error.c_str());
  CHECK(outcome.outputs[0].dims == std::vector<int64_t>({3, 0}), "an empty output");
  sample = MakeSample("FpQuantize", "e2m3", "e2m1", 0, 10, 5, 4);
  outcome = fake::Run(ops["FpQuantize"], &sample.node);
  CHECK(outcome.error.empty(), "%s", outcome.error.c_str());
  CHECK(outcome.outputs[1].dims == std::vector<int64_t>({0, 1}), "an empty output");
}

// Weights that arrive with every call give what constant ones give; so does a second call.
void TestConstantOrNot() {
  for (const char* act : {"e2m3", "e3m4", ""}) {
    Sample sample = MakeSample("FpLinear", act, "e2m1", 70, 130, 37, 32);
    sample.node.constant = {false, false, true, true, true};
    const Outcome packed = fake::Run(ops["FpLinear"], &sample.node, 2);
    sample.node.constant = {false, false, true, true, false};
    const Outcome now = fake::Run(ops["FpLinear"], &sample.node, 2);
    CHECK(packed.error.empty() && now.error.empty(), "%s%s", packed.error.c_str(),
          now.error.c_str());
    for (size_t i = 0; i < 70 * 37; ++i) {
      CHECK(Same(packed.outputs[0].As<float>()[i], now.outputs[0].As<float>()[i]), "%s", act);
    }
  }
}

void TestRegistration() {
  std::string error;
  fake::PretendToBeOld(true);
  fake::RegisterAll(&error);
  CHECK(error.find("needs ONNX Runtime 1.17") != std::string::npos, "%s", error.c_str());
  CHECK(error.find("1.16.3") != std::string::npos, "%s", error.c_str());
  fake::PretendToBeOld(false);
  ops = fake::RegisterAll(&error);
  CHECK(error.empty(), "%s", error.c_str());
  CHECK(ops.size() == kCountedOps, "%zu ops", ops.size());
  CHECK(fake::RegisterAll(&error) == ops, "a second registration finds the first one's ops");
  for (const auto& [name, op] : ops) {
    CHECK(op->version == 17 && op->GetStartVersion(op) == 1, "%s", name.c_str());
    CHECK(op->GetInputType(op, 99) == ort::kUndefined, "%s", name.c_str());
  }
}

}  // namespace

void TestOps() {
  TestRegistration();
  if (ops.size() != kCountedOps) return;
  TestLinearAttributes();
  TestAttention();
  TestLinearInputs();
  TestWideFormats();
  TestLongestGroup("e2m3", "e2m1", 255652);
  TestLongestGroup("int8", "int8", 66311);
  TestLongestGroup("e2m3", "e3m2", 18724);
  TestLongestGroup("e3m4", "int8", 8256);
  TestLongestGroup("e3m4", "e3m4", 528);
  TestNames();
  TestOtherOps();
  TestEmpty();
  TestConstantOrNot();
  CHECK(fake::LiveObjects() == 0, "%d statuses and shapes were not released", fake::LiveObjects());
}

}  // namespace fp4dit::test
