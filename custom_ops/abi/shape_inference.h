// Output shapes while the graph is loaded. An error is never raised here: what cannot be inferred
// is left open, and the kernel says what is wrong when it is created or run.

#ifndef FP4DIT_ABI_SHAPE_INFERENCE_H_
#define FP4DIT_ABI_SHAPE_INFERENCE_H_

#include <cstddef>
#include <cstdint>

#include "abi/ort_abi.h"
#include "core/tensor.h"

namespace fp4dit {

struct SymbolicShape {
  size_t rank = 0;  // 0: not known, or a scalar, which no op of ours takes
  int64_t dims[kMaxRank] = {};
  const char* symbols[kMaxRank] = {};  // "" for a known size
};

class ShapeInference {
 public:
  ShapeInference(const ort::Api* api, OrtShapeInferContext* context)
      : api_(api), context_(context) {}

  SymbolicShape Input(size_t index) const;
  // An integer attribute, or -1.
  int64_t IntAttribute(const char* name) const;
  // Leaves the output open if the rank or a dimension is neither known nor named.
  void SetOutput(size_t index, ort::ElementType type, SymbolicShape shape) const;

 private:
  bool Succeeded(OrtStatus* status) const;

  const ort::Api* api_;
  OrtShapeInferContext* context_;
};

}  // namespace fp4dit

#endif  // FP4DIT_ABI_SHAPE_INFERENCE_H_
