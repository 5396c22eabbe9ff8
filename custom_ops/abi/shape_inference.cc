#include "abi/shape_inference.h"

namespace fp4dit {

bool ShapeInference::Succeeded(OrtStatus* status) const {
  if (status == nullptr) return true;
  api_->ReleaseStatus()(status);
  return false;
}

SymbolicShape ShapeInference::Input(size_t index) const {
  OrtTensorTypeAndShapeInfo* info = nullptr;  // the context keeps it
  size_t rank = 0;
  SymbolicShape shape;
  if (!Succeeded(api_->ShapeInferContext_GetInputTypeShape()(context_, index, &info)) ||
      info == nullptr || !Succeeded(api_->GetDimensionsCount()(info, &rank)) || rank > kMaxRank ||
      !Succeeded(api_->GetDimensions()(info, shape.dims, rank)) ||
      !Succeeded(api_->GetSymbolicDimensions()(info, shape.symbols, rank))) {
    return {};
  }
  for (size_t i = 0; i < rank; ++i) {
    if (shape.dims[i] >= 0 || shape.symbols[i] == nullptr) shape.symbols[i] = "";
  }
  shape.rank = rank;
  return shape;
}

int64_t ShapeInference::IntAttribute(const char* name) const {
  const OrtOpAttr* attribute = nullptr;
  int64_t value = -1;
  size_t size = 0;
  if (!Succeeded(api_->ShapeInferContext_GetAttribute()(context_, name, &attribute)) ||
      attribute == nullptr ||
      !Succeeded(api_->ReadOpAttr()(attribute, ort::kIntAttribute, &value, sizeof(value), &size))) {
    return -1;
  }
  return value;
}

void ShapeInference::SetOutput(size_t index, ort::ElementType type, SymbolicShape shape) const {
  for (size_t i = 0; i < shape.rank; ++i) {
    if (shape.dims[i] < 0 && shape.symbols[i][0] == '\0') return;
  }
  OrtTensorTypeAndShapeInfo* info = nullptr;
  if (shape.rank == 0 || !Succeeded(api_->CreateTensorTypeAndShapeInfo()(&info))) return;
  const bool ready = Succeeded(api_->SetTensorElementType()(info, type)) &&
                     Succeeded(api_->SetDimensions()(info, shape.dims, shape.rank)) &&
                     Succeeded(api_->SetSymbolicDimensions()(info, shape.symbols, shape.rank));
  if (ready) Succeeded(api_->ShapeInferContext_SetOutputTypeShape()(context_, index, info));
  api_->ReleaseTensorTypeAndShapeInfo()(info);
}

}  // namespace fp4dit
