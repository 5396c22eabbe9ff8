#include "cpu/cpu_features.h"

#include <cstdint>
#include <initializer_list>

#if defined(__x86_64__) || defined(_M_X64)
#define FP4DIT_X86_64
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <unistd.h>
#endif
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#endif
#endif

namespace fp4dit {

bool CpuHasBaseline() { return true; }

#if defined(FP4DIT_X86_64)
namespace {

#if defined(__linux__)
// Linux lets a process use tiles once it has asked; a refusal is final. The numbers are the
// kernel's, which old headers lack.
bool MayUseTiles() {
  constexpr long kArchPrctl = 158, kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(kArchPrctl, kRequestPermission, kTileData) == 0;
  return granted;
}
#else
bool MayUseTiles() { return false; }
#endif

struct Registers {
  uint32_t eax, ebx, ecx, edx;
};

Registers Cpuid(uint32_t leaf, uint32_t subleaf) {
#if defined(_MSC_VER)
  int r[4];
  __cpuidex(r, static_cast<int>(leaf), static_cast<int>(subleaf));
  return {static_cast<uint32_t>(r[0]), static_cast<uint32_t>(r[1]), static_cast<uint32_t>(r[2]),
          static_cast<uint32_t>(r[3])};
#else
  Registers r = {0, 0, 0, 0};
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // zeros if there is no leaf
  return r;
#endif
}

// The register states that the operating system saves. Only legal if cpuid reports OSXSAVE.
uint64_t SavedStates() {
#if defined(_MSC_VER)
  return _xgetbv(0);
#else
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

bool Bit(uint32_t word, int bit) { return ((word >> bit) & 1u) != 0; }

}  // namespace

bool CpuHasAvx2() {
  const Registers basic = Cpuid(1, 0);
  const bool fma = Bit(basic.ecx, 12);
  const bool os_saves = Bit(basic.ecx, 27);
  const bool avx = Bit(basic.ecx, 28);
  if (!fma || !os_saves || !avx) return false;
  constexpr uint64_t kXmmAndYmm = 6;
  return (SavedStates() & kXmmAndYmm) == kXmmAndYmm && Bit(Cpuid(7, 0).ebx, 5);
}

bool CpuHasAvxVnni() { return CpuHasAvx2() && Bit(Cpuid(7, 1).eax, 4); }

bool CpuHasAvx512Vnni() {
  if (!CpuHasAvx2()) return false;
  constexpr uint64_t kZmm = 0xe6;  // xmm, ymm, mask registers, both parts of zmm
  if ((SavedStates() & kZmm) != kZmm) return false;
  const Registers extended = Cpuid(7, 0);
  for (const int bit : {16, 17, 30, 31}) {  // F, DQ, BW, VL
    if (!Bit(extended.ebx, bit)) return false;
  }
  return Bit(extended.ecx, 11);
}

bool CpuHasAmxInt8() {
  if (!CpuHasAvx512Vnni()) return false;
  constexpr uint64_t kTiles = 0x60000;  // their configuration and their data
  const uint32_t features = Cpuid(7, 0).edx;
  const bool tiles_of_int8 = Bit(features, 24) && Bit(features, 25);
  return tiles_of_int8 && (SavedStates() & kTiles) == kTiles && MayUseTiles();
}

#else

bool CpuHasAvx2() { return false; }
bool CpuHasAvxVnni() { return false; }
bool CpuHasAvx512Vnni() { return false; }
bool CpuHasAmxInt8() { return false; }

#endif

#if defined(__aarch64__)
namespace {

// `bit` is of AT_HWCAP, or from 64 on of AT_HWCAP2: the kernel's numbers, which old headers lack.
bool LinuxSays(int bit) {
#if defined(__linux__)
  constexpr unsigned long kHwcap = 16, kHwcap2 = 26;
  return ((getauxval(bit < 64 ? kHwcap : kHwcap2) >> (bit % 64)) & 1u) != 0;
#else
  return bit < 0;
#endif
}

bool MacSays(const char* name) {
#if defined(__APPLE__)
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
#else
  return name == nullptr;
#endif
}

// `feature` is Windows' number, which old headers lack.
bool WindowsSays(int feature) {
#if defined(_WIN32)
  return IsProcessorFeaturePresent(static_cast<DWORD>(feature)) != 0;
#else
  return feature < 0;
#endif
}

}  // namespace

bool CpuHasNeon() { return true; }
bool CpuHasNeonDotprod() {
  return LinuxSays(20) || MacSays("hw.optional.arm.FEAT_DotProd") || WindowsSays(43);
}
bool CpuHasNeonI8mm() {
  return LinuxSays(64 + 13) || MacSays("hw.optional.arm.FEAT_I8MM") || WindowsSays(66);
}

#else

bool CpuHasNeon() { return false; }
bool CpuHasNeonDotprod() { return false; }
bool CpuHasNeonI8mm() { return false; }

#endif

}  // namespace fp4dit
