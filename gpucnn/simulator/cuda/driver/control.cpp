// Functions that Python calls, in gpucnn/simulator/cuda/__init__.py: failures to inject, counts, live memory, settings.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"

using namespace cudasim;
using Lock = std::lock_guard<std::recursive_mutex>;

#define CONTROL extern "C" __attribute__((visibility("default")))

// ---- Failures ------------------------------------------------------------------------------------------------------

// From now on, calls `first` to `last` of `function` fail, or of any function where that is empty; 0 if there is no
// such error. The result is for cudasim_withdraw.
CONTROL uint64_t cudasim_inject(const char* function, uint64_t first, uint64_t last, const char* error) {
  Lock held(driver_lock());
  Injection injection = {};
  injection.function = documented_name(function);
  injection.first = first;
  injection.last = last;
  return parse_error(error, &injection.error) ? add_injection(injection) : 0;
}

// Whether the driver has a function of this documented name.
CONTROL int cudasim_exports(const char* function) { return latest_entry_point(function) != nullptr; }

// The number of calls that the injection let fail.
CONTROL uint64_t cudasim_withdraw(uint64_t id) {
  Lock held(driver_lock());
  return remove_injection(id);
}

// Of this thread's last failure; "" if there is none.
CONTROL const char* cudasim_last_detail() { return last_detail(); }

// ---- Counts --------------------------------------------------------------------------------------------------------

// Fills up to `room` entries; the number that there are.
CONTROL size_t cudasim_calls(CallCount* counts, size_t room) {
  Lock held(driver_lock());
  const std::vector<CallCount> all = call_counts();
  for (size_t i = 0; i < all.size() && i < room; i++) counts[i] = all[i];
  return all.size();
}

// Forgets counts, injections and this thread's last failure, and reads the settings that a program may change anew from
// the environment. Memory stays.
CONTROL void cudasim_reset() {
  Lock held(driver_lock());
  reset_calls();
  forget_detail();
  reset_settings();
}

// ---- Memory --------------------------------------------------------------------------------------------------------

struct LiveAllocation {
  uint64_t serial;
  uint64_t address;
  uint64_t bytes;
  int32_t device;
  int32_t kind;  // as in MemoryKind
};

// Fills up to `room` entries; the number that there are.
CONTROL size_t cudasim_live_allocations(LiveAllocation* allocations, size_t room) {
  Lock held(driver_lock());
  const std::vector<const Allocation*> all = live_allocations();
  for (size_t i = 0; i < all.size() && i < room; i++) {
    const auto address = reinterpret_cast<uint64_t>(all[i]->low);
    allocations[i] = {all[i]->serial, address, all[i]->bytes, all[i]->device, static_cast<int32_t>(all[i]->kind)};
  }
  return all.size();
}

// The serial number of the latest allocation: later ones have greater numbers.
CONTROL uint64_t cudasim_marker() {
  Lock held(driver_lock());
  return last_serial();
}

// Checks all guard bytes and the blocks that were freed last.
CONTROL CUresult cudasim_check_memory() {
  Lock held(driver_lock());
  forget_detail();
  return check_guards("a check that the program asked for");
}

// ---- Settings ------------------------------------------------------------------------------------------------------

CONTROL uint64_t cudasim_memory_limit() { return settings().memory_bytes; }
CONTROL uint64_t cudasim_stream_seed() { return settings().stream_seed; }
CONTROL int cudasim_checks() { return settings().check; }

CONTROL void cudasim_set_memory_limit(uint64_t bytes) {
  Lock held(driver_lock());
  settings().memory_bytes = bytes;
}

// What is pending is done first, in the order of the seed so far; the result is its error.
CONTROL CUresult cudasim_set_stream_seed(uint64_t seed) {
  CUresult result = CUDA_SUCCESS;
  for (int device = 0; device < settings().device_count; device++) {
    if (CUresult error = finish_uncaptured(device)) result = error;
  }
  Lock held(driver_lock());
  settings().stream_seed = seed;
  return result;
}

// ---- At exit -------------------------------------------------------------------------------------------------------

namespace {

struct AtExit {
  AtExit() {
    if (settings().report_leaks) atexit([] { report_leaks(); });
  }
};

AtExit at_exit;

}  // namespace
