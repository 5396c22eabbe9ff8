// Opening a shared library by name.

#ifndef FP4DIT_GPU_DRIVER_LIBRARIES_H_
#define FP4DIT_GPU_DRIVER_LIBRARIES_H_

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#define FP4DIT_CUDA_CALL __stdcall
#else
#include <dlfcn.h>
#define FP4DIT_CUDA_CALL
#endif

namespace fp4dit::gpu {

#if defined(_WIN32)

constexpr const char kDriverFile[] = "nvcuda.dll";

inline void* OpenLibrary(const char* file) { return LoadLibraryA(file); }
inline void* FindSymbol(void* library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
}

#else

constexpr const char kDriverFile[] = "libcuda.so.1";

// A linker takes the versions of these two that glibc 2.34 brought, which older ones lack. There
// they are in a library that whoever loads libraries has loaded; if not, there is no driver.
#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))
#if defined(__x86_64__)
__asm__(".symver dlopen, dlopen@GLIBC_2.2.5\n.symver dlsym, dlsym@GLIBC_2.2.5");
#else
__asm__(".symver dlopen, dlopen@GLIBC_2.17\n.symver dlsym, dlsym@GLIBC_2.17");
#endif
#pragma weak dlopen
#pragma weak dlsym
inline bool CanOpenLibraries() { return &dlopen != nullptr && &dlsym != nullptr; }
#else
inline bool CanOpenLibraries() { return true; }
#endif

inline void* OpenLibrary(const char* file) {
  return CanOpenLibraries() ? dlopen(file, RTLD_NOW | RTLD_LOCAL) : nullptr;
}
inline void* FindSymbol(void* library, const char* name) { return dlsym(library, name); }

#endif

}  // namespace fp4dit::gpu

#endif  // FP4DIT_GPU_DRIVER_LIBRARIES_H_
