// Entry points that allocate, free and describe memory.
#include <string.h>

#include <algorithm>
#include <initializer_list>

#include "control.h"
#include "devices.h"

using namespace cudasim;
using Lock = std::lock_guard<std::recursive_mutex>;

// What every call that allocates or frees begins with: on a card they wait for all streams, or may do so.
static CUresult require_no_capture(const char* call) {
  if (CUresult error = require_context()) return error;
  if (CUresult error = refuse_while_capturing(documented_name(call).c_str())) return error;
  return sticky_error(current_device());
}

static CUresult allocate_simple(const char* call, size_t bytes, MemoryKind kind, unsigned flags, void** result) {
  if (!result) return failure(CUDA_ERROR_INVALID_VALUE, "the pointer to the result must not be null");
  if (CUresult error = require_no_capture(call)) return error;
  char* low = nullptr;
  const Request request = {bytes, kind, current_device(), nullptr, nullptr, flags};
  if (CUresult error = allocate(request, &low)) return error;
  *result = low;
  return CUDA_SUCCESS;
}

static CUresult allocate_device(const char* call, size_t bytes, MemoryKind kind, unsigned flags, CUdeviceptr* result) {
  void* low = nullptr;
  if (CUresult error = allocate_simple(call, bytes, kind, flags, result ? &low : nullptr)) return error;
  *result = reinterpret_cast<CUdeviceptr>(low);
  return CUDA_SUCCESS;
}

// The live allocation that begins at `pointer`, which is about to be freed.
static CUresult find_to_free(const char* low, Allocation** found) {
  Allocation* allocation = allocation_at(low);
  if (!allocation) return failure(CUDA_ERROR_INVALID_VALUE, "%p was not allocated", static_cast<const void*>(low));
  const std::string name = describe(*allocation);
  if (allocation->freed || allocation->free_is_pending) {
    return failure(CUDA_ERROR_INVALID_VALUE, "%s is freed a second time", name.c_str());
  }
  if (allocation->low != low) {
    return failure(CUDA_ERROR_INVALID_VALUE, "%p is byte %td of %s: only its start can be freed",
                   static_cast<const void*>(low), low - allocation->low, name.c_str());
  }
  *found = allocation;
  return CUDA_SUCCESS;
}

// Whether `pointer` may be freed by `function`, which frees memory of these kinds; null always may.
static CUresult check_free(CUdeviceptr pointer, std::initializer_list<MemoryKind> kinds, const char* function,
                           int* device) {
  Lock held(driver_lock());
  if (CUresult error = require_no_capture(function)) return error;
  if (!pointer) return CUDA_SUCCESS;
  Allocation* allocation = nullptr;
  if (CUresult error = find_to_free(reinterpret_cast<const char*>(pointer), &allocation)) return error;
  *device = allocation->device;
  if (std::find(kinds.begin(), kinds.end(), allocation->kind) != kinds.end()) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_INVALID_VALUE, "%s is not freed by %s", describe(*allocation).c_str(), function);
}

// ---- Device memory -------------------------------------------------------------------------------------------------

ENTRY_POINT cuMemGetInfo(size_t* free_bytes, size_t* total) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!free_bytes || !total) return failure(CUDA_ERROR_INVALID_VALUE, "the results must not be null");
  if (CUresult error = require_context()) return error;
  const size_t used = used_bytes(current_device());
  *total = settings().memory_bytes;
  *free_bytes = *total > used ? *total - used : 0;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuMemAlloc(CUdeviceptr* pointer, size_t bytes) {
  Lock held(driver_lock());
  BEGIN_CALL();
  return allocate_device(__func__, bytes, MemoryKind::kDevice, 0, pointer);
}

ENTRY_POINT cuMemAllocManaged(CUdeviceptr* pointer, size_t bytes, unsigned flags) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (flags != CU_MEM_ATTACH_GLOBAL && flags != CU_MEM_ATTACH_HOST) {
    return failure(CUDA_ERROR_INVALID_VALUE, "the flags must be CU_MEM_ATTACH_GLOBAL or CU_MEM_ATTACH_HOST, got %u",
                   flags);
  }
  return allocate_device(__func__, bytes, MemoryKind::kManaged, flags, pointer);
}

ENTRY_POINT cuMemAllocPitch(CUdeviceptr* pointer, size_t* pitch, size_t width, size_t height, unsigned element) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!pitch) return failure(CUDA_ERROR_INVALID_VALUE, "the pitch must not be null");
  if (element != 4 && element != 8 && element != 16) {
    return failure(CUDA_ERROR_INVALID_VALUE, "an element must have 4, 8 or 16 bytes, got %u", element);
  }
  constexpr size_t kPitchAlignment = 512;
  const size_t row = (width + kPitchAlignment - 1) / kPitchAlignment * kPitchAlignment;
  size_t bytes = 0;
  if (row < width || __builtin_mul_overflow(row, height, &bytes)) {
    return failure(CUDA_ERROR_OUT_OF_MEMORY, "%zu rows of %zu bytes are too much", height, width);
  }
  if (CUresult error = allocate_device(__func__, bytes, MemoryKind::kDevice, 0, pointer)) return error;
  *pitch = row;
  return CUDA_SUCCESS;
}

