// The stream-ordered allocator.
//
// Memory is taken when the call is made and given back when the stream comes to the free. A pool keeps nothing: what it
// has reserved is what is in use, so that memory freed in one stream and used in another is caught, not reused.
#include <string.h>

#include <algorithm>

#include "control.h"
#include "devices.h"

struct CUmemPoolHandle_st {
  int device = 0;
  bool is_default = false;
  bool destroyed = false;
  size_t max_bytes = 0;  // 0: as much as the device has
  size_t used = 0;
  size_t highest_used = 0;
  size_t highest_reserved = 0;
  int reuse_follows_events = 1, reuse_opportunistic = 1, reuse_adds_dependencies = 1;
  cuuint64_t release_threshold = 0;
};

namespace cudasim {

struct Pools {
  std::vector<CUmemoryPool> all;
  std::vector<CUmemoryPool> of_device;       // the default pools
  std::vector<CUmemoryPool> current;         // what cuMemAllocAsync uses
};

static CUmemoryPool add_pool(Pools& pools, int device, bool is_default) {
  auto* made = new CUmemPoolHandle_st;
  made->device = device;
  made->is_default = is_default;
  pools.all.push_back(made);
  return made;
}

static Pools& pools() {
  static Pools& state = *[] {
    auto* made = new Pools;
    for (int device = 0; device < settings().device_count; device++) {
      made->of_device.push_back(add_pool(*made, device, true));
    }
    made->current = made->of_device;
    return made;
  }();
  return state;
}

static CUresult require_pool(CUmemoryPool pool) {
  if (!is_driver_initialised()) return failure(CUDA_ERROR_NOT_INITIALIZED, "cuInit has not been called");
  const std::vector<CUmemoryPool>& all = pools().all;
  const bool is_pool = std::find(all.begin(), all.end(), pool) != all.end();
  if (is_pool && !pool->destroyed) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_INVALID_VALUE, "%p is not a memory pool, or was destroyed", static_cast<void*>(pool));
}

void note_pool_free(CUmemoryPool pool, size_t bytes) { pool->used -= bytes; }

static void note_pool_use(CUmemoryPool pool, size_t bytes) {
  pool->used += bytes;
  pool->highest_used = std::max(pool->highest_used, pool->used);
  pool->highest_reserved = std::max(pool->highest_reserved, pool->used);
}

static CUresult check_pool_limit(CUmemoryPool pool, size_t bytes) {
  if (!pool->max_bytes || (bytes <= pool->max_bytes && pool->used <= pool->max_bytes - bytes)) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_OUT_OF_MEMORY, "%zu bytes were asked for, %zu of the pool's %zu bytes are in use", bytes,
                 pool->used, pool->max_bytes);
}

// From the pool, or with null from the one that the device uses.
static CUresult allocate_once(CUmemoryPool pool, size_t bytes, CUstream stream, char** low) {
  std::lock_guard<std::recursive_mutex> held(driver_lock());
  if (CUresult error = require_context()) return error;
  if (!pool) pool = pools().current[static_cast<size_t>(current_device())];
  if (CUresult error = require_pool(pool)) return error;
  if (is_capturing(stream)) {
    return failure(CUDA_ERROR_NOT_SUPPORTED, "memory nodes of graphs are not simulated: allocate before the capture");
  }
  if (CUresult error = sticky_error(pool->device)) return error;
  if (CUresult error = check_pool_limit(pool, bytes)) return error;
  if (CUresult error = allocate({bytes, MemoryKind::kDevice, pool->device, stream, pool, 0}, low)) return error;
  note_pool_use(pool, bytes);
  return CUDA_SUCCESS;
}

static CUresult allocate_from(CUmemoryPool pool, CUdeviceptr* pointer, size_t bytes, CUstream stream) {
  if (!pointer) return failure(CUDA_ERROR_INVALID_VALUE, "the pointer to the result must not be null");
  char* low = nullptr;
  CUresult error = allocate_once(pool, bytes, stream, &low);
  if (error == CUDA_ERROR_OUT_OF_MEMORY) {  // frees that streams have yet to come to may make room
    if (CUresult earlier = finish_uncaptured(pool ? pool->device : current_device())) return earlier;
    error = allocate_once(pool, bytes, stream, &low);
  }
  if (!error) *pointer = reinterpret_cast<CUdeviceptr>(low);
  return error;
}

