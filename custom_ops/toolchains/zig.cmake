# Cross-compiles with the clang and the C libraries of PyPI's package ziglang, as tools/cross_build.py does:
#   cmake --toolchain toolchains/zig.cmake -S custom_ops -B DIR -DFP4DIT_ZIG=.../ziglang/zig \
#     -DFP4DIT_ZIG_TARGET=x86_64-windows-gnu -DCMAKE_SYSTEM_NAME=Windows
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES FP4DIT_ZIG FP4DIT_ZIG_TARGET CMAKE_SYSTEM_NAME)
string(REGEX REPLACE "-.*" "" CMAKE_SYSTEM_PROCESSOR "${FP4DIT_ZIG_TARGET}")
set(CMAKE_CXX_COMPILER "${FP4DIT_ZIG}" c++ -target ${FP4DIT_ZIG_TARGET})
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

# zig links musl's programs statically unless told, and those load no library.
if(FP4DIT_ZIG_TARGET MATCHES "musl")
  set(CMAKE_EXE_LINKER_FLAGS_INIT -dynamic)
endif()

# Nothing that CMake asks the compiler takes C++'s library, which zig would build for it: minutes.
get_property(asking GLOBAL PROPERTY IN_TRY_COMPILE)
if(asking)
  add_link_options(-nostdlib++)
endif()
