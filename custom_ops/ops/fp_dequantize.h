// FpDequantize: grid integers times their group scales.

#ifndef FP4DIT_OPS_FP_DEQUANTIZE_H_
#define FP4DIT_OPS_FP_DEQUANTIZE_H_

#include "abi/custom_op.h"
#include "core/node.h"
#include "core/tensor.h"
#include "cpu/kernels/registry.h"

namespace fp4dit {

// Reads and checks the attributes.
OrtStatus* ReadDequantize(const Node& node, size_t* group_size);

// A call's inputs, checked, and its output: for every device.
struct DequantizeCall {
  Tensor q, scale;
  IntegerType type;
  size_t groups, scale_stride;  // of a row; between rows
  float* y;

  OrtStatus* Begin(const Node& node, OrtKernelContext* context, size_t group_size);
};

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
