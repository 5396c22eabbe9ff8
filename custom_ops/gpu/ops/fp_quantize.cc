// FpQuantize and its like on a GPU.

#include "ops/fp_quantize.h"

#include <algorithm>
#include <cstring>

#include "core/counters.h"
#include "gpu/driver/driver.h"
#include "gpu/driver/scratch.h"
#include "gpu/ops/rows.h"
#include "gpu/quantize.h"

namespace fp4dit::gpu {
namespace {

// Cpu: the operator's class for the CPU, which knows its name, inputs, outputs and shapes.
template <typename Cpu, IntegerType kType, Quantizer::Kind kKind,
          Quantizer::Before kBefore = Quantizer::kNothing>
class Quantize {
 public:
  static constexpr const char* kName = Cpu::kName;
  static constexpr auto& kInputs = Cpu::kInputs;
  static constexpr auto& kOutputs = Cpu::kOutputs;
  static constexpr unsigned kCpuInputs = 0;
  static void InferShapes(const ShapeInference& s) { Cpu::InferShapes(s); }

  OrtStatus* Create(const Node& node) {
    FP4DIT_RETURN_IF_ERROR(settings_.Read(node, kType, kKind, kBefore));
    FP4DIT_RETURN_IF_ERROR(FindDevice(node, &device_));
    if (kMakesRows) scratch_.Reserve(*device_, 0);  // the first call knows
    return nullptr;
  }

  OrtStatus* Compute(OrtKernelContext* context) const {
    Quantizer::Call call;
    FP4DIT_RETURN_IF_ERROR(settings_.Begin(context, &call));
    if (call.rows == 0) return nullptr;
    settings_.CountCall(kCountGpu);
    QuantizeCall plan = {};
    plan.format = settings_.format;
    plan.rows = call.rows;
    plan.k = call.k;
    plan.group_size = call.group_size;
    plan.largest = settings_.grid.largest;
    plan.candidates = settings_.candidate_count > 1 ? settings_.candidates : nullptr;
    plan.candidate_count = settings_.candidate_count;
    plan.gelu = kBefore == Quantizer::kGelu;
    plan.x = call.x;
    plan.q = call.q;
    plan.scale = call.scale;
    const Launch launch = PlanQuantize(plan);
    if (kMakesRows) return RunRows(call, launch, context);
    return Run(settings_.node, *device_, launch, context);
  }

 private:
  static constexpr bool kMakesRows = kKind == Quantizer::kRotated || kBefore == Quantizer::kNorm;

  // A row a block. One that is too long for shared memory, longer than any layer's, takes the
  // device's.
  OrtStatus* RunRows(const Quantizer::Call& call, const Launch& plain,
                     OrtKernelContext* context) const {
    constexpr size_t kThreads = 256;
    constexpr size_t kMostRows = 0x7fffffff;
    constexpr size_t kFewBlocks = 64;
    HadamardQuantizeArguments a = {};
    std::memcpy(&a.quantize, plain.argument, sizeof(a.quantize));
    a.parts = CutRows(call.k, settings_.block != 0 ? settings_.block : call.k);
    if (settings_.block == 0) a.parts.part = 0;
    a.rows = static_cast<int64_t>(call.rows);
    Launch launch;
    constexpr bool kIsNorm = kBefore == Quantizer::kNorm;
    launch.kernel =
        kIsNorm ? kType == kInt8Type ? "fp4dit_norm_quantize_int8" : "fp4dit_norm_quantize_int16"
        : kBefore == Quantizer::kGelu ? "fp4dit_gelu_hadamard_quantize"
                                      : "fp4dit_hadamard_quantize";
    launch.threads = kThreads;
    launch.shared_bytes = kThreads / 32 * sizeof(uint32_t);
    if (kIsNorm) launch.shared_bytes += kNormLanes * sizeof(float);
    size_t blocks = std::min(call.rows, kMostRows);
    DeviceMemory own;  // where there is none that stays
    void* memory = nullptr;
    const bool is_short =
        call.k <= (MostSharedBytes(*device_) - launch.shared_bytes) / sizeof(float);
    if (is_short) {
      launch.shared_bytes += static_cast<uint32_t>(call.k * sizeof(float));
    } else {
      blocks = std::min(call.rows, kFewBlocks);
      const size_t bytes = blocks * call.k * sizeof(float);
      FP4DIT_RETURN_IF_ERROR(scratch_.Find(settings_.node, context, bytes, &memory));
      if (memory == nullptr) {
        FP4DIT_RETURN_IF_ERROR(own.Allocate(settings_.node, *device_, bytes));
        memory = own.As<void>();
      }
    }
    a.blocks = static_cast<int64_t>(blocks);
    a.scratch = static_cast<float*>(memory);
    launch.blocks = static_cast<uint32_t>(blocks);
    if (kIsNorm) {
      launch.Set(NormQuantizeArguments{a, Of(call.gain), Of(call.shift), settings_.epsilon});
    } else {
      launch.Set(a);
    }
    FP4DIT_RETURN_IF_ERROR(Run(settings_.node, *device_, launch, context));
    return own.As<void>() == nullptr ? nullptr : Finish(settings_.node);
  }

