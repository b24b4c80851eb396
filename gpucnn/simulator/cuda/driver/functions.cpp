// Attributes of functions, and occupancy by the formulas of CUDA's documentation.
#include <algorithm>

#include "modules.h"

using namespace cudasim;

namespace cudasim {

constexpr int kRegisters = 32;  // as a kernel of middling size has: nothing here is compiled for a GPU
constexpr int kWarp = 32;

// Of the device that the function is loaded on.
static int attribute_of(const CUfunc_st& function, CUdevice_attribute attribute) {
  const auto module = function.module.lock();
  return device_attribute(module ? device_of(module->context) : current_device(), attribute);
}

int shared_limit_of(const CUfunc_st& function) {
  return attribute_of(function, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
}

int max_threads_of(const CUfunc_st& function) {
  const int device = attribute_of(function, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
  return function.entry->max_threads ? std::min(function.entry->max_threads, device) : device;
}

static int capability_of(const CUfunc_st& function) {
  return 10 * attribute_of(function, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) +
         attribute_of(function, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
}

static CUresult get_attribute(const CUfunc_st& function, CUfunction_attribute attribute, int* value) {
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = max_threads_of(function); break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = kRegisters; break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *value = capability_of(function); break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = function.max_dynamic_shared; break;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: *value = function.carveout; break;
    // Known to a GPU's compiler only: static shared memory is allocated here as a block comes by its variables.
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
    case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
    case CU_FUNC_ATTRIBUTE_CACHE_MODE_CA:
    // No kernel asks for clusters, which are not simulated.
    case CU_FUNC_ATTRIBUTE_CLUSTER_SIZE_MUST_BE_SET:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT:
    case CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH:
    case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED:
    case CU_FUNC_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE: *value = 0; break;
    default: return failure(CUDA_ERROR_INVALID_VALUE, "attribute %d of a function", static_cast<int>(attribute));
  }
  return CUDA_SUCCESS;
}

static CUresult set_max_dynamic_shared(CUfunc_st& function, int bytes) {
  const int limit = shared_limit_of(function);
  if (bytes < 0 || bytes > limit) {
    return failure(CUDA_ERROR_INVALID_VALUE,
                   "kernel '%s' cannot be allowed %d bytes of dynamic shared memory: the device has %d",
                   readable_name(function.entry->name).c_str(), bytes, limit);
  }
  function.max_dynamic_shared = bytes;
  return CUDA_SUCCESS;
}

static CUresult set_attribute(CUfunc_st& function, CUfunction_attribute attribute, int value) {
  switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: return set_max_dynamic_shared(function, value);
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
      if (value < CU_SHAREDMEM_CARVEOUT_DEFAULT || value > CU_SHAREDMEM_CARVEOUT_MAX_SHARED) break;
      function.carveout = value;
      return CUDA_SUCCESS;
    default: break;
  }
  return failure(CUDA_ERROR_INVALID_VALUE, "attribute %d of a function cannot be set to %d",
                 static_cast<int>(attribute), value);
}

// ---- Occupancy -----------------------------------------------------------------------------------------------------

static int rounded_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// Blocks that fit a multiprocessor at once: by warps, registers, shared memory, and their own limit.
static int active_blocks(const CUfunc_st& function, int threads, size_t dynamic_shared) {
  if (threads > max_threads_of(function)) return 0;
  if (dynamic_shared > static_cast<size_t>(function.max_dynamic_shared)) return 0;
  auto device = [&](CUdevice_attribute attribute) { return attribute_of(function, attribute); };
  const int warps = rounded_up(threads, kWarp) / kWarp;
  constexpr int kRegisterUnit = 256;  // of a warp
  const int registers = warps * rounded_up(kRegisters * kWarp, kRegisterUnit);
  const int shared = static_cast<int>(dynamic_shared) + device(CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK);
  int blocks = device(CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR);
  blocks = std::min(blocks, device(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR) / kWarp / warps);
  blocks = std::min(blocks, device(CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR) / registers);
  if (shared) blocks = std::min(blocks, device(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR) / shared);
  return blocks;
}

// The largest block of those with which most threads are active at once.
static void best_block(const CUfunc_st& function, CUoccupancyB2DSize shared_of, size_t dynamic_shared, int limit,
                       int* min_grid, int* block) {
  const int most = max_threads_of(function);
  const int first = limit > 0 ? std::min(limit, most) : most;
  int best_threads = 0;
  *block = *min_grid = 0;
  for (int threads = first; threads > 0; threads = rounded_up(threads, kWarp) - kWarp) {
    const int blocks = active_blocks(function, threads, shared_of ? shared_of(threads) : dynamic_shared);
    if (blocks * threads <= best_threads) continue;
    best_threads = blocks * threads;
    *block = threads;
    *min_grid = blocks * attribute_of(function, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
  }
}

// ---- Parameters ----------------------------------------------------------------------------------------------------

static CUresult parameter_info(const CUfunc_st& function, size_t index, size_t* offset, size_t* size) {
  if (index >= static_cast<size_t>(function.entry->parameter_count)) {
    return failure(CUDA_ERROR_INVALID_VALUE, "kernel '%s' has %d parameters",
                   readable_name(function.entry->name).c_str(), function.entry->parameter_count);
  }
  if (offset) *offset = offset_of_parameter(*function.entry, static_cast<int>(index));
  if (size) *size = static_cast<size_t>(function.entry->parameters[index].bytes);
  return CUDA_SUCCESS;
}

size_t offset_of_parameter(const gpucnn::Entry& entry, int index) {
  size_t offset = 0;
  for (int i = 0; i <= index; i++) {
    const gpucnn::Parameter& parameter = entry.parameters[i];
    const size_t align = parameter.align;
    offset = (offset + align - 1) / align * align;
    if (i < index) offset += static_cast<size_t>(parameter.bytes);
  }
  return offset;
}

// Calls `answer` with the function of a handle.
template <class Answer>
static CUresult with_function(CUfunction handle, Answer answer) {
  Guard guard(driver_lock());
  CUresult error = CUDA_SUCCESS;
  FunctionPointer function = function_of(handle, &error);
  return function ? answer(*function) : error;
}

}  // namespace cudasim

// ---- Entry points --------------------------------------------------------------------------------------------------

ENTRY_POINT cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction handle) {
  BEGIN_CALL();
  return with_function(handle, [&](CUfunc_st& function) { return get_attribute(function, attribute, value); });
}

ENTRY_POINT cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
  BEGIN_CALL();
  return with_function(handle, [&](CUfunc_st& function) { return set_attribute(function, attribute, value); });
}

