// FpDequantize: grid integers times their group scales.

#ifndef FP4DIT_OPS_FP_DEQUANTIZE_H_
#define FP4DIT_OPS_FP_DEQUANTIZE_H_

#include "abi/custom_op.h"
#include "core/node.h"
#include "cpu/kernels/registry.h"

namespace fp4dit {

class FpDequantize {
 public:
  static constexpr const char* kName = "FpDequantize";
  static constexpr ort::ElementType kInputs[] = {ort::kUndefined, ort::kUndefined};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat};
  static void InferShapes(const ShapeInference& inference);
  OrtStatus* Create(const Node& node);
  OrtStatus* Compute(OrtKernelContext* context) const;

 private:
  Node node_;
  size_t group_size_ = 1;
  Chosen<DequantizeRun> kernels_[kIntegerTypes] = {};
};

}  // namespace fp4dit

#endif  // FP4DIT_OPS_FP_DEQUANTIZE_H_
