// Counts what the memory system of a GPU would do, request by request.
//
// A warp executes a load or store for all its lanes at once: a request. Threads are run one after another here, so lanes
// are matched afterwards: the n-th time that a lane comes to an instruction since the last barrier, or operation of the
// whole warp, belongs to the same request as the n-th time of the others. Nothing is credited to caches: each request pays for its sectors.
#include "profile.h"

#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <unordered_map>

namespace gpucnn {

constexpr unsigned kSector = 32;
constexpr unsigned kBanks = 32;
constexpr unsigned kBankBytes = 4;

// ---- What is counted -----------------------------------------------------------------------------------------------

struct Request {
  uint32_t lanes;
  uintptr_t addresses[kWarpSize];
};

// The times that the lanes of one warp have come to one place since they last met.
template <class Event>
struct Stream {
  uint32_t times[kWarpSize] = {};
  std::vector<Event> events;

  Event& next(unsigned lane) {
    const uint32_t time = times[lane]++;
    if (time >= events.size()) events.resize(time + 1);
    return events[time];
  }

  void clear() {
    if (events.empty()) return;
    memset(times, 0, sizeof times);
    events.clear();
  }
};

struct Key {
  uintptr_t place;  // a code address, or that of a file's name
  int line, bytes, argument, kind;

