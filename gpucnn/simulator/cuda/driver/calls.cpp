// The way of every call: counts, the log, and failures that a test asked for.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <map>

#include "control.h"

namespace cudasim {

std::recursive_mutex& driver_lock() {
  static std::recursive_mutex& lock = *new std::recursive_mutex;
  return lock;
}

// ---- Names ---------------------------------------------------------------------------------------------------------

// Without a per-thread-stream suffix and a version: cuMemcpyHtoD_v2_ptds is cuMemcpyHtoD.
std::string documented_name(const char* function) {
  std::string name = function;
  for (const char* suffix : {"_ptds", "_ptsz"}) {
    const size_t length = strlen(suffix);
    if (name.size() > length && !name.compare(name.size() - length, length, suffix)) name.resize(name.size() - length);
  }
  const size_t size = name.size();
  const bool has_version = size > 3 && name[size - 3] == '_' && name[size - 2] == 'v' && name[size - 1] >= '0' &&
                           name[size - 1] <= '9';
  if (has_version) name.resize(size - 3);
  return name;
}

// A call that gives something back. "Any call" injections pass these by: where a free fails and does nothing, a leak is
// not the program's fault. By their own names they can be made to fail.
static bool is_release(const std::string& function) {
  for (const char* part : {"Free", "Destroy", "Unload", "Unregister", "Release", "Reset", "Disable", "PopCurrent"}) {
    if (function.find(part) != std::string::npos) return true;
  }
  return false;
}

// A call that asks about devices, or chooses one. "Any call" injections pass these by, too: the runtime makes two or
// three of them before each call of the program's, also before those that give something back.
static bool chooses_device(const std::string& function) {
  for (const char* start : {"cuCtxGet", "cuCtxSetCurrent", "cuDeviceGet", "cuDriverGetVersion"}) {
    if (!function.compare(0, strlen(start), start)) return true;
  }
  return false;
}

static bool is_among_any(const std::string& function) { return !is_release(function) && !chooses_device(function); }

// Calls that come after a failure, to ask about it.
static bool asks_about_failure(const std::string& function) {
  for (const char* name : {"cudaGetLastError", "cudaPeekAtLastError", "cudaGetErrorName", "cudaGetErrorString"}) {
    if (function == name) return true;
  }
  return false;
}

// ---- State ---------------------------------------------------------------------------------------------------------

struct Calls {
  std::map<std::string, uint64_t> counts;
  std::vector<Injection> injections;
  uint64_t next_id = 1;
};

[[noreturn]] static void refuse_injections(const char* text) {
  fprintf(stderr,
          "simulated CUDA: GPUCNN_CUDA_FAIL must be FUNCTION:CALL or FUNCTION:CALL=ERROR, several with commas between "
          "them, where FUNCTION may be any, for instance cuMemAlloc:3=out_of_memory; got '%s'\n",
          text);
  abort();
}

// "cuMemAlloc:3=out_of_memory"
static Injection parse_injection(const std::string& text, const char* all) {
  const size_t colon = text.find(':');
  const size_t equals = text.find('=');
  if (colon == std::string::npos || colon == 0) refuse_injections(all);
  const bool has_error = equals != std::string::npos;
  const std::string number = text.substr(colon + 1, has_error ? equals - colon - 1 : std::string::npos);
  const bool is_number = !number.empty() && number.find_first_not_of("0123456789") == std::string::npos;
  Injection read = {};
  read.function = documented_name(text.substr(0, colon).c_str());
  if (read.function == "any") read.function.clear();
  read.first = read.last = is_number ? strtoull(number.c_str(), nullptr, 10) : 0;
  read.error = CUDA_ERROR_UNKNOWN;
  const bool known = !has_error || parse_error(text.substr(equals + 1), &read.error);
  if (read.first == 0 || !known) refuse_injections(all);
  return read;
}

static void add_from_environment(Calls& calls) {
  const char* variable = getenv("GPUCNN_CUDA_FAIL");
  if (!variable || !*variable) return;
  const std::string text = variable;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    Injection injection = parse_injection(text.substr(begin, end - begin), variable);
    injection.id = calls.next_id++;
    calls.injections.push_back(injection);
    begin = end + 1;
  }
}

static Calls& calls() {
  static Calls& state = *[] {
    auto* made = new Calls;  // never destroyed: libraries call in until the process ends
    add_from_environment(*made);
    return made;
  }();
  return state;
}

uint64_t add_injection(Injection injection) {
  injection.id = calls().next_id++;
  calls().injections.push_back(injection);
  return injection.id;
}

uint64_t remove_injection(uint64_t id) {
  std::vector<Injection>& all = calls().injections;
  for (size_t i = 0; i < all.size(); i++) {
    if (all[i].id != id) continue;
    const uint64_t injected = all[i].injected;
    all.erase(all.begin() + static_cast<std::ptrdiff_t>(i));
    return injected;
  }
  return 0;
}

void reset_calls() {
  calls().counts.clear();
  calls().injections.clear();
}

std::vector<CallCount> call_counts() {
  std::vector<CallCount> counts;
  for (const auto& entry : calls().counts) counts.push_back({entry.first.c_str(), entry.second});
  return counts;
}

// ---- A call --------------------------------------------------------------------------------------------------------

// The injection that meets this call of `function`; each that concerns it counts it.
static const Injection* meet_injections(const std::string& function) {
  const Injection* met = nullptr;
  for (Injection& injection : calls().injections) {
    const bool concerns = injection.function.empty() ? is_among_any(function) : injection.function == function;
    if (!concerns) continue;
    injection.counted++;
    if (met || injection.counted < injection.first || injection.counted > injection.last) continue;
    injection.injected++;
    met = &injection;
  }
  return met;
}

}  // namespace cudasim

using namespace cudasim;

CUDASIM_EXPORT CUresult cudasim_begin_call(const char* function) {
  std::lock_guard<std::recursive_mutex> held(driver_lock());
  const std::string name = documented_name(function);
  calls().counts[name]++;
  if (settings().log_level >= 2) fprintf(stderr, "simulated CUDA: %s\n", name.c_str());
  if (!asks_about_failure(name)) forget_detail();
  const Injection* injection = meet_injections(name);
  if (!injection) return CUDA_SUCCESS;
  const auto call = static_cast<unsigned long long>(injection->counted);
  const char* among = injection->function.empty() ? "all calls" : "its calls";
  return failure(injection->error, "injected failure of %s, number %llu of %s", name.c_str(), call, among);
}
