// What the tests call: an operator's host side, then its kernels, emulated.

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
const char* fp4dit_test_linear(const char* format, size_t n, size_t k, size_t group_size,
                               const uint8_t* codes, const void* scales, int scales_are_half,
                               const float* bias, const uint8_t* multipliers, size_t act_group,
                               size_t wide, int act, const void* q, const float* scale,
                               size_t scale_stride, size_t rows, float* y, uint32_t seed) {
  const WeightSource source = {FindFormat(format),   n,    k,           group_size, codes, scales,
                               scales_are_half != 0, bias, multipliers, act_group,  wide};
  LinearWeights weights;
  if (weights.Pack(source, static_cast<IntegerType>(act)) != PackResult::kDone) {
    return "the weights cannot be packed";
  }
  return Emulate(weights.Plan({q, scale, scale_stride, rows, y, weights.bytes()}), seed);
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
