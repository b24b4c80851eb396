// Lets a C++17 compiler take CUDA C++ after gpucnn.simulator.lowering: included before each kernel source.
#pragma once
#include <stddef.h>
#include <stdint.h>

// Of the standard library NVIDIA's compiler knows std::initializer_list alone, so programs define in std what they need.
// What CUDA has in cuda::std is here under a name that programs do not meet.
#include <initializer_list>
#if __cplusplus < 202002L
namespace gpucnn_std {
using namespace std;
}
#define std gpucnn_std
#else  // the compiler itself needs names of std then
namespace std {}
namespace gpucnn_std = std;
#endif
#include <array>
#include <limits>
#include <tuple>
#include <type_traits>
#include <utility>

#include "interface.h"

// Declared here and not by <stdio.h> and <string.h>, whose other names are free for kernels.
extern "C" int printf(const char* format, ...) noexcept;
extern "C" void* memcpy(void* to, const void* from, size_t bytes) noexcept;
extern "C" void* memmove(void* to, const void* from, size_t bytes) noexcept;
extern "C" void* memset(void* to, int value, size_t bytes) noexcept;
extern "C" int memcmp(const void* a, const void* b, size_t bytes) noexcept;

// For the shim's own code: its accesses are not the kernel's.
#define GPUCNN_UNCHECKED __attribute__((no_sanitize("thread"), noinline))

#include "builtins.h"
#include "device_math.h"
#include "float16.h"
#include "atomics.h"
#include "kernel_entry.h"
#include "ptx.h"
#include "warp.h"
#undef std
