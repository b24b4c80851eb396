// cuFFT's documented types and numbers, as its interface has them; its headers come with a wheel of several 100 MB.
#pragma once
#include <cuda.h>
#include <library_types.h>
#include <stddef.h>

#include "driver/services.h"

using cufftHandle = int;

enum cufftResult : int {
  CUFFT_SUCCESS = 0,
  CUFFT_INVALID_PLAN = 1,
  CUFFT_INVALID_TYPE = 3,
  CUFFT_INVALID_VALUE = 4,
  CUFFT_EXEC_FAILED = 6,
  CUFFT_SETUP_FAILED = 7,
  CUFFT_INVALID_SIZE = 8,
  CUFFT_NO_WORKSPACE = 13,
  CUFFT_NOT_SUPPORTED = 16,
};

enum cufftType : int {
  CUFFT_C2C = 0x29,
  CUFFT_R2C = 0x2a,
  CUFFT_C2R = 0x2c,
  CUFFT_Z2Z = 0x69,
  CUFFT_D2Z = 0x6a,
  CUFFT_Z2D = 0x6c,
};

constexpr int CUFFT_FORWARD = -1;
constexpr int CUFFT_INVERSE = 1;

#define CUFFT_ENTRY CUDASIM_EXPORT cufftResult
