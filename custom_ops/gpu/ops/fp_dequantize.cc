// FpDequantize on a GPU.

#include "ops/fp_dequantize.h"

#include "core/counters.h"
#include "gpu/driver/driver.h"
#include "gpu/ops/rows.h"

namespace fp4dit::gpu {
namespace {

constexpr size_t kPart = 1024;  // elements of a row that a block takes
constexpr const char* kKernels[kIntegerTypes] = {
    "fp4dit_dequantize_int8", "fp4dit_dequantize_int16", "fp4dit_dequantize_float"};

}  // namespace

class FpDequantize {
 public:
  static constexpr const char* kName = fp4dit::FpDequantize::kName;
  static constexpr auto& kInputs = fp4dit::FpDequantize::kInputs;
  static constexpr auto& kOutputs = fp4dit::FpDequantize::kOutputs;
  static constexpr unsigned kCpuInputs = 0;
  static void InferShapes(const ShapeInference& s) { fp4dit::FpDequantize::InferShapes(s); }

  OrtStatus* Create(const Node& node) {
    FP4DIT_RETURN_IF_ERROR(ReadDequantize(node, &group_size_));
    node_ = node;
    node_.info = nullptr;
    return FindDevice(node, &device_);
  }

  OrtStatus* Compute(OrtKernelContext* context) const {
    DequantizeCall call = {};
    FP4DIT_RETURN_IF_ERROR(call.Begin(node_, context, group_size_));
    if (call.q.count == 0) return nullptr;
    Count(kCountFpDequantize, call.type, kCountGpu);
    DequantizeArguments a = {};
    a.q = call.q.data;
    a.scale = call.scale.data;
    a.y = call.y;
    a.rows = CutRows(call.q.Last(), kPart);
    a.group_size = static_cast<int64_t>(group_size_);
    a.scale_stride = static_cast<int64_t>(call.scale_stride);
    a.scale_is_half = call.scale.type == ort::kFloat16 ? 1 : 0;
    Launch launch;
    launch.kernel = kKernels[call.type];
    launch.threads = 256;
    launch.Set(a);
    FP4DIT_RETURN_IF_ERROR(SetBlocks(node_, call.q.Rows(), a.rows, 1, &launch));
    return Run(node_, *device_, launch, context);
  }

 private:
  Node node_;
  size_t group_size_ = 1;
  const Device* device_ = nullptr;
};

}  // namespace fp4dit::gpu

namespace fp4dit {

FP4DIT_DEFINE_GPU_OP(FpDequantize)

}  // namespace fp4dit