// ---- Attributes ----------------------------------------------------------------------------------------------------

static int* switch_of(CUmemoryPool pool, CUmemPool_attribute attribute) {
  switch (attribute) {
    case CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES: return &pool->reuse_follows_events;
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC: return &pool->reuse_opportunistic;
    case CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES: return &pool->reuse_adds_dependencies;
    default: return nullptr;
  }
}

static CUresult get_attribute(CUmemoryPool pool, CUmemPool_attribute attribute, void* value) {
  if (const int* on = switch_of(pool, attribute)) {
    memcpy(value, on, sizeof *on);
    return CUDA_SUCCESS;
  }
  cuuint64_t bytes = 0;
  switch (attribute) {
    case CU_MEMPOOL_ATTR_RELEASE_THRESHOLD: bytes = pool->release_threshold; break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT:
    case CU_MEMPOOL_ATTR_USED_MEM_CURRENT: bytes = pool->used; break;
    case CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH: bytes = pool->highest_reserved; break;
    case CU_MEMPOOL_ATTR_USED_MEM_HIGH: bytes = pool->highest_used; break;
    default: return failure(CUDA_ERROR_INVALID_VALUE, "pool attribute %d is not simulated", attribute);
  }
  memcpy(value, &bytes, sizeof bytes);
  return CUDA_SUCCESS;
}

static CUresult set_attribute(CUmemoryPool pool, CUmemPool_attribute attribute, const void* value) {
  if (int* on = switch_of(pool, attribute)) {
    memcpy(on, value, sizeof *on);
    return CUDA_SUCCESS;
  }
  cuuint64_t bytes = 0;
  memcpy(&bytes, value, sizeof bytes);
  if (attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) {
    pool->release_threshold = bytes;
    return CUDA_SUCCESS;
  }
  const bool is_high = attribute == CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH || attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH;
  if (!is_high) return failure(CUDA_ERROR_INVALID_VALUE, "pool attribute %d cannot be set", attribute);
  if (bytes) return failure(CUDA_ERROR_INVALID_VALUE, "a high-water mark can only be set to 0");
  (attribute == CU_MEMPOOL_ATTR_USED_MEM_HIGH ? pool->highest_used : pool->highest_reserved) = pool->used;
  return CUDA_SUCCESS;
}

}  // namespace cudasim

using namespace cudasim;
using Lock = std::lock_guard<std::recursive_mutex>;

// ---- Allocating and freeing ----------------------------------------------------------------------------------------

ENTRY_POINT cuMemAllocAsync(CUdeviceptr* pointer, size_t bytes, CUstream stream) {
  BEGIN_CALL();
  return allocate_from(nullptr, pointer, bytes, stream);
}

ENTRY_POINT cuMemAllocFromPoolAsync(CUdeviceptr* pointer, size_t bytes, CUmemoryPool pool, CUstream stream) {
  BEGIN_CALL();
  if (!pool) return failure(CUDA_ERROR_INVALID_VALUE, "the pool must not be null");
  return allocate_from(pool, pointer, bytes, stream);
}

