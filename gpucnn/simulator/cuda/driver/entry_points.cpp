// The entry points of the driver by name. No CUDA header is included: each is only taken the address of, and a name in
// the list that no file defines fails to link.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>

#define ENTRY(name) extern "C" int name();
#include "entry_points.inc"
#undef ENTRY

namespace cudasim {

struct EntryPoint {
  const char* name;
  int (*address)();
};

static const EntryPoint kEntryPoints[] = {
#define ENTRY(name) {#name, name},
#include "entry_points.inc"
#undef ENTRY
};

void* entry_point(const std::string& name) {
  for (const EntryPoint& entry : kEntryPoints) {
    if (name == entry.name) return reinterpret_cast<void*>(entry.address);
  }
  return nullptr;
}

// The latest version of a function, as the plain name means it: cuMemAlloc is cuMemAlloc_v2.
static void* latest_entry_point(const std::string& name) {
  for (const char* version : {"_v4", "_v3", "_v2", ""}) {
    if (void* found = entry_point(name + version)) return found;
  }
  return nullptr;
}

// CUDA's libraries that are linked into a program look the driver's functions up here, among them one that is not
// documented and by which they ask the driver to prove that it is NVIDIA's. What they go on to run is compiled for a
// GPU, and some of them do not look at errors: they would leave wrong numbers behind without a word.
[[noreturn]] static void refuse_caller(const char* name, const void* caller) {
  Dl_info info = {};
  const char* from = dladdr(caller, &info) && info.dli_fname ? info.dli_fname : "the program";
  fprintf(stderr,
          "simulated CUDA: %s contains NVIDIA's runtime and asks the driver for %s, which is not simulated. Its code is "
          "compiled for a GPU and cannot run here: CuPy's parts of this kind are cub, thrust, jitify and the random "
          "generators of its wheel. The program ends, as its results would be wrong.\n",
          from, name);
  abort();
}

}  // namespace cudasim

using namespace cudasim;

extern "C" int cudasim_begin_call(const char* function);

// As documented: CUDA_SUCCESS, or CUDA_ERROR_NOT_FOUND and the symbol's status for a function that is not simulated.
static int look_up(const char* name, void** function, uint64_t flags, int* status, const void* caller) {
  constexpr int kInvalidValue = 1, kNotFound = 500, kSymbolFound = 0, kSymbolNotFound = 1;
  constexpr uint64_t kAllFlags = 3;
  if (!name || !function || flags > kAllFlags) return kInvalidValue;
  if (!strcmp(name, "cuGetExportTable")) refuse_caller(name, caller);
  *function = latest_entry_point(name);
  if (status) *status = *function ? kSymbolFound : kSymbolNotFound;
  return *function ? 0 : kNotFound;
}

extern "C" __attribute__((visibility("default"))) int cuGetProcAddress_v2(const char* name, void** function,
                                                                          int /*cuda_version*/, uint64_t flags,
                                                                          int* status) {
  if (const int injected = cudasim_begin_call(__func__)) return injected;
  return look_up(name, function, flags, status, __builtin_return_address(0));
}

extern "C" __attribute__((visibility("default"))) int cuGetProcAddress(const char* name, void** function,
                                                                       int /*cuda_version*/, uint64_t flags) {
  if (const int injected = cudasim_begin_call(__func__)) return injected;
  return look_up(name, function, flags, nullptr, __builtin_return_address(0));
}