  bool operator==(const Key& other) const {
    return place == other.place && line == other.line && bytes == other.bytes && argument == other.argument &&
           kind == other.kind;
  }
};

struct KeyHash {
  size_t operator()(const Key& key) const {
    size_t hash = key.place;
    for (int part : {key.line, key.bytes, key.argument, key.kind}) hash = hash * 1000003 + static_cast<size_t>(part);
    return hash ^ hash >> 17;
  }
};

struct Successor {  // where the lanes of a warp went on
  uintptr_t first;
  uintptr_t from;
  bool divergent;
};

struct Array {
  uintptr_t low;
  int argument;
  uint64_t bytes;
  std::vector<bool> read, written;  // by sector
};

static std::unordered_map<Key, size_t, KeyHash> numbers;
static std::vector<ProfiledAccess> accesses;
static std::vector<size_t> regions;                               // of each access
static std::vector<std::vector<Stream<Request>>> access_streams;  // [warp][access]
static std::unordered_map<uintptr_t, size_t> branch_numbers;
static std::vector<ProfiledBranch> branches;
static std::vector<std::vector<Stream<Successor>>> branch_streams;  // [warp][branch]
static std::map<std::pair<std::pair<const char*, const char*>, int>, uint64_t> collectives;  // by thread
static std::vector<Array> arrays;
static std::vector<ProfiledCollective> listed_collectives;
static std::vector<ProfiledArray> listed_arrays;

// ---- A launch ------------------------------------------------------------------------------------------------------

void begin_launch_profile() {
  numbers.clear();
  accesses.clear();
  regions.clear();
  access_streams.assign((machine.thread_count + kWarpSize - 1) / kWarpSize, {});
  branch_numbers.clear();
  branches.clear();
  branch_streams.assign(access_streams.size(), {});
  collectives.clear();
  arrays.clear();
}

void add_profiled_array(size_t region, int argument, const char* low, const char* high) {
  if (arrays.size() <= region) arrays.resize(region + 1);
  const uintptr_t first = reinterpret_cast<uintptr_t>(low);
  const uint64_t bytes = static_cast<uint64_t>(high - low);
  const size_t sectors = (first % kSector + bytes + kSector - 1) / kSector;
  arrays[region] = {first / kSector * kSector, argument, bytes, std::vector<bool>(sectors), std::vector<bool>(sectors)};
}

// ---- Accesses ------------------------------------------------------------------------------------------------------

static int kind_of(Access access) {
  if (access == Access::kRead) return 0;
  return access == Access::kAtomic ? 2 : 1;
}

static size_t number_of(const Key& key, Where where, size_t region) {
  auto [found, is_new] = numbers.try_emplace(key, accesses.size());
  if (!is_new) return found->second;
  ProfiledAccess access = {};
  access.address = where.address ? where.address - machine.image_low : 0;
  if (where.site && where.site->file) {
    access.line = where.site->line;
    snprintf(access.file, sizeof access.file, "%s", where.site->file);
  }
  access.bytes = key.bytes;
  access.argument = key.argument;
  access.kind = key.kind;
  accesses.push_back(access);
  regions.push_back(region);
  return found->second;
}

void profile_access(const void* pointer, size_t bytes, Access access, Where where, int argument, size_t region) {
  if (access == Access::kAsyncLanding) return;  // counted where the copy was asked for
  Key key = {where.address, 0, static_cast<int>(bytes), argument, kind_of(access)};
  if (where.site) {
    key.place = reinterpret_cast<uintptr_t>(where.site->file);
    key.line = where.site->line;
  }
  static Key last_key = {};
  static size_t last_number = 0;
  if (numbers.empty() || !(key == last_key)) {
    last_number = number_of(key, where, region);
    last_key = key;
  }
  auto& streams = access_streams[current_warp()];
  if (streams.size() <= last_number) streams.resize(accesses.size());
  const unsigned lane = current_lane();
  Request& request = streams[last_number].next(lane);
  request.lanes |= 1u << lane;
  request.addresses[lane] = reinterpret_cast<uintptr_t>(pointer);
}

// The addresses of a request's lanes, in order.
static unsigned sorted(const Request& request, uintptr_t* addresses) {
  unsigned count = 0;
  for (int lane = 0; lane < kWarpSize; lane++) {
    if (request.lanes >> lane & 1) addresses[count++] = request.addresses[lane];
  }
  if (!std::is_sorted(addresses, addresses + count)) std::sort(addresses, addresses + count);
  return count;
}

static void count_global(const Request& request, ProfiledAccess& access, Array& array) {
  uintptr_t addresses[kWarpSize];
  const unsigned count = sorted(request, addresses);
  const uintptr_t size = static_cast<uintptr_t>(access.bytes);
  uintptr_t reached = 0, last_sector = 0;
  uint64_t bytes = 0, sectors = 0;
  for (unsigned i = 0; i < count; i++) {
    const uintptr_t end = addresses[i] + size;
    if (end > reached) bytes += end - std::max(reached, addresses[i]);
    reached = std::max(reached, end);
    for (uintptr_t sector = addresses[i] / kSector; sector <= (end - 1) / kSector; sector++) {
      if (sectors && sector <= last_sector) continue;
      sectors++;
      last_sector = sector;
      (access.kind == 0 ? array.read : array.written)[sector - array.low / kSector] = true;
    }
  }
  access.sectors += sectors;
  access.ideal_sectors += (bytes + kSector - 1) / kSector;
}

// Banks serve 32 lanes of 4 bytes in one round, or 16 of 8, or 8 of 16; each word of a bank that lanes want takes a
// further one.
static void count_shared(const Request& request, ProfiledAccess& access) {
  constexpr unsigned kMostWords = 4;  // of one lane and instruction
  const unsigned words = std::min(kMostWords, std::max(1u, static_cast<unsigned>(access.bytes) / kBankBytes));
  const unsigned group = kWarpSize / words;
  for (unsigned first = 0; first < kWarpSize; first += group) {
    uintptr_t wanted[kWarpSize * kMostWords];
    unsigned count = 0;
    for (unsigned lane = first; lane < first + group; lane++) {
      if (!(request.lanes >> lane & 1)) continue;
      for (unsigned word = 0; word < words; word++) wanted[count++] = request.addresses[lane] / kBankBytes + word;
    }
    if (!count) continue;
    std::sort(wanted, wanted + count);
    count = static_cast<unsigned>(std::unique(wanted, wanted + count) - wanted);
    unsigned banks[kBanks] = {};
    for (unsigned i = 0; i < count; i++) banks[wanted[i] % kBanks]++;
    const unsigned rounds = *std::max_element(banks, banks + kBanks);
    access.wavefronts += rounds;
    access.ideal_wavefronts++;
    access.worst_conflict = std::max(access.worst_conflict, static_cast<int32_t>(rounds));
  }
}

// ---- Branches: which block of code follows which -------------------------------------------------------------------

static size_t branch_of(uintptr_t address) {
  auto [found, is_new] = branch_numbers.try_emplace(address, branches.size());
  if (is_new) branches.push_back({address - machine.image_low, 0, 0});
  return found->second;
}

void profile_block_entry(uintptr_t address) {
  Thread& thread = *machine.current;
  const uintptr_t before = thread.code_block;
  thread.code_block = address;
  if (!before) return;
  const size_t number = branch_of(before);
  auto& streams = branch_streams[current_warp()];
  if (streams.size() <= number) streams.resize(branches.size());
  Successor& successor = streams[number].next(current_lane());
  if (!successor.first) successor = {address, before, false};
  else if (successor.first != address) successor.divergent = true;
}

// ---- Barriers and warp operations ----------------------------------------------------------------------------------

void profile_collective(const char* name, Site site) { collectives[{{name, site.file}, site.line}]++; }

// ---- Counting ------------------------------------------------------------------------------------------------------

void flush_warp_profile(unsigned warp) {
  auto& accessed = access_streams[warp];
  for (size_t number = 0; number < accessed.size(); number++) {
    ProfiledAccess& access = accesses[number];
    for (const Request& request : accessed[number].events) {
      access.requests++;
      access.lanes += static_cast<unsigned>(__builtin_popcount(request.lanes));
      if (access.argument < 0) count_shared(request, access);
      else count_global(request, access, arrays[regions[number]]);
    }
    accessed[number].clear();
  }
  auto& branched = branch_streams[warp];
  for (size_t number = 0; number < branched.size(); number++) {
    for (const Successor& successor : branched[number].events) {
      branches[number].executions++;
      branches[number].divergent += successor.divergent;
    }
    branched[number].clear();
  }
}

void flush_profile() {
  for (unsigned warp = 0; warp < access_streams.size(); warp++) flush_warp_profile(warp);
}

}  // namespace gpucnn

