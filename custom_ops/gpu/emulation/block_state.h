// A thread block on one CPU thread: what device.h says of a GPU, of fibers. It is made to show
// faults: warps advance in an order that a seed says, some far ahead of others, and so do the lanes
// of a warp; of asynchronous copies half land at once and half as late as they may (with the seed 0
// all goes in step and at once, which is the order that hides the most); shared memory
// starts as garbage. What races.h finds wrong with an access ends the launch with an error, and so
// do threads that wait for others that never come, or that meet at different operations.

#ifndef FP4DIT_GPU_EMULATION_BLOCK_STATE_H_
#define FP4DIT_GPU_EMULATION_BLOCK_STATE_H_

#include <cstring>
#include <memory>
#include <vector>

#include "gpu/emulation/block.h"
#include "gpu/emulation/fiber.h"
#include "gpu/emulation/races.h"

namespace fp4dit::emulation {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = size_t{128} << 10;
constexpr uint8_t kGarbage = 0xA5;
constexpr size_t kGuardBytes = 256;

// What the threads that wait for each other wait for.
enum Operation { kSync, kSyncWarp, kShuffleXor, kShuffle, kBallot, kLoadMatrices, kMma };

// What a lane gives to an operation of its warp, and gets from it.
struct Lane : Fragments {
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
  unsigned syncs = 0;
  Lane lanes[kLanes];
};

struct PendingCopy {
  uint8_t* to;
  const uint8_t* from;
  size_t size;
  bool live, landed;
  int group;
  void Land() {
    if (landed) return;
    landed = true;
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
      : in_step_(seed == 0),
        seed_(seed),
        threads_(threads),
        stacks_(new uint8_t[static_cast<size_t>(threads) * kStackBytes]),
        shared_(shared_bytes + kGuardBytes + 16),
        races_(Shared(), shared_bytes, kGuardBytes) {}

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
  // Of asynchronous copies.
  bool LandsAtOnce() { return in_step_ || Random() % 2 == 0; }
  uint32_t Random() {
    seed_ = seed_ * 1664525u + 1013904223u;
    return seed_ >> 16;
  }

  void SyncBlock() {
    Meet(block_meeting_, kSync, [this] { ++syncs_; });
  }
  void SyncWarp() {
    Meet(MyWarp().meeting, kSyncWarp, [this] { ++MyWarp().syncs; });
  }
  // The last lane to come does the work for the whole warp.
  template <typename Work>
  void Together(Operation operation, Work work) {
    Warp& warp = MyWarp();
    Meet(warp.meeting, operation, [&] { work(warp.lanes); });
  }
  // An access of this thread, or of another lane of its warp, to memory that is no stack's.
  void Check(Access access, const void* at, size_t size) { CheckOf(thread_, access, at, size); }
  void CheckLane(int lane, Access access, const void* at, size_t size) {
    CheckOf(thread_ / kLanes * kLanes + lane, access, at, size);
  }
  bool OnStack(const void* at) const {
    const auto first = reinterpret_cast<uintptr_t>(stacks_.get());
    return reinterpret_cast<uintptr_t>(at) - first < threads_.size() * kStackBytes;
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
  void CheckOf(int thread, Access access, const void* at, size_t size) {
    const int warp = thread / kLanes;
    const Moment moment = {static_cast<int32_t>(block_), thread, warp, syncs_,
                           warps_[static_cast<size_t>(warp)].syncs};
    if (const char* error = races_.Check(moment, access, at, size)) Fail(error);
  }

  bool in_step_;
  uint32_t seed_;
  std::vector<ThreadState> threads_;
  std::unique_ptr<uint8_t[]> stacks_;
  std::vector<uint8_t> shared_;
  Races races_;
  std::vector<Warp> warps_;
  Meeting block_meeting_;
  Fiber main_;
  int64_t block_ = 0;
  int thread_ = 0, left_ = 0;
  unsigned syncs_ = 0;
  bool progress_ = false;
  const char* error_ = nullptr;
  void (*body_)(const void*) = nullptr;
  const void* argument_ = nullptr;
};

inline thread_local BlockState* current = nullptr;

}  // namespace fp4dit::emulation

#endif  // FP4DIT_GPU_EMULATION_BLOCK_STATE_H_
