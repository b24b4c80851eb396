// Bounds, races and uninitialised reads: what each access of a kernel is held against.
//
// Every array argument and every shared variable is a region. A region has a shadow: a cell for each few bytes, which
// remembers who wrote and who read them last. Time is counted in epochs, which begin with each block and each barrier;
// two accesses of one epoch by different threads are unordered unless a __syncwarp lies between. Blocks are unordered
// unless __threadfence() and an atomic operation order them. Epochs grow for ever, so a shadow needs no clearing: what
// it says of an epoch before the block (shared memory) or before the launch (global memory) does not count.
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <bitset>

#include "profile.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace gpucnn {

constexpr uintptr_t kNullPage = 4096;
constexpr uint16_t kMany = 0xffff;  // in place of a thread or a warp: several

enum WriteKind : uint8_t { kPlain, kAtomically, kStillCopying };

struct Cell {
  uint32_t write_epoch;
  uint32_t write_warp_epoch;
  uint32_t read_epoch;
  uint32_t first_read_epoch;  // of this launch or block
  uint32_t read_warp_epoch;
  uint16_t writer;
  uint16_t reader;
  uint16_t reader_warp;
  WriteKind write_kind;
};

struct Region {
  char* low;
  char* high;
  Cell* cells;           // room for one per byte
  const char* name;      // of a shared variable; of global memory where it is not an argument
  uint8_t* initialised;  // of global memory: a byte for each byte; null: not tracked
  int argument;          // of global memory
  unsigned grain;        // log2 of the bytes per cell
  bool shared;
  bool read_only;
  bool used;  // there has been an access in this launch
  bool found_late;  // not given at the launch: its cells are its own

  uint32_t since() const { return shared ? machine.block_epoch : machine.launch_epoch; }
  size_t bytes() const { return static_cast<size_t>(high - low); }
};

static std::vector<Region> global_regions;
static std::vector<Region> shared_regions;
static size_t last_global, last_shared;  // where the last access was: mostly the next one, too

// ---- Shadows -------------------------------------------------------------------------------------------------------

static Cell* global_cells;
static size_t global_capacity;  // in cells
static Cell* arena_cells;

static Cell* reserve(size_t cells) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* memory = mmap(nullptr, cells * sizeof(Cell), PROT_READ | PROT_WRITE, flags, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<Cell*>(memory);
}

// For the cells of so many bytes: refine() writes a few more than one for each byte.
static size_t cells_of(size_t bytes) { return bytes + 8; }

static bool reserve_global(size_t cells) {
  if (cells <= global_capacity) return true;
  if (global_cells) munmap(global_cells, global_capacity * sizeof(Cell));
  global_capacity = 0;
  global_cells = reserve(cells);
  if (!global_cells) return false;
  global_capacity = cells;
  return true;
}

// Gives the pages of a large launch back to the system; they read as zero, an epoch long past.
void end_launch_checks() {
  for (const Region& region : global_regions) {
    if (region.found_late) munmap(region.cells, cells_of(region.bytes()) * sizeof(Cell));
  }
  global_regions.clear();
  constexpr size_t kKeep = size_t{1} << 20;
  if (global_capacity > kKeep) madvise(global_cells, global_capacity * sizeof(Cell), MADV_DONTNEED);
}

void restart_late_epochs() {
  constexpr uint32_t kLate = 1u << 31;
  if (machine.epoch < kLate) return;
  machine.epoch = 1;
  if (arena_cells) madvise(arena_cells, kArenaBytes * sizeof(Cell), MADV_DONTNEED);
  if (global_cells) madvise(global_cells, global_capacity * sizeof(Cell), MADV_DONTNEED);
}

// Halves the grain until `bytes` at `offset` fill whole cells.
static void refine(Region& region, size_t offset, size_t bytes) {
  const size_t needed = offset | bytes;
  while (needed & ((size_t{1} << region.grain) - 1)) {
    if (!region.used) {  // the cells say nothing yet
      region.grain--;
      continue;
    }
    size_t count = (region.bytes() >> region.grain) + 1;
    while (count-- > 0) region.cells[2 * count] = region.cells[2 * count + 1] = region.cells[count];
    region.grain--;
  }
}

// ---- Regions -------------------------------------------------------------------------------------------------------

static unsigned initial_grain(int bytes) {
  unsigned grain = 0;
  while (grain < 3 && bytes % (2 << grain) == 0) grain++;
  return grain;
}

