#include "core/tensor.h"

#include <cstdio>

namespace fp4dit {
namespace {

// Fills rank, dims and count.
OrtStatus* ReadShape(const Node& node, const OrtTensorTypeAndShapeInfo* info, Tensor* tensor) {
  FP4DIT_RETURN_IF_ERROR(node.api->GetTensorElementType()(info, &tensor->type));
  FP4DIT_RETURN_IF_ERROR(node.api->GetDimensionsCount()(info, &tensor->rank));
  if (tensor->rank > kMaxRank) {
    const size_t rank = tensor->rank;
    tensor->rank = 0;
    return node.Fail("input '%s' has %zu dimensions, wanted at most %zu", tensor->name, rank,
                     kMaxRank);
  }
  FP4DIT_RETURN_IF_ERROR(node.api->GetDimensions()(info, tensor->dims, tensor->rank));
  size_t count = 1;
  bool too_large = false;
  for (size_t i = 0; i < tensor->rank; ++i) {
    const uint64_t dim = static_cast<uint64_t>(tensor->dims[i]);
    // No size below overflows if sizes of 8-byte elements fit half the address space.
    too_large = too_large || tensor->dims[i] < 0 || (count > 0 && dim > SIZE_MAX / 16 / count);
    count = too_large ? 0 : count * static_cast<size_t>(dim);
  }
  if (too_large) {
    return node.Fail("input '%s' has shape %s, which no tensor can have", tensor->name,
                     ShapeText(*tensor).text);
  }
  tensor->count = count;
  return nullptr;
}

}  // namespace

size_t Tensor::Rows() const {
  size_t rows = 1;
  for (size_t i = 0; i + 1 < rank; ++i) rows *= Dim(i);
  return rows;
}

ShapeText::ShapeText(const Tensor& tensor) {
  size_t used = static_cast<size_t>(std::snprintf(text, sizeof(text), "["));
  for (size_t i = 0; i < tensor.rank && used < sizeof(text); ++i) {
    used += static_cast<size_t>(std::snprintf(text + used, sizeof(text) - used, "%s%lld",
                                              i == 0 ? "" : ", ",
                                              static_cast<long long>(tensor.dims[i])));
  }
  if (used < sizeof(text)) std::snprintf(text + used, sizeof(text) - used, "]");
}

const char* TypeName(ort::ElementType type) {
  switch (type) {
    case ort::kFloat:
      return "float";
    case ort::kUint8:
      return "uint8";
    case ort::kInt8:
      return "int8";
    case ort::kInt16:
      return "int16";
    case ort::kInt64:
      return "int64";
    case ort::kFloat16:
      return "float16";
    default:
      return "of another type";
  }
}

size_t TypeSize(ort::ElementType type) {
  switch (type) {
    case ort::kFloat:
      return 4;
    case ort::kUint8:
    case ort::kInt8:
      return 1;
    case ort::kInt16:
    case ort::kFloat16:
      return 2;
    case ort::kInt64:
      return 8;
    default:
      return 0;
  }
}

OrtStatus* ReadTensor(const Node& node, const OrtValue* value, const char* name, Tensor* tensor) {
  tensor->name = name;
  if (value == nullptr) return node.Fail("input '%s' is not connected", name);
  OrtTensorTypeAndShapeInfo* info = nullptr;
  FP4DIT_RETURN_IF_ERROR(node.api->GetTensorTypeAndShape()(value, &info));
  OrtStatus* const status = ReadShape(node, info, tensor);
  node.api->ReleaseTensorTypeAndShapeInfo()(info);
  if (status != nullptr) return status;
  // The runtime has one function for data to read and to write.
  return node.api->GetTensorMutableData()(const_cast<OrtValue*>(value), &tensor->data);
}

OrtStatus* ReadInput(const Node& node, OrtKernelContext* context, size_t index, const char* name,
                     Tensor* tensor) {
  const OrtValue* value = nullptr;
  FP4DIT_RETURN_IF_ERROR(node.api->KernelContext_GetInput()(context, index, &value));
  return ReadTensor(node, value, name, tensor);
}

OrtStatus* MakeOutput(const Node& node, OrtKernelContext* context, size_t index,
                      const int64_t* dims, size_t rank, void** data) {
  OrtValue* value = nullptr;
  FP4DIT_RETURN_IF_ERROR(node.api->KernelContext_GetOutput()(context, index, dims, rank, &value));
  if (value == nullptr) return node.Fail("output %zu is not connected", index);
  return node.api->GetTensorMutableData()(value, data);
}

OrtStatus* CheckLast(const Node& node, const Tensor& tensor, size_t last, const char* last_name) {
  if (tensor.rank >= 1 && tensor.Last() == last) return nullptr;
  return node.Fail("input '%s' has shape %s, wanted a last dimension of %s = %zu", tensor.name,
                   ShapeText(tensor).text, last_name, last);
}

OrtStatus* CheckScaleRows(const Node& node, const Tensor& q, const Tensor& scale, size_t* stride) {
  const size_t last = scale.Last();
  bool same = scale.rank == q.rank;
  for (size_t i = 0; same && i + 1 < q.rank; ++i) same = scale.dims[i] == q.dims[i];
  *stride = same ? last : 0;
  if (same || (scale.rank <= q.rank && scale.Rows() == 1)) return nullptr;
  return node.Fail(
      "input '%s' has shape %s, wanted one row, or the rows of '%s', which has shape %s",
      scale.name, ShapeText(scale).text, q.name, ShapeText(q).text);
}

}  // namespace fp4dit
