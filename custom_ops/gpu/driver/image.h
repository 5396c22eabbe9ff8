// The kernels as machine code and PTX, which tools/build_gpu.py compiles and compresses.

#ifndef FP4DIT_GPU_DRIVER_IMAGE_H_
#define FP4DIT_GPU_DRIVER_IMAGE_H_

#include <cstddef>
#include <cstdint>

namespace fp4dit::gpu {

// What one file of kernels/ became, compressed together: code for one GPU is much like that for the
// next.
struct Stream {
  size_t offset;          // in Images::data
  size_t stored, loaded;  // bytes compressed, and bytes
};

// One file of kernels/ for one kind of GPU.
struct Image {
  const char* file;  // "quantize"
  int arch;          // 80 for compute capability 8.0
  bool is_ptx;       // which the driver compiles, for this capability and all later ones
  Stream stream;
  size_t at, size;  // where it is in what the stream becomes
};

struct Images {
  const Image* all;
  size_t count;  // 0: the library was built without
  const uint8_t* data;
};

// Those of the library, see embedded_images.cc.
Images EmbeddedImages();

// The image of `file` for a GPU of capability `arch`: its own machine code, that of an earlier one
// of the same major version, or PTX. Null: there is none.
const Image* ChooseImage(const Images& images, const char* file, int arch);

}  // namespace fp4dit::gpu

#endif  // FP4DIT_GPU_DRIVER_IMAGE_H_