static Region global_region(const Buffer& buffer) {
  Region region = {};
  region.low = buffer.low;
  region.high = buffer.low + buffer.bytes;
  region.name = buffer.name;
  region.initialised = buffer.initialised;
  region.argument = buffer.argument;
  region.grain = initial_grain(buffer.grain);
  region.read_only = buffer.read_only != 0;
  return region;
}

static void merge(Region& region, const Buffer& buffer) {
  region.high = std::max(region.high, buffer.low + buffer.bytes);
  region.read_only = region.read_only && buffer.read_only;
  region.grain = std::min(region.grain, initial_grain(buffer.grain));
}

// One region for each array; one for all that overlap, since a kernel may well be given two views of one buffer.
static void add_global_regions(std::vector<Buffer>& buffers) {
  std::sort(buffers.begin(), buffers.end(), [](const Buffer& a, const Buffer& b) { return a.low < b.low; });
  for (const Buffer& buffer : buffers) {
    if (!global_regions.empty() && buffer.low < global_regions.back().high) {
      merge(global_regions.back(), buffer);
      continue;
    }
    global_regions.push_back(global_region(buffer));
  }
}

static void publish_nothing();

bool begin_launch_checks(const Buffer* buffers, int count) {
  if (!arena_cells) arena_cells = reserve(kArenaBytes + 1);
  if (!arena_cells) return false;
  publish_nothing();
  global_regions.clear();
  last_global = 0;
  std::vector<Buffer> sorted(buffers, buffers + count);
  add_global_regions(sorted);
  size_t cells = 0;
  for (const Region& region : global_regions) cells += cells_of(region.bytes());
  if (!reserve_global(cells)) return false;
  cells = 0;
  for (Region& region : global_regions) {
    region.cells = global_cells + cells;
    cells += cells_of(region.bytes());
    if (machine.profile) add_profiled_array(&region - global_regions.data(), region.argument, region.low, region.high);
  }
  return true;
}

void begin_block_checks() {
  shared_regions.clear();
  last_shared = 0;
}

void add_shared_region(char* low, size_t bytes, const char* name) {
  if (!machine.check) return;
  Region region = {};
  region.low = low;
  region.high = low + bytes;
  region.cells = arena_cells + (low - shared_base());
  region.name = name;
  region.grain = 2;
  region.shared = true;
  shared_regions.push_back(region);
}

static Region* find(std::vector<Region>& regions, size_t& last, const char* pointer) {
  if (last < regions.size() && pointer >= regions[last].low && pointer < regions[last].high) return &regions[last];
  for (size_t i = 0; i < regions.size(); i++) {
    if (pointer < regions[i].low || pointer >= regions[i].high) continue;
    last = i;
    return &regions[i];
  }
  return nullptr;
}

static const char* name_of(const Region& region) {
  static char names[2][96];
  static int next = 0;
  char* name = names[next++ % 2];
  if (region.shared && strchr(region.name, ' ')) snprintf(name, sizeof names[0], "%s", region.name);
  else if (region.shared) snprintf(name, sizeof names[0], "shared '%s'", region.name);
  else if (region.name) snprintf(name, sizeof names[0], "%s", region.name);
  else snprintf(name, sizeof names[0], "argument %d", region.argument);
  return name;
}

// ---- Out of bounds -------------------------------------------------------------------------------------------------

static const char* verb(Access access) {
  switch (access) {
    case Access::kRead: return "read";
    case Access::kAtomic: return "atomic operation";
    default: return "write";
  }
}

// The region that the access probably meant: the nearest one, for shared memory the nearest below.
static const Region* nearest(const std::vector<Region>& regions, const char* pointer) {
  const Region* best = nullptr;
  size_t best_distance = 0;
  for (const Region& region : regions) {
    const size_t distance = pointer < region.low ? region.low - pointer : pointer - region.high;
    if (best && distance >= best_distance) continue;
    best = &region;
    best_distance = distance;
  }
  return best;
}

// Where an access outside of a region lies, for launches of the simulated driver.
static const char* distance_from(const Region& region, const char* pointer, size_t bytes) {
  static char text[96];
  if (!machine.find || region.shared) return "";
  if (pointer < region.low) snprintf(text, sizeof text, ": %td bytes before its start", region.low - pointer);
  else if (pointer > region.high) snprintf(text, sizeof text, ": %td bytes past its end", pointer - region.high);
  else if (pointer == region.high) snprintf(text, sizeof text, ": right past its end");
  else snprintf(text, sizeof text, ": the last %td of them past its end", pointer + bytes - region.high);
  return text;
}

