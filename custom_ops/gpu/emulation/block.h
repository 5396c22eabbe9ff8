// A thread block on one CPU thread: what device.h says of a GPU, of fibers. It is made to show
// faults: warps advance in an order that a seed says, some far ahead of others, and so do the lanes
// of a warp; of asynchronous copies half land at once and half as late as they may; shared memory
// starts as garbage and ends where the launch said; threads that wait for others that never come,
// or that meet at different operations, end the launch with an error.

#ifndef FP4DIT_GPU_EMULATION_BLOCK_H_
#define FP4DIT_GPU_EMULATION_BLOCK_H_

#include <cmath>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "gpu/emulation/fiber.h"
#include "gpu/types.h"

#define KERNEL(threads) extern "C" void
#define DEVICE inline
#define UNROLL
#define ROLLED

struct alignas(16) Word4 {
  uint32_t word[4];
};

namespace fp4dit::emulation {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = size_t{128} << 10;
constexpr uint8_t kGarbage = 0xA5;
constexpr size_t kGuardBytes = 256;

// What the threads that wait for each other wait for.
enum Operation { kSync, kSyncWarp, kShuffleXor, kShuffle, kBallot, kLoadMatrices, kMma };

// What a lane gives to an operation of its warp, and gets from it.
struct Lane {
  uint32_t a[4], b[2];
  int32_t c[4];
  const uint8_t* row;
};

// Threads of which all must have come before any goes on.
struct Meeting {
  int wanted = 0, arrived = 0;
  unsigned turn = 0;
  Operation operation = kSync;
};

struct Warp {
  Meeting meeting;
  Lane lanes[kLanes];
};

struct PendingCopy {
  uint8_t* to;
  const uint8_t* from;
  size_t size;
  bool live;
  int group;
  void Land() const {
    if (live) {
      std::memcpy(to, from, size);
    } else {
      std::memset(to, 0, size);
    }
  }
};

struct ThreadState {
  Fiber fiber;
  bool done = false;
  int copy_groups = 0;
  std::vector<PendingCopy> copies;
};

class BlockState {
 public:
  BlockState(int threads, size_t shared_bytes, uint32_t seed)
      : seed_(seed),
        threads_(threads),
        stacks_(new uint8_t[static_cast<size_t>(threads) * kStackBytes]),
        shared_(shared_bytes + kGuardBytes + 16),
        shared_bytes_(shared_bytes) {}

  // Runs one block; null, or what was wrong.
  const char* Run(int64_t block, void (*body)(const void*), const void* argument);

  uint8_t* Shared() {
    return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(shared_.data()) + 15) &
                                      ~uintptr_t{15});
  }
  int thread() const { return thread_; }
  int threads() const { return static_cast<int>(threads_.size()); }
  int64_t block() const { return block_; }
  ThreadState& Mine() { return threads_[static_cast<size_t>(thread_)]; }
  Lane& MyLane() { return MyWarp().lanes[thread_ % kLanes]; }
  uint32_t Random() {
    seed_ = seed_ * 1664525u + 1013904223u;
    return seed_ >> 16;
  }

  void SyncBlock() {
    Meet(block_meeting_, kSync, [] {});
  }
  // The last lane to come does the work for the whole warp.
  template <typename Work>
  void Together(Operation operation, Work work) {
    Warp& warp = MyWarp();
    Meet(warp.meeting, operation, [&] { work(warp.lanes); });
  }
  // Ends the launch.
  void Fail(const char* error);
  void Enter();

 private:
  Warp& MyWarp() { return warps_[static_cast<size_t>(thread_ / kLanes)]; }
  template <typename Work>
  void Meet(Meeting& meeting, Operation operation, Work work) {
    if (meeting.arrived == 0) meeting.operation = operation;
    if (meeting.operation != operation)
      Fail("threads that should meet are at different operations");
    const unsigned turn = meeting.turn;
    if (++meeting.arrived == meeting.wanted) {
      work();
      meeting.arrived = 0;
      ++meeting.turn;
      progress_ = true;
      return;
    }
    while (meeting.turn == turn) Yield();
  }
  void Yield() {
    const int me = thread_;
    threads_[static_cast<size_t>(me)].fiber.SwitchTo(main_);
    thread_ = me;
  }
  void RunWarp(int warp);

  uint32_t seed_;
  std::vector<ThreadState> threads_;
  std::unique_ptr<uint8_t[]> stacks_;
  std::vector<uint8_t> shared_;
  size_t shared_bytes_;
  std::vector<Warp> warps_;
  Meeting block_meeting_;
  Fiber main_;
  int64_t block_ = 0;
  int thread_ = 0, left_ = 0;
  bool progress_ = false;
  const char* error_ = nullptr;
  void (*body_)(const void*) = nullptr;
  const void* argument_ = nullptr;
};

inline thread_local BlockState* current = nullptr;

inline void EnterCurrent() { current->Enter(); }

inline void BlockState::Enter() {
  body_(argument_);
  Mine().done = true;
  progress_ = true;
  --left_;
  for (;;) Yield();
}

