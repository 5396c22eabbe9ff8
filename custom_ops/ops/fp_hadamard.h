// FpHadamard: rows times Hadamard matrices of a block's size. numerics.hadamard is the definition.

#ifndef FP4DIT_OPS_FP_HADAMARD_H_
#define FP4DIT_OPS_FP_HADAMARD_H_

#include "abi/custom_op.h"
#include "core/node.h"
#include "core/tensor.h"
#include "cpu/kernels/registry.h"

namespace fp4dit {

// The attribute `block`: a power of two from 2 to kMostBlock.
OrtStatus* ReadBlock(const Node& node, size_t* block);

class FpHadamard {
 public:
  static constexpr const char* kName = "FpHadamard";
  static constexpr ort::ElementType kInputs[] = {ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat};
  static void InferShapes(const ShapeInference& inference);
  OrtStatus* Create(const Node& node);
  OrtStatus* Compute(OrtKernelContext* context) const;

 private:
  Node node_;
  size_t block_ = 0;
  Chosen<HadamardRow> kernel_ = {};
};

}  // namespace fp4dit

#endif  // FP4DIT_OPS_FP_HADAMARD_H_
