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

# The library takes nothing of C++'s, which zig compiles for minutes when a program is linked with it. So CMake
# is told which compiler this is, where it would link a program to find out, and links the others without.
set(CMAKE_CXX_COMPILER_ID_RUN TRUE)
set(CMAKE_CXX_COMPILER_ID Clang)
set(CMAKE_CXX_COMPILER_VERSION 22)
set(CMAKE_CXX_COMPILER_FRONTEND_VARIANT GNU)
set(CMAKE_CXX_STANDARD_COMPUTED_DEFAULT 17)
set(CMAKE_CXX_EXTENSIONS_COMPUTED_DEFAULT ON)
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)  # or the format of programs is asked for
get_property(asking GLOBAL PROPERTY IN_TRY_COMPILE)
if(asking)
  add_link_options(-nostdlib++)
endif()
