// A check for missing synchronisation: two pieces of work in streams that nothing orders, of which one writes what the
// other one uses. It does not depend on the order in which the work happens to run. GPUCNN_CUDA_STREAM_RACES=1
#pragma once
#include <map>
#include <memory>
#include <string>

#include "driver.h"

namespace cudasim {

bool are_stream_races_wanted();

// What is known to be done: of each stream, by its id, the pieces of work up to a number.
using Clock = std::map<uint64_t, uint64_t>;

void merge(Clock& clock, const Clock& other);

// What the program itself has waited for: all that it issues later comes after it.
Clock& host_clock();

enum class Use { kRead, kWrite, kAtomic };

// The piece of work that runs now.
struct RunningWork {
  uint64_t stream;
  uint64_t number;
  std::string name;
  std::shared_ptr<const Clock> clock;  // what it comes after
};

void begin_work(RunningWork work);
void end_work();

// Notes that the running work uses memory, and tells which earlier work nothing orders it with: "the write by 'add' in
// stream 3, ..."; null if there is none.
const char* stream_conflict(const void* pointer, size_t bytes, Use use);

// For copies, fills and library calls: a failure where there is a conflict.
CUresult check_stream_races(const std::string& what, const void* pointer, size_t bytes, bool writes);

}  // namespace cudasim
