// FpHadamard on a GPU.

#include "ops/fp_hadamard.h"

#include "core/counters.h"
#include "gpu/driver/driver.h"
#include "gpu/ops/rows.h"
#include "ops/fp_quantize.h"

namespace fp4dit::gpu {

class FpHadamard {
 public:
  static constexpr const char* kName = fp4dit::FpHadamard::kName;
  static constexpr auto& kInputs = fp4dit::FpHadamard::kInputs;
  static constexpr auto& kOutputs = fp4dit::FpHadamard::kOutputs;
  static constexpr unsigned kCpuInputs = 0;
  static void InferShapes(const ShapeInference& s) { fp4dit::FpHadamard::InferShapes(s); }

  OrtStatus* Create(const Node& node) {
    node_ = node;
    FP4DIT_RETURN_IF_ERROR(node.CheckInputCount(1));
    FP4DIT_RETURN_IF_ERROR(ReadBlock(node, &block_));
    node_.info = nullptr;
    return FindDevice(node, &device_);
  }

  OrtStatus* Compute(OrtKernelContext* context) const {
    static_assert(kMostBlock == kMostRotated, "the kernel's buffer");
    constexpr size_t kWarps = 4;
    Tensor x;
    FP4DIT_RETURN_IF_ERROR(ReadRows(node_, context, &x));
    void* y = nullptr;
    FP4DIT_RETURN_IF_ERROR(MakeOutput(node_, context, 0, x.dims, x.rank, &y));
    if (x.count == 0) return nullptr;
    Count(kCountFpHadamard, kFloatType, kCountGpu);
    HadamardArguments a = {};
    a.x = x.As<float>();
    a.y = static_cast<float*>(y);
    a.rows = CutRows(x.Last(), block_);
    a.count = static_cast<int64_t>(x.Rows()) * a.rows.parts;
    Launch launch;
    launch.kernel = "fp4dit_hadamard";
    launch.threads = kWarps * 32;
    launch.shared_bytes = kWarps * kMostRotated * sizeof(float);
    launch.Set(a);
    FP4DIT_RETURN_IF_ERROR(SetBlocks(node_, x.Rows(), a.rows, kWarps, &launch));
    return Run(node_, *device_, launch, context);
  }

 private:
  Node node_;
  size_t block_ = 0;
  const Device* device_ = nullptr;
};

}  // namespace fp4dit::gpu

namespace fp4dit {

FP4DIT_DEFINE_GPU_OP(FpHadamard)

}  // namespace fp4dit
