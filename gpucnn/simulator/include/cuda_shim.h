// Lets a C++17 compiler take CUDA C++ after gpucnn.simulator.lowering: included before each kernel source.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "interface.h"

// For the shim's own code: its accesses are not the kernel's.
#define GPUCNN_UNCHECKED __attribute__((no_sanitize("thread"), noinline))

#include "builtins.h"
#include "atomics.h"
#include "device_math.h"
#include "kernel_entry.h"
#include "ptx.h"
#include "warp.h"
