// Copies between and within host and device memory, and memset.
#include "runtime.h"

namespace cudart {

bool direction_of(cudaMemcpyKind kind, Direction* direction) {
  switch (kind) {
    case cudaMemcpyHostToHost:
      *direction = {CU_MEMORYTYPE_HOST, CU_MEMORYTYPE_HOST};
      return true;
    case cudaMemcpyHostToDevice:
      *direction = {CU_MEMORYTYPE_HOST, CU_MEMORYTYPE_DEVICE};
      return true;
    case cudaMemcpyDeviceToHost:
      *direction = {CU_MEMORYTYPE_DEVICE, CU_MEMORYTYPE_HOST};
      return true;
    case cudaMemcpyDeviceToDevice:
      *direction = {CU_MEMORYTYPE_DEVICE, CU_MEMORYTYPE_DEVICE};
      return true;
    case cudaMemcpyDefault:
      *direction = {CU_MEMORYTYPE_UNIFIED, CU_MEMORYTYPE_UNIFIED};
      return true;
  }
  return false;
}

// Rows of `width` bytes, `pitch` bytes apart.
struct Rows {
  const void* low;
  size_t pitch;
};

static CUDA_MEMCPY2D rows_copy(Rows destination, Rows source, size_t width, size_t height, Direction direction) {
  CUDA_MEMCPY2D copy = {};
  copy.srcMemoryType = direction.source;
  copy.srcHost = source.low;
  copy.srcDevice = address(source.low);
  copy.srcPitch = source.pitch;
  copy.dstMemoryType = direction.destination;
  copy.dstHost = const_cast<void*>(destination.low);
  copy.dstDevice = address(destination.low);
  copy.dstPitch = destination.pitch;
  copy.WidthInBytes = width;
  copy.Height = height;
  return copy;
}

}  // namespace cudart

using namespace cudart;

RUNTIME_ENTRY cudaMemcpy(void* destination, const void* source, size_t bytes, cudaMemcpyKind kind) {
  switch (kind) {
    case cudaMemcpyHostToDevice:
      return forward(cuMemcpyHtoD, address(destination), source, bytes);
    case cudaMemcpyDeviceToHost:
      return forward(cuMemcpyDtoH, destination, address(source), bytes);
    case cudaMemcpyDeviceToDevice:
      return forward(cuMemcpyDtoD, address(destination), address(source), bytes);
    case cudaMemcpyHostToHost:
    case cudaMemcpyDefault:
      return forward(cuMemcpy, address(destination), address(source), bytes);
  }
  return record(static_cast<CUresult>(cudaErrorInvalidMemcpyDirection));
}

RUNTIME_ENTRY cudaMemcpyAsync(void* destination, const void* source, size_t bytes, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  switch (kind) {
    case cudaMemcpyHostToDevice:
      return forward(cuMemcpyHtoDAsync, address(destination), source, bytes, stream);
    case cudaMemcpyDeviceToHost:
      return forward(cuMemcpyDtoHAsync, destination, address(source), bytes, stream);
    case cudaMemcpyDeviceToDevice:
      return forward(cuMemcpyDtoDAsync, address(destination), address(source), bytes, stream);
    case cudaMemcpyHostToHost:
    case cudaMemcpyDefault:
      return forward(cuMemcpyAsync, address(destination), address(source), bytes, stream);
  }
  return record(static_cast<CUresult>(cudaErrorInvalidMemcpyDirection));
}

RUNTIME_ENTRY cudaMemcpyPeer(void* destination, int destination_device, const void* source, int source_device,
                             size_t bytes) {
  CUcontext to = nullptr;
  CUcontext from = nullptr;
  if (CUresult status = ensure_context()) return record(status);
  if (CUresult status = primary_context(destination_device, &to)) return record(status);
  if (CUresult status = primary_context(source_device, &from)) return record(status);
  return record(cuMemcpyPeer(address(destination), to, address(source), from, bytes));
}

RUNTIME_ENTRY cudaMemcpyPeerAsync(void* destination, int destination_device, const void* source, int source_device,
                                  size_t bytes, cudaStream_t stream) {
  CUcontext to = nullptr;
  CUcontext from = nullptr;
  if (CUresult status = ensure_context()) return record(status);
  if (CUresult status = primary_context(destination_device, &to)) return record(status);
  if (CUresult status = primary_context(source_device, &from)) return record(status);
  return record(cuMemcpyPeerAsync(address(destination), to, address(source), from, bytes, stream));
}

RUNTIME_ENTRY cudaMemcpy2D(void* destination, size_t destination_pitch, const void* source, size_t source_pitch,
                           size_t width, size_t height, cudaMemcpyKind kind) {
  Direction direction;
  if (!direction_of(kind, &direction)) return record(static_cast<CUresult>(cudaErrorInvalidMemcpyDirection));
  const Rows to = {destination, destination_pitch};
  const CUDA_MEMCPY2D copy = rows_copy(to, {source, source_pitch}, width, height, direction);
  return forward(cuMemcpy2DUnaligned, &copy);
}

RUNTIME_ENTRY cudaMemcpy2DAsync(void* destination, size_t destination_pitch, const void* source, size_t source_pitch,
                                size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
  Direction direction;
  if (!direction_of(kind, &direction)) return record(static_cast<CUresult>(cudaErrorInvalidMemcpyDirection));
  const Rows to = {destination, destination_pitch};
  const CUDA_MEMCPY2D copy = rows_copy(to, {source, source_pitch}, width, height, direction);
  return forward(cuMemcpy2DAsync, &copy, stream);
}

RUNTIME_ENTRY cudaMemset(void* pointer, int value, size_t bytes) {
  return forward(cuMemsetD8, address(pointer), static_cast<unsigned char>(value), bytes);
}

RUNTIME_ENTRY cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream) {
  return forward(cuMemsetD8Async, address(pointer), static_cast<unsigned char>(value), bytes, stream);
}