inline void BlockState::Fail(const char* error) {
  if (error_ == nullptr) error_ = error;
  for (;;) Yield();
}

inline void BlockState::RunWarp(int warp) {
  const int first = static_cast<int>(Random() % kLanes);
  for (int i = 0; i < kLanes && error_ == nullptr; ++i) {
    thread_ = warp * kLanes + (first + i) % kLanes;
    if (!Mine().done) main_.SwitchTo(Mine().fiber);
  }
}

inline const char* BlockState::Run(int64_t block, void (*body)(const void*), const void* argument) {
  const int warps = threads() / kLanes;
  block_ = block;
  body_ = body;
  argument_ = argument;
  warps_.assign(static_cast<size_t>(warps), Warp());
  for (Warp& w : warps_) w.meeting.wanted = kLanes;
  block_meeting_ = Meeting();
  block_meeting_.wanted = left_ = threads();
  std::memset(shared_.data(), kGarbage, shared_.size());
  for (int t = 0; t < threads(); ++t) {
    ThreadState& state = threads_[static_cast<size_t>(t)];
    state.done = false;
    state.copy_groups = 0;
    state.copies.clear();
    state.fiber.Start(stacks_.get() + static_cast<size_t>(t) * kStackBytes, kStackBytes,
                      EnterCurrent);
  }
  current = this;
  while (left_ > 0 && error_ == nullptr) {
    const int warp = static_cast<int>(Random() % static_cast<uint32_t>(warps));
    const int turns = 1 + static_cast<int>(Random() % 16) * 8;
    for (int i = 0; i < turns && error_ == nullptr; ++i) RunWarp(warp);
    // After such a turn, have all warps had one, and has nothing moved?
    progress_ = false;
    for (int w = 0; w < warps && !progress_ && error_ == nullptr; ++w) RunWarp((warp + w) % warps);
    if (!progress_ && left_ > 0 && error_ == nullptr) error_ = "threads wait for others in vain";
  }
  current = nullptr;
  for (size_t i = 0; i < kGuardBytes && error_ == nullptr; ++i) {
    if (Shared()[shared_bytes_ + i] != kGarbage) error_ = "a write beyond shared memory";
  }
  return error_;
}

}  // namespace fp4dit::emulation

inline uint8_t* Shared() { return fp4dit::emulation::current->Shared(); }
inline int Thread() { return fp4dit::emulation::current->thread(); }
inline int Threads() { return fp4dit::emulation::current->threads(); }
inline int64_t Block() { return fp4dit::emulation::current->block(); }
inline void Sync() { fp4dit::emulation::current->SyncBlock(); }
inline void SyncWarp() {
  fp4dit::emulation::current->Together(fp4dit::emulation::kSyncWarp, [](auto&) {});
}

inline uint32_t ShuffleXor(uint32_t v, int mask) {
  auto& block = *fp4dit::emulation::current;
  auto& lane = block.MyLane();
  lane.a[0] = v;
  block.Together(fp4dit::emulation::kShuffleXor, [mask](auto& lanes) {
    for (int i = 0; i < 32; ++i) lanes[i].b[0] = lanes[i ^ mask].a[0];
  });
  return lane.b[0];
}
inline uint32_t Shuffle(uint32_t v, int from) {
  auto& block = *fp4dit::emulation::current;
  auto& lane = block.MyLane();
  lane.a[0] = v;
  lane.a[1] = static_cast<uint32_t>(from);
  block.Together(fp4dit::emulation::kShuffle, [](auto& lanes) {
    for (auto& l : lanes) l.b[0] = lanes[l.a[1] % 32].a[0];
  });
  return lane.b[0];
}
inline uint32_t Ballot(bool v) {
  auto& block = *fp4dit::emulation::current;
  auto& lane = block.MyLane();
  lane.a[0] = v ? 1 : 0;
  block.Together(fp4dit::emulation::kBallot, [](auto& lanes) {
    uint32_t all = 0;
    for (int i = 0; i < 32; ++i) all |= lanes[i].a[0] << i;
    for (auto& l : lanes) l.b[0] = all;
  });
  return lane.b[0];
}

inline float Fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float Mul(float a, float b) { return a * b; }
inline float Add(float a, float b) { return a + b; }
inline float Sub(float a, float b) { return a - b; }
inline float Div(float a, float b) { return a / b; }
inline float ToFloat(int32_t v) { return static_cast<float>(v); }
inline float AsFloat(uint32_t v) {
  float f;
  std::memcpy(&f, &v, sizeof(f));
  return f;
}
inline uint32_t AsBits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof(bits));
  return bits;
}
inline float HalfToFloat(uint16_t bits) {
  const uint32_t magnitude = bits & 0x7fffu;
  // Subnormal or not, a half's bits are a float's that is 2^112 times too small.
  const float value = magnitude >= 0x7c00 ? AsFloat(0x7f800000u | magnitude << 13)
                                          : AsFloat(magnitude << 13) * 0x1p112f;
  return bits & 0x8000 ? -value : value;
}
inline uint32_t Permute(uint32_t a, uint32_t b, uint32_t select) {
  const uint64_t both = a | static_cast<uint64_t>(b) << 32;
  if ((select & 0x8888) != 0)
    fp4dit::emulation::current->Fail("a permutation of more than 8 bytes");
  uint32_t r = 0;
  for (int i = 0; i < 4; ++i) {
    r |= (static_cast<uint32_t>(both >> (8 * (select >> (4 * i) & 7))) & 255) << (8 * i);
  }
  return r;
}