// Waits for the device first, as documented, but without the lock: see finish_uncaptured.
ENTRY_POINT cuMemFree(CUdeviceptr pointer) {
  BEGIN_CALL();
  int device = 0;
  const auto kinds = {MemoryKind::kDevice, MemoryKind::kManaged};
  if (CUresult error = check_free(pointer, kinds, "cuMemFree", &device)) return error;
  if (!pointer) return CUDA_SUCCESS;
  const CUresult earlier = finish_uncaptured(device);
  const CUresult error = free_now(pointer);
  return error ? error : earlier;
}

ENTRY_POINT cuMemGetAddressRange(CUdeviceptr* base, size_t* bytes, CUdeviceptr pointer) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (CUresult error = require_context()) return error;
  Allocation* allocation = nullptr;
  const auto* low = reinterpret_cast<const void*>(pointer);
  if (CUresult error = live_range(CUDA_ERROR_NOT_FOUND, "the pointer", low, 1, &allocation)) return error;
  if (base) *base = reinterpret_cast<CUdeviceptr>(allocation->low);
  if (bytes) *bytes = allocation->bytes;
  return CUDA_SUCCESS;
}

// ---- Host memory ---------------------------------------------------------------------------------------------------

constexpr unsigned kHostAllocFlags =
    CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED;

ENTRY_POINT cuMemHostAlloc(void** pointer, size_t bytes, unsigned flags) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (flags & ~kHostAllocFlags) return failure(CUDA_ERROR_INVALID_VALUE, "there are no flags 0x%x", flags);
  return allocate_simple(__func__, bytes, MemoryKind::kPinned, flags, pointer);
}

ENTRY_POINT cuMemAllocHost(void** pointer, size_t bytes) {
  Lock held(driver_lock());
  BEGIN_CALL();
  return allocate_simple(__func__, bytes, MemoryKind::kPinned, 0, pointer);
}

// Waits for all devices: each may use the memory.
static CUresult finish_all_devices() {
  CUresult result = CUDA_SUCCESS;
  for (int device = 0; device < settings().device_count; device++) {
    if (CUresult error = finish_uncaptured(device)) result = error;
  }
  return result;
}

ENTRY_POINT cuMemFreeHost(void* pointer) {
  BEGIN_CALL();
  int device = 0;
  const auto address = reinterpret_cast<CUdeviceptr>(pointer);
  if (CUresult error = check_free(address, {MemoryKind::kPinned}, "cuMemFreeHost", &device)) return error;
  if (!pointer) return CUDA_SUCCESS;
  const CUresult earlier = finish_all_devices();
  const CUresult error = free_now(address);
  return error ? error : earlier;
}

constexpr unsigned kRegisterFlags = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP |
                                    CU_MEMHOSTREGISTER_IOMEMORY | CU_MEMHOSTREGISTER_READ_ONLY;

ENTRY_POINT cuMemHostRegister(void* pointer, size_t bytes, unsigned flags) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!pointer || bytes == 0) return failure(CUDA_ERROR_INVALID_VALUE, "memory to register must have at least a byte");
  if (flags & ~kRegisterFlags) return failure(CUDA_ERROR_INVALID_VALUE, "there are no flags 0x%x", flags);
  if (CUresult error = require_no_capture(__func__)) return error;
  return register_host(static_cast<char*>(pointer), bytes, flags);
}

static CUresult check_registered(const void* pointer) {
  Lock held(driver_lock());
  if (CUresult error = require_no_capture("cuMemHostUnregister")) return error;
  const Allocation* allocation = allocation_at(pointer);
  const bool is_registered = allocation && allocation->kind == MemoryKind::kRegistered && allocation->low == pointer;
  if (is_registered) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "%p was not registered", pointer);
}

ENTRY_POINT cuMemHostUnregister(void* pointer) {
  BEGIN_CALL();
  if (CUresult error = check_registered(pointer)) return error;
  const CUresult earlier = finish_all_devices();
  Lock held(driver_lock());
  if (CUresult error = check_registered(pointer)) return error;  // another thread may have been first
  release(*allocation_at(pointer));
  return earlier;
}

static CUresult find_host(const void* pointer, Allocation** found) {
  if (CUresult error = live_range(CUDA_ERROR_INVALID_VALUE, "the pointer", pointer, 1, found)) return error;
  const MemoryKind kind = (*found)->kind;
  if (kind == MemoryKind::kPinned || kind == MemoryKind::kRegistered) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_INVALID_VALUE, "%s is not pinned host memory", describe(**found).c_str());
}

