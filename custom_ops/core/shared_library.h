// Opening a shared library by name, or by path in the system's own characters.

#ifndef FP4DIT_CORE_SHARED_LIBRARY_H_
#define FP4DIT_CORE_SHARED_LIBRARY_H_

#include <string>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#if !defined(NOMINMAX)
#define NOMINMAX
#endif
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace fp4dit {

#if defined(_WIN32)

// A file of the system's own folder: one of this name that lies elsewhere is not taken for it.
inline void* OpenSystemLibrary(const char* file) {
  return LoadLibraryExA(file, nullptr, LOAD_LIBRARY_SEARCH_SYSTEM32);
}
inline void* OpenLibrary(const wchar_t* path) { return LoadLibraryW(path); }
inline void* OpenLibrary(const char* path) { return LoadLibraryA(path); }
inline void* FindSymbol(void* library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
}

// Why the last of these calls failed.
inline std::string LibraryError() { return "Windows' error " + std::to_string(GetLastError()); }

#else

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
inline void* OpenSystemLibrary(const char* file) { return OpenLibrary(file); }
inline void* FindSymbol(void* library, const char* name) { return dlsym(library, name); }

// Why the last of these calls failed.
inline std::string LibraryError() {
  const char* const text = dlerror();
  return text == nullptr ? "no such symbol" : text;
}

#endif

}  // namespace fp4dit

#endif  // FP4DIT_CORE_SHARED_LIBRARY_H_
