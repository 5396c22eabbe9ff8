// Operators of the CUDA provider that TestRandom does not run, on an emulated GPU: the bits of the
// CPU's, whether inputs are constants or not.

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "fake_ort.h"
#include "sample_node.h"

namespace fp4dit::test {
namespace {

constexpr const char* kProviders[] = {"CUDAExecutionProvider", "CudaPluginExecutionProvider"};
constexpr const char* kOps[] = {"FpHadamard",
                                "FpDequantize",
                                "FpUnpack",
                                "FpUnpackSigns",
                                "FpQuantizeStatic",
                                "FpQuantizeStaticInt16",
                                "FpQuantizeStaticFloat",
                                "FpAttention"};

using Ops = std::map<std::string, const ort::CustomOp*>;

const char* FormatFor(const std::string& op, std::mt19937* random) {
  if (op == "FpQuantizeStatic") return "e2m3";
  if (op == "FpQuantizeStaticInt16") return "e3m4";
  if (op == "FpQuantizeStaticFloat") return "e4m3";
  constexpr const char* kFormats[] = {"e2m1", "e2m3", "int8", "e3m4", "e4m3"};
  return kFormats[(*random)() % 5];
}

// Values of a normal distribution, and now and then one that is not finite.
void FillRows(fake::Value* value, std::mt19937* random) {
  std::normal_distribution<float> normal(0.0f, 3.0f);
  auto* const x = reinterpret_cast<float*>(value->data.get());
  for (size_t i = 0; i < value->Bytes() / sizeof(float); ++i) {
    x[i] = (*random)() % 500 == 0 ? HUGE_VALF : normal(*random);
  }
}

// Stored codes are 4 bits, and any byte is two of them; of 8-bit formats any code is one.
void FillCodes(fake::Value* value, std::mt19937* random) {
  for (size_t i = 0; i < value->Bytes(); ++i) value->data[i] = static_cast<uint8_t>((*random)());
}

void CheckOp(const Ops& cpu, const Ops& gpu, const std::string& op, std::mt19937* random) {
  const auto size = [&](unsigned most) { return static_cast<int64_t>(1 + (*random)() % most); };
  const bool signs = op == "FpUnpackSigns";
  constexpr const char* kWeights[] = {"e2m1", "e3m0", "int4", "e3m4"};
  const char* const weight = kWeights[(*random)() % (signs ? 3 : 4)];
  Sample sample =
      MakeSample(op, FormatFor(op, random), weight, size(9), size(2500) + 8, size(9), size(70));
  if (op == "FpAttention") {
    const char* const act = (*random)() % 2 == 0 ? "e2m3" : "e3m2";
    sample = MakeSample(op, act, weight, size(9), size(80), size(300), 1);
  }
  if (op == "FpHadamard") sample.node.ints["block"] = int64_t{2} << (*random)() % 10;
  fake::Value* const first = sample.values[0].get();
  if (first->type == ort::kFloat) FillRows(first, random);
  if (first->type == ort::kUint8 || (first->type == ort::kInt8 && op != "FpAttention")) {
    FillCodes(first, random);
  }
  if (op != "FpAttention" && (*random)() % 8 == 0)
    *first = fake::Value(first->type, {0, first->dims.back()});
  if (op == "FpDequantize") {
    fake::Value* const scale = sample.values[1].get();
    const bool half = (*random)() % 2 == 0;
    *scale = fake::Value(half ? ort::kFloat16 : ort::kFloat, {first->dims[0], scale->dims[1]});
    for (size_t i = 0; i < scale->Bytes(); ++i) {
      scale->data[i] = static_cast<uint8_t>((*random)() % 0x7b);  // finite
    }
  }
  sample.node.constant.assign(sample.node.inputs.size(), (*random)() % 2 == 0);
  fake::Outcome wanted = fake::Run(cpu.at(op), &sample.node);
  sample.node.output_types.clear();
  fake::Outcome found = fake::Run(gpu.at(op), &sample.node, 2);
  CHECK(wanted.error.empty() && found.error.empty(), "%s: %s%s", op.c_str(), wanted.error.c_str(),
        found.error.c_str());
  for (size_t i = 0; i < std::min(wanted.outputs.size(), found.outputs.size()); ++i) {
    const fake::Value& a = wanted.outputs[i];
    const fake::Value& b = found.outputs[i];
    CHECK(a.type == b.type && a.dims == b.dims, "%s: output %zu", op.c_str(), i);
    const bool is_float = a.type == ort::kFloat;
    const size_t element = is_float ? sizeof(float) : 1;
    for (size_t j = 0; j < a.Bytes() / element; ++j) {
      const bool same = is_float ? Same(a.As<float>()[j], b.As<float>()[j])
                                 : a.As<uint8_t>()[j] == b.As<uint8_t>()[j];
      CHECK(same, "%s: output %zu differs at %zu", op.c_str(), i, j);
      if (!same) break;
    }
  }
}

// What a provider's operator must have as the CPU's has it, or the runtime refuses both.
void CheckDeclared(const ort::CustomOp* cpu, const ort::CustomOp* gpu) {
  CHECK(cpu->GetInputTypeCount(cpu) == gpu->GetInputTypeCount(gpu), "%s", gpu->GetName(gpu));
  CHECK(cpu->GetOutputTypeCount(cpu) == gpu->GetOutputTypeCount(gpu), "%s", gpu->GetName(gpu));
  CHECK(cpu->GetStartVersion(cpu) == gpu->GetStartVersion(gpu), "%s", gpu->GetName(gpu));
  for (size_t i = 0; i < cpu->GetInputTypeCount(cpu); ++i) {
    CHECK(cpu->GetInputType(cpu, i) == gpu->GetInputType(gpu, i), "%s", gpu->GetName(gpu));
    CHECK(cpu->GetInputMemoryType(cpu, i) == ort::kDefaultMemory, "%s", gpu->GetName(gpu));
  }
  // A GPU's first input is on the GPU but for codes that are unpacked.
  const bool unpacks = std::string(gpu->GetName(gpu)).find("FpUnpack") == 0;
  CHECK(gpu->GetInputMemoryType(gpu, 0) == (unpacks ? ort::kCpuInput : ort::kDefaultMemory), "%s",
        gpu->GetName(gpu));
}

}  // namespace

void TestGpuOps(unsigned cases) {
  std::string error;
  const Ops cpu = fake::RegisterAll(&error);
  for (const char* provider : kProviders) {
    const Ops gpu = fake::RegisterAll(&error, provider);
    for (const auto& [name, op] : gpu) CheckDeclared(cpu.at(name), op);
    std::mt19937 random(1);
    for (unsigned i = 0; i < cases; ++i) CheckOp(cpu, gpu, kOps[i % std::size(kOps)], &random);
  }
}

}  // namespace fp4dit::test
