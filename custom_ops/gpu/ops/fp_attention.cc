// FpAttention on a GPU.

#include "ops/fp_attention.h"

#include "core/counters.h"
#include "gpu/attention.h"
#include "gpu/driver/driver.h"

namespace fp4dit::gpu {

class FpAttention {
 public:
  static_assert(fp4dit::kKeyTile == kKeyTile, "the kernel's tile");
  static constexpr const char* kName = fp4dit::FpAttention::kName;
  static constexpr auto& kInputs = fp4dit::FpAttention::kInputs;
  static constexpr auto& kOutputs = fp4dit::FpAttention::kOutputs;
  static constexpr unsigned kCpuInputs = 0;
  static void InferShapes(const ShapeInference& s) { fp4dit::FpAttention::InferShapes(s); }

  OrtStatus* Create(const Node& node) {
    FP4DIT_RETURN_IF_ERROR(attention_.Read(node));
    if (attention_.value_group % kKeyChunk != 0) {  // formats that there are keep well within it
      return node.Fail("format '%s' is wider than its kernels take", attention_.format->name);
    }
    return FindDevice(node, &device_);
  }

  OrtStatus* Compute(OrtKernelContext* context) const {
    using In = AttentionTensors;
    AttentionTensors t = {};
    FP4DIT_RETURN_IF_ERROR(attention_.Begin(context, &t));
    if (t.batch * t.heads == 0 || t.queries == 0) return nullptr;
    Count(kCountFpAttention, attention_.type, kCountGpu);
    AttentionCall call = {};
    call.q = t.inputs[In::kQ].data;
    call.k = t.inputs[In::kK].data;
    call.v = t.inputs[In::kV].data;
    call.q_scale = t.inputs[In::kQScale].As<float>();
    call.k_scale = t.inputs[In::kKScale].As<float>();
    call.v_scale = t.inputs[In::kVScale].As<float>();
    call.bias = t.inputs[In::kBias].As<float>();
    call.y = t.y;
    call.batch = t.batch;
    call.queries = t.queries;
    call.keys = t.keys;
    call.heads = t.heads;
    call.size = t.size;
    call.bias_by_batch = t.inputs[In::kBias].Dim(0) != 1;
    call.bias_by_key = t.inputs[In::kBias].Dim(3) != 1;
    call.attention_scale = attention_.attention_scale;
    call.type = attention_.type;
    call.value_group = attention_.value_group;
    return Run(attention_.node, *device_, PlanAttention(call), context);
  }

 private:
  AttentionNode attention_;
  const Device* device_ = nullptr;
};

}  // namespace fp4dit::gpu

namespace fp4dit {

FP4DIT_DEFINE_GPU_OP(FpAttention)

}  // namespace fp4dit
