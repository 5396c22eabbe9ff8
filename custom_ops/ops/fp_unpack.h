// FpUnpack: stored codes to grid integers.

#ifndef FP4DIT_OPS_FP_UNPACK_H_
#define FP4DIT_OPS_FP_UNPACK_H_

#include "abi/custom_op.h"
#include "core/node.h"
#include "core/tensor.h"

namespace fp4dit {

// `codes` must be uint8 [N, bytes of K codes], and hold nothing but codes of `format`.
OrtStatus* CheckCodes(const Node& node, const Tensor& codes, const Format& format, size_t k);

class FpUnpack {
 public:
  static constexpr const char* kName = "FpUnpack";
  static constexpr ort::ElementType kInputs[] = {ort::kUint8};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat};
  static void InferShapes(const ShapeInference& inference);
  OrtStatus* Create(const Node& node);
  OrtStatus* Compute(OrtKernelContext* context) const;

 private:
  void UnpackRow(const uint8_t* codes, float* q) const;

  Node node_;
  const Format* format_ = nullptr;
  size_t k_ = 0;
  float grid_[kMaxFloats] = {};
};

}  // namespace fp4dit

#endif  // FP4DIT_OPS_FP_UNPACK_H_
