// Contexts: the primary one of each device, those that a program creates, and the stack of each thread.
#include <algorithm>

#include "control.h"
#include "devices.h"

constexpr int kLimitCount = 7;  // CU_LIMIT_STACK_SIZE to CU_LIMIT_PERSISTING_L2_CACHE_SIZE

// In CUDA's order of limits. Only kept and returned: nothing in the simulation depends on them.
constexpr size_t kUsualLimits[kLimitCount] = {1024, 1 << 20, 8 << 20, 2, 2048, 64, 0};

struct CUctx_st {
  int device = 0;
  bool is_primary = false;
  int retained = 0;  // of a primary context: how often; it exists while this is not 0
  bool destroyed = false;
  unsigned flags = 0;
  unsigned long long id = 0;
  size_t limits[kLimitCount] = {};
  CUfunc_cache cache = CU_FUNC_CACHE_PREFER_NONE;
  std::vector<CUcontext> peers;  // whose memory its kernels may use

  CUctx_st() { std::copy(kUsualLimits, kUsualLimits + kLimitCount, limits); }
  bool exists() const { return is_primary ? retained > 0 : !destroyed; }
};

namespace cudasim {

struct Contexts {
  std::vector<CUcontext> primary;
  std::vector<CUcontext> all;  // destroyed ones are kept, so that a stale handle is known as one
};

static CUcontext add_context(Contexts& contexts, int device, bool is_primary) {
  auto* made = new CUctx_st;
  made->device = device;
  made->is_primary = is_primary;
  contexts.all.push_back(made);
  made->id = contexts.all.size();
  return made;
}

static Contexts& contexts() {
  static Contexts& state = *[] {
    auto* made = new Contexts;
    for (int device = 0; device < settings().device_count; device++) {
      made->primary.push_back(add_context(*made, device, true));
    }
    return made;
  }();
  return state;
}

static std::vector<CUcontext>& stack() {
  static thread_local auto& of_thread = *new std::vector<CUcontext>;  // outlives the thread: libraries call in late
  return of_thread;
}

CUcontext primary_context(int device) { return contexts().primary[static_cast<size_t>(device)]; }
CUcontext current_context() { return stack().empty() ? nullptr : stack().back(); }
int device_of(CUcontext context) { return context->device; }
int current_device() { return current_context() ? current_context()->device : 0; }

// An error unless `context` is one of ours and exists.
CUresult require_context(CUcontext context) {
  const std::vector<CUcontext>& all = contexts().all;
  if (!context || std::find(all.begin(), all.end(), context) == all.end()) {
    return failure(CUDA_ERROR_INVALID_CONTEXT, "%p is not a context", static_cast<void*>(context));
  }
  if (context->exists()) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the context of device %d was destroyed", context->device);
}

CUresult require_context() {
  if (!is_driver_initialised()) return failure(CUDA_ERROR_NOT_INITIALIZED, "cuInit has not been called");
  if (!current_context()) return failure(CUDA_ERROR_INVALID_CONTEXT, "this thread has no current context");
  return require_context(current_context());
}

bool can_access(int device, int owner) {
  if (device == owner) return true;
  for (CUcontext context : contexts().all) {
    if (context->device != device || !context->exists()) continue;
    for (CUcontext peer : context->peers) {
      if (peer->device == owner) return true;
    }
  }
  return false;
}

// Ends a context whose work is finished: streams, modules and memory are gone, settings and failures forgotten.
static void tear_down(CUcontext context) {
  release_streams(context);
  release_modules(context);
  release_context(context);
  clear_sticky_error(context->device);
  context->peers.clear();
  for (CUcontext other : contexts().all) {
    other->peers.erase(std::remove(other->peers.begin(), other->peers.end(), context), other->peers.end());
  }
  std::copy(kUsualLimits, kUsualLimits + kLimitCount, context->limits);
  context->cache = CU_FUNC_CACHE_PREFER_NONE;
}

static CUresult create_context(CUcontext* context, unsigned flags, CUdevice device) {
  if (!context) return failure(CUDA_ERROR_INVALID_VALUE, "the context must not be null");
  if (flags & ~0xffu) return failure(CUDA_ERROR_INVALID_VALUE, "there are no context flags 0x%x", flags);
  if (CUresult error = require_device(device)) return error;
  *context = add_context(contexts(), device, false);
  (*context)->flags = flags;
  stack().push_back(*context);
  return CUDA_SUCCESS;
}

}  // namespace cudasim

using namespace cudasim;
using Lock = std::lock_guard<std::recursive_mutex>;

// ---- Primary contexts ----------------------------------------------------------------------------------------------

ENTRY_POINT cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!context) return failure(CUDA_ERROR_INVALID_VALUE, "the context must not be null");
  if (CUresult error = require_device(device)) return error;
  *context = primary_context(device);
  (*context)->retained++;
  return CUDA_SUCCESS;
}

