// Allocation of device, managed and pinned memory, memory pools, and what is known of a pointer.
#include <string.h>

#include "runtime.h"

using namespace cudart;

// An empty request gives a null pointer, which cudaFree takes.
static cudaError_t nothing(void** pointer) {
  *pointer = nullptr;
  return record(ensure_context());
}

RUNTIME_ENTRY cudaMalloc(void** pointer, size_t bytes) {
  if (!pointer) return record(CUDA_ERROR_INVALID_VALUE);
  return bytes == 0 ? nothing(pointer) : forward(cuMemAlloc, address_of(pointer), bytes);
}

RUNTIME_ENTRY cudaMallocManaged(void** pointer, size_t bytes, unsigned flags) {
  return forward(cuMemAllocManaged, address_of(pointer), bytes, flags);
}

RUNTIME_ENTRY cudaFree(void* pointer) {
  if (!pointer) return record(ensure_context());
  return forward(cuMemFree, address(pointer));
}

RUNTIME_ENTRY cudaHostAlloc(void** pointer, size_t bytes, unsigned flags) {
  if (!pointer) return record(CUDA_ERROR_INVALID_VALUE);
  return bytes == 0 ? nothing(pointer) : forward(cuMemHostAlloc, pointer, bytes, flags);
}

RUNTIME_ENTRY cudaFreeHost(void* pointer) {
  if (!pointer) return record(ensure_context());
  return forward(cuMemFreeHost, pointer);
}

RUNTIME_ENTRY cudaHostRegister(void* pointer, size_t bytes, unsigned flags) {
  return forward(cuMemHostRegister, pointer, bytes, flags);
}

RUNTIME_ENTRY cudaHostUnregister(void* pointer) { return forward(cuMemHostUnregister, pointer); }
RUNTIME_ENTRY cudaMemGetInfo(size_t* free, size_t* total) { return forward(cuMemGetInfo, free, total); }

// ---- Managed memory ------------------------------------------------------------------------------------------------

#if CUDART_VERSION < 13000

RUNTIME_ENTRY cudaMemPrefetchAsync(const void* pointer, size_t bytes, int device, cudaStream_t stream) {
  return forward(cuMemPrefetchAsync, address(pointer), bytes, device, stream);
}

RUNTIME_ENTRY cudaMemAdvise(const void* pointer, size_t bytes, cudaMemoryAdvise advice, int device) {
  return forward(cuMemAdvise, address(pointer), bytes, static_cast<CUmem_advise>(advice), device);
}

#else

static CUmemLocation driver_location(const cudaMemLocation& location) {
  CUmemLocation copy = {};
  copy.type = static_cast<CUmemLocationType>(location.type);
  copy.id = location.id;
  return copy;
}

RUNTIME_ENTRY cudaMemPrefetchAsync(const void* pointer, size_t bytes, cudaMemLocation location, unsigned flags,
                                   cudaStream_t stream) {
  return forward(cuMemPrefetchAsync, address(pointer), bytes, driver_location(location), flags, stream);
}

RUNTIME_ENTRY cudaMemAdvise(const void* pointer, size_t bytes, cudaMemoryAdvise advice, cudaMemLocation location) {
  return forward(cuMemAdvise, address(pointer), bytes, static_cast<CUmem_advise>(advice), driver_location(location));
}

#endif

// ---- Memory in stream order, and pools -----------------------------------------------------------------------------

RUNTIME_ENTRY cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t stream) {
  return forward(cuMemAllocAsync, address_of(pointer), bytes, stream);
}

RUNTIME_ENTRY cudaMallocFromPoolAsync(void** pointer, size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
  return forward(cuMemAllocFromPoolAsync, address_of(pointer), bytes, pool, stream);
}

RUNTIME_ENTRY cudaFreeAsync(void* pointer, cudaStream_t stream) {
  return forward(cuMemFreeAsync, address(pointer), stream);
}

RUNTIME_ENTRY cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
  return forward(cuDeviceGetDefaultMemPool, pool, device);
}

RUNTIME_ENTRY cudaDeviceGetMemPool(cudaMemPool_t* pool, int device) {
  return forward(cuDeviceGetMemPool, pool, device);
}

RUNTIME_ENTRY cudaDeviceSetMemPool(int device, cudaMemPool_t pool) {
  return forward(cuDeviceSetMemPool, device, pool);
}

RUNTIME_ENTRY cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties) {
  if (!pool || !properties) return record(CUDA_ERROR_INVALID_VALUE);
  CUmemPoolProps copy = {};
  copy.allocType = static_cast<CUmemAllocationType>(properties->allocType);
  copy.handleTypes = static_cast<CUmemAllocationHandleType>(properties->handleTypes);
  copy.location.type = static_cast<CUmemLocationType>(properties->location.type);
  copy.location.id = properties->location.id;
  copy.maxSize = properties->maxSize;
  return forward(cuMemPoolCreate, pool, &copy);
}

RUNTIME_ENTRY cudaMemPoolDestroy(cudaMemPool_t pool) { return forward(cuMemPoolDestroy, pool); }
RUNTIME_ENTRY cudaMemPoolTrimTo(cudaMemPool_t pool, size_t bytes) { return forward(cuMemPoolTrimTo, pool, bytes); }

RUNTIME_ENTRY cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  return forward(cuMemPoolGetAttribute, pool, static_cast<CUmemPool_attribute>(attribute), value);
}

RUNTIME_ENTRY cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  return forward(cuMemPoolSetAttribute, pool, static_cast<CUmemPool_attribute>(attribute), value);
}

// ---- Pointers ------------------------------------------------------------------------------------------------------

static CUresult describe(cudaPointerAttributes* attributes, const void* pointer) {
  if (CUresult status = ensure_context()) return status;
  memset(attributes, 0, sizeof *attributes);
  attributes->type = cudaMemoryTypeUnregistered;
  attributes->device = cudaInvalidDeviceId;
  const CUdeviceptr at = address(pointer);
  unsigned kind = 0;
  const CUresult known = cuPointerGetAttribute(&kind, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, at);
  if (known == CUDA_ERROR_INVALID_VALUE) return CUDA_SUCCESS;  // memory that CUDA does not know
  if (known != CUDA_SUCCESS) return known;
  unsigned managed = 0;
  if (CUresult status = cuPointerGetAttribute(&managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, at)) return status;
  if (CUresult status = cuPointerGetAttribute(&attributes->device, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, at)) {
    return status;
  }
  attributes->type = managed ? cudaMemoryTypeManaged : static_cast<cudaMemoryType>(kind);
  attributes->devicePointer = const_cast<void*>(pointer);
  const bool on_host = managed || kind == CU_MEMORYTYPE_HOST;
  attributes->hostPointer = on_host ? const_cast<void*>(pointer) : nullptr;
  return CUDA_SUCCESS;
}

RUNTIME_ENTRY cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  if (!attributes) return record(CUDA_ERROR_INVALID_VALUE);
  return record(describe(attributes, pointer));
}
