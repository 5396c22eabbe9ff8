#include "ops/fp_unpack.h"

#include "core/counters.h"
#include "core/parallel.h"
#include "cpu/kernels/registry.h"
#include "cpu/packing/packed_weights.h"

namespace fp4dit {
namespace {

// Elements worth handing to another thread.
constexpr size_t kPieceElements = 1 << 15;

}  // namespace

OrtStatus* CheckCodes(const Node& node, const Tensor& codes, const Format& format, size_t k,
                      size_t wide) {
  if (codes.type != ort::kUint8) {
    return node.Fail("input 'codes' is %s, wanted uint8", TypeName(codes.type));
  }
  const size_t bytes = StoredBytes(format, k, wide);
  if (codes.rank != 2 || codes.Last() != bytes) {
    return node.Fail("input 'codes' has shape %s, wanted [N, %zu] for K = %zu codes of format %s",
                     ShapeText(codes).text, bytes, k, format.name);
  }
  const size_t bad = FindBadCode(format, codes.As<uint8_t>(), codes.count);
  if (bad == codes.count) return nullptr;
  return node.Fail("input 'codes' has %d at [%zu, %zu], but format %s has %zu codes",
                   codes.As<uint8_t>()[bad], bad / bytes, bad % bytes, format.name,
                   format.code_count());
}

OrtStatus* ReadWide(const Node& node, const Format& format, size_t k, size_t* wide) {
  size_t signs = 0;
  FP4DIT_RETURN_IF_ERROR(node.ReadSize("wide", wide));
  FP4DIT_RETURN_IF_ERROR(node.ReadSize("signs", &signs));
  if (format.storage_bits == 4 && *wide % 2 == 0 && *wide < k && signs == k - *wide) return nullptr;
  return node.Fail(
      "attributes 'wide' and 'signs' are %zu and %zu, wanted an even number of 4-bit codes, found "
      "format %s, and the rest of K = %zu",
      *wide, signs, format.name, k);
}

OrtStatus* UnpackNode::Read(const Node& the_node, bool signs) {
  node = the_node;
  FP4DIT_RETURN_IF_ERROR(node.CheckInputCount(1));
  FP4DIT_RETURN_IF_ERROR(node.ReadFormat("format", false, &format));
  FP4DIT_RETURN_IF_ERROR(node.CheckGrid(*format));
  FP4DIT_RETURN_IF_ERROR(node.ReadSize("K", &k));
  wide = k;
  if (signs) FP4DIT_RETURN_IF_ERROR(ReadWide(node, *format, k, &wide));
  for (size_t i = 0; i < format->code_count(); ++i) grid[i] = format->GridInteger(i);
  return nullptr;
}

OrtStatus* UnpackNode::Begin(OrtKernelContext* context, Tensor* codes, float** q) const {
  FP4DIT_RETURN_IF_ERROR(ReadInput(node, context, 0, "codes", codes));
  FP4DIT_RETURN_IF_ERROR(CheckCodes(node, *codes, *format, k, wide));
  const int64_t dims[2] = {codes->dims[0], static_cast<int64_t>(k)};
  void* data = nullptr;
  FP4DIT_RETURN_IF_ERROR(MakeOutput(node, context, 0, dims, 2, &data));
  *q = static_cast<float*>(data);
  return nullptr;
}

void UnpackNode::CountCall(size_t isa) const {
  Count(wide < k ? kCountFpUnpackSigns : kCountFpUnpack, kFloatType, isa);
}

void FpUnpackBase::UnpackRow(const uint8_t* codes, float* q) const {
  const auto& [node, format, k, wide, grid] = unpack_;
  if (format->storage_bits == 8) {
    for (size_t i = 0; i < k; ++i) q[i] = grid[codes[i]];
    return;
  }
  for (size_t i = wide; i < k; ++i) {
    const size_t bit = i - wide;
    q[i] = (codes[wide / 2 + bit / 8] >> bit % 8 & 1) != 0 ? -1.0f : 1.0f;
  }
  for (size_t i = 0; i + 1 < wide; i += 2) {
    q[i] = grid[codes[i / 2] & 15];
    q[i + 1] = grid[codes[i / 2] >> 4];
  }
  if (wide % 2 == 1) q[k - 1] = grid[codes[k / 2] & 15];
}

OrtStatus* FpUnpackBase::Compute(OrtKernelContext* context) const {
  Tensor codes;
  float* q = nullptr;
  FP4DIT_RETURN_IF_ERROR(unpack_.Begin(context, &codes, &q));
  if (codes.count == 0) return nullptr;
  size_t isa_count = 0;
  AllIsas(&isa_count);
  unpack_.CountCall(isa_count - 1);
  const size_t k = unpack_.k;
  const size_t bytes = StoredBytes(*unpack_.format, k, unpack_.wide);
  const auto rows = [&](size_t begin, size_t end) {
    for (size_t r = begin; r < end; ++r) UnpackRow(codes.As<uint8_t>() + r * bytes, q + r * k);
  };
  return ParallelFor(unpack_.node.api, context, codes.Dim(0), kPieceElements / k + 1, rows);
}

void FpUnpackBase::InferShapes(const ShapeInference& inference) {
  SymbolicShape shape = inference.Input(0);
  const int64_t k = inference.IntAttribute("K");
  if (shape.rank != 2 || k < 1) return;
  shape.dims[1] = k;
  shape.symbols[1] = "";
  inference.SetOutput(0, ort::kFloat, shape);
}

FP4DIT_DEFINE_OP(FpUnpack)
FP4DIT_DEFINE_OP(FpUnpackSigns)

}  // namespace fp4dit
