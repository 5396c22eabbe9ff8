# Cross-compiles for aarch64 Linux with Debian's g++-aarch64-linux-gnu, and runs tests under qemu:
#   cmake --toolchain custom_ops/toolchains/aarch64-linux-gnu.cmake -S custom_ops -B DIR
# QEMU_CPU in the environment chooses the processor that qemu is (default: all that it knows).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)

set(triple aarch64-linux-gnu)
set(CMAKE_C_COMPILER ${triple}-gcc)
set(CMAKE_CXX_COMPILER ${triple}-g++)

set(CMAKE_FIND_ROOT_PATH /usr/${triple})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

find_program(FP4DIT_QEMU qemu-aarch64)
if(FP4DIT_QEMU)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${FP4DIT_QEMU} -L /usr/${triple})
endif()
