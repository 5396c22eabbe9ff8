#include "gpu/quantize.h"

namespace fp4dit::gpu {
namespace {

constexpr uint32_t kThreads = 256;
constexpr int64_t kWarps = kThreads / 32;
// Groups up to this long are one warp's, where there are enough of them to fill a GPU.
constexpr size_t kWarpElements = 1024;
constexpr size_t kManyGroups = 1024;

const char* KernelFor(const Format& format, bool gelu) {
  const bool is_short = format.max_integer() <= 127.0f;
  if (gelu) return is_short ? "fp4dit_gelu_quantize_int8" : "fp4dit_gelu_quantize_int16";
  if (is_short) return "fp4dit_quantize_int8";
  return format.max_integer() <= 32767.0f ? "fp4dit_quantize_int16" : "fp4dit_quantize_float";
}

}  // namespace

Launch PlanQuantize(const QuantizeCall& call) {
  const size_t groups = call.k / call.group_size + (call.k % call.group_size != 0 ? 1 : 0);
  QuantizeArguments a = {};
  a.x = call.x;
  a.q = call.q;
  a.scale = call.scale;
  a.count = static_cast<int64_t>(call.rows * groups);
  a.k = static_cast<int64_t>(call.k);
  a.group_size = static_cast<int64_t>(call.group_size);
  a.groups = static_cast<int64_t>(groups);
  a.largest = call.largest;
  a.mantissa_bits = call.format->mantissa_bits;
  a.candidate_count = static_cast<int32_t>(call.candidate_count);
  a.candidates[0] = call.format->max_integer();
  for (size_t i = 0; i < call.candidate_count && call.candidates != nullptr; ++i) {
    a.candidates[i] = call.candidates[i];
  }
  const bool short_groups = call.group_size <= kWarpElements / 4;
  const bool one_warp = short_groups || call.candidate_count > 1 ||
                        (call.group_size <= kWarpElements && call.rows * groups >= kManyGroups);
  a.warps = one_warp ? 1 : static_cast<int32_t>(kWarps);
  Launch launch;
  launch.kernel = KernelFor(*call.format, call.gelu);
  const int64_t blocks = one_warp ? (a.count + kWarps - 1) / kWarps : a.count;
  launch.blocks = static_cast<uint32_t>(blocks);  // fits: x would have 2^39 bytes else
  launch.threads = kThreads;
  launch.shared_bytes = kWarps * sizeof(uint32_t);
  launch.Set(a);
  return launch;
}

}  // namespace fp4dit::gpu
