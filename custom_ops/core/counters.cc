#include "core/counters.h"

#include <atomic>
#include <cstdint>
#include <cstdio>

#include "cpu/kernels/registry.h"

namespace fp4dit {
namespace {

constexpr size_t kMaxIsas = 16;
constexpr size_t kGpu = kMaxIsas;  // its place among the counts
constexpr const char* kOpNames[kCountedOps] = {
#define FP4DIT_OP(name) #name,
#include "ops/ops.inc"
#undef FP4DIT_OP
};
constexpr const char* kKindNames[kCountedKinds] = {"int8", "int16", "float"};

std::atomic<uint64_t> counts[kCountedOps][kCountedKinds][kMaxIsas + 1];

// Writes what fits into `size` bytes, and counts all.
struct Writer {
  char* text;
  size_t size;
  size_t length = 0;

  void Put(const char* piece) {
    for (; *piece != '\0'; ++piece, ++length) {
      if (length + 1 < size) text[length] = *piece;
    }
  }
  void Close() const {
    if (size > 0) text[length < size ? length : size - 1] = '\0';
  }
};

}  // namespace

void Count(CountedOp op, int kind, size_t isa) {
  if (isa == kCountGpu) isa = kGpu;
  if (isa <= kGpu) counts[op][kind][isa].fetch_add(1, std::memory_order_relaxed);
}

void ResetCounters() {
  for (auto& op : counts) {
    for (auto& kind : op) {
      for (auto& count : kind) count.store(0, std::memory_order_relaxed);
    }
  }
}

size_t WriteCounters(char* text, size_t size) {
  size_t isa_count = 0;
  const Isa* isas = AllIsas(&isa_count);
  Writer writer = {text, size};
  writer.Put("{");
  for (int op = 0; op < kCountedOps; ++op) {
    for (int kind = 0; kind < kCountedKinds; ++kind) {
      for (size_t isa = 0; isa <= kGpu; ++isa) {
        if (isa >= isa_count && isa != kGpu) continue;
        const unsigned long long count = counts[op][kind][isa].load(std::memory_order_relaxed);
        if (count == 0) continue;
        char entry[128];
        std::snprintf(entry, sizeof(entry), "%s\"%s/%s/%s\": %llu", writer.length == 1 ? "" : ", ",
                      kOpNames[op], kKindNames[kind], isa == kGpu ? "cuda" : isas[isa].name, count);
        writer.Put(entry);
      }
    }
  }
  writer.Put("}");
  writer.Close();
  return writer.length;
}

}  // namespace fp4dit
