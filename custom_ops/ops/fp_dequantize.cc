#include "ops/fp_dequantize.h"

#include "core/counters.h"
#include "core/parallel.h"
#include "core/tensor.h"
#include "cpu/packing/packed_weights.h"

namespace fp4dit {
namespace {

// Elements worth handing to another thread.
constexpr size_t kPieceElements = 1 << 15;

// The type of grid integers that a tensor holds, or kIntegerTypes.
IntegerType IntegerTypeOfTensor(ort::ElementType type) {
  if (type == ort::kInt8) return kInt8Type;
  if (type == ort::kInt16) return kInt16Type;
  return type == ort::kFloat ? kFloatType : kIntegerTypes;
}

float ScaleAt(const Tensor& scale, size_t index) {
  return scale.type == ort::kFloat16 ? HalfToFloat(scale.As<uint16_t>()[index])
                                     : scale.As<float>()[index];
}

}  // namespace

OrtStatus* FpDequantize::Create(const Node& node) {
  node_ = node;
  FP4DIT_RETURN_IF_ERROR(node.CheckInputCount(2));
  const Format* format = nullptr;
  FP4DIT_RETURN_IF_ERROR(node.ReadFormat("format", false, &format));
  FP4DIT_RETURN_IF_ERROR(node.ReadSize("group_size", &group_size_));
  for (int type = 0; type < kIntegerTypes; ++type) {
    kernels_[type] = ChooseDequantize(Selected().isa, static_cast<IntegerType>(type));
  }
  return nullptr;
}

OrtStatus* FpDequantize::Compute(OrtKernelContext* context) const {
  Tensor q;
  Tensor scale;
  FP4DIT_RETURN_IF_ERROR(ReadInput(node_, context, 0, "q", &q));
  FP4DIT_RETURN_IF_ERROR(ReadInput(node_, context, 1, "scale", &scale));
  const IntegerType type = IntegerTypeOfTensor(q.type);
  if (type == kIntegerTypes) {
    return node_.Fail("input 'q' is %s, wanted int8, int16 or float", TypeName(q.type));
  }
  if (scale.type != ort::kFloat && scale.type != ort::kFloat16) {
    return node_.Fail("input 'scale' is %s, wanted float or float16", TypeName(scale.type));
  }
  if (q.rank == 0) return node_.Fail("input 'q' is a scalar, wanted at least one dimension");
  const size_t k = q.Last();
  const size_t group = group_size_;
  const size_t groups = k / group + (k % group != 0 ? 1 : 0);
  FP4DIT_RETURN_IF_ERROR(CheckLast(node_, scale, groups, "groups"));
  size_t stride = 0;
  FP4DIT_RETURN_IF_ERROR(CheckScaleRows(node_, q, scale, &stride));
  void* y = nullptr;
  FP4DIT_RETURN_IF_ERROR(MakeOutput(node_, context, 0, q.dims, q.rank, &y));
  if (q.count == 0) return nullptr;
  Count(kCountFpDequantize, type, kernels_[type].isa);
  const size_t size = TypeSize(q.type);
  const auto rows = [&](size_t begin, size_t end) {
    for (size_t r = begin; r < end; ++r) {
      for (size_t g = 0; g < groups; ++g) {
        const size_t at = r * k + g * group;
        const size_t left = k - g * group;
        kernels_[type].run(q.As<uint8_t>() + at * size, left < group ? left : group,
                           ScaleAt(scale, r * stride + g), static_cast<float*>(y) + at);
      }
    }
  };
  return ParallelFor(node_.api, context, q.Rows(), kPieceElements / k + 1, rows);
}

void FpDequantize::InferShapes(const ShapeInference& inference) {
  inference.SetOutput(0, ort::kFloat, inference.Input(0));
}

FP4DIT_DEFINE_OP(FpDequantize)

}  // namespace fp4dit