  static BroadcastRows Of(const Quantizer::Broadcast& rows) {
    return {rows.data, static_cast<int64_t>(rows.inner), static_cast<int64_t>(rows.outer)};
  }

  Quantizer settings_;
  const Device* device_ = nullptr;
  Scratch scratch_;
};

}  // namespace

using FpQuantize = Quantize<fp4dit::FpQuantize, kInt8Type, Quantizer::kDynamic>;
using FpQuantizeInt16 = Quantize<fp4dit::FpQuantizeInt16, kInt16Type, Quantizer::kDynamic>;
using FpQuantizeFloat = Quantize<fp4dit::FpQuantizeFloat, kFloatType, Quantizer::kDynamic>;
using FpHadamardQuantize = Quantize<fp4dit::FpHadamardQuantize, kInt8Type, Quantizer::kRotated>;
using FpGeluQuantize =
    Quantize<fp4dit::FpGeluQuantize, kInt8Type, Quantizer::kDynamic, Quantizer::kGelu>;
using FpGeluQuantizeInt16 =
    Quantize<fp4dit::FpGeluQuantizeInt16, kInt16Type, Quantizer::kDynamic, Quantizer::kGelu>;
using FpGeluHadamardQuantize =
    Quantize<fp4dit::FpGeluHadamardQuantize, kInt8Type, Quantizer::kRotated, Quantizer::kGelu>;
using FpNormQuantize =
    Quantize<fp4dit::FpNormQuantize, kInt8Type, Quantizer::kDynamic, Quantizer::kNorm>;
using FpNormQuantizeInt16 =
    Quantize<fp4dit::FpNormQuantizeInt16, kInt16Type, Quantizer::kDynamic, Quantizer::kNorm>;
using FpNormHadamardQuantize =
    Quantize<fp4dit::FpNormHadamardQuantize, kInt8Type, Quantizer::kRotated, Quantizer::kNorm>;
using FpQuantizeStatic = Quantize<fp4dit::FpQuantizeStatic, kInt8Type, Quantizer::kStatic>;
using FpQuantizeStaticInt16 =
    Quantize<fp4dit::FpQuantizeStaticInt16, kInt16Type, Quantizer::kStatic>;
using FpQuantizeStaticFloat =
    Quantize<fp4dit::FpQuantizeStaticFloat, kFloatType, Quantizer::kStatic>;

}  // namespace fp4dit::gpu

namespace fp4dit {

FP4DIT_DEFINE_GPU_OP(FpQuantize)
FP4DIT_DEFINE_GPU_OP(FpQuantizeInt16)
FP4DIT_DEFINE_GPU_OP(FpQuantizeFloat)
FP4DIT_DEFINE_GPU_OP(FpHadamardQuantize)
FP4DIT_DEFINE_GPU_OP(FpGeluQuantize)
FP4DIT_DEFINE_GPU_OP(FpGeluQuantizeInt16)
FP4DIT_DEFINE_GPU_OP(FpGeluHadamardQuantize)
FP4DIT_DEFINE_GPU_OP(FpNormQuantize)
FP4DIT_DEFINE_GPU_OP(FpNormQuantizeInt16)
FP4DIT_DEFINE_GPU_OP(FpNormHadamardQuantize)
FP4DIT_DEFINE_GPU_OP(FpQuantizeStatic)
FP4DIT_DEFINE_GPU_OP(FpQuantizeStaticInt16)
FP4DIT_DEFINE_GPU_OP(FpQuantizeStaticFloat)

}  // namespace fp4dit