extern "C" {

const gpucnn::ProfiledAccess* gpucnn_profiled_accesses(uint64_t* count) {
  *count = gpucnn::accesses.size();
  return gpucnn::accesses.data();
}

const gpucnn::ProfiledBranch* gpucnn_profiled_branches(uint64_t* count) {
  *count = gpucnn::branches.size();
  return gpucnn::branches.data();
}

// Executions are counted by thread while the kernel runs, and by warp here.
const gpucnn::ProfiledCollective* gpucnn_profiled_collectives(uint64_t* count) {
  using namespace gpucnn;
  listed_collectives.clear();
  for (const auto& [place, threads] : collectives) {
    ProfiledCollective collective = {};
    snprintf(collective.name, sizeof collective.name, "%s", place.first.first);
    snprintf(collective.file, sizeof collective.file, "%s", place.first.second);
    collective.line = place.second;
    collective.executions = (threads + kWarpSize - 1) / kWarpSize;
    listed_collectives.push_back(collective);
  }
  *count = listed_collectives.size();
  return listed_collectives.data();
}

const gpucnn::ProfiledArray* gpucnn_profiled_arrays(uint64_t* count) {
  using namespace gpucnn;
  listed_arrays.clear();
  for (const Array& array : arrays) {
    ProfiledArray listed = {};
    listed.argument = array.argument;
    listed.bytes = array.bytes;
    listed.sectors_read = static_cast<uint64_t>(std::count(array.read.begin(), array.read.end(), true));
    listed.sectors_written = static_cast<uint64_t>(std::count(array.written.begin(), array.written.end(), true));
    listed_arrays.push_back(listed);
  }
  *count = listed_arrays.size();
  return listed_arrays.data();
}

}  // extern "C"
