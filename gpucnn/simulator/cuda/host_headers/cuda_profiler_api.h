// The two documented functions of the profiler's header, which the runtime's package does not have.
#pragma once
#include <cuda_runtime_api.h>

extern "C" cudaError_t CUDARTAPI cudaProfilerStart(void);
extern "C" cudaError_t CUDARTAPI cudaProfilerStop(void);
