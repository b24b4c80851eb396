// Races between streams: the last work that used each byte, and whether the streams of two uses are ordered.
//
// Each piece of work has a place: its stream and its number there. A clock says up to which number the work of each
// stream comes before; it is made when the work is issued, from the order within the stream, events, the default
// stream's rules, and what the program has waited for. The nodes of a graph count as one after another.
#include "stream_races.h"

#include <stdio.h>
#include <stdlib.h>

#include <vector>

namespace cudasim {

bool are_stream_races_wanted() {
  return settings().stream_races;
}

void merge(Clock& clock, const Clock& other) {
  for (const auto& [stream, number] : other) {
    uint64_t& own = clock[stream];
    if (number > own) own = number;
  }
}

Clock& host_clock() {
  static auto& clock = *new Clock;  // never destroyed: other libraries call in at exit
  return clock;
}

// ---- Works ---------------------------------------------------------------------------------------------------------

struct Place {
  uint64_t stream;
  uint64_t number;
  std::string name;
};

// Work that has run, by the number that the uses of a byte know it by; 0 is none.
static std::vector<Place>& places() {
  static auto& all = *new std::vector<Place>(1);
  return all;
}

static RunningWork running;
static bool is_running = false;

void begin_work(RunningWork work) {
  places().push_back({work.stream, work.number, work.name});
  running = std::move(work);
  is_running = true;
}

void end_work() { is_running = false; }

static bool comes_before(const Place& earlier) {
  if (earlier.stream == running.stream) return true;
  auto known = running.clock->find(earlier.stream);
  return known != running.clock->end() && known->second >= earlier.number;
}

// ---- Uses ----------------------------------------------------------------------------------------------------------

struct ByteUse {
  uint32_t writer;
  uint32_t reader;
};

constexpr uint32_t kAtomic = 1u << 31;  // of a writer

struct Uses {
  const char* low;
  size_t bytes;
  ByteUse* of_byte;
};

static std::map<uint64_t, Uses>& all_uses() {
  static auto& uses = *new std::map<uint64_t, Uses>;
  return uses;
}

static bool is_alive(uint64_t serial, const Uses& uses) {
  const Allocation* allocation = allocation_at(uses.low);
  return allocation && !allocation->freed && allocation->serial == serial;
}

static void forget_freed_memory() {
  for (auto uses = all_uses().begin(); uses != all_uses().end();) {
    if (is_alive(uses->first, uses->second)) {
      ++uses;
      continue;
    }
    free(uses->second.of_byte);
    uses = all_uses().erase(uses);
  }
}

static const Uses* uses_of(const char* pointer) {
  const Allocation* allocation = allocation_at(pointer);
  if (!allocation || allocation->freed || pointer < allocation->low) return nullptr;
  auto found = all_uses().find(allocation->serial);
  if (found != all_uses().end()) return &found->second;
  forget_freed_memory();
  auto* none = static_cast<ByteUse*>(calloc(allocation->bytes, sizeof(ByteUse)));
  if (!none) return nullptr;
  Uses& uses = all_uses()[allocation->serial];
  uses = {allocation->low, allocation->bytes, none};
  return &uses;
}

static const char* describe(const char* what, const Place& place) {
  static char text[512];
  snprintf(text, sizeof text,
           "the %s by '%s' in stream %llu; nothing orders it before this work in stream %llu: an event to wait for is "
           "missing, or a synchronisation",
           what, place.name.c_str(), static_cast<unsigned long long>(place.stream),
           static_cast<unsigned long long>(running.stream));
  return text;
}

static const char* conflict_at(const ByteUse& byte, Use use) {
  const Place& writer = places()[byte.writer & ~kAtomic];
  const bool both_atomic = use == Use::kAtomic && (byte.writer & kAtomic);
  if (byte.writer && !both_atomic && !comes_before(writer)) {
    return describe(byte.writer & kAtomic ? "atomic operation" : "write", writer);
  }
  const Place& reader = places()[byte.reader];
  if (use != Use::kRead && byte.reader && !comes_before(reader)) return describe("read", reader);
  return nullptr;
}

const char* stream_conflict(const void* pointer, size_t bytes, Use use) {
  if (!is_running) return nullptr;
  const char* low = static_cast<const char*>(pointer);
  const Uses* uses = uses_of(low);
  if (!uses) return nullptr;
  const auto own = static_cast<uint32_t>(places().size() - 1);
  const size_t first = static_cast<size_t>(low - uses->low);
  for (size_t i = first; i < first + bytes && i < uses->bytes; i++) {
    ByteUse& byte = uses->of_byte[i];
    if (const char* conflict = conflict_at(byte, use)) return conflict;
    if (use == Use::kRead) byte.reader = own;
    else byte.writer = use == Use::kAtomic ? own | kAtomic : own;
  }
  return nullptr;
}

CUresult check_stream_races(const std::string& what, const void* pointer, size_t bytes, bool writes) {
  if (!are_stream_races_wanted()) return CUDA_SUCCESS;
  const char* conflict = stream_conflict(pointer, bytes, writes ? Use::kWrite : Use::kRead);
  if (!conflict) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_LAUNCH_FAILED, "%s: %s of %zu bytes conflicts with %s", what.c_str(),
                 writes ? "write" : "read", bytes, conflict);
}

}  // namespace cudasim
