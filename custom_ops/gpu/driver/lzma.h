// Decompression of LZMA, as Python's standard library compresses.

#ifndef FP4DIT_GPU_DRIVER_LZMA_H_
#define FP4DIT_GPU_DRIVER_LZMA_H_

#include <cstddef>
#include <cstdint>

namespace fp4dit::gpu {

// Decompresses a raw stream of LZMA (lc 3, lp 0, pb 2, which are the usual settings) to exactly
// `room` bytes; false if it is none, or of another size. Reads and writes nothing beyond.
bool Decompress(const uint8_t* from, size_t size, uint8_t* to, size_t room);

}  // namespace fp4dit::gpu

#endif  // FP4DIT_GPU_DRIVER_LZMA_H_
