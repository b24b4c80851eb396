// The errors of the driver, and what is known of the last one.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "control.h"

namespace cudasim {

struct ErrorName {
  int error;
  const char* name;
  const char* text;
};

// By number, not by the header's constants: headers of different CUDA versions know different ones.
constexpr ErrorName kErrors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {5, "CUDA_ERROR_PROFILER_DISABLED", "profiler disabled while an external profiling tool is in use"},
    {6, "CUDA_ERROR_PROFILER_NOT_INITIALIZED", "profiler not initialized"},
    {7, "CUDA_ERROR_PROFILER_ALREADY_STARTED", "profiler already started"},
    {8, "CUDA_ERROR_PROFILER_ALREADY_STOPPED", "profiler already stopped"},
    {34, "CUDA_ERROR_STUB_LIBRARY", "the driver is a stub library"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "device is busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {102, "CUDA_ERROR_DEVICE_NOT_LICENSED", "device has no valid license"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {202, "CUDA_ERROR_CONTEXT_ALREADY_CURRENT", "context is already current"},
    {205, "CUDA_ERROR_MAP_FAILED", "mapping of memory failed"},
    {206, "CUDA_ERROR_UNMAP_FAILED", "unmapping of memory failed"},
    {207, "CUDA_ERROR_ARRAY_IS_MAPPED", "array is mapped"},
    {208, "CUDA_ERROR_ALREADY_MAPPED", "resource is already mapped"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for this device"},
    {210, "CUDA_ERROR_ALREADY_ACQUIRED", "resource is already acquired"},
    {211, "CUDA_ERROR_NOT_MAPPED", "resource is not mapped"},
    {212, "CUDA_ERROR_NOT_MAPPED_AS_ARRAY", "resource is not mapped as an array"},
    {213, "CUDA_ERROR_NOT_MAPPED_AS_POINTER", "resource is not mapped as a pointer"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error"},
    {215, "CUDA_ERROR_UNSUPPORTED_LIMIT", "limit is not supported on this device"},
    {216, "CUDA_ERROR_CONTEXT_ALREADY_IN_USE", "context is in use by another thread"},
    {217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", "peer access is not supported between these two devices"},
    {218, "CUDA_ERROR_INVALID_PTX", "PTX could not be compiled"},
    {219, "CUDA_ERROR_INVALID_GRAPHICS_CONTEXT", "invalid OpenGL or DirectX context"},
    {220, "CUDA_ERROR_NVLINK_UNCORRECTABLE", "uncorrectable NVLink error"},
    {221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND", "PTX compiler library not found"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "PTX was compiled with an unsupported toolchain"},
    {223, "CUDA_ERROR_JIT_COMPILATION_DISABLED", "PTX compilation is disabled"},
    {224, "CUDA_ERROR_UNSUPPORTED_EXEC_AFFINITY", "execution affinity is not supported"},
    {225, "CUDA_ERROR_UNSUPPORTED_DEVSIDE_SYNC", "cudaDeviceSynchronize on the device is not supported"},
    {226, "CUDA_ERROR_CONTAINED", "contained memory error"},
    {300, "CUDA_ERROR_INVALID_SOURCE", "device kernel source is invalid"},
    {301, "CUDA_ERROR_FILE_NOT_FOUND", "file not found"},
    {302, "CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND", "symbol of a shared object not found"},
    {303, "CUDA_ERROR_SHARED_OBJECT_INIT_FAILED", "shared object could not be initialized"},
    {304, "CUDA_ERROR_OPERATING_SYSTEM", "call of the operating system failed"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {401, "CUDA_ERROR_ILLEGAL_STATE", "not permitted in the present state"},
    {402, "CUDA_ERROR_LOSSY_QUERY", "query would lose information"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out"},
    {703, "CUDA_ERROR_LAUNCH_INCOMPATIBLE_TEXTURING", "launch with an incompatible texturing mode"},
    {704, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access is already enabled"},
    {705, "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED", "peer access has not been enabled"},
    {708, "CUDA_ERROR_PRIMARY_CONTEXT_ACTIVE", "primary context is active already"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {710, "CUDA_ERROR_ASSERT", "assertion on the device failed"},
    {711, "CUDA_ERROR_TOO_MANY_PEERS", "peer resources are exhausted"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the memory is already registered"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer is not registered memory"},
    {714, "CUDA_ERROR_HARDWARE_STACK_ERROR", "stack error of the hardware"},
    {715, "CUDA_ERROR_ILLEGAL_INSTRUCTION", "an illegal instruction was encountered"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {717, "CUDA_ERROR_INVALID_ADDRESS_SPACE", "instruction on an address of the wrong space"},
    {718, "CUDA_ERROR_INVALID_PC", "invalid program counter"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {720, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "too many blocks in a cooperative launch"},
    {721, "CUDA_ERROR_TENSOR_MEMORY_LEAK", "tensor memory was not freed"},
    {800, "CUDA_ERROR_NOT_PERMITTED", "operation not permitted"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {802, "CUDA_ERROR_SYSTEM_NOT_READY", "system is not ready"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "versions of the display driver and the CUDA driver do not match"},
    {804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", "forward compatibility is not supported on this device"},
    {805, "CUDA_ERROR_MPS_CONNECTION_FAILED", "no connection to the MPS server"},
    {806, "CUDA_ERROR_MPS_RPC_FAILURE", "remote call to the MPS server failed"},
    {807, "CUDA_ERROR_MPS_SERVER_NOT_READY", "MPS server is not ready"},
    {808, "CUDA_ERROR_MPS_MAX_CLIENTS_REACHED", "too many clients of the MPS server"},
    {809, "CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED", "too many connections to the MPS server"},
    {810, "CUDA_ERROR_MPS_CLIENT_TERMINATED", "MPS client was terminated"},
    {811, "CUDA_ERROR_CDP_NOT_SUPPORTED", "dynamic parallelism is not supported"},
    {812, "CUDA_ERROR_CDP_VERSION_MISMATCH", "versions of dynamic parallelism do not match"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "capture was invalidated by an earlier error"},
    {902, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would merge two captures"},
    {903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not begun in this stream"},
    {904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capture has work that was not joined to its first stream"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency would cross the border of the capture"},
    {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing stream"},
    {907, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "capture was begun by another thread"},
    {909, "CUDA_ERROR_TIMEOUT", "wait timed out"},
    {910, "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE", "graph cannot be updated: its structure changed"},
    {911, "CUDA_ERROR_EXTERNAL_DEVICE", "asynchronous error of an external device"},
    {912, "CUDA_ERROR_INVALID_CLUSTER_SIZE", "invalid cluster size"},
    {913, "CUDA_ERROR_FUNCTION_NOT_LOADED", "function is not loaded"},
    {914, "CUDA_ERROR_INVALID_RESOURCE_TYPE", "invalid resource type"},
    {915, "CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION", "resources are insufficient or not applicable"},
    {916, "CUDA_ERROR_KEY_ROTATION", "key rotation failed"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

static const ErrorName* find_error(int error) {
  for (const ErrorName& entry : kErrors) {
    if (entry.error == error) return &entry;
  }
  return nullptr;
}

bool parse_error(const std::string& text, CUresult* error) {
  const char* wanted = text.c_str();
  for (const ErrorName& entry : kErrors) {
    const char* prefix = "CUDA_ERROR_";
    const bool has_prefix = !strncmp(entry.name, prefix, strlen(prefix));
    const char* short_name = has_prefix ? entry.name + strlen(prefix) : entry.name;
    const bool is_it = !strcasecmp(wanted, entry.name) || !strcasecmp(wanted, short_name) ||
                       text == std::to_string(entry.error);
    if (!is_it || entry.error == CUDA_SUCCESS) continue;
    *error = static_cast<CUresult>(entry.error);
    return true;
  }
  return false;
}

const char* name_of_error(CUresult error) {
  const ErrorName* entry = find_error(error);
  return entry ? entry->name : "an unknown error";
}

// ---- The last failure of each thread -------------------------------------------------------------------------------

struct LastFailure {
  CUresult error = CUDA_SUCCESS;  // that `detail` belongs to; CUDA_SUCCESS: to whichever is asked about
  std::string detail;
  std::string answer;  // what cuGetErrorString returned last
};

static LastFailure& last_failure() {
  static thread_local LastFailure& last = *new LastFailure;  // never destroyed: libraries call in until the end
  return last;
}

const char* last_detail() { return last_failure().detail.c_str(); }

void forget_detail() {
  last_failure().error = CUDA_SUCCESS;
  last_failure().detail.clear();
}

CUresult failure(CUresult error, const char* format, ...) {
  char text[2048];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  last_failure().error = error;
  last_failure().detail = text;
  if (settings().log_level >= 1) fprintf(stderr, "simulated CUDA: %s: %s\n", name_of_error(error), text);
  return error;
}

}  // namespace cudasim

using namespace cudasim;

CUDASIM_EXPORT void cudasim_set_detail(const char* text) {
  last_failure().error = CUDA_SUCCESS;
  last_failure().detail = text ? text : "";
  if (text && settings().log_level >= 1) fprintf(stderr, "simulated CUDA: %s\n", text);
}

ENTRY_POINT cuGetErrorName(CUresult error, const char** name) {
  const ErrorName* entry = find_error(error);
  if (name) *name = entry ? entry->name : nullptr;
  return entry && name ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// The error's text and, for this thread's last failure, what is known of it.
ENTRY_POINT cuGetErrorString(CUresult error, const char** text) {
  const ErrorName* entry = find_error(error);
  if (text) *text = entry ? entry->text : nullptr;
  if (!entry || !text) return CUDA_ERROR_INVALID_VALUE;
  LastFailure& last = last_failure();
  const bool is_meant = error != CUDA_SUCCESS && (last.error == error || last.error == CUDA_SUCCESS);
  if (!is_meant || last.detail.empty()) return CUDA_SUCCESS;
  last.answer = std::string(entry->text) + ": " + last.detail;
  *text = last.answer.c_str();
  return CUDA_SUCCESS;
}
