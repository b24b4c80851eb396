// cuGetProcAddress: entry points by name.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"

namespace cudasim {

// CUDA's libraries that are linked into a program look the driver's functions up here, among them one that is not
// documented and by which they ask the driver to prove that it is NVIDIA's. What they go on to run is compiled for a
// GPU, and some of them do not look at errors: they would leave wrong numbers behind without a word.
[[noreturn]] static void refuse_caller(const char* name, const void* caller) {
  Dl_info info = {};
  const char* from = dladdr(caller, &info) && info.dli_fname ? info.dli_fname : "the program";
  fprintf(stderr,
          "simulated CUDA: %s contains NVIDIA's runtime and asks the driver for %s, which is not simulated. Its code "
          "is compiled for a GPU and cannot run here: CuPy's parts of this kind are cub (set CUPY_ACCELERATORS to "
          "nothing), thrust, jitify and the random generators of its wheel. The program ends, as its results would be "
          "wrong; python -X faulthandler shows where.\n",
          from, name);
  abort();
}

// As documented: CUDA_SUCCESS, or CUDA_ERROR_NOT_FOUND and the symbol's status for a function that is not simulated.
static CUresult look_up(const char* name, void** function, cuuint64_t flags, CUdriverProcAddressQueryResult* status,
                        const void* caller) {
  constexpr cuuint64_t kAllFlags = CU_GET_PROC_ADDRESS_LEGACY_STREAM | CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
  if (!name || !function || (flags & ~kAllFlags)) {
    return failure(CUDA_ERROR_INVALID_VALUE, "name and result must not be null, nor flags unknown");
  }
  if (!strcmp(name, "cuGetExportTable")) refuse_caller(name, caller);
  *function = latest_entry_point(name);
  if (status) *status = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  if (*function) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_NOT_FOUND, "%s is not simulated", name);
}

}  // namespace cudasim

using namespace cudasim;

#undef cuGetProcAddress
#undef cuGetProcAddress_v2

ENTRY_POINT cuGetProcAddress_v2(const char* name, void** function, int, cuuint64_t flags,
                                CUdriverProcAddressQueryResult* status) {
  BEGIN_CALL();
  return look_up(name, function, flags, status, __builtin_return_address(0));
}

// The name's first version.
ENTRY_POINT cuGetProcAddress(const char* name, void** function, int, cuuint64_t flags) {
  BEGIN_CALL();
  return look_up(name, function, flags, nullptr, __builtin_return_address(0));
}
