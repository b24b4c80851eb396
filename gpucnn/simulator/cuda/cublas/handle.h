// The state of a cuBLAS handle.
#pragma once
#include "interface.h"

namespace cudasim::cublas {

// Device memory that the caller lends to products; null: they use the library's own.
struct Workspace {
  void* memory = nullptr;
  size_t bytes = 0;
};

}  // namespace cudasim::cublas

struct cublasContext {
  int device;  // that was current when the handle was created; the handle is for it alone
  CUstream stream = nullptr;
  cudasim::cublas::Workspace workspace = {};
  cublasPointerMode_t pointer_mode = CUBLAS_POINTER_MODE_HOST;
  cublasMath_t math_mode = CUBLAS_DEFAULT_MATH;
  cublasAtomicsMode_t atomics_mode = CUBLAS_ATOMICS_NOT_ALLOWED;
  int sm_count_target = 0;
};

namespace cudasim::cublas {

bool is_live(cublasHandle_t handle);  // created, and not destroyed

}  // namespace cudasim::cublas
