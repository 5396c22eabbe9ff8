#include "gpu/attention.h"

#include <algorithm>

namespace fp4dit::gpu {
namespace {

constexpr size_t kSharedBytes = size_t{48} << 10;  // that every GPU has without being asked

size_t Tiles(size_t size, size_t tile) { return size / tile + (size % tile != 0 ? 1 : 0); }
// Odd, so that a piece of eight rows is in different banks.
size_t StrideOf(size_t pieces) { return pieces | 1; }

// Whether rows begin and end at a multiple of 8 bytes.
bool CopiedBy8(const AttentionCall& call, size_t row_bytes) {
  const auto ends = reinterpret_cast<uintptr_t>(call.q) | reinterpret_cast<uintptr_t>(call.k) |
                    reinterpret_cast<uintptr_t>(call.v) | row_bytes;
  return ends % 8 == 0;
}

}  // namespace

Launch PlanAttention(const AttentionCall& call) {
  const bool wide = call.type == kInt16Type;
  const size_t element = wide ? 2 : 1;
  const size_t channels = wide ? 64 : 128;  // of a block
  const size_t warps = wide ? 2 : 4;
  const size_t key_stride = StrideOf(Tiles(call.size, 32) * 2 * element);
  const size_t value_stride = StrideOf(Tiles(std::min(call.size, channels) * element, 16));
  const auto narrow = [](size_t value) { return static_cast<int32_t>(value); };
  AttentionArguments a = {};
  a.q = call.q;
  a.k = call.k;
  a.v = call.v;
  a.q_scale = call.q_scale;
  a.k_scale = call.k_scale;
  a.v_scale = call.v_scale;
  a.bias = call.bias;
  a.y = call.y;
  a.bias_key = call.bias_by_key ? 1 : 0;
  a.bias_batch = call.bias_by_batch ? narrow(call.bias_by_key ? call.keys : 1) : 0;
  a.queries = narrow(call.queries);
  a.keys = narrow(call.keys);
  a.heads = narrow(call.heads);
  a.size = narrow(call.size);
  a.row_blocks = narrow(Tiles(call.queries, warps * 16));
  a.parts = narrow(Tiles(call.size, channels));
  a.attention_scale = call.attention_scale;
  a.key_stride = narrow(key_stride);
  a.value_stride = narrow(value_stride);
  a.copied_by_8 = CopiedBy8(call, call.size * element) ? 1 : 0;
  a.value_group = narrow(call.value_group);
  const size_t fixed = warps * 16 * key_stride * 16 + 3 * kKeyTile * sizeof(float);
  const size_t chunk = kKeyChunk * 16 * std::max(key_stride, value_stride);
  a.stages = fixed + 3 * chunk <= kSharedBytes ? 3 : 1;
  Launch launch;
  launch.kernel = wide ? "fp4dit_attention_int16" : "fp4dit_attention_int8";
  launch.blocks = static_cast<uint32_t>(call.batch * call.heads) *
                  static_cast<uint32_t>(a.row_blocks) * static_cast<uint32_t>(a.parts);
  launch.threads = static_cast<uint32_t>(warps * 32);
  launch.shared_bytes = static_cast<uint32_t>(fixed + static_cast<size_t>(a.stages) * chunk);
  launch.Set(a);
  return launch;
}

}  // namespace fp4dit::gpu