// A kernel of a library has one function per context; attributes are those of the current one.
ENTRY_POINT cuKernelGetAttribute(int* value, CUfunction_attribute attribute, CUkernel kernel, CUdevice) {
  BEGIN_CALL();
  return with_function(reinterpret_cast<CUfunction>(kernel),
                       [&](CUfunc_st& function) { return get_attribute(function, attribute, value); });
}

ENTRY_POINT cuKernelSetAttribute(CUfunction_attribute attribute, int value, CUkernel kernel, CUdevice) {
  BEGIN_CALL();
  return with_function(reinterpret_cast<CUfunction>(kernel),
                       [&](CUfunc_st& function) { return set_attribute(function, attribute, value); });
}

// Preferences for caches: there are none.
ENTRY_POINT cuFuncSetCacheConfig(CUfunction handle, CUfunc_cache) {
  BEGIN_CALL();
  return with_function(handle, [](CUfunc_st&) { return CUDA_SUCCESS; });
}

ENTRY_POINT cuKernelSetCacheConfig(CUkernel kernel, CUfunc_cache, CUdevice) {
  BEGIN_CALL();
  return with_function(reinterpret_cast<CUfunction>(kernel), [](CUfunc_st&) { return CUDA_SUCCESS; });
}

ENTRY_POINT cuFuncSetSharedMemConfig(CUfunction handle, CUsharedconfig) {
  BEGIN_CALL();
  return with_function(handle, [](CUfunc_st&) { return CUDA_SUCCESS; });
}

