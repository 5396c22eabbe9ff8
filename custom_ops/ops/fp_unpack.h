// FpUnpack, FpUnpackSigns: stored codes to grid integers.

#ifndef FP4DIT_OPS_FP_UNPACK_H_
#define FP4DIT_OPS_FP_UNPACK_H_

#include "abi/custom_op.h"
#include "core/node.h"
#include "core/tensor.h"

namespace fp4dit {

// `codes` must be uint8 [N, bytes of K codes], and hold nothing but codes of `format`; see
// WeightSource for `wide`.
OrtStatus* CheckCodes(const Node& node, const Tensor& codes, const Format& format, size_t k,
                      size_t wide);

// Reads the attribute `wide` of a weight of `k` inputs, an even number below k, and checks `signs`.
OrtStatus* ReadWide(const Node& node, const Format& format, size_t k, size_t* wide);

class FpUnpackBase {
 public:
  static constexpr ort::ElementType kInputs[] = {ort::kUint8};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat};
  static void InferShapes(const ShapeInference& inference);
  OrtStatus* Compute(OrtKernelContext* context) const;

 protected:
  OrtStatus* Create(const Node& node, bool signs);

 private:
  void UnpackRow(const uint8_t* codes, float* q) const;

  Node node_;
  const Format* format_ = nullptr;
  size_t k_ = 0;
  size_t wide_ = 0;
  float grid_[kMaxFloats] = {};
};

class FpUnpack : public FpUnpackBase {
 public:
  static constexpr const char* kName = "FpUnpack";
  OrtStatus* Create(const Node& node) { return FpUnpackBase::Create(node, false); }
};

class FpUnpackSigns : public FpUnpackBase {
 public:
  static constexpr const char* kName = "FpUnpackSigns";
  OrtStatus* Create(const Node& node) { return FpUnpackBase::Create(node, true); }
};

}  // namespace fp4dit

#endif  // FP4DIT_OPS_FP_UNPACK_H_