[[noreturn]] static void out_of_bounds(const char* pointer, size_t bytes, Access access, const Region* region,
                                       Where where) {
  if (reinterpret_cast<uintptr_t>(pointer) < kNullPage) {
    fail(ErrorKind::kOutOfBounds, where, "%s of %zu bytes through a null pointer", verb(access), bytes);
  }
  if (!region && machine.find) {
    fail(ErrorKind::kOutOfBounds, where, "%s of %zu bytes at %p, where there is no memory of the device", verb(access),
         bytes, pointer);
  }
  if (!region) {
    fail(ErrorKind::kOutOfBounds, where, "%s of %zu bytes at %p, outside all arrays", verb(access), bytes, pointer);
  }
  fail(ErrorKind::kOutOfBounds, where, "%s of %zu bytes at byte %td of %s, which has %zu bytes%s", verb(access), bytes,
       pointer - region->low, name_of(*region), region->bytes(), distance_from(*region, pointer, bytes));
}

// Memory that the launch was not given, but that its launcher knows: a table holds its address, or a struct.
static Region* find_late(const char* pointer, size_t bytes, Access access, Where where) {
  const Buffer* buffer = machine.find(pointer);
  if (!buffer) out_of_bounds(pointer, bytes, access, nullptr, where);
  Region region = global_region(*buffer);
  const bool is_inside = pointer >= region.low && pointer + bytes <= region.high;
  if (!is_inside && !buffer->refusal) out_of_bounds(pointer, bytes, access, &region, where);
  if (buffer->refusal) {
    fail(ErrorKind::kOutOfBounds, where, "%s of %zu bytes at byte %td of %s, %s", verb(access), bytes,
         pointer - region.low, name_of(region), buffer->refusal);
  }
  region.cells = reserve(cells_of(region.bytes()));
  if (!region.cells) fail(ErrorKind::kTrap, where, "not enough address space for the shadow of %s", name_of(region));
  region.found_late = true;
  global_regions.push_back(region);
  return &global_regions.back();
}

static bool in_own_stack(const char* pointer) {
  return static_cast<size_t>(pointer - machine.current->stack) < kStackBytes;
}

static bool in_module(const char* pointer) {  // its __constant__ and __device__ variables
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  return address >= machine.image_low && address < machine.image_high;
}

// threadIdx and its like: some compilers report that they are read.
static bool is_index(const char* pointer) {
  const void* variables[] = {&threadIdx, &blockIdx, &blockDim, &gridDim};
  for (const void* variable : variables) {
    if (static_cast<size_t>(pointer - static_cast<const char*>(variable)) < sizeof(uint3)) return true;
  }
  return false;
}

// The region that holds the whole access; null where nothing is to be checked.
static Region* region_of(const char* pointer, size_t bytes, Access access, Where where) {
  const bool shared = is_shared(pointer);
  std::vector<Region>& regions = shared ? shared_regions : global_regions;
  Region* region = find(regions, shared ? last_shared : last_global, pointer);
  if (region && pointer + bytes <= region->high) return region;
  if (!region && !shared && (in_module(pointer) || is_index(pointer))) return nullptr;
  const bool is_null = reinterpret_cast<uintptr_t>(pointer) < kNullPage;
  if (!region && !shared && !is_null && machine.find) return find_late(pointer, bytes, access, where);
  out_of_bounds(pointer, bytes, access, region ? region : nearest(regions, pointer), where);
}

// ---- Order between blocks ------------------------------------------------------------------------------------------

// What __threadfence() has published of one block: all before the epoch of its last fence, and of that epoch the
// accesses of the threads that fenced.
struct Publication {
  uint32_t first_epoch;
  uint32_t fence_epoch;
  std::bitset<kMaxThreads> fenced;
};

static std::vector<Publication> publications;  // by rising epoch

static void publish_nothing() { publications.clear(); }

void publish_writes() {
  if (publications.empty() || publications.back().first_epoch != machine.block_epoch) {
    publications.push_back({machine.block_epoch, machine.epoch, {}});
  }
  Publication& own = publications.back();
  if (own.fence_epoch != machine.epoch) own.fenced.reset();
  own.fence_epoch = machine.epoch;
  own.fenced.set(machine.current->number);
}

// Whether this block may rely on what `thread` of an earlier block did in `epoch`.
static bool is_published(uint32_t epoch, uint16_t thread) {
  if (!machine.block_used_atomics) return false;
  auto after = std::upper_bound(publications.begin(), publications.end(), epoch,
                                [](uint32_t e, const Publication& p) { return e < p.first_epoch; });
  if (after == publications.begin()) return false;
  const Publication& publication = *(after - 1);
  if (epoch != publication.fence_epoch) return epoch < publication.fence_epoch;
  return thread == kMany || publication.fenced[thread];
}

