// What device.h says, of an emulated thread block: see block_state.h. All that touches its state is
// in block.cc, which is compiled without the calls that races.h counts.

#ifndef FP4DIT_GPU_EMULATION_BLOCK_H_
#define FP4DIT_GPU_EMULATION_BLOCK_H_

#include <cmath>
#include <cstddef>
#include <cstring>

#include "gpu/types.h"

#define KERNEL(threads) extern "C" void
#define DEVICE inline
#define UNROLL
#define ROLLED

struct alignas(16) Word4 {
  uint32_t word[4];
};

uint8_t* Shared();
int Thread();
int Threads();
int64_t Block();
void Sync();
void SyncWarp();
uint32_t ShuffleXor(uint32_t v, int mask);
uint32_t Shuffle(uint32_t v, int lane);
uint32_t Ballot(bool v);
uint32_t Permute(uint32_t a, uint32_t b, uint32_t select);

inline float Fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float Mul(float a, float b) { return a * b; }
inline float Add(float a, float b) { return a + b; }
inline float Sub(float a, float b) { return a - b; }
inline float Div(float a, float b) { return a / b; }
inline float Sqrt(float v) { return std::sqrt(v); }
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

namespace fp4dit::emulation {

void StartCopy(void* to, const void* from, size_t size, bool live);
void WaitCopies(int left);
// What a product of the warp has of a lane: the fragments of a, b and c.
struct Fragments {
  int32_t c[4];
  uint32_t a[4], b[2];
};
void Multiply(bool unsigned_a, bool unsigned_b, Fragments* fragments);

}  // namespace fp4dit::emulation

template <int kBytes>
void CopyAsync(void* to, const void* from, bool live) {
  fp4dit::emulation::StartCopy(to, from, kBytes, live);
}
void CommitCopies();
template <int kLeft>
void WaitCopies() {
  fp4dit::emulation::WaitCopies(kLeft);
}

void LoadMatrices(const void* row, uint32_t (&r)[4]);
void LoadMatricesTransposed(const void* row, uint32_t (&r)[4]);

template <bool kUnsignedA = false, bool kUnsignedB = false>
void Mma(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  fp4dit::emulation::Fragments all;
  std::memcpy(all.a, a, sizeof(a));
  std::memcpy(all.b, b, sizeof(b));
  std::memcpy(all.c, c, sizeof(c));
  fp4dit::emulation::Multiply(kUnsignedA, kUnsignedB, &all);
  std::memcpy(c, all.c, sizeof(c));
}

#endif  // FP4DIT_GPU_EMULATION_BLOCK_H_
