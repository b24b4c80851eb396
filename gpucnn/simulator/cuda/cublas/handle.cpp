// Handles and their settings, the version, and the names of the statuses.
#include "handle.h"

#include <mutex>
#include <set>

#include "call.h"

namespace cudasim::cublas {

static std::mutex handles_lock;
static std::set<cublasHandle_t>& live_handles() {
  static auto* handles = new std::set<cublasHandle_t>;  // never destroyed: calls come at exit, too
  return *handles;
}

bool is_live(cublasHandle_t handle) {
  std::lock_guard<std::mutex> guard(handles_lock);
  return live_handles().count(handle) != 0;
}

static void remember(cublasHandle_t handle) {
  std::lock_guard<std::mutex> guard(handles_lock);
  live_handles().insert(handle);
}

static bool forget(cublasHandle_t handle) {
  std::lock_guard<std::mutex> guard(handles_lock);
  return live_handles().erase(handle) != 0;
}

// Settings can be read and written while another device is current.
template <class Action>
cublasStatus_t with_handle(const char* name, cublasHandle_t handle, Action action) {
  if (cudasim_begin_call(name)) return CUBLAS_STATUS_EXECUTION_FAILED;
  if (!is_live(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
  return action(*handle);
}

template <class T>
cublasStatus_t get_setting(const char* name, cublasHandle_t handle, T cublasContext::*setting, T* value) {
  return with_handle(name, handle, [=](cublasContext& context) {
    if (!value) return CUBLAS_STATUS_INVALID_VALUE;
    *value = context.*setting;
    return CUBLAS_STATUS_SUCCESS;
  });
}

template <class T>
cublasStatus_t set_setting(const char* name, cublasHandle_t handle, T cublasContext::*setting, T value, bool valid) {
  return with_handle(name, handle, [=](cublasContext& context) {
    if (!valid) {
      report(std::string(name) + ": the value " + std::to_string(static_cast<int>(value)) + " is not valid");
      return CUBLAS_STATUS_INVALID_VALUE;
    }
    context.*setting = value;
    return CUBLAS_STATUS_SUCCESS;
  });
}

static bool is_math_mode(int mode) {
  const int base = mode & ~CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
  return base >= CUBLAS_DEFAULT_MATH && base <= CUBLAS_TF32_TENSOR_OP_MATH;
}

}  // namespace cudasim::cublas

using namespace cudasim::cublas;

// ---- Handles -------------------------------------------------------------------------------------------------------

CUBLAS_ENTRY cublasCreate_v2(cublasHandle_t* handle) {
  if (cudasim_begin_call("cublasCreate")) return CUBLAS_STATUS_ALLOC_FAILED;
  if (!handle) return CUBLAS_STATUS_INVALID_VALUE;
  CUdevice device;
  if (cuCtxGetDevice(&device)) return CUBLAS_STATUS_NOT_INITIALIZED;
  *handle = new cublasContext{device};
  remember(*handle);
  return CUBLAS_STATUS_SUCCESS;
}

CUBLAS_ENTRY cublasDestroy_v2(cublasHandle_t handle) {
  if (cudasim_begin_call("cublasDestroy")) return CUBLAS_STATUS_EXECUTION_FAILED;
  if (!forget(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

// ---- Settings ------------------------------------------------------------------------------------------------------

// It also goes back to the library's own workspace.
CUBLAS_ENTRY cublasSetStream_v2(cublasHandle_t handle, CUstream stream) {
  return with_handle("cublasSetStream", handle, [=](cublasContext& context) {
    context.stream = stream;
    context.workspace = {};
    return CUBLAS_STATUS_SUCCESS;
  });
}

CUBLAS_ENTRY cublasGetStream_v2(cublasHandle_t handle, CUstream* stream) {
  return get_setting("cublasGetStream", handle, &cublasContext::stream, stream);
}

CUBLAS_ENTRY cublasSetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t mode) {
  const bool valid = mode == CUBLAS_POINTER_MODE_HOST || mode == CUBLAS_POINTER_MODE_DEVICE;
  return set_setting("cublasSetPointerMode", handle, &cublasContext::pointer_mode, mode, valid);
}

CUBLAS_ENTRY cublasGetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t* mode) {
  return get_setting("cublasGetPointerMode", handle, &cublasContext::pointer_mode, mode);
}

CUBLAS_ENTRY cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
  return set_setting("cublasSetMathMode", handle, &cublasContext::math_mode, mode, is_math_mode(mode));
}

CUBLAS_ENTRY cublasGetMathMode(cublasHandle_t handle, cublasMath_t* mode) {
  return get_setting("cublasGetMathMode", handle, &cublasContext::math_mode, mode);
}

CUBLAS_ENTRY cublasSetAtomicsMode(cublasHandle_t handle, cublasAtomicsMode_t mode) {
  const bool valid = mode == CUBLAS_ATOMICS_NOT_ALLOWED || mode == CUBLAS_ATOMICS_ALLOWED;
  return set_setting("cublasSetAtomicsMode", handle, &cublasContext::atomics_mode, mode, valid);
}

CUBLAS_ENTRY cublasGetAtomicsMode(cublasHandle_t handle, cublasAtomicsMode_t* mode) {
  return get_setting("cublasGetAtomicsMode", handle, &cublasContext::atomics_mode, mode);
}

CUBLAS_ENTRY cublasSetSmCountTarget(cublasHandle_t handle, int count) {
  return set_setting("cublasSetSmCountTarget", handle, &cublasContext::sm_count_target, count, count >= 0);
}

CUBLAS_ENTRY cublasGetSmCountTarget(cublasHandle_t handle, int* count) {
  return get_setting("cublasGetSmCountTarget", handle, &cublasContext::sm_count_target, count);
}

CUBLAS_ENTRY cublasSetWorkspace_v2(cublasHandle_t handle, void* workspace, size_t bytes) {
  return with_handle("cublasSetWorkspace", handle, [=](cublasContext& context) {
    const bool aligned = reinterpret_cast<uintptr_t>(workspace) % 256 == 0;
    if (!aligned || (!workspace && bytes)) return CUBLAS_STATUS_INVALID_VALUE;
    context.workspace = {workspace, bytes};
    return CUBLAS_STATUS_SUCCESS;
  });
}

// ---- The library ---------------------------------------------------------------------------------------------------

// That of CUDA, which the build of the library is told, with patch level 0.
static int version_part(libraryPropertyType part) {
  if (part == MAJOR_VERSION) return CUDASIM_CUDA_VERSION / 1000;
  return part == MINOR_VERSION ? CUDASIM_CUDA_VERSION % 1000 / 10 : 0;
}

CUBLAS_ENTRY cublasGetVersion_v2(cublasHandle_t, int* version) {
  if (cudasim_begin_call("cublasGetVersion")) return CUBLAS_STATUS_EXECUTION_FAILED;
  if (!version) return CUBLAS_STATUS_INVALID_VALUE;
  *version = version_part(MAJOR_VERSION) * 10000 + version_part(MINOR_VERSION) * 100 + version_part(PATCH_LEVEL);
  return CUBLAS_STATUS_SUCCESS;
}

CUBLAS_ENTRY cublasGetProperty(libraryPropertyType part, int* value) {
  if (!value || part < MAJOR_VERSION || part > PATCH_LEVEL) return CUBLAS_STATUS_INVALID_VALUE;
  *value = version_part(part);
  return CUBLAS_STATUS_SUCCESS;
}

struct StatusText {
  cublasStatus_t status;
  const char* name;
  const char* text;
};

static const StatusText kStatuses[] = {
    {CUBLAS_STATUS_SUCCESS, "CUBLAS_STATUS_SUCCESS", "success"},
    {CUBLAS_STATUS_NOT_INITIALIZED, "CUBLAS_STATUS_NOT_INITIALIZED", "the library was not initialized"},
    {CUBLAS_STATUS_ALLOC_FAILED, "CUBLAS_STATUS_ALLOC_FAILED", "the resource allocation failed"},
    {CUBLAS_STATUS_INVALID_VALUE, "CUBLAS_STATUS_INVALID_VALUE", "a parameter is not valid"},
    {CUBLAS_STATUS_ARCH_MISMATCH, "CUBLAS_STATUS_ARCH_MISMATCH", "the device lacks a feature that is needed"},
    {CUBLAS_STATUS_MAPPING_ERROR, "CUBLAS_STATUS_MAPPING_ERROR", "an access to device memory failed"},
    {CUBLAS_STATUS_EXECUTION_FAILED, "CUBLAS_STATUS_EXECUTION_FAILED", "the work on the device failed"},
    {CUBLAS_STATUS_INTERNAL_ERROR, "CUBLAS_STATUS_INTERNAL_ERROR", "an internal operation failed"},
    {CUBLAS_STATUS_NOT_SUPPORTED, "CUBLAS_STATUS_NOT_SUPPORTED", "what was asked for is not supported"},
    {CUBLAS_STATUS_LICENSE_ERROR, "CUBLAS_STATUS_LICENSE_ERROR", "a license is missing"},
};

static const StatusText* status_text(cublasStatus_t status) {
  for (const StatusText& known : kStatuses) {
    if (known.status == status) return &known;
  }
  return nullptr;
}

CUDASIM_EXPORT const char* cublasGetStatusName(cublasStatus_t status) {
  const StatusText* known = status_text(status);
  return known ? known->name : "unknown status";
}

CUDASIM_EXPORT const char* cublasGetStatusString(cublasStatus_t status) {
  const StatusText* known = status_text(status);
  return known ? known->text : "unknown status";
}
