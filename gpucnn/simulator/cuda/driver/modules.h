// Modules, libraries and their functions: shared by modules.cpp, functions.cpp and launches.cpp.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "images.h"
#include "streams.h"

struct CUfunc_st {
  std::weak_ptr<CUmod_st> module;
  const gpucnn::Entry* entry;
  int max_dynamic_shared;
  int carveout = CU_SHAREDMEM_CARVEOUT_DEFAULT;
};

struct CUmod_st {
  CUcontext context;
  cudasim::Image image;
  std::vector<std::shared_ptr<CUfunc_st>> functions;

  ~CUmod_st();
};

// A kernel of a library: a function in each context.
struct CUkern_st {
  CUlibrary library;
  std::string name;
};

// An image that is loaded into each context when it is first used there.
struct CUlib_st {
  std::string name;
  std::string bytes;
  std::map<CUcontext, std::shared_ptr<CUmod_st>> modules;
  std::map<std::string, std::shared_ptr<CUkern_st>> kernels;
};

namespace cudasim {

constexpr int kDefaultSharedLimit = 48 << 10;

using FunctionPointer = std::shared_ptr<CUfunc_st>;

// The function of a handle, which may be a kernel's: then its function in the current context. Null after failure().
FunctionPointer function_of(CUfunction handle, CUresult* error);

// A kernel's name as the source has it: "add<float>".
std::string readable_name(const char* symbol);

// The most dynamic shared memory that a function may be allowed to ask for.
int shared_limit_of(const CUfunc_st& function);
int max_threads_of(const CUfunc_st& function);

// Where a parameter lies in a buffer of all of them.
size_t offset_of_parameter(const gpucnn::Entry& entry, int index);

}  // namespace cudasim
