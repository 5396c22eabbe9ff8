// FpLinear, FpLinearInteger and FpLinearSigns on a GPU.

#include "ops/fp_linear.h"

#include "core/counters.h"
#include "core/page_out.h"
#include "gpu/driver/driver.h"
#include "gpu/driver/scratch.h"
#include "gpu/linear.h"
#include "ops/fp_quantize.h"

namespace fp4dit::gpu {
namespace {

// Weights packed for the kernels, and their copy on the device.
struct Packed {
  LinearWeights weights;
  DeviceMemory memory;
};

template <typename Cpu, bool kMultiplied, bool kSigns>
class Linear {
 public:
  static constexpr const char* kName = Cpu::kName;
  static constexpr auto& kInputs = Cpu::kInputs;
  static constexpr auto& kOutputs = Cpu::kOutputs;
  // All but q and scale: weights are packed where they are checked.
  static constexpr unsigned kCpuInputs = ~0u << 2;
  static void InferShapes(const ShapeInference& s) { Cpu::InferShapes(s); }

  OrtStatus* Create(const Node& node) {
    FP4DIT_RETURN_IF_ERROR(linear_.Read(node, kMultiplied, kSigns));
    FP4DIT_RETURN_IF_ERROR(FindDevice(node, &device_));
    LinearWeightInputs inputs;
    FP4DIT_RETURN_IF_ERROR(linear_.ReadConstants(&inputs, &is_constant_));
    linear_.node.info = nullptr;
    if (!is_constant_) return nullptr;
    FP4DIT_RETURN_IF_ERROR(Pack(inputs, &packed_));
    packed_.weights.Release();
    scratch_.Reserve(*device_, packed_.weights.MostScratchBytes(TheGpu()));
    // The runtime keeps them, and nobody reads them any more.
    PageOut(inputs.codes.data, inputs.codes.count);
    return nullptr;
  }

  OrtStatus* Compute(OrtKernelContext* context) const {
    LinearCall call = {};
    Tensor q;
    Tensor scale;
    FP4DIT_RETURN_IF_ERROR(linear_.ReadActivations(context, &q, &scale, &call.scale_stride));
    if (is_constant_) return Multiply(context, q, scale, packed_, &call);
    LinearWeightInputs inputs;
    Packed packed;
    FP4DIT_RETURN_IF_ERROR(linear_.ReadWeights(context, &inputs));
    FP4DIT_RETURN_IF_ERROR(Pack(inputs, &packed));
    FP4DIT_RETURN_IF_ERROR(Multiply(context, q, scale, packed, &call));
    return Finish(linear_.node);  // before the weights are freed
  }

 private:
  Gpu TheGpu() const { return {Arch(*device_), Processors(*device_)}; }

  OrtStatus* Pack(const LinearWeightInputs& inputs, Packed* packed) const {
    WeightSource source;
    FP4DIT_RETURN_IF_ERROR(linear_.SourceOf(inputs, &source));
    const Format* const act = linear_.act_format;
    const IntegerType type = act == nullptr ? kFloatType : IntegerTypeOf(*act);
    FP4DIT_RETURN_IF_ERROR(linear_.PackFailed(packed->weights.Pack(source, type)));
    if (packed->weights.size() == 0) return nullptr;
    return packed->memory.Fill(linear_.node, *device_, packed->weights.bytes(),
                               packed->weights.size());
  }

  OrtStatus* Multiply(OrtKernelContext* context, const Tensor& q, const Tensor& scale,
                      const Packed& packed, LinearCall* call) const {
    FP4DIT_RETURN_IF_ERROR(linear_.MakeResult(context, q, packed.weights.n(), &call->y));
    if (q.Rows() == 0 || packed.weights.n() == 0) return nullptr;
    linear_.CountCall(kCountGpu);
    call->q = q.data;
    call->scale = scale.As<float>();
    call->rows = q.Rows();
    call->weights = packed.memory.As<uint8_t>();
    if (is_constant_) call->way = packed.weights.Choose(call->rows, TheGpu());
    if (call->way.scratch_bytes != 0) {
      FP4DIT_RETURN_IF_ERROR(
          scratch_.Find(linear_.node, context, call->way.scratch_bytes, &call->scratch));
      if (call->scratch == nullptr) call->way = LinearWay();
    }
    Launch launches[kMostLaunches];
    packed.weights.Plan(*call, launches);
    for (const Launch& launch : launches) {
      FP4DIT_RETURN_IF_ERROR(Run(linear_.node, *device_, launch, context));
    }
    return nullptr;
  }

  LinearNode linear_;
  const Device* device_ = nullptr;
  bool is_constant_ = false;
  Packed packed_;  // filled at creation if the weights are constant
  Scratch scratch_;
};

}  // namespace

using FpLinear = Linear<fp4dit::FpLinear, false, false>;
using FpLinearInteger = Linear<fp4dit::FpLinearInteger, true, false>;
using FpLinearSigns = Linear<fp4dit::FpLinearSigns, true, true>;

}  // namespace fp4dit::gpu

namespace fp4dit {

FP4DIT_DEFINE_GPU_OP(FpLinear)
FP4DIT_DEFINE_GPU_OP(FpLinearInteger)
FP4DIT_DEFINE_GPU_OP(FpLinearSigns)

}  // namespace fp4dit
