#include "cpu/kernels/registry.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cpu/cpu_features.h"

namespace fp4dit {

#define FP4DIT_ISA(name, table, predicate) extern const Kernels table;
#include "cpu/kernels/kernels.inc"
#undef FP4DIT_ISA

namespace {

constexpr Isa kIsas[] = {
#define FP4DIT_ISA(name, table, predicate) {#name, &table, predicate},
#include "cpu/kernels/kernels.inc"
#undef FP4DIT_ISA
};
constexpr size_t kIsaCount = sizeof(kIsas) / sizeof(kIsas[0]);

std::atomic<size_t> selected_isa{kIsaCount};  // kIsaCount: none

struct Names {
  char text[128];
  Names() : text{} {
    for (const Isa& isa : kIsas) {
      if (!isa.is_supported()) continue;
      const size_t used = std::strlen(text);
      std::snprintf(text + used, sizeof(text) - used, "%s%s", used == 0 ? "" : ",", isa.name);
    }
  }
};

// The first supported instruction set from `isa` on whose entry is there; the last one has all.
template <typename HasEntry>
size_t FirstWith(size_t isa, HasEntry has_entry) {
  for (; isa < kIsaCount - 1; ++isa) {
    if (kIsas[isa].is_supported() && has_entry(*kIsas[isa].kernels)) return isa;
  }
  return kIsaCount - 1;
}

}  // namespace

const Isa* AllIsas(size_t* count) {
  *count = kIsaCount;
  return kIsas;
}

const char* SupportedIsas() {
  static const Names names;
  return names.text;
}

ChosenLinear ChooseLinear(size_t isa, DotKind kind, WeightStorage storage) {
  isa = FirstWith(isa, [kind, storage](const Kernels& k) {
    return k.linear[kind].run != nullptr && storage <= k.linear[kind].widest;
  });
  return {&kIsas[isa].kernels->linear[kind], isa};
}

const LinearKernel* ChooseNarrow(const ChosenLinear& chosen, WeightStorage storage,
                                 size_t channels) {
  const auto padded = [channels](const LinearKernel& kernel) {
    const size_t width = std::min(kernel.layout.panel_width, kernel.most_columns);
    return (channels + width - 1) / width * width;
  };
  const LinearKernel* best = chosen.kernel;
  for (const LinearKernel& narrow : kIsas[chosen.isa].kernels->narrow) {
    if (narrow.run == nullptr || storage > narrow.widest) continue;
    const bool whole = narrow.most_columns >= narrow.layout.panel_width;
    if (!whole && channels > narrow.most_columns) continue;  // than one panel of these
    const bool wider = narrow.layout.panel_width > best->layout.panel_width;
    if (padded(narrow) < padded(*best) || (wider && padded(narrow) == padded(*best))) {
      best = &narrow;
    }
  }
  return best;
}

Chosen<SoftmaxKernel> ChooseSoftmax(size_t isa) {
  isa = FirstWith(isa, [](const Kernels& k) { return k.softmax != nullptr; });
  return {kIsas[isa].kernels->softmax, isa};
}

Chosen<QuantizeError> ChooseError(size_t isa) {
  isa = FirstWith(isa, [](const Kernels& k) { return k.error != nullptr; });
  return {kIsas[isa].kernels->error, isa};
}

Chosen<HadamardRow> ChooseHadamard(size_t isa) {
  isa = FirstWith(isa, [](const Kernels& k) { return k.hadamard != nullptr; });
  return {kIsas[isa].kernels->hadamard, isa};
}

Chosen<GeluRow> ChooseGelu(size_t isa) {
  isa = FirstWith(isa, [](const Kernels& k) { return k.gelu != nullptr; });
  return {kIsas[isa].kernels->gelu, isa};
}

Chosen<NormKernels> ChooseNorm(size_t isa) {
  isa = FirstWith(isa, [](const Kernels& k) { return k.norm.center != nullptr; });
  return {kIsas[isa].kernels->norm, isa};
}

Chosen<QuantizeRow> ChooseQuantize(size_t isa, IntegerType type) {
  isa = FirstWith(isa, [type](const Kernels& k) { return k.quantize[type] != nullptr; });
  return {kIsas[isa].kernels->quantize[type], isa};
}

Chosen<DequantizeRun> ChooseDequantize(size_t isa, IntegerType type) {
  isa = FirstWith(isa, [type](const Kernels& k) { return k.dequantize[type] != nullptr; });
  return {kIsas[isa].kernels->dequantize[type], isa};
}

double LargestSum(DotKind kind, double max_act, double max_weight, size_t size) {
  const Reach& reach = kMostReach[kind];
  const double act = std::ceil(max_act / reach.act_step) * reach.act_step;
  return act * (max_weight + reach.weight_offset) * static_cast<double>(size);
}

Selection Select(const char* requested) {
  Selection result = {kIsaCount, ""};
  const bool any = requested == nullptr || requested[0] == '\0';
  for (size_t i = 0; i < kIsaCount; ++i) {
    if (!any && std::strcmp(kIsas[i].name, requested) != 0) continue;
    if (!kIsas[i].is_supported()) continue;
    result.isa = i;
    return result;
  }
  result.isa = kIsaCount - 1;
  std::snprintf(result.error, sizeof(result.error),
                "the environment's FP4DIT_ISA is '%.64s', which this machine or build does not "
                "have: expected one of %s, or unset it",
                requested, SupportedIsas());
  return result;
}

double Peak(const char* isa, int kind, size_t rounds) {
  if (isa == nullptr || kind < 0 || kind >= kDotKinds) return 0.0;
  for (const Isa& candidate : kIsas) {
    if (std::strcmp(candidate.name, isa) != 0 || !candidate.is_supported()) continue;
    const LinearKernel& kernel = candidate.kernels->linear[kind];
    return kernel.peak == nullptr ? 0.0 : kernel.peak(rounds);
  }
  return 0.0;
}

Selection Selected() {
  static const Selection environment = Select(std::getenv("FP4DIT_ISA"));
  const size_t isa = selected_isa.load(std::memory_order_relaxed);
  return isa == kIsaCount ? environment : Selection{isa, ""};
}

bool SelectIsa(const char* name) {
  size_t isa = kIsaCount;
  if (name != nullptr) {
    const Selection selection = Select(name);
    if (name[0] == '\0' || selection.error[0] != '\0') return false;
    isa = selection.isa;
  }
  selected_isa.store(isa, std::memory_order_relaxed);
  return true;
}

}  // namespace fp4dit
