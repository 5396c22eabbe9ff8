// Races of a launch: accesses of two threads to the same byte, at least one of which writes, that
// nothing orders. What orders them is counted rather than seen: barriers of the block and of the
// warp. So a race is found in whatever order the threads happened to run.
//
// The kernels are compiled with -fsanitize=thread, whose calls at every access to memory are
// answered in races.cc; no runtime of a sanitizer is linked.

#ifndef FP4DIT_GPU_EMULATION_RACES_H_
#define FP4DIT_GPU_EMULATION_RACES_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

// Whether races end a launch; for tests of what is seen without.
extern "C" int fp4dit_check_races;

namespace fp4dit::emulation {

// A thread between two barriers.
struct Moment {
  int32_t block = -1, thread = 0, warp = 0;
  unsigned syncs = 0, warp_syncs = 0;  // barriers that it has passed
};

enum class Access { kRead, kWrite, kCopy, kLand };  // an asynchronous copy starts, and has ended

class Races {
 public:
  // `shared`: the block's shared memory, which is another one in each block, and after it as much
  // that is nobody's.
  Races(const uint8_t* shared, size_t shared_bytes, size_t beyond)
      : shared_(reinterpret_cast<uintptr_t>(shared)), beyond_(beyond), in_shared_(shared_bytes) {}

  // Null, or what is wrong with an access of `moment`.
  const char* Check(const Moment& moment, Access access, const void* at, size_t size);

 private:
  // Who has read a byte since the last barrier that all of them have passed.
  enum Readers : uint8_t { kOneThread, kLanes, kWarps, kBlocks };
  struct Byte {
    Moment write, read;
    Readers readers = kOneThread;
    bool copied = false;  // by a copy under way
  };
  static constexpr size_t kPage = 256;
  using Page = std::array<Byte, kPage>;

  bool IsShared(uintptr_t at) const { return at - shared_ < in_shared_.size(); }
  Byte& At(uintptr_t at);
  const char* CheckByte(const Moment& now, Access access, uintptr_t at);
  const char* Found(const Moment& before, const Moment& now, const char* what, uintptr_t at);

  uintptr_t shared_;
  size_t beyond_;
  std::vector<Byte> in_shared_;
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  uintptr_t last_number_ = 0;
  Page* last_ = nullptr;
};

}  // namespace fp4dit::emulation

#endif  // FP4DIT_GPU_EMULATION_RACES_H_
