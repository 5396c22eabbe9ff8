// Integers of fixed size, for the host and for NVRTC, which has no headers of its own.

#ifndef FP4DIT_GPU_TYPES_H_
#define FP4DIT_GPU_TYPES_H_

#if defined(__CUDACC_RTC__)
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int32_t = int;
using int64_t = long long;
using uint64_t = unsigned long long;
#else
#include <cstdint>
#endif

#endif  // FP4DIT_GPU_TYPES_H_