template <int kBytes>
void CopyAsync(void* to, const void* from, bool live) {
  auto& block = *fp4dit::emulation::current;
  auto& mine = block.Mine();
  const auto ends = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (ends % kBytes != 0) block.Fail("a copy to shared memory is not aligned");
  const fp4dit::emulation::PendingCopy copy = {
      static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), kBytes, live, mine.copy_groups};
  if (block.Random() % 2 == 0) {
    copy.Land();
  } else {
    mine.copies.push_back(copy);
  }
}
inline void CommitCopies() { ++fp4dit::emulation::current->Mine().copy_groups; }
template <int kLeft>
inline void WaitCopies() {
  auto& mine = fp4dit::emulation::current->Mine();
  size_t kept = 0;
  for (const auto& copy : mine.copies) {
    if (copy.group >= mine.copy_groups - kLeft) {
      mine.copies[kept++] = copy;
    } else {
      copy.Land();
    }
  }
  mine.copies.erase(mine.copies.begin() + static_cast<std::ptrdiff_t>(kept), mine.copies.end());
}

// Four bytes of each of four matrices, from where `offset` says.
template <typename Offset>
void LoadFromRows(const void* row, uint32_t (&r)[4], Offset offset) {
  auto& block = *fp4dit::emulation::current;
  auto& lane = block.MyLane();
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) block.Fail("a row of a matrix is not aligned");
  lane.row = static_cast<const uint8_t*>(row);
  block.Together(fp4dit::emulation::kLoadMatrices, [offset](auto& lanes) {
    for (int l = 0; l < 32; ++l) {
      for (int i = 0; i < 4; ++i) {
        auto* const bytes = reinterpret_cast<uint8_t*>(&lanes[l].a[i]);
        for (int b = 0; b < 4; ++b) {
          const auto [matrix_row, byte] = offset(l, b);
          bytes[b] = lanes[8 * i + matrix_row].row[byte];
        }
      }
    }
  });
  std::memcpy(r, lane.a, sizeof(r));
}
inline void LoadMatrices(const void* row, uint32_t (&r)[4]) {
  LoadFromRows(row, r, [](int lane, int byte) { return std::pair(lane / 4, lane % 4 * 4 + byte); });
}
inline void LoadMatricesTransposed(const void* row, uint32_t (&r)[4]) {
  LoadFromRows(row, r, [](int lane, int byte) {
    return std::pair(lane % 4 * 2 + byte / 2, lane / 4 * 2 + byte % 2);
  });
}

namespace fp4dit::emulation {

// c += a * b of the whole warp, from the fragments to plain matrices and back.
template <typename A, typename B>
void MultiplyWarp(Lane (&lanes)[kLanes]) {
  int32_t a[16][32], b[8][32];
  for (int l = 0; l < kLanes; ++l) {
    const int g = l / 4, t = l % 4;
    for (int byte = 0; byte < 4; ++byte) {
      for (int i = 0; i < 4; ++i) {
        a[g + i % 2 * 8][t * 4 + byte + i / 2 * 16] =
            static_cast<A>(lanes[l].a[i] >> (8 * byte) & 255);
      }
      for (int i = 0; i < 2; ++i) {
        b[g][t * 4 + byte + i * 16] = static_cast<B>(lanes[l].b[i] >> (8 * byte) & 255);
      }
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    for (int i = 0; i < 4; ++i) {
      const int32_t* const row = a[l / 4 + i / 2 * 8];
      const int32_t* const column = b[l % 4 * 2 + i % 2];
      int32_t sum = 0;
      for (int k = 0; k < 32; ++k) sum += row[k] * column[k];
      lanes[l].c[i] =
          static_cast<int32_t>(static_cast<uint32_t>(lanes[l].c[i]) + static_cast<uint32_t>(sum));
    }
  }
}

}  // namespace fp4dit::emulation

template <bool kUnsignedA = false, bool kUnsignedB = false>
void Mma(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  using A = std::conditional_t<kUnsignedA, uint8_t, int8_t>;
  using B = std::conditional_t<kUnsignedB, uint8_t, int8_t>;
  auto& block = *fp4dit::emulation::current;
  auto& lane = block.MyLane();
  std::memcpy(lane.a, a, sizeof(a));
  std::memcpy(lane.b, b, sizeof(b));
  std::memcpy(lane.c, c, sizeof(c));
  block.Together(fp4dit::emulation::kMma,
                 [](auto& lanes) { fp4dit::emulation::MultiplyWarp<A, B>(lanes); });
  std::memcpy(c, lane.c, sizeof(c));
}

#endif  // FP4DIT_GPU_EMULATION_BLOCK_H_
