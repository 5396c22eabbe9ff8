#include "gpu/driver/image.h"

#include <cstring>

namespace fp4dit::gpu {

const Image* ChooseImage(const Images& images, const char* file, int arch) {
  const Image* best = nullptr;
  for (size_t i = 0; i < images.count; ++i) {
    const Image& image = images.all[i];
    if (std::strcmp(image.file, file) != 0 || image.arch > arch) continue;
    if (!image.is_ptx && image.arch / 10 != arch / 10) continue;
    const bool better = best == nullptr || (best->is_ptx && !image.is_ptx) ||
                        (best->is_ptx == image.is_ptx && best->arch < image.arch);
    if (better) best = &image;
  }
  return best;
}

}  // namespace fp4dit::gpu
