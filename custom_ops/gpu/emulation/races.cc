#include "gpu/emulation/races.h"

#include <cstdio>

#include "gpu/emulation/block_state.h"

int fp4dit_check_races = 1;

namespace fp4dit::emulation {
namespace {

thread_local char text[200];

// Whether all that `before` did has happened before what `now` does.
bool Ordered(const Moment& before, const Moment& now) {
  if (before.block < 0) return true;
  if (before.block != now.block) return false;
  if (before.thread == now.thread || before.syncs < now.syncs) return true;
  return before.warp == now.warp && before.warp_syncs < now.warp_syncs;
}

}  // namespace

Races::Byte& Races::At(uintptr_t at) {
  if (IsShared(at)) return in_shared_[at - shared_];
  const uintptr_t number = at / kPage;
  if (last_ == nullptr || number != last_number_) {
    std::unique_ptr<Page>& page = pages_[number];
    if (page == nullptr) page = std::make_unique<Page>();
    last_ = page.get();
    last_number_ = number;
  }
  return (*last_)[at % kPage];
}

const char* Races::Check(const Moment& moment, Access access, const void* from, size_t size) {
  const auto at = reinterpret_cast<uintptr_t>(from);
  if (fp4dit_check_races == 0) return nullptr;
  const size_t end = at - shared_ + size;
  if (at >= shared_ && end > in_shared_.size() && end <= in_shared_.size() + beyond_) {
    return "an access beyond shared memory";
  }
  for (size_t i = 0; i < size; ++i) {
    if (const char* error = CheckByte(moment, access, at + i)) return error;
  }
  return nullptr;
}

const char* Races::CheckByte(const Moment& now, Access access, uintptr_t at) {
  Byte& byte = At(at);
  if (IsShared(at)) {  // what another block did was done to memory of its own
    const bool newer = byte.write.block != now.block && byte.read.block != now.block;
    if (newer) byte = {};
  }
  if (access == Access::kLand) {
    byte.copied = false;
    byte.write = now;
    return nullptr;
  }
  if (byte.copied) return Found(byte.write, now, "a copy that was not waited for", at);
  if (!Ordered(byte.write, now)) return Found(byte.write, now, "a write", at);
  // Of several readers one is remembered, and how far apart they are.
  const Moment& read = byte.read;
  const bool earlier = read.block == now.block && read.syncs < now.syncs;
  const bool alone = byte.readers == kOneThread && Ordered(read, now);
  const bool lanes = byte.readers == kLanes && read.block == now.block && read.warp == now.warp &&
                     read.warp_syncs < now.warp_syncs;
  const bool ordered = byte.readers != kBlocks && (earlier || alone || lanes);
  if (access == Access::kRead) {
    if (ordered) {
      byte.read = now;
      byte.readers = kOneThread;
    } else {
      const Readers apart = read.block != now.block ? kBlocks
                            : read.warp != now.warp ? kWarps
                                                    : kLanes;
      if (apart > byte.readers) byte.readers = apart;
    }
    return nullptr;
  }
  if (!ordered) return Found(read, now, "a read", at);
  byte.write = now;
  byte.copied = access == Access::kCopy;
  return nullptr;
}

const char* Races::Found(const Moment& before, const Moment& now, const char* what, uintptr_t at) {
  const bool shared = IsShared(at);
  std::snprintf(text, sizeof(text),
                "a race at byte %llu of %s memory: %s by thread %d of block %d, and an access by "
                "thread %d of block %d that nothing orders",
                static_cast<unsigned long long>(shared ? at - shared_ : at),
                shared ? "shared" : "global", what, before.thread, before.block, now.thread,
                now.block);
  return text;
}

}  // namespace fp4dit::emulation

// What compilers call. Memory of the stacks is each thread's own.
namespace {

using fp4dit::emulation::Access;

inline void Check(void* at, size_t size, Access access, size_t alignment) {
  fp4dit::emulation::BlockState* const block = fp4dit::emulation::current;
  if (block == nullptr || block->OnStack(at)) return;
  if (reinterpret_cast<uintptr_t>(at) % alignment != 0)
    block->Fail("an access whose address is no multiple of its size");
  block->Check(access, at, size);
}

}  // namespace

#define FP4DIT_HOOK extern "C" __attribute__((visibility("hidden"))) void
#define FP4DIT_ACCESS(size)                                                                \
  FP4DIT_HOOK __tsan_read##size(void* at) { Check(at, size, Access::kRead, size); }        \
  FP4DIT_HOOK __tsan_write##size(void* at) { Check(at, size, Access::kWrite, size); }      \
  FP4DIT_HOOK __tsan_unaligned_read##size(void* at) { Check(at, size, Access::kRead, 1); } \
  FP4DIT_HOOK __tsan_unaligned_write##size(void* at) { Check(at, size, Access::kWrite, 1); }
FP4DIT_ACCESS(1)
FP4DIT_ACCESS(2)
FP4DIT_ACCESS(4)
FP4DIT_ACCESS(8)
FP4DIT_ACCESS(16)
FP4DIT_HOOK __tsan_read_range(void* at, size_t size) { Check(at, size, Access::kRead, 1); }
FP4DIT_HOOK __tsan_write_range(void* at, size_t size) { Check(at, size, Access::kWrite, 1); }
FP4DIT_HOOK __tsan_func_entry(void*) {}
FP4DIT_HOOK __tsan_func_exit() {}
FP4DIT_HOOK __tsan_init() {}
