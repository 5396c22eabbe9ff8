#include "ops/fp_quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/counters.h"
#include "core/parallel.h"
#include "cpu/packing/packed_weights.h"
#include "ops/fp_hadamard.h"

namespace fp4dit {
namespace {

// Elements of a row, made of x or cut off, that the stack has room for.
constexpr size_t kStackElements = size_t{1} << 13;

constexpr const char* kOpSuffixes[kIntegerTypes] = {"", "Int16", "Float"};
constexpr CountedOp kCounts[Quantizer::kBefores][Quantizer::kKinds] = {
    {kCountFpQuantize, kCountFpHadamardQuantize, kCountFpQuantizeStatic},
    {kCountFpGeluQuantize, kCountFpGeluHadamardQuantize},
    {kCountFpNormQuantize, kCountFpNormHadamardQuantize}};

}  // namespace

IntegerType IntegerTypeOf(const Format& format) {
  if (format.max_integer() <= 127.0f) return kInt8Type;
  return format.max_integer() <= 32767.0f ? kInt16Type : kFloatType;
}

ort::ElementType ElementTypeOf(IntegerType type) {
  return type == kInt8Type ? ort::kInt8 : type == kInt16Type ? ort::kInt16 : ort::kFloat;
}

OrtStatus* ReadRows(const Node& node, OrtKernelContext* context, Tensor* x) {
  FP4DIT_RETURN_IF_ERROR(ReadInput(node, context, 0, "x", x));
  if (x->type != ort::kFloat) {
    return node.Fail("input 'x' is %s, wanted float", TypeName(x->type));
  }
  if (x->rank != 0 && x->Last() != 0) return nullptr;
  return node.Fail("input 'x' has shape %s, wanted a last dimension of at least 1",
                   ShapeText(*x).text);
}

OrtStatus* Quantizer::Read(const Node& the_node, IntegerType the_type, Kind the_kind,
                           Before the_before) {
  node = the_node;
  type = the_type;
  kind = the_kind;
  before = the_before;
  FP4DIT_RETURN_IF_ERROR(node.CheckInputCount(before == kNorm ? 3 : 1));
  if (before == kNorm) {
    FP4DIT_RETURN_IF_ERROR(node.ReadFloat("epsilon", &epsilon));
    if (!(epsilon > 0.0f) || !std::isfinite(epsilon)) {
      return node.Fail("attribute 'epsilon' is %g, wanted a finite number above 0",
                       static_cast<double>(epsilon));
    }
  }
  if (kind == kRotated) FP4DIT_RETURN_IF_ERROR(ReadBlock(node, &block));
  FP4DIT_RETURN_IF_ERROR(node.ReadFormat("format", false, &format));
  if (IntegerTypeOf(*format) != type) {
    return node.Fail("attribute 'format' is '%s', whose integers are %s: wanted op %s%s for it",
                     format->name, TypeName(ElementTypeOf(IntegerTypeOf(*format))),
                     kind == kStatic ? "FpQuantizeStatic" : "FpQuantize",
                     kOpSuffixes[IntegerTypeOf(*format)]);
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
  grid = {format->max_integer(), format->mantissa_bits};
  group_size = SIZE_MAX;
  if (kind == kStatic) {
    FP4DIT_RETURN_IF_ERROR(ReadLargest());
  } else {
    FP4DIT_RETURN_IF_ERROR(node.ReadSizeOr("group_size", SIZE_MAX, &group_size));
    FP4DIT_RETURN_IF_ERROR(ReadCandidates());
  }
  node.info = nullptr;
  return nullptr;
}

OrtStatus* Quantizer::ReadLargest() {
  FP4DIT_RETURN_IF_ERROR(node.ReadFloat("largest", &grid.largest));
  if (grid.largest >= kSmallestAmax && std::isfinite(grid.largest)) return nullptr;
  return node.Fail("attribute 'largest' is %g, wanted a finite number from %g",
                   static_cast<double>(grid.largest), static_cast<double>(kSmallestAmax));
}

// The largest integers that a group's scale may be chosen for: the format's, then smaller ones.
OrtStatus* Quantizer::ReadCandidates() {
  candidates[0] = format->max_integer();
  if (!node.Has("candidates")) return nullptr;
  const auto read = node.api->KernelInfoGetAttributeArray_float();
  size_t count = 0;
  if (OrtStatus* const status = read(node.info, "candidates", nullptr, &count)) {
    node.api->ReleaseStatus()(status);
    return node.Fail("attribute 'candidates' is no list of floats");
  }
  const size_t most = type == kInt8Type ? kMostCandidates : 1;
  if (count < 1 || count > most) {
    return node.Fail("attribute 'candidates' has %zu entries, wanted 1 to %zu", count, most);
  }
  FP4DIT_RETURN_IF_ERROR(read(node.info, "candidates", candidates, &count));
  candidate_count = count;
  for (size_t i = 0; i < count; ++i) {
    bool found = false;
    for (int m = 1; m < format->magnitude_count; ++m) {
      found = found || (candidates[i] == format->magnitudes[m] &&
                        (m + 1 == format->magnitude_count) == (i == 0));
    }
    if (found) continue;
    return node.Fail(
        "attribute 'candidates' has %g at entry %zu, wanted %g first, then smaller integers of "
        "format %s, at least 1",
        static_cast<double>(candidates[i]), i, static_cast<double>(format->max_integer()),
        format->name);
  }
  return nullptr;
}

OrtStatus* Quantizer::ReadBroadcast(OrtKernelContext* context, size_t index, const char* name,
                                    const Tensor& x, Broadcast* rows) const {
  Tensor given;
  FP4DIT_RETURN_IF_ERROR(ReadInput(node, context, index, name, &given));
  if (given.type != ort::kFloat) {
    return node.Fail("input '%s' is %s, wanted float", name, TypeName(given.type));
  }
  bool fits = given.rank >= 1 && given.rank <= x.rank && given.Last() == x.Last();
  int part = 0;  // sizes of one behind those of x, these, or sizes of one before
  *rows = {given.As<float>()};
  for (size_t axis = 1; fits && axis < x.rank; ++axis) {
    const size_t size = x.Dim(x.rank - 1 - axis);
    const size_t own = axis < given.rank ? given.Dim(given.rank - 1 - axis) : 1;
    fits = own == 1 || own == size;
    if (size == 1) continue;
    if (own == size) {
      fits = fits && part < 2;
      part = 1;
      rows->outer *= size;
    } else if (part == 0) {
      rows->inner *= size;
    } else {
      part = 2;
    }
  }
  if (fits) return nullptr;
  return node.Fail("input '%s' has shape %s, wanted one broadcast to %s as a whole", name,
                   ShapeText(given).text, ShapeText(x).text);
}

OrtStatus* Quantizer::Begin(OrtKernelContext* context, Call* call) const {
  Tensor x;
  FP4DIT_RETURN_IF_ERROR(ReadRows(node, context, &x));
  const size_t k = x.Last();
  const size_t size = std::min(k, group_size);
  if (candidate_count > 1 && size > kMostErrors) {
    return node.Fail("groups of %zu have several candidates, wanted groups of at most %zu", size,
                     kMostErrors);
  }
  *call = {x.As<float>(), x.Rows(), k, size, k / size + (k % size != 0 ? 1 : 0)};
  if (before == kNorm) {
    FP4DIT_RETURN_IF_ERROR(ReadBroadcast(context, 1, "gain", x, &call->gain));
    FP4DIT_RETURN_IF_ERROR(ReadBroadcast(context, 2, "shift", x, &call->shift));
  }
  void* data = nullptr;
  FP4DIT_RETURN_IF_ERROR(MakeOutput(node, context, 0, x.dims, x.rank, &data));
  call->q = static_cast<uint8_t*>(data);
  x.dims[x.rank - 1] = static_cast<int64_t>(call->groups);
  FP4DIT_RETURN_IF_ERROR(MakeOutput(node, context, 1, x.dims, x.rank, &data));
  call->scale = static_cast<float*>(data);
  return nullptr;
}

void Quantizer::CountCall(size_t isa) const { Count(kCounts[before][kind], type, isa); }

OrtStatus* FpQuantizeBase::Create(const Node& node, IntegerType type, Kind kind, Before before) {
  FP4DIT_RETURN_IF_ERROR(settings_.Read(node, type, kind, before));
  kernel_ = ChooseQuantize(Selected().isa, type);
  error_ = ChooseError(Selected().isa).run;
  hadamard_ = ChooseHadamard(Selected().isa).run;
  gelu_ = ChooseGelu(Selected().isa).run;
  norm_ = ChooseNorm(Selected().isa).run;
  return nullptr;
}

// The grid whose largest integer costs the least rounding; the earlier of two.
QuantizeGrid FpQuantizeBase::BestGrid(const float* x, size_t k) const {
  QuantizeGrid best = settings_.grid;
  if (settings_.candidate_count == 1) return best;
  int64_t least = error_(x, k, best);
  for (size_t i = 1; i < settings_.candidate_count; ++i) {
    const QuantizeGrid grid = {settings_.candidates[i], settings_.grid.mantissa_bits};
    const int64_t error = error_(x, k, grid);
    const auto largest = static_cast<int64_t>(grid.max_integer);
    const auto best_largest = static_cast<int64_t>(best.max_integer);
    if (error * best_largest * best_largest >= least * largest * largest) continue;
    best = grid;
    least = error;
  }
  return best;
}

// What is quantized in place of the row x; whole matrices at a time, but for the row's rest, so
// that what is between stays in the first cache.
void FpQuantizeBase::MakeRow(const Call& call, size_t row, float* made) const {
  const float* const x = call.x + row * call.k;
  const size_t k = call.k;
  if (settings_.before == Before::kNothing) return hadamard_(x, k, settings_.block, made);
  const bool is_norm = settings_.before == Before::kNorm;
  const float factor = is_norm ? norm_.center(x, k, settings_.epsilon, made) : 1.0f;
  const float* const gain = is_norm ? call.gain.At(row, k) : nullptr;
  const float* const shift = is_norm ? call.shift.At(row, k) : nullptr;
  const auto make = [&](size_t first, size_t count, float* to) {
    if (!is_norm) return gelu_(x + first, count, to);
    norm_.modulate(made + first, factor, gain + first, shift + first, count, to);
  };
  if (settings_.block == 0) return make(0, k, made);
  alignas(64) float part[kMostBlock];
  for (size_t i = 0; i < k; i += kMostBlock) {
    const size_t count = std::min(kMostBlock, k - i);
    make(i, count, part);
    hadamard_(part, count, settings_.block, made + i);
  }
}

// Rows [begin, end); `made` has room for one, if they are not quantized as they are.
void FpQuantizeBase::RunRows(const Call& call, size_t begin, size_t end, float* made) const {
  const size_t element = TypeSize(ElementTypeOf(settings_.type));
  for (size_t r = begin; r < end; ++r) {
    const float* x = call.x + r * call.k;
    if (settings_.kind == Kind::kStatic) {
      RunStaticRow(x, call.k, call.q + r * call.k * element, call.scale + r, made);
      continue;
    }
    if (settings_.MakesRows()) {
      MakeRow(call, r, made);
      x = made;
    }
    for (size_t g = 0; g < call.groups; ++g) {
      const size_t first = g * call.group_size;
      const size_t size = std::min(call.group_size, call.k - first);
      kernel_.run(x + first, size, BestGrid(x + first, size),
                  call.q + (r * call.k + first) * element, call.scale + r * call.groups + g);
    }
  }
}

// One row, as many elements at a time as `cut` has room for. What is not finite stays: one such
// element makes the whole row's scale NaN.
void FpQuantizeBase::RunStaticRow(const float* x, size_t k, uint8_t* q, float* scale,
                                  float* cut) const {
  const size_t element = TypeSize(ElementTypeOf(settings_.type));
  const float most = settings_.grid.largest;
  bool finite = true;
  for (size_t first = 0; first < k && finite; first += kStackElements) {
    const size_t size = std::min(kStackElements, k - first);
    for (size_t i = 0; i < size; ++i) {
      const float value = x[first + i];
      const float magnitude = std::fabs(value);
      const bool beyond = magnitude > most && std::isfinite(magnitude);
      cut[i] = beyond ? std::copysign(most, value) : value;
    }
    kernel_.run(cut, size, settings_.grid, q + first * element, scale);
    finite = !std::isnan(*scale);
  }
  if (!finite) std::memset(q, 0, k * element);
}

OrtStatus* FpQuantizeBase::Compute(OrtKernelContext* context) const {
  Call call;
  FP4DIT_RETURN_IF_ERROR(settings_.Begin(context, &call));
  if (call.rows == 0) return nullptr;
  settings_.CountCall(kernel_.isa);
  const size_t k = call.k;
  if (settings_.MakesRows() && k > kStackElements) {  // longer than any layer's
    AlignedBuffer made;
    if (k > SIZE_MAX / sizeof(float) || !made.Allocate(k * sizeof(float))) {
      return settings_.node.Fail("there is no memory for a row of K = %zu", k);
    }
    RunRows(call, 0, call.rows, reinterpret_cast<float*>(made.data()));
    return nullptr;
  }
  const auto rows = [&](size_t begin, size_t end) {
    alignas(64) float made[kStackElements];
    RunRows(call, begin, end, made);
  };
  return ParallelFor(settings_.node.api, context, call.rows, kPieceElements / k + 1, rows);
}

void InferQuantizeShapes(const ShapeInference& inference, ort::ElementType type) {
  SymbolicShape shape = inference.Input(0);
  if (shape.rank == 0) return;
  inference.SetOutput(0, type, shape);
  const int64_t group_size = inference.IntAttribute("group_size");
  const int64_t k = shape.dims[shape.rank - 1];
  // Of a size that is not known, neither is the number of groups.
  shape.dims[shape.rank - 1] = group_size < 1 ? 1 : k > 0 ? (k - 1) / group_size + 1 : -1;
  shape.symbols[shape.rank - 1] = "";
  inference.SetOutput(1, ort::kFloat, shape);
}

FP4DIT_DEFINE_OP(FpQuantize)
FP4DIT_DEFINE_OP(FpQuantizeInt16)
FP4DIT_DEFINE_OP(FpQuantizeFloat)
FP4DIT_DEFINE_OP(FpHadamardQuantize)
FP4DIT_DEFINE_OP(FpGeluQuantize)
FP4DIT_DEFINE_OP(FpGeluQuantizeInt16)
FP4DIT_DEFINE_OP(FpGeluHadamardQuantize)
FP4DIT_DEFINE_OP(FpNormQuantize)
FP4DIT_DEFINE_OP(FpNormQuantizeInt16)
FP4DIT_DEFINE_OP(FpNormHadamardQuantize)
FP4DIT_DEFINE_OP(FpQuantizeStatic)
FP4DIT_DEFINE_OP(FpQuantizeStaticInt16)
FP4DIT_DEFINE_OP(FpQuantizeStaticFloat)

}  // namespace fp4dit