ENTRY_POINT cuMemHostGetDevicePointer(CUdeviceptr* result, void* pointer, unsigned flags) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!result || flags) return failure(CUDA_ERROR_INVALID_VALUE, "the flags must be 0 and the result not null");
  if (CUresult error = require_context()) return error;
  Allocation* allocation = nullptr;
  if (CUresult error = find_host(pointer, &allocation)) return error;
  *result = reinterpret_cast<CUdeviceptr>(pointer);
  return CUDA_SUCCESS;
}

ENTRY_POINT cuMemHostGetFlags(unsigned* flags, void* pointer) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!flags) return failure(CUDA_ERROR_INVALID_VALUE, "the flags must not be null");
  if (CUresult error = require_context()) return error;
  Allocation* allocation = nullptr;
  if (CUresult error = find_host(pointer, &allocation)) return error;
  *flags = allocation->flags | CU_MEMHOSTALLOC_DEVICEMAP;  // with one address space all host memory is mapped
  return CUDA_SUCCESS;
}

// ---- Pointers ------------------------------------------------------------------------------------------------------

static bool is_host_kind(const Allocation& allocation) {
  return allocation.kind == MemoryKind::kPinned || allocation.kind == MemoryKind::kRegistered;
}

template <class T>
static CUresult give(void* result, T value) {
  memcpy(result, &value, sizeof value);
  return CUDA_SUCCESS;
}

// An attribute of a pointer into `allocation`.
static CUresult known_attribute(void* result, CUpointer_attribute attribute, CUdeviceptr pointer,
                                const Allocation& allocation) {
  const bool is_host = is_host_kind(allocation);
  const bool is_managed = allocation.kind == MemoryKind::kManaged;
  const unsigned type = is_host ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_DEVICE;
  const unsigned both_ways = CU_POINTER_ATTRIBUTE_ACCESS_FLAG_READWRITE;
  switch (static_cast<int>(attribute)) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:  // managed memory and that of pools belong to no context
      return give(result, is_managed || allocation.pool ? nullptr : allocation.context);
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: return give(result, type);
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: return give(result, pointer);
    case CU_POINTER_ATTRIBUTE_HOST_POINTER: return give(result, is_host || is_managed ? pointer : CUdeviceptr{0});
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS: return give(result, 0u);
    case CU_POINTER_ATTRIBUTE_BUFFER_ID: return give(result, static_cast<unsigned long long>(allocation.serial));
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: return give(result, is_managed ? 1u : 0u);
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: return give(result, allocation.device);
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE: return give(result, 0u);
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: return give(result, allocation.low);
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: return give(result, allocation.bytes);
    case CU_POINTER_ATTRIBUTE_MAPPED: return give(result, 1u);
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES: return give(result, 0ull);
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE: return give(result, 0u);
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS: return give(result, both_ways);
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE: return give(result, allocation.pool);
    default: return failure(CUDA_ERROR_NOT_SUPPORTED, "pointer attribute %d is not simulated", attribute);
  }
}

// The attribute of a pointer that CUDA does not know: cuPointerGetAttributes gives these, and no error.
static CUresult unknown_attribute(void* result, CUpointer_attribute attribute) {
  switch (static_cast<int>(attribute)) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
    case CU_POINTER_ATTRIBUTE_BUFFER_ID:
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
    case CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES:
    case CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE: return give(result, 0ull);
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: return give(result, -2);
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
    case CU_POINTER_ATTRIBUTE_SYNC_MEMOPS:
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE:
    case CU_POINTER_ATTRIBUTE_MAPPED:
    case CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE:
    case CU_POINTER_ATTRIBUTE_ACCESS_FLAGS: return give(result, 0u);
    default: return failure(CUDA_ERROR_NOT_SUPPORTED, "pointer attribute %d is not simulated", attribute);
  }
}

ENTRY_POINT cuPointerGetAttribute(void* result, CUpointer_attribute attribute, CUdeviceptr pointer) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!result) return failure(CUDA_ERROR_INVALID_VALUE, "the result must not be null");
  if (!is_driver_initialised()) return failure(CUDA_ERROR_NOT_INITIALIZED, "cuInit has not been called");
  Allocation* allocation = nullptr;
  const auto* low = reinterpret_cast<const void*>(pointer);
  if (CUresult error = live_range(CUDA_ERROR_INVALID_VALUE, "the pointer", low, 1, &allocation)) return error;
  return known_attribute(result, attribute, pointer, *allocation);
}

