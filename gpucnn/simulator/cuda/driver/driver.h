// The state of the simulated driver, shared by the files of libcuda.so.1.
#pragma once
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "services.h"

#define ENTRY_POINT CUDASIM_EXPORT CUresult
// The first line of an entry point: the call is counted, logged, and may have been told to fail.
#define BEGIN_CALL()                                                     \
  do {                                                                   \
    if (CUresult injected = cudasim_begin_call(__func__)) return injected; \
  } while (0)

namespace cudasim {

// One lock for all state: CUDA calls come from any thread, simulated kernels run one at a time.
std::recursive_mutex& driver_lock();

// ---- Settings, from the environment (settings.cpp) -----------------------------------------------------------------

struct Settings {
  int device_count;         // GPUCNN_CUDA_DEVICES, 1
  std::string device_name;  // GPUCNN_CUDA_DEVICE: t4, a100, h100 (the default) or rtx4090
  size_t memory_bytes;      // GPUCNN_CUDA_MEMORY per device, default 8 GiB: allocations beyond it are out of memory
  bool check;               // GPUCNN_CUDA_CHECK, on by default: kernels are compiled and run with checks
  uint64_t stream_seed;     // GPUCNN_CUDA_STREAM_SEED: 0 runs work when it is issued; else an order of streams by seed
  int log_level;            // GPUCNN_CUDA_LOG: 1 failures, 2 every call
};
Settings& settings();

// ---- Devices and contexts (devices.cpp) ----------------------------------------------------------------------------

CUcontext current_context();  // of this thread, or null
int current_device();         // of the current context, 0 without one
int device_of(CUcontext context);
int device_attribute(int device, CUdevice_attribute attribute);

// ---- Memory (memory.cpp) -------------------------------------------------------------------------------------------

enum class MemoryKind { kDevice, kManaged, kPinned };

// A block of memory that the program asked for. Each is surrounded by guard bytes, and freed ones are kept for a while.
struct Allocation {
  uint64_t serial;          // counts allocations of the process
  char* low;
  size_t bytes;             // exactly as asked for
  MemoryKind kind;
  int device;
  CUstream stream;          // of cuMemAllocAsync, else null
  bool freed;
  uint8_t* initialised;     // a byte for each byte: whether it was written since it was allocated; null if not tracked
};

// The allocation, live or freed, that `pointer` points into or, with its guard bytes, next to; null if there is none.
// Valid until driver_lock() is released.
Allocation* allocation_at(const void* pointer);

// The live allocations of all devices, by address.
std::vector<const Allocation*> live_allocations();

// Frees at once, for a cuMemFreeAsync whose turn in the stream has come.
CUresult free_now(CUdeviceptr pointer);

// ---- Streams (streams.cpp) -----------------------------------------------------------------------------------------

// A piece of work in a stream. It may run more than once (graphs), and long after the call that issued it.
using Work = std::function<CUresult()>;
CUresult enqueue(CUstream stream, std::string name, Work work);
CUresult finish_stream(CUstream stream);  // runs what is pending in it, and what that waits for
CUresult finish_device(int device);
bool is_capturing(CUstream stream);
bool is_any_capturing_in_global_mode();  // then calls such as cuMemAlloc are refused: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED

// ---- Failures (errors.cpp) -----------------------------------------------------------------------------------------

// Records the description of a failure, logs it, and returns `error`. The text reaches Python through cuGetErrorString.
CUresult failure(CUresult error, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace cudasim
