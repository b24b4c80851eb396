// Shared declarations of libcudart: the CUDA runtime's documented entry points, over those of the driver.
//
// An entry point checks what only the runtime knows, then calls the driver, which counts the call, injects failures and
// does the work. The runtime's error numbers are the driver's.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>

#include "driver/services.h"

#define RUNTIME_ENTRY CUDASIM_EXPORT cudaError_t

namespace cudart {

// Keeps a failure for cudaGetLastError of this thread, and returns it.
cudaError_t record(CUresult status);

// Makes the context of the thread's device current, unless the thread has a current context. As documented, any call
// that needs one does so.
CUresult ensure_context();

// The primary context of a device, which the runtime retains for as long as the process runs.
CUresult primary_context(int device, CUcontext* context);

// Calls an entry point of the driver with a current context.
template <class... Formal, class... Actual>
cudaError_t forward(CUresult (*function)(Formal...), Actual... actual) {
  if (CUresult status = ensure_context()) return record(status);
  return record(function(actual...));
}

// Fails with "not supported" and a sentence that names the function.
cudaError_t unsupported(const char* function, const char* reason);

inline CUdeviceptr address(const void* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }
inline CUdeviceptr* address_of(void** pointer) { return reinterpret_cast<CUdeviceptr*>(pointer); }

// Where the two sides of a copy lie.
struct Direction {
  CUmemorytype source;
  CUmemorytype destination;
};
// False if `kind` is not a cudaMemcpyKind.
bool direction_of(cudaMemcpyKind kind, Direction* direction);

}  // namespace cudart
