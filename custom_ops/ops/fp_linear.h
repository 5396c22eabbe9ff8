// FpLinear: activations times packed weights, plus bias. numerics.linear is the definition.

#ifndef FP4DIT_OPS_FP_LINEAR_H_
#define FP4DIT_OPS_FP_LINEAR_H_

#include "abi/custom_op.h"
#include "core/node.h"
#include "core/tensor.h"
#include "cpu/kernels/registry.h"
#include "cpu/packing/packed_weights.h"

namespace fp4dit {

class FpLinear {
 public:
  static constexpr const char* kName = "FpLinear";
  // q (its type follows act_format), scale, codes, weight_scale (float16 or float), bias
  static constexpr ort::ElementType kInputs[] = {ort::kUndefined, ort::kFloat, ort::kUint8,
                                                 ort::kUndefined, ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat};
  static void InferShapes(const ShapeInference& inference);
  OrtStatus* Create(const Node& node);
  OrtStatus* Compute(OrtKernelContext* context) const;

 private:
  struct Call;
  struct Cut;

  OrtStatus* ReadAttributes();
  OrtStatus* CheckAccumulator() const;
  OrtStatus* PackConstants();
  OrtStatus* Pack(const Tensor& codes, const Tensor& weight_scale, const Tensor& bias,
                  PackedWeights* packed) const;
  OrtStatus* CheckActivations(const Tensor& q, const Tensor& scale, size_t* scale_stride) const;
  Cut CutCall(const Call& call) const;
  void RunTask(const Call& call, const Cut& cut, size_t task, uint8_t* staged) const;
  OrtStatus* Run(OrtKernelContext* context, const Call& call) const;

  Node node_;
  const Format* act_format_ = nullptr;  // null: weight-only
  const Format* weight_format_ = nullptr;
  size_t group_size_ = 0;
  size_t k_ = 0;
  DotKind kind_ = kDotFloat;
  ChosenLinear chosen_ = {};
  bool is_constant_ = false;
  size_t constant_n_ = 0;
  PackedWeights packed_;  // filled at creation if the weights are constant
};

}  // namespace fp4dit

#endif  // FP4DIT_OPS_FP_LINEAR_H_