// The last release ends the context.
static CUresult release_once(CUdevice device, bool* is_last) {
  Lock held(driver_lock());
  if (CUresult error = require_device(device)) return error;
  CUcontext context = primary_context(device);
  *is_last = context->retained == 1;
  if (context->retained == 0) {
    return failure(CUDA_ERROR_INVALID_CONTEXT, "the primary context of device %d is released more often than retained",
                   device);
  }
  if (!*is_last) context->retained--;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuDevicePrimaryCtxRelease(CUdevice device) {
  BEGIN_CALL();
  bool is_last = false;
  if (CUresult error = release_once(device, &is_last)) return error;
  if (!is_last) return CUDA_SUCCESS;
  const CUresult error = finish_uncaptured(device);
  Lock held(driver_lock());
  tear_down(primary_context(device));
  primary_context(device)->retained = 0;
  return error;
}

// The context stays retained: what held it goes on with an empty one.
ENTRY_POINT cuDevicePrimaryCtxReset(CUdevice device) {
  BEGIN_CALL();
  if (CUresult error = require_device(device)) return error;
  const CUresult error = finish_uncaptured(device);
  Lock held(driver_lock());
  tear_down(primary_context(device));
  primary_context(device)->flags = 0;
  return error;
}

ENTRY_POINT cuDevicePrimaryCtxSetFlags(CUdevice device, unsigned flags) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (flags & ~0xffu) return failure(CUDA_ERROR_INVALID_VALUE, "there are no context flags 0x%x", flags);
  if (CUresult error = require_device(device)) return error;
  primary_context(device)->flags = flags;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!flags || !active) return failure(CUDA_ERROR_INVALID_VALUE, "the flags and the state must not be null");
  if (CUresult error = require_device(device)) return error;
  *flags = primary_context(device)->flags;
  *active = primary_context(device)->exists();
  return CUDA_SUCCESS;
}

// ---- Contexts that a program creates -------------------------------------------------------------------------------

#undef cuCtxCreate  // newer headers give the name to another version
ENTRY_POINT cuCtxCreate_v2(CUcontext* context, unsigned flags, CUdevice device) {
  Lock held(driver_lock());
  BEGIN_CALL();
  return create_context(context, flags, device);
}

ENTRY_POINT cuCtxCreate_v4(CUcontext* context, CUctxCreateParams* parameters, unsigned flags, CUdevice device) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (parameters) return failure(CUDA_ERROR_NOT_SUPPORTED, "parameters of a context's creation are not simulated");
  return create_context(context, flags, device);
}

static CUresult check_destroy(CUcontext context) {
  Lock held(driver_lock());
  if (CUresult error = require_context(context)) return error;
  if (!context->is_primary) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_INVALID_CONTEXT, "a primary context is released, not destroyed");
}

ENTRY_POINT cuCtxDestroy(CUcontext context) {
  BEGIN_CALL();
  if (CUresult error = check_destroy(context)) return error;
  const CUresult error = finish_uncaptured(context->device);
  Lock held(driver_lock());
  tear_down(context);
  context->destroyed = true;
  if (current_context() == context) stack().pop_back();
  return error;
}

// ---- The current context -------------------------------------------------------------------------------------------

ENTRY_POINT cuCtxGetCurrent(CUcontext* context) {
  BEGIN_CALL();
  if (!context) return failure(CUDA_ERROR_INVALID_VALUE, "the context must not be null");
  if (!is_driver_initialised()) return failure(CUDA_ERROR_NOT_INITIALIZED, "cuInit has not been called");
  *context = current_context();
  return CUDA_SUCCESS;
}

// In the place of the top of the stack; null takes it off.
ENTRY_POINT cuCtxSetCurrent(CUcontext context) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!is_driver_initialised()) return failure(CUDA_ERROR_NOT_INITIALIZED, "cuInit has not been called");
  if (context) {
    if (CUresult error = require_context(context)) return error;
  }
  if (!stack().empty()) stack().pop_back();
  if (context) stack().push_back(context);
  return CUDA_SUCCESS;
}

ENTRY_POINT cuCtxPushCurrent(CUcontext context) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (CUresult error = require_context(context)) return error;
  stack().push_back(context);
  return CUDA_SUCCESS;
}

ENTRY_POINT cuCtxPopCurrent(CUcontext* context) {
  BEGIN_CALL();
  if (!current_context()) return failure(CUDA_ERROR_INVALID_CONTEXT, "this thread has no current context");
  if (context) *context = current_context();
  stack().pop_back();
  return CUDA_SUCCESS;
}

ENTRY_POINT cuCtxGetDevice(CUdevice* device) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!device) return failure(CUDA_ERROR_INVALID_VALUE, "the device must not be null");
  if (CUresult error = require_context()) return error;
  *device = current_device();
  return CUDA_SUCCESS;
}

ENTRY_POINT cuCtxGetId(CUcontext context, unsigned long long* id) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!id) return failure(CUDA_ERROR_INVALID_VALUE, "the id must not be null");
  if (CUresult error = context ? require_context(context) : require_context()) return error;
  *id = (context ? context : current_context())->id;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuCtxGetApiVersion(CUcontext context, unsigned* version) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!version) return failure(CUDA_ERROR_INVALID_VALUE, "the version must not be null");
  if (CUresult error = context ? require_context(context) : require_context()) return error;
  constexpr unsigned kSecondInterface = 3020;  // that of CUDA 3.2, which is still in force
  *version = kSecondInterface;
  return CUDA_SUCCESS;
}

