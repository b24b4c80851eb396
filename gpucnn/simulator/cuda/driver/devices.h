// Shared declarations of the files on devices and contexts.
#pragma once
#include "driver.h"

namespace cudasim {

bool is_driver_initialised();

// CUDA_ERROR_NOT_INITIALIZED before cuInit, CUDA_ERROR_INVALID_DEVICE for a device that is not there.
CUresult require_device(int device);

// An error unless `context` is a context, and has not been destroyed.
CUresult require_context(CUcontext context);

// The primary context of a device, whether it has been retained or not.
CUcontext primary_context(int device);

}  // namespace cudasim
