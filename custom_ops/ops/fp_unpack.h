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

// What the attributes say, for every device.
struct UnpackNode {
  Node node;
  const Format* format = nullptr;
  size_t k = 0;
  size_t wide = 0;  // see WeightSource
  float grid[kMaxFloats] = {};

  OrtStatus* Read(const Node& the_node, bool signs);
  // Reads and checks a call's codes, and makes its output.
  OrtStatus* Begin(OrtKernelContext* context, Tensor* codes, float** q) const;
  // One more call, by what `isa` says in Count.
  void CountCall(size_t isa) const;
};

class FpUnpackBase {
 public:
  static constexpr ort::ElementType kInputs[] = {ort::kUint8};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat};
  static void InferShapes(const ShapeInference& inference);
  OrtStatus* Compute(OrtKernelContext* context) const;

 protected:
  OrtStatus* Create(const Node& node, bool signs) { return unpack_.Read(node, signs); }

 private:
  void UnpackRow(const uint8_t* codes, float* q) const;

  UnpackNode unpack_;
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