static CUresult check_synchronize() {
  Lock held(driver_lock());
  if (CUresult error = require_context()) return error;
  return refuse_while_capturing("cuCtxSynchronize");
}

ENTRY_POINT cuCtxSynchronize(void) {
  BEGIN_CALL();
  if (CUresult error = check_synchronize()) return error;
  return finish_device(current_device());
}

// ---- Settings of the current context -------------------------------------------------------------------------------

ENTRY_POINT cuCtxGetFlags(unsigned* flags) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!flags) return failure(CUDA_ERROR_INVALID_VALUE, "the flags must not be null");
  if (CUresult error = require_context()) return error;
  *flags = current_context()->flags;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuCtxSetFlags(unsigned flags) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (flags & ~0xffu) return failure(CUDA_ERROR_INVALID_VALUE, "there are no context flags 0x%x", flags);
  if (CUresult error = require_context()) return error;
  current_context()->flags = flags;
  return CUDA_SUCCESS;
}

static CUresult require_limit(CUlimit limit) {
  if (CUresult error = require_context()) return error;
  if (limit >= 0 && limit < kLimitCount) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_UNSUPPORTED_LIMIT, "limit %d is not simulated", limit);
}

ENTRY_POINT cuCtxGetLimit(size_t* value, CUlimit limit) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!value) return failure(CUDA_ERROR_INVALID_VALUE, "the value must not be null");
  if (CUresult error = require_limit(limit)) return error;
  *value = current_context()->limits[limit];
  return CUDA_SUCCESS;
}

ENTRY_POINT cuCtxSetLimit(CUlimit limit, size_t value) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (CUresult error = require_limit(limit)) return error;
  constexpr size_t kMaxFetch = 128;
  const size_t highest = limit == CU_LIMIT_MAX_L2_FETCH_GRANULARITY ? kMaxFetch
                         : limit == CU_LIMIT_PERSISTING_L2_CACHE_SIZE ? 0
                                                                       : SIZE_MAX;
  if (value > highest) {
    return failure(CUDA_ERROR_INVALID_VALUE, "limit %d is at most %zu on this device, got %zu", limit, highest, value);
  }
  current_context()->limits[limit] = value;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuCtxGetCacheConfig(CUfunc_cache* config) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (!config) return failure(CUDA_ERROR_INVALID_VALUE, "the configuration must not be null");
  if (CUresult error = require_context()) return error;
  *config = current_context()->cache;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuCtxSetCacheConfig(CUfunc_cache config) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (config < CU_FUNC_CACHE_PREFER_NONE || config > CU_FUNC_CACHE_PREFER_EQUAL) {
    return failure(CUDA_ERROR_INVALID_VALUE, "there is no cache configuration %d", config);
  }
  if (CUresult error = require_context()) return error;
  current_context()->cache = config;
  return CUDA_SUCCESS;
}

ENTRY_POINT cuCtxResetPersistingL2Cache(void) {
  Lock held(driver_lock());
  BEGIN_CALL();
  return require_context();
}

// ---- Peer access ---------------------------------------------------------------------------------------------------

ENTRY_POINT cuCtxEnablePeerAccess(CUcontext peer, unsigned flags) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (flags) return failure(CUDA_ERROR_INVALID_VALUE, "the flags must be 0, got %u", flags);
  if (CUresult error = require_context()) return error;
  if (CUresult error = require_context(peer)) return error;
  std::vector<CUcontext>& peers = current_context()->peers;
  if (peer->device == current_device()) {
    return failure(CUDA_ERROR_INVALID_DEVICE, "device %d is not its own peer", peer->device);
  }
  if (std::find(peers.begin(), peers.end(), peer) != peers.end()) {
    return failure(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, "device %d has access to device %d", current_device(),
                   peer->device);
  }
  peers.push_back(peer);
  return CUDA_SUCCESS;
}

ENTRY_POINT cuCtxDisablePeerAccess(CUcontext peer) {
  Lock held(driver_lock());
  BEGIN_CALL();
  if (CUresult error = require_context()) return error;
  if (CUresult error = require_context(peer)) return error;
  std::vector<CUcontext>& peers = current_context()->peers;
  const auto found = std::find(peers.begin(), peers.end(), peer);
  if (found == peers.end()) {
    return failure(CUDA_ERROR_PEER_ACCESS_NOT_ENABLED, "device %d has no access to device %d", current_device(),
                   peer->device);
  }
  peers.erase(found);
  return CUDA_SUCCESS;
}

// ---- Profiler ------------------------------------------------------------------------------------------------------

ENTRY_POINT cuProfilerStart(void) {
  Lock held(driver_lock());
  BEGIN_CALL();
  return require_context();
}

ENTRY_POINT cuProfilerStop(void) {
  Lock held(driver_lock());
  BEGIN_CALL();
  return require_context();
}
