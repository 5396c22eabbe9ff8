// FpQuantize, FpQuantizeInt16, FpQuantizeFloat: activations to grid integers, one scale a row.

#ifndef FP4DIT_OPS_FP_QUANTIZE_H_
#define FP4DIT_OPS_FP_QUANTIZE_H_

#include "abi/custom_op.h"
#include "core/node.h"
#include "core/tensor.h"
#include "cpu/kernels/registry.h"

namespace fp4dit {

// The element type whose grid integers `format` needs, and its name in the runtime.
IntegerType IntegerTypeOf(const Format& format);
ort::ElementType ElementTypeOf(IntegerType type);

class FpQuantizeBase {
 public:
  OrtStatus* Compute(OrtKernelContext* context) const;

 protected:
  OrtStatus* Create(const Node& node, IntegerType type);

 private:
  Node node_;
  IntegerType type_ = kInt8Type;
  QuantizeGrid grid_ = {};
  Chosen<QuantizeRow> kernel_ = {};
};

void InferQuantizeShapes(const ShapeInference& inference, ort::ElementType type);

class FpQuantize : public FpQuantizeBase {
 public:
  static constexpr const char* kName = "FpQuantize";
  static constexpr ort::ElementType kInputs[] = {ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kInt8, ort::kFloat};
  static void InferShapes(const ShapeInference& s) { InferQuantizeShapes(s, kOutputs[0]); }
  OrtStatus* Create(const Node& node) { return FpQuantizeBase::Create(node, kInt8Type); }
};

class FpQuantizeInt16 : public FpQuantizeBase {
 public:
  static constexpr const char* kName = "FpQuantizeInt16";
  static constexpr ort::ElementType kInputs[] = {ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kInt16, ort::kFloat};
  static void InferShapes(const ShapeInference& s) { InferQuantizeShapes(s, kOutputs[0]); }
  OrtStatus* Create(const Node& node) { return FpQuantizeBase::Create(node, kInt16Type); }
};

class FpQuantizeFloat : public FpQuantizeBase {
 public:
  static constexpr const char* kName = "FpQuantizeFloat";
  static constexpr ort::ElementType kInputs[] = {ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat, ort::kFloat};
  static void InferShapes(const ShapeInference& s) { InferQuantizeShapes(s, kOutputs[0]); }
  OrtStatus* Create(const Node& node) { return FpQuantizeBase::Create(node, kFloatType); }
};

}  // namespace fp4dit

#endif  // FP4DIT_OPS_FP_QUANTIZE_H_
