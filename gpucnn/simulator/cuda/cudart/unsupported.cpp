// Documented entry points that are not simulated: each says so, and returns cudaErrorNotSupported.
#include <cuda_profiler_api.h>

#include "runtime.h"

using namespace cudart;

static constexpr char kTextures[] = "kernels cannot read textures here; pass arrays to them as pointers";
static constexpr char kSurfaces[] = "kernels cannot use surfaces here; pass arrays to them as pointers";
static constexpr char kOneProcess[] = "the memory and the events of the simulated device belong to one process";

RUNTIME_ENTRY cudaCreateTextureObject(cudaTextureObject_t*, const cudaResourceDesc*, const cudaTextureDesc*,
                                      const cudaResourceViewDesc*) {
  return unsupported(__func__, kTextures);
}

RUNTIME_ENTRY cudaDestroyTextureObject(cudaTextureObject_t) { return unsupported(__func__, kTextures); }

RUNTIME_ENTRY cudaGetTextureObjectResourceDesc(cudaResourceDesc*, cudaTextureObject_t) {
  return unsupported(__func__, kTextures);
}

RUNTIME_ENTRY cudaGetTextureObjectTextureDesc(cudaTextureDesc*, cudaTextureObject_t) {
  return unsupported(__func__, kTextures);
}

RUNTIME_ENTRY cudaCreateSurfaceObject(cudaSurfaceObject_t*, const cudaResourceDesc*) {
  return unsupported(__func__, kSurfaces);
}

RUNTIME_ENTRY cudaDestroySurfaceObject(cudaSurfaceObject_t) { return unsupported(__func__, kSurfaces); }

RUNTIME_ENTRY cudaIpcGetMemHandle(cudaIpcMemHandle_t*, void*) { return unsupported(__func__, kOneProcess); }

RUNTIME_ENTRY cudaIpcOpenMemHandle(void**, cudaIpcMemHandle_t, unsigned) { return unsupported(__func__, kOneProcess); }

RUNTIME_ENTRY cudaIpcCloseMemHandle(void*) { return unsupported(__func__, kOneProcess); }

RUNTIME_ENTRY cudaIpcGetEventHandle(cudaIpcEventHandle_t*, cudaEvent_t) { return unsupported(__func__, kOneProcess); }

RUNTIME_ENTRY cudaIpcOpenEventHandle(cudaEvent_t*, cudaIpcEventHandle_t) { return unsupported(__func__, kOneProcess); }

// Profilers attach to a real driver: to start and to stop one is to do nothing, as it is on a GPU without one.
RUNTIME_ENTRY cudaProfilerStart() { return record(cudasim_begin_call(__func__)); }
RUNTIME_ENTRY cudaProfilerStop() { return record(cudasim_begin_call(__func__)); }
