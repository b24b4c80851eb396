// Shared declarations of the files on calls, failures and memory, beyond what the rest of the driver needs.
#pragma once
#include "driver.h"

namespace cudasim {

// ---- errors.cpp ----------------------------------------------------------------------------------------------------

// An error by its name, with or without CUDA_ERROR_ and in either case, or by its number; false where there is none.
bool parse_error(const std::string& text, CUresult* error);
const char* name_of_error(CUresult error);
const char* last_detail();  // of this thread; "" if there is none
void forget_detail();

// ---- calls.cpp -----------------------------------------------------------------------------------------------------

// A failure to inject: calls `first` to `last`, counted from 1 from now on, of `function`, or of any function where
// that is empty.
struct Injection {
  uint64_t id;
  std::string function;
  uint64_t first;
  uint64_t last;
  CUresult error;
  uint64_t counted;  // calls that it has seen
  uint64_t injected;
};

uint64_t add_injection(Injection injection);
uint64_t remove_injection(uint64_t id);  // the number of calls that it let fail
void reset_calls();

// "cuMemAlloc_v2" is cuMemAlloc to a reader of the documentation.
std::string documented_name(const char* function);

struct CallCount {
  const char* function;
  uint64_t calls;
};
std::vector<CallCount> call_counts();  // valid until the next reset

// ---- entry_points.cpp ----------------------------------------------------------------------------------------------

// The address of an entry point of entry_points.inc; null for other names.
void* entry_point(const std::string& name);

// The latest version of a function, as the plain name means it: cuMemAlloc is cuMemAlloc_v2.
void* latest_entry_point(const std::string& name);

// ---- memory.cpp ----------------------------------------------------------------------------------------------------

// What an allocation is wanted for.
struct Request {
  size_t bytes;
  MemoryKind kind;
  int device;
  CUstream stream;
  CUmemoryPool pool;
  unsigned flags;
};

CUresult allocate(const Request& request, char** low);
CUresult release(Allocation& allocation);       // the allocation is live
void release_context(CUcontext context);        // the memory that was allocated in it
size_t used_bytes(int device);                  // of its memory limit
CUresult register_host(char* low, size_t bytes, unsigned flags);
uint64_t last_serial();                         // of the latest allocation
void report_leaks();

// The live allocation that holds all of [pointer, pointer + bytes), or a failure with `error` that begins with `what`.
CUresult live_range(CUresult error, const std::string& what, const void* pointer, size_t bytes, Allocation** found);

// ---- waiting.cpp ---------------------------------------------------------------------------------------------------

// Finishes the device's streams, except those that are being captured, whose work does not run. As finish_device(), it
// is called without the lock: a host function in a stream may wait for another thread that needs it.
CUresult finish_uncaptured(int device);

// ---- pools.cpp -----------------------------------------------------------------------------------------------------

void note_pool_free(CUmemoryPool pool, size_t bytes);

}  // namespace cudasim
