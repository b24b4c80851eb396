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
  bool report_leaks;        // GPUCNN_CUDA_LEAKS: at exit, to the standard error
  bool stream_races;        // GPUCNN_CUDA_STREAM_RACES: work that uses the same memory must be ordered across streams
  bool sticky_errors;       // GPUCNN_CUDA_STICKY: a failed kernel spoils its device
};
Settings& settings();
void reset_settings();  // those that a program may change: memory_bytes, stream_seed, stream_races, sticky_errors

// ---- Devices and contexts (devices.cpp, contexts.cpp) --------------------------------------------------------------

CUcontext current_context();  // of this thread, or null
int current_device();         // of the current context, 0 without one
int device_of(CUcontext context);
bool is_device(int device);   // in [0, number of devices)
int device_attribute(int device, CUdevice_attribute attribute);

// What most calls begin with: CUDA_ERROR_NOT_INITIALIZED before cuInit, CUDA_ERROR_INVALID_CONTEXT without a context,
// CUDA_ERROR_CONTEXT_IS_DESTROYED with one that has been released or reset.
CUresult require_context();

// Whether kernels of `device` may use memory of `owner`: the same device, or peer access has been enabled.
bool can_access(int device, int owner);

// ---- Memory (memory.cpp) -------------------------------------------------------------------------------------------

enum class MemoryKind {
  kDevice,
  kManaged,
  kPinned,
  kRegistered,  // the program's host memory, after cuMemHostRegister
  kVariable,    // a __device__ or __constant__ variable of a module
};

// A block of memory that the program asked for. Each is surrounded by guard bytes, and freed ones are kept for a while;
// registered memory and variables are neither.
struct Allocation {
  uint64_t serial;          // counts allocations of the process
  char* low;
  size_t bytes;             // exactly as asked for
  MemoryKind kind;
  int device;
  CUstream stream;          // of cuMemAllocAsync, else null
  bool freed;
  uint8_t* initialised;     // a byte for each byte: whether it was written since it was allocated; null if not tracked
  unsigned flags;           // of cuMemHostAlloc and its like
  CUcontext context;        // that it was allocated in
  CUmemoryPool pool;        // that it was allocated from, or null
  bool free_is_pending;     // cuMemFreeAsync was called, its turn in the stream has not come
  char* block;              // what the host's allocator gave: guard bytes, memory, guard bytes; null if there are none
};

// The allocation, live or freed, that `pointer` points into or, with its guard bytes, next to; null if there is none.
// Valid until driver_lock() is released.
Allocation* allocation_at(const void* pointer);

// "allocation 17 of 4096 bytes", for messages.
std::string describe(const Allocation& allocation);

// The live allocations of all devices, by address.
std::vector<const Allocation*> live_allocations();

// Frees at once, for a cuMemFreeAsync whose turn in the stream has come.
CUresult free_now(CUdeviceptr pointer);

// Makes a variable of a module known, so that copies may use it. `remove_variable` before the module is unloaded.
void add_variable(void* low, size_t bytes, int device);
void remove_variable(void* low);

// [pointer, pointer + bytes) has been written. Nothing happens where that is not tracked.
void mark_initialised(const void* pointer, size_t bytes);

// Whether the guard bytes of all live allocations, and those that were freed last, are as they were. `after` names what
// ran last: "kernel 'add'". The failure is CUDA_ERROR_ILLEGAL_ADDRESS; each damage is reported once.
CUresult check_guards(const std::string& after);
CUresult check_guards(Allocation& allocation, const std::string& after);

// ---- Streams (streams.cpp) -----------------------------------------------------------------------------------------

// A piece of work in a stream. It may run more than once (graphs), and long after the call that issued it.
using Work = std::function<CUresult()>;
CUresult enqueue(CUstream stream, std::string name, Work work);
CUresult finish_stream(CUstream stream);  // runs what is pending in it, and what that waits for
CUresult finish_device(int device);
bool is_capturing(CUstream stream);
bool is_any_capturing_in_global_mode();  // then calls such as cuMemAlloc are refused

// Such a call begins with it: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, and the capture is invalid from then on.
CUresult refuse_while_capturing(const char* call);

// With GPUCNN_CUDA_STICKY=1 a failed kernel spoils its device, as on a GPU: what uses it fails in the same way until
// cuDevicePrimaryCtxReset. By default the next call works, which suits tests that provoke failures.
CUresult sticky_error(int device);
void clear_sticky_error(int device);

// At the end of a context: its streams and modules are gone, and what is still pending in them.
void release_streams(CUcontext context);
void release_modules(CUcontext context);

// ---- Failures (errors.cpp) -----------------------------------------------------------------------------------------

// Records the description of a failure, logs it, and returns `error`. The text reaches Python through cuGetErrorString.
CUresult failure(CUresult error, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace cudasim
