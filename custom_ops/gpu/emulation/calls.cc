// What the tests call: an operator's host side, then its kernels, emulated.

#include <vector>

#include "gpu/attention.h"
#include "gpu/emulation/emulate.h"
#include "gpu/linear.h"
#include "gpu/quantize.h"

namespace {

using namespace fp4dit;
using namespace fp4dit::gpu;

const char* Emulate(const Launch& launch, uint32_t seed) {
  if (launch.blocks == 0) return nullptr;
  Launch copy = launch;
  void* parameters[] = {copy.argument};
  return fp4dit_emulate(copy.kernel, copy.blocks, copy.threads, copy.shared_bytes, parameters,
                        seed);
}

// Memory that starts as garbage, and knows whether somebody wrote beyond it.
class Guarded {
 public:
  explicit Guarded(size_t size) : size_(size), bytes_(size + kGuard, kGarbage) {}
  uint8_t* data() { return bytes_.data(); }
  const char* Error() const {
    for (size_t i = size_; i < bytes_.size(); ++i) {
      if (bytes_[i] != kGarbage) return "a write beyond scratch memory";
    }
    return nullptr;
  }

 private:
  static constexpr size_t kGuard = 4096;
  static constexpr uint8_t kGarbage = 0xA5;
  size_t size_;
  std::vector<uint8_t> bytes_;
};

}  // namespace

extern "C" {

const char* fp4dit_test_quantize(const char* format, size_t rows, size_t k, size_t group_size,
                                 float largest, const float* candidates, size_t candidate_count,
                                 const float* x, void* q, float* scale, uint32_t seed) {
  QuantizeCall call = {};
  call.format = FindFormat(format);
  call.rows = rows;
  call.k = k;
  call.group_size = group_size;
  call.largest = largest;
  call.candidates = candidates;
  call.candidate_count = candidate_count;
  call.x = x;
  call.q = q;
  call.scale = scale;
  return Emulate(PlanQuantize(call), seed);
}

// `act` is an IntegerType; `multipliers` may be null, and `act_group`, `wide` the largest size.
// `path` is a LinearPath, or -1 for the one that is chosen, and becomes the one that was taken.
const char* fp4dit_test_linear(const char* format, size_t n, size_t k, size_t group_size,
                               const uint8_t* codes, const void* scales, int scales_are_half,
                               const float* bias, const uint8_t* multipliers, size_t act_group,
                               size_t wide, int act, const void* q, const float* scale,
                               size_t scale_stride, size_t rows, float* y, int arch, int* path,
                               uint32_t seed) {
  const WeightSource source = {FindFormat(format),   n,    k,           group_size, codes, scales,
                               scales_are_half != 0, bias, multipliers, act_group,  wide};
  LinearWeights weights;
  if (weights.Pack(source, static_cast<IntegerType>(act)) != PackResult::kDone) {
    return "the weights cannot be packed";
  }
  LinearCall call = {q, scale, scale_stride, rows, y, weights.bytes(), {}, nullptr};
  const Gpu gpu = {arch, 16};
  call.way = *path < 0 ? weights.Choose(rows, gpu)
                       : weights.WayOf(static_cast<LinearPath>(*path), rows, gpu);
  if (*path < 0 && call.way.scratch_bytes > weights.MostScratchBytes(gpu)) {
    return "more scratch memory than is reserved";
  }
  *path = call.way.path;
  Guarded scratch(call.way.scratch_bytes);
  call.scratch = scratch.data();
  Launch launches[kMostLaunches];
  weights.Plan(call, launches);
  for (const Launch& launch : launches) {
    if (const char* error = Emulate(launch, seed)) return error;
  }
  return scratch.Error();
}

const char* fp4dit_test_attention(int type, size_t value_group, size_t batch, size_t queries,
                                  size_t keys, size_t heads, size_t size, const void* q,
                                  const float* q_scale, const void* k, const float* k_scale,
                                  const void* v, const float* v_scale, const float* bias,
                                  int bias_by_batch, int bias_by_key, float attention_scale,
                                  float* y, uint32_t seed) {
  AttentionCall call = {};
  call.q = q;
  call.k = k;
  call.v = v;
  call.q_scale = q_scale;
  call.k_scale = k_scale;
  call.v_scale = v_scale;
  call.bias = bias;
  call.y = y;
  call.batch = batch;
  call.queries = queries;
  call.keys = keys;
  call.heads = heads;
  call.size = size;
  call.bias_by_batch = bias_by_batch != 0;
  call.bias_by_key = bias_by_key != 0;
  call.attention_scale = attention_scale;
  call.type = static_cast<IntegerType>(type);
  call.value_group = value_group;
  return Emulate(PlanAttention(call), seed);
}

}  // extern "C"
