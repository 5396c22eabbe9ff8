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

OrtStatus* ReadDequantize(const Node& node, size_t* group_size) {
  FP4DIT_RETURN_IF_ERROR(node.CheckInputCount(2));
  const Format* format = nullptr;
  FP4DIT_RETURN_IF_ERROR(node.ReadFormat("format", false, &format));
  return node.ReadSize("group_size", group_size);
}

OrtStatus* FpDequantize::Create(const Node& node) {
  node_ = node;
  FP4DIT_RETURN_IF_ERROR(ReadDequantize(node, &group_size_));
  for (int type = 0; type < kIntegerTypes; ++type) {
    kernels_[type] = ChooseDequantize(Selected().isa, static_cast<IntegerType>(type));
  }
  return nullptr;
}

OrtStatus* DequantizeCall::Begin(const Node& node, OrtKernelContext* context, size_t group_size) {
  FP4DIT_RETURN_IF_ERROR(ReadInput(node, context, 0, "q", &q));
  FP4DIT_RETURN_IF_ERROR(ReadInput(node, context, 1, "scale", &scale));
  type = IntegerTypeOfTensor(q.type);
  if (type == kIntegerTypes) {
    return node.Fail("input 'q' is %s, wanted int8, int16 or float", TypeName(q.type));
  }
  if (scale.type != ort::kFloat && scale.type != ort::kFloat16) {
    return node.Fail("input 'scale' is %s, wanted float or float16", TypeName(scale.type));
  }
  if (q.rank == 0) return node.Fail("input 'q' is a scalar, wanted at least one dimension");
  groups = q.Last() / group_size + (q.Last() % group_size != 0 ? 1 : 0);
  FP4DIT_RETURN_IF_ERROR(CheckLast(node, scale, groups, "groups"));
  FP4DIT_RETURN_IF_ERROR(CheckScaleRows(node, q, scale, &scale_stride));
  void* data = nullptr;
  FP4DIT_RETURN_IF_ERROR(MakeOutput(node, context, 0, q.dims, q.rank, &data));
  y = static_cast<float*>(data);
  return nullptr;
}

OrtStatus* FpDequantize::Compute(OrtKernelContext* context) const {
  DequantizeCall call = {};
  FP4DIT_RETURN_IF_ERROR(call.Begin(node_, context, group_size_));
  if (call.q.count == 0) return nullptr;
  const Chosen<DequantizeRun>& kernel = kernels_[call.type];
  Count(kCountFpDequantize, call.type, kernel.isa);
  const size_t k = call.q.Last();
  const size_t size = TypeSize(call.q.type);
  const auto rows = [&](size_t begin, size_t end) {
    for (size_t r = begin; r < end; ++r) {
      for (size_t g = 0; g < call.groups; ++g) {
        const size_t at = r * k + g * group_size_;
        const size_t left = k - g * group_size_;
        kernel.run(call.q.As<uint8_t>() + at * size, left < group_size_ ? left : group_size_,
                   ScaleAt(call.scale, r * call.scale_stride + g), call.y + at);
      }
    }
  };
  return ParallelFor(node_.api, context, call.q.Rows(), kPieceElements / k + 1, rows);
}

void FpDequantize::InferShapes(const ShapeInference& inference) {
  inference.SetOutput(0, ort::kFloat, inference.Input(0));
}

FP4DIT_DEFINE_OP(FpDequantize)

}  // namespace fp4dit
