#include "ops/fp_hadamard.h"

#include "core/counters.h"
#include "core/parallel.h"
#include "ops/fp_quantize.h"

namespace fp4dit {

OrtStatus* ReadBlock(const Node& node, size_t* block) {
  FP4DIT_RETURN_IF_ERROR(node.ReadSize("block", block));
  if (*block >= 2 && *block <= kMostBlock && (*block & (*block - 1)) == 0) return nullptr;
  return node.Fail("attribute 'block' is %zu, wanted a power of two from 2 to %zu", *block,
                   kMostBlock);
}

OrtStatus* FpHadamard::Create(const Node& node) {
  node_ = node;
  FP4DIT_RETURN_IF_ERROR(node.CheckInputCount(1));
  FP4DIT_RETURN_IF_ERROR(ReadBlock(node, &block_));
  kernel_ = ChooseHadamard(Selected().isa);
  node_.info = nullptr;
  return nullptr;
}

OrtStatus* FpHadamard::Compute(OrtKernelContext* context) const {
  Tensor x;
  FP4DIT_RETURN_IF_ERROR(ReadRows(node_, context, &x));
  void* y = nullptr;
  FP4DIT_RETURN_IF_ERROR(MakeOutput(node_, context, 0, x.dims, x.rank, &y));
  if (x.count == 0) return nullptr;
  Count(kCountFpHadamard, kFloatType, kernel_.isa);
  const size_t k = x.Last();
  const auto rows = [&](size_t begin, size_t end) {
    for (size_t r = begin; r < end; ++r) {
      kernel_.run(x.As<float>() + r * k, k, block_, static_cast<float*>(y) + r * k);
    }
  };
  return ParallelFor(node_.api, context, x.Rows(), kPieceElements / k + 1, rows);
}

void FpHadamard::InferShapes(const ShapeInference& inference) {
  inference.SetOutput(0, ort::kFloat, inference.Input(0));
}

FP4DIT_DEFINE_OP(FpHadamard)

}  // namespace fp4dit
