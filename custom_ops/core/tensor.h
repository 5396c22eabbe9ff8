// Tensors of the runtime, looked at and checked.

#ifndef FP4DIT_CORE_TENSOR_H_
#define FP4DIT_CORE_TENSOR_H_

#include <cstddef>
#include <cstdint>

#include "abi/ort_abi.h"
#include "core/node.h"

namespace fp4dit {

constexpr size_t kMaxRank = 8;

struct Tensor {
  const char* name = "";  // of the op's input
  void* data = nullptr;
  ort::ElementType type = ort::kUndefined;
  size_t rank = 0;
  int64_t dims[kMaxRank] = {};
  size_t count = 0;  // of elements

  // Size of dimension `axis` < rank.
  size_t Dim(size_t axis) const { return static_cast<size_t>(dims[axis]); }
  // Size of the last dimension; rank >= 1.
  size_t Last() const { return Dim(rank - 1); }
  // Elements of all dimensions but the last; rank >= 1.
  size_t Rows() const;
  template <typename T>
  const T* As() const {
    return static_cast<const T*>(data);
  }
};

// "[2, 3]", for messages.
struct ShapeText {
  char text[160];
  explicit ShapeText(const Tensor& tensor);
};

// "float", for messages.
const char* TypeName(ort::ElementType type);
// Bytes of one element of a type that our ops use, else 0.
size_t TypeSize(ort::ElementType type);

// Looks at `value` (null: the input is not connected).
OrtStatus* ReadTensor(const Node& node, const OrtValue* value, const char* name, Tensor* tensor);
// Input `index` of a call.
OrtStatus* ReadInput(const Node& node, OrtKernelContext* context, size_t index, const char* name,
                     Tensor* tensor);
// Output `index` of a call; its data has room for the whole shape.
OrtStatus* MakeOutput(const Node& node, OrtKernelContext* context, size_t index,
                      const int64_t* dims, size_t rank, void** data);

// `tensor` must have rank >= 1, and a last dimension of `last`, named `last_name`.
OrtStatus* CheckLast(const Node& node, const Tensor& tensor, size_t last, const char* last_name);
// `scale` must be one row of scales for all of `q`, or one for each row of it. Gives the rows'
// distance: 0 or the size of scale's last dimension.
OrtStatus* CheckScaleRows(const Node& node, const Tensor& q, const Tensor& scale, size_t* stride);

}  // namespace fp4dit

#endif  // FP4DIT_CORE_TENSOR_H_
