// The last error of each thread, and the names and descriptions of errors.
#include "runtime.h"

#include <algorithm>
#include <iterator>
#include <string>

namespace cudart {

static thread_local cudaError_t last_error = cudaSuccess;

cudaError_t record(CUresult status) {
  const auto error = static_cast<cudaError_t>(status);
  // "Not ready" answers a question; the documentation says that it is not an error.
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

cudaError_t unsupported(const char* function, const char* reason) {
  if (CUresult injected = cudasim_begin_call(function)) return record(injected);
  const std::string text = std::string(function) + " is not simulated: " + reason;
  cudasim_set_detail(text.c_str());
  return record(CUDA_ERROR_NOT_SUPPORTED);
}

struct ErrorName {
  cudaError_t error;
  const char* name;
};

#define NAME(error) {error, #error}
// Every error of CUDA 12 and 13, by number. The names are part of the documented interface.
static constexpr ErrorName kNames[] = {
    NAME(cudaSuccess),
    NAME(cudaErrorInvalidValue),
    NAME(cudaErrorMemoryAllocation),
    NAME(cudaErrorInitializationError),
    NAME(cudaErrorCudartUnloading),
    NAME(cudaErrorProfilerDisabled),
    NAME(cudaErrorProfilerNotInitialized),
    NAME(cudaErrorProfilerAlreadyStarted),
    NAME(cudaErrorProfilerAlreadyStopped),
    NAME(cudaErrorInvalidConfiguration),
    NAME(cudaErrorInvalidPitchValue),
    NAME(cudaErrorInvalidSymbol),
    NAME(cudaErrorInvalidHostPointer),
    NAME(cudaErrorInvalidDevicePointer),
    NAME(cudaErrorInvalidTexture),
    NAME(cudaErrorInvalidTextureBinding),
    NAME(cudaErrorInvalidChannelDescriptor),
    NAME(cudaErrorInvalidMemcpyDirection),
    NAME(cudaErrorAddressOfConstant),
    NAME(cudaErrorTextureFetchFailed),
    NAME(cudaErrorTextureNotBound),
    NAME(cudaErrorSynchronizationError),
    NAME(cudaErrorInvalidFilterSetting),
    NAME(cudaErrorInvalidNormSetting),
    NAME(cudaErrorMixedDeviceExecution),
    NAME(cudaErrorNotYetImplemented),
    NAME(cudaErrorMemoryValueTooLarge),
    NAME(cudaErrorStubLibrary),
    NAME(cudaErrorInsufficientDriver),
    NAME(cudaErrorCallRequiresNewerDriver),
    NAME(cudaErrorInvalidSurface),
    NAME(cudaErrorDuplicateVariableName),
    NAME(cudaErrorDuplicateTextureName),
    NAME(cudaErrorDuplicateSurfaceName),
    NAME(cudaErrorDevicesUnavailable),
    NAME(cudaErrorIncompatibleDriverContext),
    NAME(cudaErrorMissingConfiguration),
    NAME(cudaErrorPriorLaunchFailure),
    NAME(cudaErrorLaunchMaxDepthExceeded),
    NAME(cudaErrorLaunchFileScopedTex),
    NAME(cudaErrorLaunchFileScopedSurf),
    NAME(cudaErrorSyncDepthExceeded),
    NAME(cudaErrorLaunchPendingCountExceeded),
    NAME(cudaErrorInvalidDeviceFunction),
    NAME(cudaErrorNoDevice),
    NAME(cudaErrorInvalidDevice),
    NAME(cudaErrorDeviceNotLicensed),
    NAME(cudaErrorSoftwareValidityNotEstablished),
    NAME(cudaErrorStartupFailure),
    NAME(cudaErrorInvalidKernelImage),
    NAME(cudaErrorDeviceUninitialized),
    NAME(cudaErrorMapBufferObjectFailed),
    NAME(cudaErrorUnmapBufferObjectFailed),
    NAME(cudaErrorArrayIsMapped),
    NAME(cudaErrorAlreadyMapped),
    NAME(cudaErrorNoKernelImageForDevice),
    NAME(cudaErrorAlreadyAcquired),
    NAME(cudaErrorNotMapped),
    NAME(cudaErrorNotMappedAsArray),
    NAME(cudaErrorNotMappedAsPointer),
    NAME(cudaErrorECCUncorrectable),
    NAME(cudaErrorUnsupportedLimit),
    NAME(cudaErrorDeviceAlreadyInUse),
    NAME(cudaErrorPeerAccessUnsupported),
    NAME(cudaErrorInvalidPtx),
    NAME(cudaErrorInvalidGraphicsContext),
    NAME(cudaErrorNvlinkUncorrectable),
    NAME(cudaErrorJitCompilerNotFound),
    NAME(cudaErrorUnsupportedPtxVersion),
    NAME(cudaErrorJitCompilationDisabled),
    NAME(cudaErrorUnsupportedExecAffinity),
    NAME(cudaErrorUnsupportedDevSideSync),
    NAME(cudaErrorContained),
    NAME(cudaErrorInvalidSource),
    NAME(cudaErrorFileNotFound),
    NAME(cudaErrorSharedObjectSymbolNotFound),
    NAME(cudaErrorSharedObjectInitFailed),
    NAME(cudaErrorOperatingSystem),
    NAME(cudaErrorInvalidResourceHandle),
    NAME(cudaErrorIllegalState),
    NAME(cudaErrorLossyQuery),
    NAME(cudaErrorSymbolNotFound),
    NAME(cudaErrorNotReady),
    NAME(cudaErrorIllegalAddress),
    NAME(cudaErrorLaunchOutOfResources),
    NAME(cudaErrorLaunchTimeout),
    NAME(cudaErrorLaunchIncompatibleTexturing),
    NAME(cudaErrorPeerAccessAlreadyEnabled),
    NAME(cudaErrorPeerAccessNotEnabled),
    NAME(cudaErrorSetOnActiveProcess),
    NAME(cudaErrorContextIsDestroyed),
    NAME(cudaErrorAssert),
    NAME(cudaErrorTooManyPeers),
    NAME(cudaErrorHostMemoryAlreadyRegistered),
    NAME(cudaErrorHostMemoryNotRegistered),
    NAME(cudaErrorHardwareStackError),
    NAME(cudaErrorIllegalInstruction),
    NAME(cudaErrorMisalignedAddress),
    NAME(cudaErrorInvalidAddressSpace),
    NAME(cudaErrorInvalidPc),
    NAME(cudaErrorLaunchFailure),
    NAME(cudaErrorCooperativeLaunchTooLarge),
    NAME(cudaErrorTensorMemoryLeak),
    NAME(cudaErrorNotPermitted),
    NAME(cudaErrorNotSupported),
    NAME(cudaErrorSystemNotReady),
    NAME(cudaErrorSystemDriverMismatch),
    NAME(cudaErrorCompatNotSupportedOnDevice),
    NAME(cudaErrorMpsConnectionFailed),
    NAME(cudaErrorMpsRpcFailure),
    NAME(cudaErrorMpsServerNotReady),
    NAME(cudaErrorMpsMaxClientsReached),
    NAME(cudaErrorMpsMaxConnectionsReached),
    NAME(cudaErrorMpsClientTerminated),
    NAME(cudaErrorCdpNotSupported),
    NAME(cudaErrorCdpVersionMismatch),
    NAME(cudaErrorStreamCaptureUnsupported),
    NAME(cudaErrorStreamCaptureInvalidated),
    NAME(cudaErrorStreamCaptureMerge),
    NAME(cudaErrorStreamCaptureUnmatched),
    NAME(cudaErrorStreamCaptureUnjoined),
    NAME(cudaErrorStreamCaptureIsolation),
    NAME(cudaErrorStreamCaptureImplicit),
    NAME(cudaErrorCapturedEvent),
    NAME(cudaErrorStreamCaptureWrongThread),
    NAME(cudaErrorTimeout),
    NAME(cudaErrorGraphExecUpdateFailure),
    NAME(cudaErrorExternalDevice),
    NAME(cudaErrorInvalidClusterSize),
    NAME(cudaErrorFunctionNotLoaded),
    NAME(cudaErrorInvalidResourceType),
    NAME(cudaErrorInvalidResourceConfiguration),
    NAME(cudaErrorUnknown),
};
#undef NAME

struct ErrorText {
  cudaError_t error;
  const char* text;
};

// The errors that the driver does not have: it describes the others.
static constexpr ErrorText kTexts[] = {
    {cudaErrorInvalidConfiguration, "the launch asks for more threads or memory than the device has"},
    {cudaErrorInvalidPitchValue, "the pitch of a copy is out of range"},
    {cudaErrorInvalidSymbol, "there is no device variable of this name or address"},
    {cudaErrorInvalidHostPointer, "not a pointer to host memory"},
    {cudaErrorInvalidDevicePointer, "not a pointer to device memory"},
    {cudaErrorInvalidTexture, "not a texture"},
    {cudaErrorInvalidTextureBinding, "the texture is not bound"},
    {cudaErrorInvalidChannelDescriptor, "no such channel format"},
    {cudaErrorInvalidMemcpyDirection, "no such direction of a copy"},
    {cudaErrorNotYetImplemented, "not implemented yet"},
    {cudaErrorMemoryValueTooLarge, "the memory is larger than the device can address"},
    {cudaErrorInsufficientDriver, "the driver is older than the runtime needs"},
    {cudaErrorCallRequiresNewerDriver, "the call needs a newer driver"},
    {cudaErrorInvalidSurface, "not a surface"},
    {cudaErrorIncompatibleDriverContext, "the current context cannot be used by the runtime"},
    {cudaErrorMissingConfiguration, "a kernel was launched without a configuration"},
    {cudaErrorInvalidDeviceFunction, "the function is not a kernel of the current device"},
    {cudaErrorStartupFailure, "the runtime failed to start"},
};

}  // namespace cudart

CUDASIM_EXPORT const char* cudaGetErrorName(cudaError_t error) {
  using namespace cudart;
  const auto same = [error](const ErrorName& entry) { return entry.error == error; };
  const auto* found = std::find_if(std::begin(kNames), std::end(kNames), same);
  return found == std::end(kNames) ? "unrecognized error code" : found->name;
}

// The driver's description comes first: it has the detail of the last failure.
CUDASIM_EXPORT const char* cudaGetErrorString(cudaError_t error) {
  using namespace cudart;
  const char* text = nullptr;
  if (cuGetErrorString(static_cast<CUresult>(error), &text) == CUDA_SUCCESS && text) return text;
  const auto same = [error](const ErrorText& entry) { return entry.error == error; };
  const auto* found = std::find_if(std::begin(kTexts), std::end(kTexts), same);
  if (found != std::end(kTexts)) return found->text;
  return cudaGetErrorName(error);
}

RUNTIME_ENTRY cudaPeekAtLastError() { return cudart::last_error; }

RUNTIME_ENTRY cudaGetLastError() {
  const cudaError_t error = cudart::last_error;
  cudart::last_error = cudaSuccess;
  return error;
}
