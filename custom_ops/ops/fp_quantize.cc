#include "ops/fp_quantize.h"

#include "core/counters.h"
#include "core/parallel.h"

namespace fp4dit {
namespace {

// Elements worth handing to another thread.
constexpr size_t kPieceElements = 1 << 15;

constexpr const char* kOpNames[kIntegerTypes] = {"FpQuantize", "FpQuantizeInt16",
                                                 "FpQuantizeFloat"};

}  // namespace

IntegerType IntegerTypeOf(const Format& format) {
  if (format.max_integer() <= 127.0f) return kInt8Type;
  return format.max_integer() <= 32767.0f ? kInt16Type : kFloatType;
}

ort::ElementType ElementTypeOf(IntegerType type) {
  return type == kInt8Type ? ort::kInt8 : type == kInt16Type ? ort::kInt16 : ort::kFloat;
}

OrtStatus* FpQuantizeBase::Create(const Node& node, IntegerType type) {
  node_ = node;
  type_ = type;
  FP4DIT_RETURN_IF_ERROR(node.CheckInputCount(1));
  const Format* format = nullptr;
  FP4DIT_RETURN_IF_ERROR(node.ReadFormat("format", false, &format));
  if (IntegerTypeOf(*format) != type) {
    return node.Fail("attribute 'format' is '%s', whose integers are %s: wanted op %s for it",
                     format->name, TypeName(ElementTypeOf(IntegerTypeOf(*format))),
                     kOpNames[IntegerTypeOf(*format)]);
  }
  int64_t mantissa_bits = 0;
  FP4DIT_RETURN_IF_ERROR(node.ReadInt("mantissa_bits", &mantissa_bits));
  if (mantissa_bits != format->mantissa_bits) {
    return node.Fail("attribute 'mantissa_bits' is %lld, wanted %d for format %s",
                     static_cast<long long>(mantissa_bits), format->mantissa_bits, format->name);
  }
  float max = 0.0f;
  FP4DIT_RETURN_IF_ERROR(node.ReadFloat("max", &max));
  if (max != format->max_integer()) {
    return node.Fail("attribute 'max' is %g, wanted %g for format %s", static_cast<double>(max),
                     static_cast<double>(format->max_integer()), format->name);
  }
  grid_ = {format->max_integer(), format->mantissa_bits};
  kernel_ = ChooseQuantize(Selected().isa, type);
  return nullptr;
}

OrtStatus* FpQuantizeBase::Compute(OrtKernelContext* context) const {
  Tensor x;
  FP4DIT_RETURN_IF_ERROR(ReadInput(node_, context, 0, "x", &x));
  if (x.type != ort::kFloat) {
    return node_.Fail("input 'x' is %s, wanted float", TypeName(x.type));
  }
  if (x.rank == 0 || x.Last() == 0) {
    return node_.Fail("input 'x' has shape %s, wanted a last dimension of at least 1",
                      ShapeText(x).text);
  }
  const size_t k = x.Last();
  void* q = nullptr;
  void* scale = nullptr;
  FP4DIT_RETURN_IF_ERROR(MakeOutput(node_, context, 0, x.dims, x.rank, &q));
  int64_t dims[kMaxRank];
  for (size_t i = 0; i < x.rank; ++i) dims[i] = i + 1 < x.rank ? x.dims[i] : 1;
  FP4DIT_RETURN_IF_ERROR(MakeOutput(node_, context, 1, dims, x.rank, &scale));
  if (x.count == 0) return nullptr;
  Count(kCountFpQuantize, type_, kernel_.isa);
  const size_t row_bytes = k * TypeSize(ElementTypeOf(type_));
  const auto rows = [&](size_t begin, size_t end) {
    for (size_t r = begin; r < end; ++r) {
      kernel_.run(x.As<float>() + r * k, k, grid_, static_cast<uint8_t*>(q) + r * row_bytes,
                  static_cast<float*>(scale) + r);
    }
  };
  return ParallelFor(node_.api, context, x.Rows(), kPieceElements / k + 1, rows);
}

void InferQuantizeShapes(const ShapeInference& inference, ort::ElementType type) {
  SymbolicShape shape = inference.Input(0);
  if (shape.rank == 0) return;
  inference.SetOutput(0, type, shape);
  shape.dims[shape.rank - 1] = 1;
  shape.symbols[shape.rank - 1] = "";
  inference.SetOutput(1, ort::kFloat, shape);
}

FP4DIT_DEFINE_OP(FpQuantize)
FP4DIT_DEFINE_OP(FpQuantizeInt16)
FP4DIT_DEFINE_OP(FpQuantizeFloat)

}  // namespace fp4dit
