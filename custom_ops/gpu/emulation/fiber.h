// A thread of control on a stack of its own. Switching costs nanoseconds on x86-64 Linux;
// elsewhere it is done by ucontext.

#ifndef FP4DIT_GPU_EMULATION_FIBER_H_
#define FP4DIT_GPU_EMULATION_FIBER_H_

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) || !defined(__linux__)
#include <ucontext.h>
#endif

namespace fp4dit::emulation {

#if defined(__x86_64__) && defined(__linux__)
// Saves what a called function must keep, and takes what the other stack saved.
extern "C" void fp4dit_switch_stack(void** from, void* to);
class Fiber {
 public:
  // The next switch to it calls `enter`, which must not return.
  void Start(uint8_t* stack, size_t size, void (*enter)()) {
    auto** top = reinterpret_cast<void**>(stack + size / 16 * 16);
    *--top = nullptr;  // as if `enter` had been called: 8 more than a multiple of 16
    *--top = reinterpret_cast<void*>(enter);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    top_ = top;
  }
  void SwitchTo(Fiber& other) { fp4dit_switch_stack(&top_, other.top_); }

 private:
  void* top_ = nullptr;
};
#else
class Fiber {
 public:
  void Start(uint8_t* stack, size_t size, void (*enter)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = size;
    context_.uc_link = nullptr;
    makecontext(&context_, enter, 0);
  }
  void SwitchTo(Fiber& other) { swapcontext(&context_, &other.context_); }

 private:
  ucontext_t context_;
};
#endif

}  // namespace fp4dit::emulation

#endif  // FP4DIT_GPU_EMULATION_FIBER_H_
