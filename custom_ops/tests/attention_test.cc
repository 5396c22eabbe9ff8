// FpAttention through the fake runtime: every instruction set gives the bits of the scalar kernels.

#include <algorithm>
#include <cmath>
#include <random>
#include <string>

#include "check.h"
#include "core/formats.h"
#include "cpu/kernels/registry.h"
#include "fake_ort.h"
#include "sample_node.h"

namespace fp4dit::test {
namespace {

using fake::Outcome;
using fake::Value;

// Integers of the whole grid of `format`, the largest now and then.
void FillIntegers(const Format& format, std::mt19937* random, Value* value) {
  const float largest = format.max_integer();
  std::normal_distribution<float> normal(0.0f, largest / 3);
  for (size_t i = 0; i < value->Bytes() / (value->type == ort::kInt8 ? 1 : 2); ++i) {
    const float integer = std::clamp(std::nearbyint(normal(*random)), -largest, largest);
    if (value->type == ort::kInt8) {
      reinterpret_cast<int8_t*>(value->data.get())[i] = static_cast<int8_t>(integer);
    } else {
      reinterpret_cast<int16_t*>(value->data.get())[i] = static_cast<int16_t>(integer);
    }
  }
}

// One in `odds` is `odd`, the others are from 0 to `most`.
void FillFloats(float most, size_t odds, float odd, std::mt19937* random, Value* value) {
  std::uniform_real_distribution<float> uniform(0.0f, most);
  auto* const x = reinterpret_cast<float*>(value->data.get());
  for (size_t i = 0; i < value->Bytes() / sizeof(float); ++i) {
    x[i] = (*random)() % odds == 0 ? odd : uniform(*random);
  }
}

Sample RandomAttention(std::mt19937* random) {
  static constexpr const char* kFormats[] = {"e2m3", "e2m1", "int8", "e3m2", "e3m4"};
  static constexpr float kOdd[] = {0.0f, 1e-30f, INFINITY, NAN};
  const char* const name = kFormats[(*random)() % 5];
  const auto size = [&](size_t most) {  // half of them below its square root
    const double exponent = static_cast<double>((*random)() % 1001) / 1000.0;
    return static_cast<int64_t>(std::pow(static_cast<double>(most), exponent));
  };
  Sample sample = MakeSample("FpAttention", name, "e2m1", size(150), size(256), size(600), 1);
  const Format& format = *FindFormat(name);
  // From all scores alike to all but the largest lost.
  const float spread = static_cast<float>(0.3 * std::exp2((*random)() % 6)) / format.max_integer();
  for (const size_t i : {0u, 2u, 4u}) {
    FillIntegers(format, random, sample.values[i].get());
    FillFloats(spread, 2000, kOdd[(*random)() % 4], random, sample.values[i + 1].get());
  }
  FillFloats(1.0f, 10, -10000.0f, random, sample.values[6].get());
  return sample;
}

}  // namespace

void TestAttention(unsigned seed, unsigned count) {
  std::string error;
  static const auto ops = fake::RegisterAll(&error);
  size_t isa_count = 0;
  const Isa* isas = AllIsas(&isa_count);
  for (unsigned i = 0; i < count; ++i) {
    std::mt19937 random(seed + i);
    Sample sample = RandomAttention(&random);
    CHECK(SelectIsa("scalar"), "scalar runs everywhere");
    Outcome wanted = fake::Run(ops.at("FpAttention"), &sample.node);
    CHECK(wanted.error.empty(), "seed %u: %s", seed + i, wanted.error.c_str());
    for (size_t isa = 0; isa + 1 < isa_count && wanted.error.empty(); ++isa) {
      if (!isas[isa].is_supported()) continue;
      SelectIsa(isas[isa].name);
      sample.node.output_types.clear();
      Outcome found = fake::Run(ops.at("FpAttention"), &sample.node);
      const size_t values = wanted.outputs[0].Bytes() / sizeof(float);
      for (size_t v = 0; v < values; ++v) {
        const float a = found.outputs[0].As<float>()[v];
        const float b = wanted.outputs[0].As<float>()[v];
        CHECK(Same(a, b),
              "%s attention, seed %u: value %zu is %.9g, and %.9g of the scalar kernels",
              isas[isa].name, seed + i, v, static_cast<double>(a), static_cast<double>(b));
        if (!Same(a, b)) break;
      }
    }
  }
  SelectIsa(nullptr);
}

}  // namespace fp4dit::test