// Memory of cuMemAlloc may be freed in a stream, too.
static CUresult begin_free(CUdeviceptr pointer, CUstream stream) {
  Lock held(driver_lock());
  if (CUresult error = require_context()) return error;
  const auto* low = reinterpret_cast<const char*>(pointer);
  Allocation* allocation = low ? allocation_at(low) : nullptr;
  if (!allocation || allocation->low != low || allocation->kind != MemoryKind::kDevice) {
    return failure(CUDA_ERROR_INVALID_VALUE, "0x%llx is not the start of an allocation", pointer);
  }
  if (allocation->freed || allocation->free_is_pending) {
    return failure(CUDA_ERROR_INVALID_VALUE, "%s is freed a second time", describe(*allocation).c_str());
  }
  if (is_capturing(stream)) {
    return failure(CUDA_ERROR_NOT_SUPPORTED, "memory nodes of graphs are not simulated: free after the capture");
  }
  allocation->free_is_pending = true;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuMemFreeAsync(CUdeviceptr pointer, CUstream stream) {
  BEGIN_CALL();
  if (CUresult error = begin_free(pointer, stream)) return error;
  const CUresult error = enqueue(stream, "cuMemFreeAsync", [pointer] { return free_now(pointer); });
  if (!error) return CUDA_SUCCESS;
  Lock held(driver_lock());
  Allocation* allocation = allocation_at(reinterpret_cast<const void*>(pointer));
  if (allocation) allocation->free_is_pending = false;  // it was not issued
  return error;
}

// ---- Pools ---------------------------------------------------------------------------------------------------------

ENTRY_POINT cuDeviceGetDefaultMemPool(CUmemoryPool* pool, CUdevice device) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!pool) return failure(CUDA_ERROR_INVALID_VALUE, "the pool must not be null");
  if (CUresult error = require_device(device)) return error;
  *pool = pools().of_device[static_cast<size_t>(device)];
  return CUDA_SUCCESS;
}

ENTRY_POINT cuDeviceGetMemPool(CUmemoryPool* pool, CUdevice device) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!pool) return failure(CUDA_ERROR_INVALID_VALUE, "the pool must not be null");
  if (CUresult error = require_device(device)) return error;
  *pool = pools().current[static_cast<size_t>(device)];
  return CUDA_SUCCESS;
}

ENTRY_POINT cuDeviceSetMemPool(CUdevice device, CUmemoryPool pool) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (CUresult error = require_device(device)) return error;
  if (CUresult error = require_pool(pool)) return error;
  if (pool->device != device) {
    return failure(CUDA_ERROR_INVALID_VALUE, "the pool is of device %d, not of device %d", pool->device, device);
  }
  pools().current[static_cast<size_t>(device)] = pool;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuMemPoolCreate(CUmemoryPool* pool, const CUmemPoolProps* properties) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!pool || !properties) return failure(CUDA_ERROR_INVALID_VALUE, "pool and properties must not be null");
  if (properties->allocType != CU_MEM_ALLOCATION_TYPE_PINNED) {
    return failure(CUDA_ERROR_INVALID_VALUE, "allocType must be CU_MEM_ALLOCATION_TYPE_PINNED");
  }
  if (properties->location.type != CU_MEM_LOCATION_TYPE_DEVICE) {
    return failure(CUDA_ERROR_NOT_SUPPORTED, "only pools of device memory are simulated");
  }
  if (properties->handleTypes != CU_MEM_HANDLE_TYPE_NONE) {
    return failure(CUDA_ERROR_NOT_SUPPORTED, "pools shared between processes are not simulated");
  }
  if (CUresult error = require_device(properties->location.id)) return error;
  *pool = add_pool(pools(), properties->location.id, false);
  (*pool)->max_bytes = properties->maxSize;
  return CUDA_SUCCESS;
}

// What was allocated from it stays valid until it is freed, as documented.
ENTRY_POINT cuMemPoolDestroy(CUmemoryPool pool) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (CUresult error = require_pool(pool)) return error;
  if (pool->is_default) return failure(CUDA_ERROR_INVALID_VALUE, "a device's default pool cannot be destroyed");
  pool->destroyed = true;
  CUmemoryPool& current = pools().current[static_cast<size_t>(pool->device)];
  if (current == pool) current = pools().of_device[static_cast<size_t>(pool->device)];
  return CUDA_SUCCESS;
}

ENTRY_POINT cuMemPoolTrimTo(CUmemoryPool pool, size_t) {
  Lock held(driver_lock());
  BEGIN_CALL();
  return require_pool(pool);
}

ENTRY_POINT cuMemPoolGetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void* value) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!value) return failure(CUDA_ERROR_INVALID_VALUE, "the value must not be null");
  if (CUresult error = require_pool(pool)) return error;
  return get_attribute(pool, attribute, value);
}

ENTRY_POINT cuMemPoolSetAttribute(CUmemoryPool pool, CUmemPool_attribute attribute, void* value) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!value) return failure(CUDA_ERROR_INVALID_VALUE, "the value must not be null");
  if (CUresult error = require_pool(pool)) return error;
  return set_attribute(pool, attribute, value);
}
