// The device and the context of each thread, versions and device-wide calls.
#include <mutex>
#include <vector>

#include "runtime.h"

namespace cudart {

// The device of a thread that has no current context. cudaSetDevice sets it.
static thread_local int chosen_device = 0;

static CUresult initialise() {
  static std::once_flag once;
  static CUresult status;
  std::call_once(once, [] { status = cuInit(0); });
  // A failure is not for ever: a test may have injected it.
  return status == CUDA_SUCCESS ? status : cuInit(0);
}

CUresult primary_context(int device, CUcontext* context) {
  static std::mutex lock;
  // Never destroyed: CUDA calls come in from destructors that run at exit.
  static auto& contexts = *new std::vector<CUcontext>;
  const std::lock_guard<std::mutex> hold(lock);
  const auto index = static_cast<size_t>(device);
  if (index >= contexts.size()) contexts.resize(index + 1);
  if (!contexts[index]) {
    CUdevice handle = 0;
    if (CUresult status = cuDeviceGet(&handle, device)) return status;
    if (CUresult status = cuDevicePrimaryCtxRetain(&contexts[index], handle)) return status;
  }
  *context = contexts[index];
  return CUDA_SUCCESS;
}

static CUresult make_current(int device) {
  CUcontext context = nullptr;
  if (CUresult status = primary_context(device, &context)) return status;
  return cuCtxSetCurrent(context);
}

CUresult ensure_context() {
  if (CUresult status = initialise()) return status;
  CUcontext context = nullptr;
  if (CUresult status = cuCtxGetCurrent(&context)) return status;
  return context ? CUDA_SUCCESS : make_current(chosen_device);
}

static CUresult set_device(int device) {
  if (CUresult status = initialise()) return status;
  int count = 0;
  if (CUresult status = cuDeviceGetCount(&count)) return status;
  if (device < 0 || device >= count) return CUDA_ERROR_INVALID_DEVICE;
  if (CUresult status = make_current(device)) return status;
  chosen_device = device;
  return CUDA_SUCCESS;
}

static CUresult get_device(int* device) {
  if (!device) return CUDA_ERROR_INVALID_VALUE;
  if (CUresult status = initialise()) return status;
  CUcontext context = nullptr;
  if (CUresult status = cuCtxGetCurrent(&context)) return status;
  if (context) return cuCtxGetDevice(device);
  *device = chosen_device;
  return CUDA_SUCCESS;
}

// Calls a function of the driver that needs no context.
template <class... Formal, class... Actual>
static cudaError_t without_context(CUresult (*function)(Formal...), Actual... actual) {
  if (CUresult status = initialise()) return record(status);
  return record(function(actual...));
}

// Enables or disables access of the current context to another device's primary context.
static cudaError_t with_peer(int device, CUresult (*change)(CUcontext peer)) {
  if (CUresult status = ensure_context()) return record(status);
  CUcontext peer = nullptr;
  if (CUresult status = primary_context(device, &peer)) return record(status);
  return record(change(peer));
}

}  // namespace cudart

using namespace cudart;

RUNTIME_ENTRY cudaDriverGetVersion(int* version) { return record(cuDriverGetVersion(version)); }

RUNTIME_ENTRY cudaRuntimeGetVersion(int* version) {
  if (CUresult injected = cudasim_begin_call(__func__)) return record(injected);
  if (!version) return record(CUDA_ERROR_INVALID_VALUE);
  *version = CUDASIM_CUDA_VERSION;
  return cudaSuccess;
}

RUNTIME_ENTRY cudaGetDeviceCount(int* count) { return without_context(cuDeviceGetCount, count); }
RUNTIME_ENTRY cudaGetDevice(int* device) { return record(get_device(device)); }
RUNTIME_ENTRY cudaSetDevice(int device) { return record(set_device(device)); }
RUNTIME_ENTRY cudaDeviceSynchronize() { return forward(cuCtxSynchronize); }

RUNTIME_ENTRY cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return without_context(cuDeviceGetAttribute, value, static_cast<CUdevice_attribute>(attribute), device);
}

RUNTIME_ENTRY cudaDeviceGetPCIBusId(char* text, int bytes, int device) {
  return without_context(cuDeviceGetPCIBusId, text, bytes, device);
}

RUNTIME_ENTRY cudaDeviceGetByPCIBusId(int* device, const char* text) {
  return without_context(cuDeviceGetByPCIBusId, device, text);
}

RUNTIME_ENTRY cudaDeviceGetLimit(size_t* value, cudaLimit limit) {
  return forward(cuCtxGetLimit, value, static_cast<CUlimit>(limit));
}

RUNTIME_ENTRY cudaDeviceSetLimit(cudaLimit limit, size_t value) {
  return forward(cuCtxSetLimit, static_cast<CUlimit>(limit), value);
}

RUNTIME_ENTRY cudaDeviceCanAccessPeer(int* can_access, int device, int peer) {
  return without_context(cuDeviceCanAccessPeer, can_access, device, peer);
}

RUNTIME_ENTRY cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  if (flags != 0) return record(CUDA_ERROR_INVALID_VALUE);
  return with_peer(peer, [](CUcontext context) { return cuCtxEnablePeerAccess(context, 0); });
}

RUNTIME_ENTRY cudaDeviceDisablePeerAccess(int peer) { return with_peer(peer, cuCtxDisablePeerAccess); }
