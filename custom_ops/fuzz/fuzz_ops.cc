// fp4dit_fuzz <seed> <count>: right nodes of every op, most of them spoiled at random, through the
// fake runtime. Built with sanitizers, it looks for anything but a result or a status.

#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "core/formats.h"
#include "fake_ort.h"
#include "sample_node.h"

namespace fp4dit {
namespace {

using test::Sample;

constexpr const char* kOps[] = {
#define FP4DIT_OP(name) #name,
#include "ops/ops.inc"
#undef FP4DIT_OP
};
constexpr int64_t kOddNumbers[] = {
    INT64_MIN,        -1,       0, 1, 2, 3, 4, 8, 127, 128, 4096, INT32_MAX, int64_t{1} << 32,
    int64_t{1} << 61, INT64_MAX};
constexpr ort::ElementType kTypes[] = {ort::kFloat, ort::kUint8,   ort::kInt8,     ort::kInt16,
                                       ort::kInt64, ort::kFloat16, ort::kUndefined};

class Fuzzer {
 public:
  explicit Fuzzer(unsigned seed) : random_(seed) {}

  size_t Below(size_t limit) { return random_() % limit; }

  Sample Make(const std::string& op) {
    size_t count = 0;
    const Format* formats = AllFormats(&count);
    const Format& act = formats[Below(count)];
    const Format& weight = formats[Below(count)];
    const bool weight_only = op == "FpLinear" && Below(4) == 0;
    const auto size = [this](size_t limit) { return static_cast<int64_t>(Below(limit)); };
    const bool is_linear = op == "FpLinear" || op == "FpLinearInteger" || op == "FpLinearSigns";
    const bool is_long = (is_linear || op.find("Hadamard") != std::string::npos) && Below(8) == 0;
    const int64_t k = 1 + (is_long ? size(300000) : size(300));
    const int64_t group_size = is_long ? k : 1 + size(140);
    Sample sample = test::MakeSample(op, weight_only ? "" : act.name, weight.name,
                                     size(is_long ? 4 : 20), k, size(is_long ? 4 : 40), group_size);
    for (size_t i = 2; i < sample.node.constant.size(); ++i) {
      sample.node.constant[i] = Below(4) != 0;
    }
    if (Below(2) == 0 && is_linear) GroupActivations(k, group_size, &sample);
    if (Below(2) == 0 && op.find("Quantize") != std::string::npos) GroupQuantizer(act, k, &sample);
    for (auto& value : sample.values) {
      if (Below(2) == 0) FillAtRandom(value.get());
    }
    return sample;
  }

  void Spoil(Sample* sample) {
    fake::Node& node = sample->node;
    switch (Below(7)) {
      case 0:
        return SpoilNumber(&node);
      case 1:
        return SpoilText(&node);
      case 2:
        return SpoilGrid(&node);
      case 3: {
        const size_t i = Below(node.inputs.size());
        node.inputs[i] = nullptr;
        if (i < node.constant.size()) node.constant[i] = false;
        return;
      }
      case 4:
        node.name.assign(Below(2000), '%');
        for (char& c : node.name) c = Below(2) == 0 ? c : static_cast<char>(1 + Below(255));
        return;
      default:
        return SpoilTensor(sample->values[Below(sample->values.size())].get());
    }
  }

 private:
  // Attributes that a node may lack, with inputs that suit them.
  void GroupActivations(int64_t k, int64_t group_size, Sample* sample) {
    const auto times = static_cast<int64_t>(1 + Below(3));
    const int64_t group = Below(2) == 0 ? group_size * times : (group_size + times - 1) / times;
    sample->node.ints["act_group_size"] = group;
    const int64_t rows = sample->values[1]->dims[0];
    *sample->values[1] = fake::Value(ort::kFloat, {rows, (k + group - 1) / group});
  }
  void GroupQuantizer(const Format& act, int64_t k, Sample* sample) {
    sample->node.ints["group_size"] = 1 + static_cast<int64_t>(Below(static_cast<size_t>(k)));
    std::vector<float>& candidates = sample->node.lists["candidates"] = {act.max_integer()};
    const auto smaller = static_cast<size_t>(act.magnitude_count - 2);
    for (size_t i = Below(4); i > 0; --i) {
      candidates.push_back(act.magnitudes[1 + Below(smaller)]);
    }
  }

