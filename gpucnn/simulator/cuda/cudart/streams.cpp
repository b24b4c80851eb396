// Streams, host functions, stream capture and events.
#include "runtime.h"

using namespace cudart;

RUNTIME_ENTRY cudaStreamCreate(cudaStream_t* stream) { return forward(cuStreamCreate, stream, CU_STREAM_DEFAULT); }

RUNTIME_ENTRY cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return forward(cuStreamCreate, stream, flags);
}

RUNTIME_ENTRY cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  return forward(cuStreamCreateWithPriority, stream, flags, priority);
}

RUNTIME_ENTRY cudaStreamGetFlags(cudaStream_t stream, unsigned* flags) {
  return forward(cuStreamGetFlags, stream, flags);
}

RUNTIME_ENTRY cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  return forward(cuStreamGetPriority, stream, priority);
}

RUNTIME_ENTRY cudaStreamDestroy(cudaStream_t stream) { return forward(cuStreamDestroy, stream); }
RUNTIME_ENTRY cudaStreamSynchronize(cudaStream_t stream) { return forward(cuStreamSynchronize, stream); }
RUNTIME_ENTRY cudaStreamQuery(cudaStream_t stream) { return forward(cuStreamQuery, stream); }

RUNTIME_ENTRY cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  return forward(cuStreamWaitEvent, stream, event, flags);
}

// The callback takes the status as a cudaError_t, whose values are the driver's.
RUNTIME_ENTRY cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t callback, void* data, unsigned flags) {
  return forward(cuStreamAddCallback, stream, reinterpret_cast<CUstreamCallback>(callback), data, flags);
}

RUNTIME_ENTRY cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return forward(cuLaunchHostFunc, stream, function, data);
}

// ---- Capture -------------------------------------------------------------------------------------------------------

RUNTIME_ENTRY cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return forward(cuStreamBeginCapture, stream, static_cast<CUstreamCaptureMode>(mode));
}

RUNTIME_ENTRY cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return forward(cuStreamEndCapture, stream, graph);
}

RUNTIME_ENTRY cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return forward(cuStreamIsCapturing, stream, reinterpret_cast<CUstreamCaptureStatus*>(status));
}

// ---- Events --------------------------------------------------------------------------------------------------------

RUNTIME_ENTRY cudaEventCreate(cudaEvent_t* event) { return forward(cuEventCreate, event, CU_EVENT_DEFAULT); }

RUNTIME_ENTRY cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return forward(cuEventCreate, event, flags);
}

RUNTIME_ENTRY cudaEventDestroy(cudaEvent_t event) { return forward(cuEventDestroy, event); }
RUNTIME_ENTRY cudaEventQuery(cudaEvent_t event) { return forward(cuEventQuery, event); }
RUNTIME_ENTRY cudaEventSynchronize(cudaEvent_t event) { return forward(cuEventSynchronize, event); }

RUNTIME_ENTRY cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return forward(cuEventRecord, event, stream); }

RUNTIME_ENTRY cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return forward(cuEventElapsedTime, milliseconds, start, end);
}
