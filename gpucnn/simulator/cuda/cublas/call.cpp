// The first and last steps of all entry points.
#include "call.h"

#include <stdio.h>
#include <string.h>

#include <algorithm>

namespace cudasim::cublas {

void report(const std::string& sentence) {
  fprintf(stderr, "simulated cuBLAS: %s\n", sentence.c_str());
  cudasim_set_detail(sentence.c_str());
}

// ---- Scalars -------------------------------------------------------------------------------------------------------

Scalar::Scalar(const void* pointer, size_t bytes, cublasPointerMode_t mode) : value_(), device_(nullptr) {
  if (mode == CUBLAS_POINTER_MODE_DEVICE) {
    device_ = pointer;
  } else if (pointer) {
    memcpy(value_, pointer, bytes);
  }
}

CUresult Scalar::copy(const std::string& what, void* value, size_t bytes) const {
  if (device_) {
    if (CUresult error = cudasim_check_range(what.c_str(), device_, bytes, false)) return error;
  }
  memcpy(value, device_ ? device_ : value_, bytes);
  return CUDA_SUCCESS;
}

// ---- Calls ---------------------------------------------------------------------------------------------------------

Call::Call(const char* name, cublasHandle_t handle) : name_(name), handle_(handle) {
  CUdevice device = 0;
  if (cudasim_begin_call(name)) {
    refuse(CUBLAS_STATUS_EXECUTION_FAILED, "failed, as it was told to");
  } else if (!is_live(handle)) {
    refuse(CUBLAS_STATUS_NOT_INITIALIZED, handle ? "the handle was destroyed" : "the handle is null");
  } else if (cuCtxGetDevice(&device)) {
    refuse(CUBLAS_STATUS_EXECUTION_FAILED, "no context is current");
  } else if (device != handle->device) {
    const std::string devices[] = {std::to_string(handle->device), std::to_string(device)};
    refuse(CUBLAS_STATUS_EXECUTION_FAILED,
           "the handle is for device " + devices[0] + ", and device " + devices[1] + " is the current one");
  }
}

void Call::refuse(cublasStatus_t status, const std::string& sentence) {
  if (!valid()) return;
  status_ = status;
  report(std::string(name_) + ": " + sentence);
}

void Call::require(bool condition, const char* sentence) {
  if (!condition) refuse(CUBLAS_STATUS_INVALID_VALUE, sentence);
}

void Call::require_lead(const char* name, int lead, int rows) {
  if (lead >= std::max(1, rows)) return;
  refuse(CUBLAS_STATUS_INVALID_VALUE, std::string(name) + " is " + std::to_string(lead) + ", and must be at least " +
                                          std::to_string(std::max(1, rows)) + ", the rows of the matrix as stored");
}

void Call::require_operation(const char* name, cublasOperation_t operation) {
  if (operation >= CUBLAS_OP_N && operation <= CUBLAS_OP_C) return;
  refuse(CUBLAS_STATUS_INVALID_VALUE, std::string(name) + " is " + std::to_string(operation) +
                                          ", and must be CUBLAS_OP_N, CUBLAS_OP_T or CUBLAS_OP_C");
}

void Call::refuse_as_unsupported(const std::string& sentence) { refuse(CUBLAS_STATUS_NOT_SUPPORTED, sentence); }

Scalar Call::scalar(const void* pointer, size_t bytes) const { return Scalar(pointer, bytes, handle_->pointer_mode); }

// In deferred work nobody looks at the status of the call any more, so the reason is printed where it is found.
CUresult Call::ran(const char* name, CUresult result) {
  if (result == CUDA_SUCCESS) return result;
  const char* text = nullptr;
  if (cuGetErrorString(result, &text) || !text) text = "failed";
  fprintf(stderr, "simulated cuBLAS: %s: %s\n", name, text);
  return result;
}

cublasStatus_t Call::enqueued(CUresult result) {
  if (result) status_ = CUBLAS_STATUS_EXECUTION_FAILED;
  return status_;
}

bool Call::refuses_to_wait() {
  if (handle_->pointer_mode == CUBLAS_POINTER_MODE_DEVICE) return false;
  CUstreamCaptureStatus capture = CU_STREAM_CAPTURE_STATUS_NONE;
  if (cuStreamIsCapturing(handle_->stream, &capture)) return false;  // the work will find out what is wrong
  if (capture != CU_STREAM_CAPTURE_STATUS_NONE) {
    refuse(CUBLAS_STATUS_EXECUTION_FAILED,
           "a result in host memory needs synchronization, and the stream is being captured: use "
           "CUBLAS_POINTER_MODE_DEVICE");
  }
  return !valid();
}

cublasStatus_t Call::wait_for_result() {
  if (handle_->pointer_mode == CUBLAS_POINTER_MODE_DEVICE) return CUBLAS_STATUS_SUCCESS;
  return enqueued(cuStreamSynchronize(handle_->stream));
}

}  // namespace cudasim::cublas