  void FillAtRandom(fake::Value* value) {
    const uint8_t one = static_cast<uint8_t>(random_());
    const bool all = Below(3) == 0;  // of sums that grow
    for (size_t i = 0; i < value->Bytes(); ++i) {
      value->data[i] = all ? one : static_cast<uint8_t>(random_());
    }
  }

  void SpoilNumber(fake::Node* node) {
    for (auto& [name, number] : node->ints) {
      if (Below(2) == 0) number = kOddNumbers[Below(sizeof(kOddNumbers) / sizeof(*kOddNumbers))];
    }
    for (auto& [name, number] : node->floats) number = static_cast<float>(Below(100));
  }

  void SpoilText(fake::Node* node) {
    size_t count = 0;
    const Format* formats = AllFormats(&count);
    for (auto& [name, text] : node->texts) {
      const size_t choice = Below(4);
      if (choice == 0) text = formats[Below(count)].name;
      if (choice == 1) text = "%s%n";
      if (choice == 2) text.assign(Below(200), 'e');
    }
  }

  void SpoilGrid(fake::Node* node) {
    for (auto& [name, list] : node->lists) {
      if (Below(2) == 0) list.resize(Below(600));
      if (!list.empty()) list[Below(list.size())] = static_cast<float>(Below(50));
    }
  }

  // Another shape or type. A shape with elements gets memory for all of them, as from the runtime.
  void SpoilTensor(fake::Value* value) {
    std::vector<int64_t> dims = value->dims;
    const size_t choice = Below(5);
    if (choice == 0) dims.push_back(1 + static_cast<int64_t>(Below(3)));
    if (choice == 1 && !dims.empty()) dims.pop_back();
    if (choice == 2) dims.insert(dims.begin(), Below(12), 1);
    if (choice == 3 && !dims.empty()) dims[Below(dims.size())] = static_cast<int64_t>(Below(50));
    if (choice == 4 && !dims.empty()) {
      dims[Below(dims.size())] = kOddNumbers[Below(sizeof(kOddNumbers) / sizeof(*kOddNumbers))];
    }
    const ort::ElementType type =
        Below(3) == 0 ? kTypes[Below(sizeof(kTypes) / sizeof(*kTypes))] : value->type;
    fake::Value probe;
    probe.type = type;
    probe.dims = dims;
    constexpr size_t kMost = 1 << 20;
    if (probe.Bytes() <= kMost) {
      *value = fake::Value(type, dims);
      FillAtRandom(value);
    }
  }

  std::mt19937 random_;
};

int Fuzz(unsigned seed, int count) {
  std::string error;
  auto ops = fake::RegisterAll(&error);
  int ran = 0;
  for (int i = 0; i < count; ++i) {
    Fuzzer fuzzer(seed + static_cast<unsigned>(i));
    const char* op = kOps[fuzzer.Below(sizeof(kOps) / sizeof(*kOps))];
    Sample sample = fuzzer.Make(op);
    for (size_t spoils = fuzzer.Below(4); spoils > 0; --spoils) fuzzer.Spoil(&sample);
    const fake::Outcome outcome = fake::Run(ops[op], &sample.node, 2);
    ran += outcome.error.empty() ? 1 : 0;
    if (fake::LiveObjects() != 0) {
      std::printf("seed %u: a status or shape was not released\n", seed + static_cast<unsigned>(i));
      return 1;
    }
  }
  std::printf("%d nodes, of which %d ran\n", count, ran);
  // Some must run and some be refused, or nothing was tested.
  return error.empty() && ran > count / 10 && ran < count ? 0 : 1;
}

}  // namespace
}  // namespace fp4dit

int main(int count, char** arguments) {
  const unsigned seed = count > 1 ? static_cast<unsigned>(std::atoi(arguments[1])) : 1;
  return fp4dit::Fuzz(seed, count > 2 ? std::atoi(arguments[2]) : 10000);
}
