// Services of libcuda.so.1 for the other simulated libraries and Python, beyond CUDA's documented entry points.
#pragma once
#include <cuda.h>
#include <stddef.h>
#include <stdint.h>

#define CUDASIM_EXPORT extern "C" __attribute__((visibility("default")))

// ---- For cudart, cuBLAS, NVRTC and cuRAND --------------------------------------------------------------------------

// Counts a call of `function`; anything but CUDA_SUCCESS is the failure that a test injected into it.
// Every entry point of every library calls it first, except those that only forward to another entry point.
CUDASIM_EXPORT CUresult cudasim_begin_call(const char* function);

// Does work(data) in the order of `stream`, as a kernel launch would: at once, later, or in a graph's replays where
// the stream is being captured. `destroy(data)` follows the last run. `name` is for messages.
CUDASIM_EXPORT CUresult cudasim_enqueue(CUstream stream, const char* name, CUresult (*work)(void* data), void* data,
                                        void (*destroy)(void* data));

// Checks [pointer, pointer + bytes), which a library function is about to read or to write on the device: inside one
// live allocation (else CUDA_ERROR_ILLEGAL_ADDRESS) and, for a read, initialised (else CUDA_ERROR_LAUNCH_FAILED). Marks
// what is written as initialised. `what` names the argument in messages: "cublasSgemm: matrix A".
CUDASIM_EXPORT CUresult cudasim_check_range(const char* what, const void* pointer, size_t bytes, bool writes);

// Sets the text that describes the last failure, after the error's own: cuGetErrorString returns both.
CUDASIM_EXPORT void cudasim_set_detail(const char* text);