ENTRY_POINT cuPointerGetAttributes(unsigned count, CUpointer_attribute* attributes, void** results,
                                   CUdeviceptr pointer) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!attributes || !results) return failure(CUDA_ERROR_INVALID_VALUE, "attributes and results must not be null");
  if (!is_driver_initialised()) return failure(CUDA_ERROR_NOT_INITIALIZED, "cuInit has not been called");
  const auto* low = reinterpret_cast<const char*>(pointer);
  const Allocation* allocation = allocation_at(low);
  const bool is_known = allocation && !allocation->freed && low >= allocation->low &&
                        low < allocation->low + allocation->bytes;
  for (unsigned i = 0; i < count; i++) {
    const CUresult error = is_known ? known_attribute(results[i], attributes[i], pointer, *allocation)
                                    : unknown_attribute(results[i], attributes[i]);
    if (error) return error;
  }
  return CUDA_SUCCESS;
}

// Copies already wait as CU_POINTER_ATTRIBUTE_SYNC_MEMOPS asks for, or may: there is nothing to set.
ENTRY_POINT cuPointerSetAttribute(const void* value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!value || attribute != CU_POINTER_ATTRIBUTE_SYNC_MEMOPS) {
    return failure(CUDA_ERROR_INVALID_VALUE, "only CU_POINTER_ATTRIBUTE_SYNC_MEMOPS can be set");
  }
  Allocation* allocation = nullptr;
  return live_range(CUDA_ERROR_INVALID_VALUE, "the pointer", reinterpret_cast<const void*>(pointer), 1, &allocation);
}

// ---- Advice on managed memory --------------------------------------------------------------------------------------

// Prefetches and advice change where managed memory lies, not what is in it: only their arguments are checked.
static CUresult check_managed(CUdeviceptr pointer, size_t bytes, int device) {
  Lock held(driver_lock());
  if (CUresult error = require_context()) return error;
  if (bytes == 0) return failure(CUDA_ERROR_INVALID_VALUE, "the number of bytes must not be 0");
  if (device != CU_DEVICE_CPU && !is_device(device)) {
    return failure(CUDA_ERROR_INVALID_DEVICE, "there is no device %d", device);
  }
  Allocation* allocation = nullptr;
  const auto* low = reinterpret_cast<const void*>(pointer);
  if (CUresult error = live_range(CUDA_ERROR_INVALID_VALUE, "the range", low, bytes, &allocation)) return error;
  if (allocation->kind == MemoryKind::kManaged) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_INVALID_VALUE, "%s is not managed memory", describe(*allocation).c_str());
}

static int device_at(const CUmemLocation& location) {
  return location.type == CU_MEM_LOCATION_TYPE_DEVICE ? location.id : static_cast<int>(CU_DEVICE_CPU);
}

// Newer headers give the plain names to the second versions, so each is defined under its full name.
#undef cuMemPrefetchAsync
#undef cuMemPrefetchAsync_v2
#undef cuMemAdvise
#undef cuMemAdvise_v2

ENTRY_POINT cuMemPrefetchAsync(CUdeviceptr pointer, size_t bytes, CUdevice device, CUstream stream) {
  BEGIN_CALL();
  if (CUresult error = check_managed(pointer, bytes, device)) return error;
  return enqueue(stream, "cuMemPrefetchAsync", [] { return CUDA_SUCCESS; });
}

ENTRY_POINT cuMemPrefetchAsync_v2(CUdeviceptr pointer, size_t bytes, CUmemLocation location, unsigned flags,
                                  CUstream stream) {
  BEGIN_CALL();
  if (flags) return failure(CUDA_ERROR_INVALID_VALUE, "the flags must be 0, got %u", flags);
  if (CUresult error = check_managed(pointer, bytes, device_at(location))) return error;
  return enqueue(stream, "cuMemPrefetchAsync", [] { return CUDA_SUCCESS; });
}

static CUresult advise(CUdeviceptr pointer, size_t bytes, CUmem_advise advice, int device) {
  if (advice < CU_MEM_ADVISE_SET_READ_MOSTLY || advice > CU_MEM_ADVISE_UNSET_ACCESSED_BY) {
    return failure(CUDA_ERROR_INVALID_VALUE, "there is no advice %d", advice);
  }
  const bool names_device =
      advice > CU_MEM_ADVISE_UNSET_READ_MOSTLY && advice != CU_MEM_ADVISE_UNSET_PREFERRED_LOCATION;
  return check_managed(pointer, bytes, names_device ? device : static_cast<int>(CU_DEVICE_CPU));
}

ENTRY_POINT cuMemAdvise(CUdeviceptr pointer, size_t bytes, CUmem_advise advice, CUdevice device) {
  BEGIN_CALL();
  return advise(pointer, bytes, advice, device);
}

ENTRY_POINT cuMemAdvise_v2(CUdeviceptr pointer, size_t bytes, CUmem_advise advice, CUmemLocation location) {
  BEGIN_CALL();
  return advise(pointer, bytes, advice, device_at(location));
}
