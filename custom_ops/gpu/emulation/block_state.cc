#include "gpu/emulation/block_state.h"

namespace fp4dit::emulation {

static void EnterCurrent() { current->Enter(); }

void BlockState::Enter() {
  body_(argument_);
  Mine().done = true;
  progress_ = true;
  --left_;
  for (;;) Yield();
}

void BlockState::Fail(const char* error) {
  if (error_ == nullptr) error_ = error;
  for (;;) Yield();
}

void BlockState::RunWarp(int warp) {
  const int first = in_step_ ? 0 : static_cast<int>(Random() % kLanes);
  for (int i = 0; i < kLanes && error_ == nullptr; ++i) {
    thread_ = warp * kLanes + (first + i) % kLanes;
    if (!Mine().done) main_.SwitchTo(Mine().fiber);
  }
}

const char* BlockState::Run(int64_t block, void (*body)(const void*), const void* argument) {
  const int warps = threads() / kLanes;
  block_ = block;
  syncs_ = 0;
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
    const int warp = in_step_ ? 0 : static_cast<int>(Random() % static_cast<uint32_t>(warps));
    const int turns = in_step_ ? 0 : 1 + static_cast<int>(Random() % 16) * 8;
    for (int i = 0; i < turns && error_ == nullptr; ++i) RunWarp(warp);
    // After such a turn, have all warps had one, and has nothing moved?
    progress_ = false;
    for (int w = 0; w < warps && (in_step_ || !progress_) && error_ == nullptr; ++w) {
      RunWarp((warp + w) % warps);
    }
    if (!progress_ && left_ > 0 && error_ == nullptr) error_ = "threads wait for others in vain";
  }
  current = nullptr;
  return error_;
}

}  // namespace fp4dit::emulation
