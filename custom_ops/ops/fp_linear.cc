#include "ops/fp_linear.h"

#include <algorithm>
#include <cmath>

#include "core/counters.h"
#include "core/page_out.h"
#include "ops/fp_quantize.h"
#include "ops/fp_unpack.h"

namespace fp4dit {
namespace {

enum Input : size_t { kQ, kScale, kCodes };
}  // namespace

struct FpLinearBase::Weights {
  Tensor codes, multipliers, scale, bias;
};

OrtStatus* FpLinearBase::Create(const Node& node, bool multiplied, bool signs) {
  node_ = node;
  multiplied_ = multiplied;
  signs_ = signs;
  FP4DIT_RETURN_IF_ERROR(node_.CheckInputCount(InputCount()));
  FP4DIT_RETURN_IF_ERROR(ReadAttributes());
  FP4DIT_RETURN_IF_ERROR(CheckAccumulator());
  // Where multipliers do not suit a kernel's blocks the weights become bytes.
  chosen_ = ChooseLinear(Selected().isa, kind_, multiplied_ ? kBytes : StorageOf(*weight_format_));
  FP4DIT_RETURN_IF_ERROR(PackConstants());
  node_.info = nullptr;
  return nullptr;
}

size_t FpLinearBase::InputCount() const { return multiplied_ ? 6 : 5; }

// Input `index`, from kCodes on, and its name.
Tensor* FpLinearBase::WeightInput(size_t index, Weights* weights, const char** name) const {
  static constexpr const char* kPlain[] = {"codes", "weight_scale", "bias"};
  static constexpr const char* kMultiplied[] = {"codes", "multipliers", "channel_scale", "bias"};
  *name = multiplied_ ? kMultiplied[index - kCodes] : kPlain[index - kCodes];
  Tensor* const all[] = {&weights->codes, &weights->multipliers, &weights->scale, &weights->bias};
  return all[index == kCodes || multiplied_ ? index - kCodes : index - kCodes + 1];
}

OrtStatus* FpLinearBase::ReadAttributes() {
  FP4DIT_RETURN_IF_ERROR(node_.ReadFormat("act_format", true, &act_format_));
  FP4DIT_RETURN_IF_ERROR(node_.ReadFormat("weight_format", false, &weight_format_));
  FP4DIT_RETURN_IF_ERROR(node_.CheckGrid(*weight_format_));
  FP4DIT_RETURN_IF_ERROR(node_.ReadSize("K", &k_));
  FP4DIT_RETURN_IF_ERROR(node_.ReadSize("group_size", &group_size_));
  FP4DIT_RETURN_IF_ERROR(ReadActGroup());
  wide_ = k_;
  if (signs_) FP4DIT_RETURN_IF_ERROR(ReadWide(node_, *weight_format_, k_, &wide_));
  group_size_ = std::min(group_size_, k_);
  act_group_ = std::min(act_group_, k_);
  const char* const name = act_format_ == nullptr ? "" : act_format_->name;
  if (multiplied_ && (act_format_ == nullptr || IntegerTypeOf(*act_format_) != kInt8Type ||
                      IntegerTypeOf(*weight_format_) != kInt8Type)) {
    return node_.Fail(
        "attributes 'act_format' and 'weight_format' are '%s' and '%s', wanted formats whose "
        "integers are int8",
        name, weight_format_->name);
  }
  if (multiplied_) FP4DIT_RETURN_IF_ERROR(CheckGroups());
  kind_ = kDotFloat;
  if (act_format_ == nullptr || IntegerTypeOf(*act_format_) == kFloatType) return nullptr;
  const IntegerType weight = IntegerTypeOf(*weight_format_);
  if (weight == kFloatType) {
    return node_.Fail(
        "attribute 'weight_format' is '%s', whose integers need float activations: "
        "wanted act_format '' or a format as wide, found '%s'",
        weight_format_->name, name);
  }
  const bool narrow = IntegerTypeOf(*act_format_) == kInt8Type && weight == kInt8Type;
  kind_ = narrow ? kDotInt8 : kDotInt16;
  return nullptr;
}

// What the body takes from an attribute of its own.
OrtStatus* FpLinearBase::CheckGroups() const {
  const size_t wanted = k_ / group_size_ + (k_ % group_size_ != 0 ? 1 : 0);
  size_t found = 0;
  FP4DIT_RETURN_IF_ERROR(node_.ReadSizeOr("groups", wanted, &found));
  if (found == wanted) return nullptr;
  return node_.Fail("attribute 'groups' is %zu, wanted %zu: groups of %zu in K = %zu", found,
                    wanted, group_size_, k_);
}

// Groups of activations must be cut where those of weights are, or these where those are.
OrtStatus* FpLinearBase::ReadActGroup() {
  FP4DIT_RETURN_IF_ERROR(node_.ReadSizeOr("act_group_size", k_, &act_group_));
  const bool nested = group_size_ % act_group_ == 0 || act_group_ % group_size_ == 0;
  if (multiplied_ || nested || std::max(group_size_, act_group_) >= k_) return nullptr;
  return node_.Fail(
      "attributes 'group_size' and 'act_group_size' are %zu and %zu, wanted one that is a multiple "
      "of the other, or at least K = %zu",
      group_size_, act_group_, k_);
}

OrtStatus* FpLinearBase::CheckAccumulator() const {
  if (kind_ == kDotFloat) return nullptr;
  // With multipliers weights may be any int8, and all of a row has one scale.
  const Format* weight = multiplied_ ? FindFormat("int8") : weight_format_;
  const size_t size = std::min(multiplied_ ? k_ : group_size_, act_group_);
  const double most_act = static_cast<double>(act_format_->max_integer());
  const double most_weight = static_cast<double>(weight->max_integer());
  const double largest = LargestSum(kind_, most_act, most_weight, size);
  if (largest < kSumLimit) return nullptr;
  return node_.Fail(
      "a group of %zu products of %s and %s can reach %.0f, wanted less than 2^31: "
      "use %s of at most %.0f",
      size, act_format_->name, weight->name, largest,
      multiplied_ ? "an act_group_size" : "a group_size",
      std::floor((kSumLimit - 1) / LargestSum(kind_, most_act, most_weight, 1)));
}

OrtStatus* FpLinearBase::PackConstants() {
  Weights weights;
  for (size_t i = kCodes; i < InputCount(); ++i) {
    const char* name = nullptr;
    Tensor* const tensor = WeightInput(i, &weights, &name);
    int is_constant = 0;
    const OrtValue* value = nullptr;
    FP4DIT_RETURN_IF_ERROR(
        node_.api->KernelInfoGetConstantInput_tensor()(node_.info, i, &is_constant, &value));
    if (is_constant == 0 || value == nullptr) return nullptr;
    FP4DIT_RETURN_IF_ERROR(ReadTensor(node_, value, name, tensor));
  }
  is_constant_ = true;
  constant_n_ = weights.codes.rank == 2 ? weights.codes.Dim(0) : 0;
  FP4DIT_RETURN_IF_ERROR(Pack(weights, &packed_));
  // The runtime keeps them, and nobody reads them any more.
  PageOut(weights.codes.data, weights.codes.count);
  return nullptr;
}

OrtStatus* FpLinearBase::CheckWeights(const Weights& weights, const WeightSource& source) const {
  const Tensor& scale = weights.scale;
  const char* const name = multiplied_ ? "channel_scale" : "weight_scale";
  if (scale.type != ort::kFloat && scale.type != ort::kFloat16) {
    return node_.Fail("input '%s' is %s, wanted float or float16", name, TypeName(scale.type));
  }
  if (multiplied_ && (scale.rank != 1 || scale.Dim(0) != source.n)) {
    return node_.Fail("input 'channel_scale' has shape %s, wanted [%zu]: N of 'codes'",
                      ShapeText(scale).text, source.n);
  }
  if (!multiplied_ &&
      (scale.rank != 2 || scale.Dim(0) != source.n || scale.Last() != source.groups())) {
    return node_.Fail(
        "input 'weight_scale' has shape %s, wanted [%zu, %zu]: N of 'codes', and "
        "groups of %zu in K = %zu",
        ShapeText(scale).text, source.n, source.groups(), group_size_, k_);
  }
  if (weights.bias.type != ort::kFloat) {
    return node_.Fail("input 'bias' is %s, wanted float", TypeName(weights.bias.type));
  }
  if (weights.bias.rank != 1 || weights.bias.Dim(0) != source.n) {
    return node_.Fail("input 'bias' has shape %s, wanted [%zu]: N of 'codes'",
                      ShapeText(weights.bias).text, source.n);
  }
  return multiplied_ ? CheckMultipliers(weights.multipliers, source) : nullptr;
}

OrtStatus* FpLinearBase::CheckMultipliers(const Tensor& multipliers,
                                          const WeightSource& source) const {
  const size_t bytes = (source.groups() + 1) / 2;
  if (multipliers.type != ort::kUint8) {
    return node_.Fail("input 'multipliers' is %s, wanted uint8", TypeName(multipliers.type));
  }
  if (multipliers.rank != 2 || multipliers.Dim(0) != source.n || multipliers.Last() != bytes) {
    return node_.Fail(
        "input 'multipliers' has shape %s, wanted [%zu, %zu]: N of 'codes', and two a byte of "
        "groups of %zu in K = %zu",
        ShapeText(multipliers).text, source.n, bytes, group_size_, k_);
  }
  const double integer = static_cast<double>(weight_format_->max_integer());
  const int32_t largest = source.LargestMultiplier();
  if (integer * largest <= 127.0) return nullptr;
  return node_.Fail(
      "input 'multipliers' has a %d, and %d times %g, the largest integer of %s, is no int8: "
      "wanted at most %.0f",
      largest, largest, integer, weight_format_->name, std::floor(127.0 / integer));
}

OrtStatus* FpLinearBase::Pack(const Weights& weights, PackedWeights* packed) const {
  FP4DIT_RETURN_IF_ERROR(CheckCodes(node_, weights.codes, *weight_format_, k_, wide_));
  const WeightSource source = {weight_format_,
                               weights.codes.Dim(0),
                               k_,
                               group_size_,
                               weights.codes.As<uint8_t>(),
                               weights.scale.data,
                               weights.scale.type == ort::kFloat16,
                               weights.bias.As<float>(),
                               weights.multipliers.As<uint8_t>(),
                               act_group_,
                               wide_};
  FP4DIT_RETURN_IF_ERROR(CheckWeights(weights, source));
  switch (packed->Pack(source, chosen_.kernel->layout)) {
    case PackResult::kDone:
      return nullptr;
    case PackResult::kNoMemory:
      return node_.Fail("there is no memory to pack its weights");
    default:
      return node_.Fail("its weights are too large for this machine's addresses");
  }
}

OrtStatus* FpLinearBase::CheckActivations(const Tensor& q, const Tensor& scale,
                                          size_t* scale_stride) const {
  const IntegerType type = act_format_ == nullptr ? kFloatType : IntegerTypeOf(*act_format_);
  if (q.type != ElementTypeOf(type)) {
    return node_.Fail("input 'q' is %s, wanted %s for act_format '%s'", TypeName(q.type),
                      TypeName(ElementTypeOf(type)),
                      act_format_ == nullptr ? "" : act_format_->name);
  }
  FP4DIT_RETURN_IF_ERROR(CheckLast(node_, q, k_, "K"));
  if (scale.type != ort::kFloat) {
    return node_.Fail("input 'scale' is %s, wanted float", TypeName(scale.type));
  }
  const size_t scales = k_ / act_group_ + (k_ % act_group_ != 0 ? 1 : 0);
  FP4DIT_RETURN_IF_ERROR(
      CheckLast(node_, scale, scales, scales == 1 ? "one scale per row" : "groups in K"));
  return CheckScaleRows(node_, q, scale, scale_stride);
}

OrtStatus* FpLinearBase::Compute(OrtKernelContext* context) const {
  Call call = {};
  PackedWeights packed_now;
  FP4DIT_RETURN_IF_ERROR(ReadInput(node_, context, kQ, "q", &call.q));
  FP4DIT_RETURN_IF_ERROR(ReadInput(node_, context, kScale, "scale", &call.scale));
  FP4DIT_RETURN_IF_ERROR(CheckActivations(call.q, call.scale, &call.scale_stride));
  call.weights = &packed_;
  call.n = constant_n_;
  if (!is_constant_) {
    Weights weights;
    for (size_t i = kCodes; i < InputCount(); ++i) {
      const char* name = nullptr;
      Tensor* const tensor = WeightInput(i, &weights, &name);
      FP4DIT_RETURN_IF_ERROR(ReadInput(node_, context, i, name, tensor));
    }
    FP4DIT_RETURN_IF_ERROR(Pack(weights, &packed_now));
    call.weights = &packed_now;
    call.n = weights.codes.Dim(0);
  }
  int64_t dims[kMaxRank];
  for (size_t i = 0; i < call.q.rank; ++i) dims[i] = call.q.dims[i];
  dims[call.q.rank - 1] = static_cast<int64_t>(call.n);
  void* y = nullptr;
  FP4DIT_RETURN_IF_ERROR(MakeOutput(node_, context, 0, dims, call.q.rank, &y));
  call.y = static_cast<float*>(y);
  if (call.q.Rows() == 0 || call.n == 0) return nullptr;
  Count(signs_        ? kCountFpLinearSigns
        : multiplied_ ? kCountFpLinearInteger
                      : kCountFpLinear,
        kind_, chosen_.isa);
  return Run(context, call);
}

void FpLinearBase::InferShapes(const ShapeInference& inference) {
  SymbolicShape shape = inference.Input(kQ);
  const SymbolicShape codes = inference.Input(kCodes);
  if (shape.rank == 0 || codes.rank != 2) return;
  shape.dims[shape.rank - 1] = codes.dims[0];
  shape.symbols[shape.rank - 1] = codes.symbols[0];
  inference.SetOutput(0, ort::kFloat, shape);
}

FP4DIT_DEFINE_OP(FpLinear)
FP4DIT_DEFINE_OP(FpLinearInteger)
FP4DIT_DEFINE_OP(FpLinearSigns)

}  // namespace fp4dit
