// Nodes that are right, for tests and the fuzzer to spoil.

#ifndef FP4DIT_TESTS_SAMPLE_NODE_H_
#define FP4DIT_TESTS_SAMPLE_NODE_H_

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "core/formats.h"
#include "cpu/packing/packed_weights.h"
#include "fake_ort.h"

namespace fp4dit::test {

struct Sample {
  fake::Node node;
  std::vector<std::unique_ptr<fake::Value>> values;

  void Add(ort::ElementType type, std::vector<int64_t> dims) {
    values.push_back(std::make_unique<fake::Value>(type, std::move(dims)));
    fake::Value& value = *values.back();
    // Small numbers of every type, none of them NaN.
    for (size_t i = 0; i < value.Bytes(); ++i) value.data[i] = static_cast<uint8_t>(i * 7 % 50);
    node.inputs.push_back(&value);
  }
};

inline ort::ElementType ActivationType(const Format* format) {
  if (format == nullptr || format->max_integer() > 32767.0f) return ort::kFloat;
  return format->max_integer() <= 127.0f ? ort::kInt8 : ort::kInt16;
}

inline void SetGrid(const Format& format, int64_t k, fake::Node* node) {
  node->ints["bits"] = format.storage_bits;
  node->ints["K"] = k;
  for (size_t i = 0; i < format.code_count(); ++i) {
    node->lists["grid"].push_back(format.GridInteger(i));
  }
}

// A node of `op` for M x K activations in format `act` ("": weight-only) and N x K weights.
inline Sample MakeSample(const std::string& op, const std::string& act, const std::string& weight,
                         int64_t m, int64_t k, int64_t n, int64_t group_size) {
  Sample s;
  const Format* a = FindFormat(act.c_str());
  const Format* w = FindFormat(weight.c_str());
  const int64_t groups = (k + group_size - 1) / group_size;
  const bool signs = op == "FpUnpackSigns" || op == "FpLinearSigns";
  const int64_t wide = signs ? std::max(k / 8 * 2, int64_t{2}) : k;
  const auto bytes =
      static_cast<int64_t>(StoredBytes(*w, static_cast<size_t>(k), static_cast<size_t>(wide)));
  if (signs) {
    s.node.ints["wide"] = wide;
    s.node.ints["signs"] = k - wide;
  }
  if (op == "FpLinear" || op == "FpLinearInteger" || op == "FpLinearSigns") {
    s.node.texts = {{"act_format", act}, {"weight_format", weight}};
    s.node.ints["group_size"] = group_size;
    SetGrid(*w, k, &s.node);
    s.Add(ActivationType(a), {m, k});
    s.Add(ort::kFloat, {m, 1});
    s.Add(ort::kUint8, {n, bytes});
    if (op == "FpLinear") {
      s.Add(ort::kFloat16, {n, groups});
    } else {
      s.Add(ort::kUint8, {n, (groups + 1) / 2});
      // What any format of 4 bits but e3m0 takes.
      for (size_t i = 0; i < s.values[3]->Bytes(); ++i) s.values[3]->data[i] &= 0x77;
      s.Add(ort::kFloat, {n});
    }
    s.Add(ort::kFloat, {n});
    s.node.constant = {false, false, true, true, true};
    if (op != "FpLinear") s.node.constant.push_back(true);
  } else if (op == "FpAttention") {  // two images, m queries and n keys of two heads of size k
    s.node.texts["format"] = act;
    s.node.floats["attention_scale"] = 0.5f;
    for (const int64_t tokens : {m, n, n}) {
      s.Add(ActivationType(a), {2, tokens, 2, k});
      s.Add(ort::kFloat, {2, tokens, 2, 1});
    }
    s.Add(ort::kFloat, {2, 1, 1, n});
  } else if (op == "FpUnpack" || op == "FpUnpackSigns") {
    s.node.texts["format"] = weight;
    SetGrid(*w, k, &s.node);
    s.Add(ort::kUint8, {n, bytes});
  } else if (op == "FpDequantize") {
    s.node.texts["format"] = act;
    s.node.ints["group_size"] = group_size;
    s.Add(ActivationType(a), {m, k});
    s.Add(ort::kFloat, {m, groups});
  } else if (op == "FpHadamard") {
    s.node.ints["block"] = 8;
    s.Add(ort::kFloat, {m, k});
  } else {
    if (op.find("Hadamard") != std::string::npos) s.node.ints["block"] = 8;
    if (op.find("Static") != std::string::npos) s.node.floats["largest"] = 0.5f;
    s.node.texts["format"] = act;
    s.node.ints["mantissa_bits"] = a->mantissa_bits;
    s.node.floats["max"] = a->max_integer();
    s.Add(ort::kFloat, {m, k});
    if (op.find("Norm") != std::string::npos) {
      s.node.floats["epsilon"] = 1e-6f;
      s.Add(ort::kFloat, {m, k});
      s.Add(ort::kFloat, {k});
    }
  }
  return s;
}

}  // namespace fp4dit::test

#endif  // FP4DIT_TESTS_SAMPLE_NODE_H_