// ---- Races ---------------------------------------------------------------------------------------------------------

struct Earlier {  // an access that the cell remembers
  const char* what;
  uint32_t epoch;
  uint32_t warp_epoch;
  uint16_t thread;
  uint16_t warp;
};

static bool is_ordered(const Earlier& earlier) {
  if (earlier.epoch < machine.block_epoch) return is_published(earlier.epoch, earlier.thread);
  if (earlier.epoch != machine.epoch) return true;
  const unsigned number = machine.current->number;
  if (earlier.thread == number) return true;
  const unsigned warp = number / kWarpSize;
  return earlier.warp == warp && earlier.warp_epoch < machine.warps[warp].epoch;
}

[[noreturn]] static void race(const Region& region, const char* pointer, size_t bytes, Access access,
                              const Earlier& earlier, Where where) {
  const char* other = "several other threads";
  if (earlier.epoch < machine.block_epoch) other = "another block";
  else if (earlier.thread != kMany) other = thread_name(earlier.thread);
  fail(ErrorKind::kRace, where,
       "%s of %zu bytes at byte %td of %s conflicts with the %s by %s%s: nothing orders the two", verb(access), bytes,
       pointer - region.low, name_of(region), earlier.what, *other == '(' ? "thread " : "", other);
}

struct Checked {  // the access under way
  Region& region;
  const char* pointer;
  size_t bytes;
  Access access;
  Where where;
};

static void check_against_write(const Checked& now, const Cell& cell) {
  if (cell.write_epoch < now.region.since()) return;
  if (cell.write_kind == kStillCopying && now.access != Access::kAsyncLanding) {
    fail(ErrorKind::kUninitialised, now.where,
         "%s of %zu bytes at byte %td of %s, where cp.async of thread %s has not been waited for", verb(now.access),
         now.bytes, now.pointer - now.region.low, name_of(now.region), thread_name(cell.writer));
  }
  const bool atomic = cell.write_kind == kAtomically;
  if (atomic && now.access == Access::kAtomic) return;
  if (atomic && now.access == Access::kRead && machine.tolerant) return;  // the first read of a loop of atomicCAS
  const uint16_t warp = cell.writer == kMany ? kMany : cell.writer / kWarpSize;
  const Earlier earlier = {atomic ? "atomic operation" : "write", cell.write_epoch, cell.write_warp_epoch, cell.writer,
                           warp};
  if (!is_ordered(earlier)) race(now.region, now.pointer, now.bytes, now.access, earlier, now.where);
}

static void check_against_reads(const Checked& now, const Cell& cell) {
  const uint32_t since = now.region.since();
  if (cell.read_epoch < since) return;
  const Earlier last = {"read", cell.read_epoch, cell.read_warp_epoch, cell.reader, cell.reader_warp};
  if (!is_ordered(last)) race(now.region, now.pointer, now.bytes, now.access, last, now.where);
  if (cell.first_read_epoch < since || cell.first_read_epoch >= machine.block_epoch) return;
  const Earlier first = {"read", cell.first_read_epoch, 0, kMany, kMany};
  if (!is_ordered(first)) race(now.region, now.pointer, now.bytes, now.access, first, now.where);
}

static void note_write(Cell& cell, Access access, unsigned thread, uint32_t warp_epoch) {
  const bool again = access == Access::kAtomic && cell.write_kind == kAtomically && cell.write_epoch == machine.epoch;
  cell.writer = again && cell.writer != thread ? kMany : static_cast<uint16_t>(thread);
  cell.write_epoch = machine.epoch;
  cell.write_warp_epoch = warp_epoch;
  cell.write_kind = kPlain;
  if (access == Access::kAtomic) cell.write_kind = kAtomically;
  if (access == Access::kAsyncCopy) cell.write_kind = kStillCopying;
}

static void note_read(Cell& cell, uint32_t since, unsigned thread, uint32_t warp_epoch) {
  const uint16_t warp = static_cast<uint16_t>(thread / kWarpSize);
  if (cell.first_read_epoch < since) cell.first_read_epoch = machine.epoch;
  const bool first_of_epoch = cell.read_epoch != machine.epoch;
  const bool after_syncwarp = cell.reader_warp == warp && cell.read_warp_epoch < warp_epoch;
  if (first_of_epoch || after_syncwarp) {
    cell.read_epoch = machine.epoch;
    cell.reader = static_cast<uint16_t>(thread);
    cell.reader_warp = warp;
  } else {
    if (cell.reader != thread) cell.reader = kMany;
    if (cell.reader_warp != warp) cell.reader_warp = kMany;
  }
  cell.read_warp_epoch = warp_epoch;
}

