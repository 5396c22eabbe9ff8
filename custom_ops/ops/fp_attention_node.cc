// What FpAttention checks, for every device.

#include <initializer_list>

#include "ops/fp_attention.h"
#include "ops/fp_quantize.h"

namespace fp4dit {
namespace {

using In = AttentionTensors;
constexpr const char* kInputNames[In::kInputCount] = {"q", "q_scale", "k",   "k_scale",
                                                      "v", "v_scale", "bias"};

}  // namespace

OrtStatus* AttentionNode::Read(const Node& the_node) {
  node = the_node;
  FP4DIT_RETURN_IF_ERROR(node.CheckInputCount(In::kInputCount));
  FP4DIT_RETURN_IF_ERROR(node.ReadFormat("format", false, &format));
  FP4DIT_RETURN_IF_ERROR(node.ReadFloat("attention_scale", &attention_scale));
  node.info = nullptr;
  type = IntegerTypeOf(*format);
  if (type == kFloatType) {
    return node.Fail("attribute 'format' is '%s', wanted one whose integers are int8 or int16",
                     format->name);
  }
  // The largest power of two whose sums fit, at most a tile.
  value_group = kKeyTile;
  const auto largest = static_cast<double>(format->max_integer());
  constexpr double kProbability{kProbabilities.max_integer};
  while (LargestSum(kDotInt16, kProbability, largest, value_group) >= kSumLimit) value_group /= 2;
  // Formats that there are keep well within this bound of scores.
  if (LargestSum(kind(), largest, largest, kMaxHeadSize) < kSumLimit) return nullptr;
  return node.Fail("format '%s' is wider than its kernels take", format->name);
}

OrtStatus* AttentionNode::CheckIntegers(const Tensor& q, const Tensor& scale,
                                        const Tensor& like) const {
  if (q.type != ElementTypeOf(type)) {
    return node.Fail("input '%s' is %s, wanted %s for format '%s'", q.name, TypeName(q.type),
                     TypeName(ElementTypeOf(type)), format->name);
  }
  const bool fits = q.rank == 4 && like.rank == 4 && q.dims[0] == like.dims[0] &&
                    q.dims[2] == like.dims[2] && q.dims[3] == like.dims[3];
  if (!fits || q.Dim(3) == 0 || q.Dim(3) > kMaxHeadSize) {
    return node.Fail(
        "input '%s' has shape %s, wanted [batch, tokens, heads, 1 to %zu] as 'q' has "
        "it, which is %s",
        q.name, ShapeText(q).text, kMaxHeadSize, ShapeText(like).text);
  }
  bool scales = scale.type == ort::kFloat && scale.rank == 4 && scale.Dim(3) == 1;
  for (size_t axis = 0; axis < 3; ++axis) scales = scales && scale.dims[axis] == q.dims[axis];
  if (!scales) {
    return node.Fail("input '%s' is %s %s, wanted float, one scale per row of '%s' %s", scale.name,
                     TypeName(scale.type), ShapeText(scale).text, q.name, ShapeText(q).text);
  }
  return nullptr;
}

OrtStatus* AttentionNode::CheckBias(const Tensor& bias, const AttentionTensors& call) const {
  const bool fits = bias.type == ort::kFloat && bias.rank == 4 &&
                    (bias.Dim(0) == 1 || bias.Dim(0) == call.batch) && bias.Dim(1) == 1 &&
                    bias.Dim(2) == 1 && (bias.Dim(3) == 1 || bias.Dim(3) == call.keys);
  if (fits) return nullptr;
  return node.Fail("input 'bias' is %s %s, wanted float [1 or %zu, 1, 1, 1 or %zu]",
                   TypeName(bias.type), ShapeText(bias).text, call.batch, call.keys);
}

OrtStatus* AttentionNode::Begin(OrtKernelContext* context, AttentionTensors* call) const {
  for (size_t i = 0; i < In::kInputCount; ++i) {
    FP4DIT_RETURN_IF_ERROR(ReadInput(node, context, i, kInputNames[i], &call->inputs[i]));
  }
  const Tensor& q = call->inputs[In::kQ];
  for (const size_t i : {In::kQ, In::kK, In::kV}) {
    FP4DIT_RETURN_IF_ERROR(CheckIntegers(call->inputs[i], call->inputs[i + 1], q));
  }
  call->batch = q.Dim(0);
  call->queries = q.Dim(1);
  call->keys = call->inputs[In::kK].Dim(1);
  call->heads = q.Dim(2);
  call->size = q.Dim(3);
  if (call->keys == 0 || call->inputs[In::kV].Dim(1) != call->keys) {
    return node.Fail(
        "inputs 'k' and 'v' have shapes %s and %s, wanted as many tokens, one at least",
        ShapeText(call->inputs[In::kK]).text, ShapeText(call->inputs[In::kV]).text);
  }
  FP4DIT_RETURN_IF_ERROR(CheckBias(call->inputs[In::kBias], *call));
  void* y = nullptr;
  FP4DIT_RETURN_IF_ERROR(MakeOutput(node, context, 0, q.dims, 4, &y));
  call->y = static_cast<float*>(y);
  return nullptr;
}

}  // namespace fp4dit