ENTRY_POINT cuFuncGetModule(CUmodule* module, CUfunction handle) {
  BEGIN_CALL();
  return with_function(handle, [&](CUfunc_st& function) {
    *module = function.module.lock().get();
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuFuncGetName(const char** name, CUfunction handle) {
  BEGIN_CALL();
  return with_function(handle, [&](CUfunc_st& function) {
    *name = function.entry->name;
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuFuncGetParamInfo(CUfunction handle, size_t index, size_t* offset, size_t* size) {
  BEGIN_CALL();
  return with_function(handle, [&](CUfunc_st& function) { return parameter_info(function, index, offset, size); });
}

ENTRY_POINT cuKernelGetParamInfo(CUkernel kernel, size_t index, size_t* offset, size_t* size) {
  BEGIN_CALL();
  return with_function(reinterpret_cast<CUfunction>(kernel),
                       [&](CUfunc_st& function) { return parameter_info(function, index, offset, size); });
}

ENTRY_POINT cuFuncIsLoaded(CUfunctionLoadingState* state, CUfunction handle) {
  BEGIN_CALL();
  return with_function(handle, [&](CUfunc_st&) {
    *state = CU_FUNCTION_LOADING_STATE_LOADED;
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuFuncLoad(CUfunction handle) {
  BEGIN_CALL();
  return with_function(handle, [](CUfunc_st&) { return CUDA_SUCCESS; });
}

static CUresult get_active_blocks(int* blocks, CUfunction handle, int threads, size_t dynamic_shared) {
  if (!blocks || threads <= 0) return failure(CUDA_ERROR_INVALID_VALUE, "a block of %d threads", threads);
  return with_function(handle, [&](CUfunc_st& function) {
    *blocks = active_blocks(function, threads, dynamic_shared);
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction function, int threads, size_t shared) {
  BEGIN_CALL();
  return get_active_blocks(blocks, function, threads, shared);
}

ENTRY_POINT cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, CUfunction function, int threads,
                                                                 size_t shared, unsigned) {
  BEGIN_CALL();
  return get_active_blocks(blocks, function, threads, shared);
}

static CUresult get_best_block(int* min_grid, int* block, CUfunction handle, CUoccupancyB2DSize shared_of,
                               size_t shared, int limit) {
  if (!min_grid || !block) return failure(CUDA_ERROR_INVALID_VALUE, "no place for the grid or the block was given");
  return with_function(handle, [&](CUfunc_st& function) {
    best_block(function, shared_of, shared, limit, min_grid, block);
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuOccupancyMaxPotentialBlockSize(int* min_grid, int* block, CUfunction function,
                                             CUoccupancyB2DSize shared_of, size_t shared, int limit) {
  BEGIN_CALL();
  return get_best_block(min_grid, block, function, shared_of, shared, limit);
}

ENTRY_POINT cuOccupancyMaxPotentialBlockSizeWithFlags(int* min_grid, int* block, CUfunction function,
                                                      CUoccupancyB2DSize shared_of, size_t shared, int limit,
                                                      unsigned) {
  BEGIN_CALL();
  return get_best_block(min_grid, block, function, shared_of, shared, limit);
}

// What is left for each of so many blocks.
ENTRY_POINT cuOccupancyAvailableDynamicSMemPerBlock(size_t* bytes, CUfunction handle, int blocks, int threads) {
  BEGIN_CALL();
  if (!bytes || blocks <= 0) return failure(CUDA_ERROR_INVALID_VALUE, "%d blocks", blocks);
  return with_function(handle, [&](CUfunc_st& function) {
    if (active_blocks(function, threads, 0) < blocks) {
      return failure(CUDA_ERROR_INVALID_VALUE, "%d blocks of %d threads do not fit a multiprocessor", blocks, threads);
    }
    const int all = attribute_of(function, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
    const int reserved = attribute_of(function, CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK);
    *bytes = static_cast<size_t>(std::min(std::max(all / blocks - reserved, 0), shared_limit_of(function)));
    return CUDA_SUCCESS;
  });
}