// Whether bytes behind the first ones of a read may be padding: compilers copy small structs whole.
static bool may_be_padding(size_t bytes) { return machine.tolerant && bytes > 4; }

static void check_cells(const Checked& now) {
  Region& region = now.region;
  const size_t offset = now.pointer - region.low;
  if ((offset | now.bytes) & ((size_t{1} << region.grain) - 1)) refine(region, offset, now.bytes);
  region.used = true;
  const unsigned thread = machine.current->number;
  const uint32_t warp_epoch = machine.warps[thread / kWarpSize].epoch;
  const uint32_t since = region.since();
  Cell* const first = region.cells + (offset >> region.grain);
  Cell* const end = region.cells + ((offset + now.bytes) >> region.grain);
  for (Cell* cell = first; cell < end; cell++) {
    check_against_write(now, *cell);
    if (now.access == Access::kRead) {
      if (region.shared && cell->write_epoch < since && !(cell > first && may_be_padding(now.bytes))) {
        fail(ErrorKind::kUninitialised, now.where,
             "read of %zu bytes at byte %zu of %s, which this block has not written", now.bytes, offset,
             name_of(region));
      }
      note_read(*cell, since, thread, warp_epoch);
    } else {
      if (now.access != Access::kAtomic || !machine.tolerant) check_against_reads(now, *cell);
      note_write(*cell, now.access, thread, warp_epoch);
    }
  }
}

// ---- Uninitialised global memory -----------------------------------------------------------------------------------

static void check_initialised(const Checked& now) {
  const size_t offset = now.pointer - now.region.low;
  uint8_t* const flags = now.region.initialised + offset;
  const bool reads = now.access == Access::kRead || now.access == Access::kAtomic;
  const size_t count = may_be_padding(now.bytes) ? 1 : now.bytes;
  for (size_t i = 0; reads && i < count; i++) {
    if (flags[i]) continue;
    fail(ErrorKind::kUninitialised, now.where,
         "%s of %zu bytes at byte %zu of %s, which nothing has written since it was allocated", verb(now.access),
         now.bytes, offset, name_of(now.region));
  }
  if (now.access != Access::kRead) memset(flags, 1, now.bytes);
}

// ---- Work of other streams, of which the launcher knows ------------------------------------------------------------

static void check_streams(const Checked& now) {
  Use use = Use::kWrite;
  if (now.access == Access::kRead) use = Use::kRead;
  if (now.access == Access::kAtomic) use = Use::kAtomic;
  const char* conflict = machine.conflict(now.pointer, now.bytes, use);
  if (!conflict) return;
  fail(ErrorKind::kRace, now.where, "%s of %zu bytes at byte %td of %s conflicts with %s", verb(now.access), now.bytes,
       now.pointer - now.region.low, name_of(now.region), conflict);
}

// ---- All checks of one access --------------------------------------------------------------------------------------

void check_access(const void* pointer, size_t bytes, Access access, Where where) {
  if (!machine.check || !machine.current || bytes == 0) return;
  const char* low = static_cast<const char*>(pointer);
  if (in_own_stack(low)) return;
  if (machine.yield_every && next_random() % machine.yield_every == 0) yield();
  Region* region = region_of(low, bytes, access, where);
  if (!region) return;
  if (region->read_only && access != Access::kRead) {
    fail(ErrorKind::kReadOnly, where, "%s of %zu bytes at byte %td of %s, which the kernel takes as a pointer to const",
         verb(access), bytes, low - region->low, name_of(*region));
  }
  if (machine.profile) {
    const size_t number = region->shared ? 0 : region - global_regions.data();
    profile_access(low, bytes, access, where, region->shared ? -1 : region->argument, number);
  }
  const Checked now = {*region, low, bytes, access, where};
  if (region->initialised) check_initialised(now);
  if (machine.conflict && !region->shared) check_streams(now);
  check_cells(now);
}

void atomic_access(const void* pointer, int bytes, Site site) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes) {
    fail(ErrorKind::kMisaligned, Where(site), "atomic operation on %d bytes at an address that is no multiple", bytes);
  }
  check_access(pointer, bytes, Access::kAtomic, Where(site));
  machine.block_used_atomics = true;
}

void plain_access(const void* pointer, int bytes, bool write, Site site) {
  check_access(pointer, bytes, write ? Access::kWrite : Access::kRead, Where(site));
}

void threadfence(Site) {
  if (machine.check) publish_writes();
}

}  // namespace gpucnn
