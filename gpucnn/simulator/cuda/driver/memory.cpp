// The store of allocations: guard bytes around each, what has been written of each, and freed ones for a while.
//
// Memory of a device is memory of the host. A block is laid out as
//
//     | guard, 512 bytes | memory, exactly as asked for | guard, at least 512 bytes, to a multiple of 512 |
//
// New memory and freed memory is full of 0xff bytes and guards of 0xfffd, so that every floating-point type reads NaN
// there and whoever writes there is found out.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <deque>
#include <map>

#include "control.h"
#include "stream_races.h"

namespace cudasim {

constexpr size_t kAlignment = 512;  // as cuMemAlloc's on a card
constexpr size_t kGuard = 512;
constexpr uint8_t kFill = 0xff;
constexpr size_t kQuarantineBytes = size_t{256} << 20;
constexpr size_t kCheckedQuarantineBytes = size_t{1} << 20;  // of the blocks freed last, after each launch

struct Memory {
  std::map<uintptr_t, Allocation*> by_address;  // of the first guard byte
  std::deque<Allocation*> quarantine;           // freed ones, the oldest first
  size_t quarantine_bytes = 0;
  std::vector<size_t> used;  // of each device
  uint64_t last_serial = 0;
};

static Memory& memory() {
  static Memory& state = *[] {
    auto* made = new Memory;
    made->used.resize(static_cast<size_t>(settings().device_count));
    return made;
  }();
  return state;
}

static size_t round_up(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
static size_t block_bytes(size_t bytes) { return kGuard + round_up(bytes) + kGuard; }

// The bytes that the allocation takes up in by_address: with its guards, if it has any.
static char* first_byte(const Allocation& allocation) { return allocation.block ? allocation.block : allocation.low; }
static size_t extent(const Allocation& allocation) {
  return allocation.block ? block_bytes(allocation.bytes) : allocation.bytes;
}

static uintptr_t key_of(const Allocation& allocation) { return reinterpret_cast<uintptr_t>(first_byte(allocation)); }

std::string describe(const Allocation& allocation) {
  const char* kind = "allocation";
  if (allocation.kind == MemoryKind::kPinned) kind = "pinned allocation";
  if (allocation.kind == MemoryKind::kManaged) kind = "managed allocation";
  if (allocation.kind == MemoryKind::kRegistered) kind = "registered memory";
  if (allocation.kind == MemoryKind::kVariable) kind = "variable of a module";
  std::string text = kind;
  const bool has_number = allocation.kind != MemoryKind::kRegistered && allocation.kind != MemoryKind::kVariable;
  if (has_number) text += " " + std::to_string(allocation.serial);
  return text + " of " + std::to_string(allocation.bytes) + " bytes";
}

// ---- Finding -------------------------------------------------------------------------------------------------------

Allocation* allocation_at(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const auto after = memory().by_address.upper_bound(address);
  if (after == memory().by_address.begin()) return nullptr;
  Allocation* candidate = std::prev(after)->second;
  return address - key_of(*candidate) < extent(*candidate) ? candidate : nullptr;
}

std::vector<const Allocation*> live_allocations() {
  std::vector<const Allocation*> live;
  for (const auto& entry : memory().by_address) {
    if (!entry.second->freed && entry.second->kind != MemoryKind::kVariable) live.push_back(entry.second);
  }
  return live;
}

uint64_t last_serial() { return memory().last_serial; }

size_t used_bytes(int device) { return memory().used[static_cast<size_t>(device)]; }

CUresult live_range(CUresult error, const std::string& what, const void* pointer, size_t bytes, Allocation** found) {
  const char* low = static_cast<const char*>(pointer);
  *found = nullptr;
  if (!pointer) return failure(error, "%s is a null pointer", what.c_str());
  Allocation* allocation = allocation_at(pointer);
  if (!allocation) return failure(error, "%s at %p is no memory that CUDA knows", what.c_str(), pointer);
  const std::string name = describe(*allocation);
  const std::ptrdiff_t offset = low - allocation->low;
  if (allocation->freed) {
    return failure(error, "%s at byte %td of %s uses memory that has been freed", what.c_str(), offset, name.c_str());
  }
  const bool inside = offset >= 0 && static_cast<size_t>(offset) <= allocation->bytes &&
                      bytes <= allocation->bytes - static_cast<size_t>(offset);
  if (!inside) {
    return failure(error, "%s of %zu bytes at byte %td of %s is out of bounds", what.c_str(), bytes, offset,
                   name.c_str());
  }
  *found = allocation;
  return CUDA_SUCCESS;
}

// ---- Guard bytes ---------------------------------------------------------------------------------------------------

// 0xfffd in each two bytes: NaN as float16, bfloat16, float32 and float64.
static uint8_t guard_byte(uintptr_t address) { return address % 2 ? 0xff : 0xfd; }

static void fill_guard(char* low, char* high) {
  for (char* byte = low; byte < high; byte++) {
    *byte = static_cast<char>(guard_byte(reinterpret_cast<uintptr_t>(byte)));
  }
}

// Guards are looked at after each launch, so the usual case is a comparison of memory.
static bool is_whole_guard(const char* low, const char* high) {
  constexpr size_t kLongest = kGuard + kAlignment;
  static const char* pattern = [] {
    static char bytes[kLongest + 1];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = static_cast<char>(guard_byte(i));
    return bytes;
  }();
  const size_t phase = reinterpret_cast<uintptr_t>(low) % 2;
  return memcmp(low, pattern + phase, static_cast<size_t>(high - low)) == 0;
}

static bool is_whole_freed(const char* low, size_t bytes) {
  return static_cast<uint8_t>(*low) == kFill && memcmp(low, low + 1, bytes - 1) == 0;
}

// The bytes of [low, high) that are not as `expected` says, of which there are some: from the first to the last.
struct Damage {
  char* low;
  char* high;
};

template <class Expected>
static Damage find_damage(char* low, char* high, Expected expected) {
  const auto is_whole = [&](const char* byte) {
    return static_cast<uint8_t>(*byte) == expected(reinterpret_cast<uintptr_t>(byte));
  };
  while (is_whole(low)) low++;
  while (is_whole(high - 1)) high--;
  return {low, high};
}

static CUresult report_damage(const Allocation& allocation, const Damage& damage, const std::string& after) {
  const std::string name = describe(allocation);
  const size_t count = static_cast<size_t>(damage.high - damage.low);
  char* end = allocation.low + allocation.bytes;
  if (damage.low >= end) {
    return failure(CUDA_ERROR_ILLEGAL_ADDRESS, "%zu bytes were written %td bytes past the end of %s; found after %s",
                   count, damage.low - end, name.c_str(), after.c_str());
  }
  return failure(CUDA_ERROR_ILLEGAL_ADDRESS, "%zu bytes were written %td bytes before the start of %s; found after %s",
                 count, allocation.low - damage.low, name.c_str(), after.c_str());
}

CUresult check_guards(Allocation& allocation, const std::string& after) {
  if (!allocation.block) return CUDA_SUCCESS;
  char* end = allocation.low + allocation.bytes;
  const std::pair<char*, char*> guards[] = {{allocation.block, allocation.low},
                                            {end, allocation.block + block_bytes(allocation.bytes)}};
  CUresult result = CUDA_SUCCESS;
  for (const auto& guard : guards) {
    if (is_whole_guard(guard.first, guard.second)) continue;
    const Damage damage = find_damage(guard.first, guard.second, guard_byte);
    fill_guard(damage.low, damage.high);  // so that it is reported once
    result = report_damage(allocation, damage, after);
  }
  return result;
}

// Whether a freed block is as it was left.
static CUresult check_freed(Allocation& allocation, const std::string& after) {
  if (is_whole_freed(allocation.low, allocation.bytes)) return CUDA_SUCCESS;
  const Damage damage = find_damage(allocation.low, allocation.low + allocation.bytes, [](uintptr_t) { return kFill; });
  memset(damage.low, kFill, static_cast<size_t>(damage.high - damage.low));
  return failure(CUDA_ERROR_ILLEGAL_ADDRESS,
                 "%td bytes were written at byte %td of %s after it had been freed; found after %s", damage.high - damage.low, damage.low - allocation.low, describe(allocation).c_str(), after.c_str());
}

CUresult check_guards(const std::string& after) {
  std::lock_guard<std::recursive_mutex> held(driver_lock());
  CUresult result = CUDA_SUCCESS;
  for (const auto& entry : memory().by_address) {
    if (entry.second->freed) continue;
    if (CUresult error = check_guards(*entry.second, after)) result = error;
  }
  size_t checked = 0;
  const auto& quarantine = memory().quarantine;
  for (auto block = quarantine.rbegin(); block != quarantine.rend(); ++block) {
    checked += (*block)->bytes;
    if (checked > kCheckedQuarantineBytes) break;
    if (CUresult error = check_freed(**block, after)) result = error;
  }
  return result;
}

// ---- The quarantine of freed blocks --------------------------------------------------------------------------------

static CUresult evict_oldest() {
  Allocation* oldest = memory().quarantine.front();
  memory().quarantine.pop_front();
  memory().quarantine_bytes -= block_bytes(oldest->bytes);
  memory().by_address.erase(key_of(*oldest));
  const CUresult error = check_freed(*oldest, "the memory was given back");
  free(oldest->block);
  delete oldest;
  return error;
}

static CUresult evict_to(size_t bytes) {
  CUresult result = CUDA_SUCCESS;
  while (memory().quarantine_bytes > bytes) {
    if (CUresult error = evict_oldest()) result = error;
  }
  return result;
}

// ---- Allocating and freeing ----------------------------------------------------------------------------------------

static bool counts_for_limit(MemoryKind kind) { return kind == MemoryKind::kDevice || kind == MemoryKind::kManaged; }

static CUresult check_limit(const Request& request) {
  if (!counts_for_limit(request.kind)) return CUDA_SUCCESS;
  const size_t used = used_bytes(request.device);
  const size_t limit = settings().memory_bytes;
  if (request.bytes <= limit && round_up(request.bytes) + used <= limit) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_OUT_OF_MEMORY,
                 "%zu bytes were asked for, %zu of the %zu bytes of device %d are in use (GPUCNN_CUDA_MEMORY)",
                 request.bytes, used, limit, request.device);
}

static void charge(const Allocation& allocation) {
  if (!counts_for_limit(allocation.kind)) return;
  memory().used[static_cast<size_t>(allocation.device)] += round_up(allocation.bytes);
}

static void uncharge(const Allocation& allocation) {
  if (!counts_for_limit(allocation.kind)) return;
  memory().used[static_cast<size_t>(allocation.device)] -= round_up(allocation.bytes);
}

static char* new_block(size_t bytes) {
  const size_t size = block_bytes(bytes);
  void* block = aligned_alloc(kAlignment, size);
  if (!block) {
    evict_to(0);
    block = aligned_alloc(kAlignment, size);
  }
  return static_cast<char*>(block);
}

static void keep(Allocation* allocation) {
  allocation->serial = ++memory().last_serial;
  allocation->context = current_context();
  memory().by_address[key_of(*allocation)] = allocation;
}

static void fill(const Allocation& allocation) {
  char* end = allocation.low + allocation.bytes;
  fill_guard(allocation.block, allocation.low);
  memset(allocation.low, kFill, allocation.bytes);
  fill_guard(end, allocation.block + block_bytes(allocation.bytes));
}

CUresult allocate(const Request& request, char** low) {
  if (request.bytes == 0) return failure(CUDA_ERROR_INVALID_VALUE, "an allocation must have at least one byte");
  if (CUresult error = check_limit(request)) return error;
  const bool too_large = request.bytes > SIZE_MAX / 4;
  char* block = too_large ? nullptr : new_block(request.bytes);
  const bool tracked = settings().check && request.kind == MemoryKind::kDevice;
  void* shadow = block && tracked ? calloc(request.bytes, 1) : nullptr;
  if (!block || (tracked && !shadow)) {
    free(block);
    return failure(CUDA_ERROR_OUT_OF_MEMORY, "the host has no memory for %zu bytes", request.bytes);
  }
  auto* made = new Allocation{};
  made->low = block + kGuard;
  made->bytes = request.bytes;
  made->kind = request.kind;
  made->device = request.device;
  made->stream = request.stream;
  made->initialised = static_cast<uint8_t*>(shadow);
  made->flags = request.flags;
  made->pool = request.pool;
  made->block = block;
  fill(*made);
  charge(*made);
  keep(made);
  *low = made->low;
  return CUDA_SUCCESS;
}

CUresult release(Allocation& allocation) {
  if (!allocation.block) {  // registered memory or a variable: the program's own
    memory().by_address.erase(key_of(allocation));
    delete &allocation;
    return CUDA_SUCCESS;
  }
  CUresult result = check_guards(allocation, "it was freed");
  uncharge(allocation);
  if (allocation.pool) note_pool_free(allocation.pool, allocation.bytes);
  free(allocation.initialised);
  allocation.initialised = nullptr;
  allocation.freed = true;
  memset(allocation.low, kFill, allocation.bytes);
  memory().quarantine.push_back(&allocation);
  memory().quarantine_bytes += block_bytes(allocation.bytes);
  if (CUresult error = evict_to(kQuarantineBytes)) result = error;
  return result;
}

CUresult free_now(CUdeviceptr pointer) {
  std::lock_guard<std::recursive_mutex> held(driver_lock());
  Allocation* allocation = allocation_at(reinterpret_cast<void*>(pointer));
  const bool is_live = allocation && !allocation->freed && allocation->low == reinterpret_cast<char*>(pointer);
  if (!is_live) return failure(CUDA_ERROR_INVALID_VALUE, "0x%llx is not a live allocation", pointer);
  return release(*allocation);
}

void release_context(CUcontext context) {
  std::vector<Allocation*> of_context;
  for (const auto& entry : memory().by_address) {
    Allocation* allocation = entry.second;
    if (allocation->block && !allocation->freed && allocation->context == context) of_context.push_back(allocation);
  }
  for (Allocation* allocation : of_context) release(*allocation);
}

// ---- Memory that is not allocated here -----------------------------------------------------------------------------

static void add_foreign(void* low, size_t bytes, MemoryKind kind, int device, unsigned flags) {
  auto* made = new Allocation{};
  made->low = static_cast<char*>(low);
  made->bytes = bytes;
  made->kind = kind;
  made->device = device;
  made->flags = flags;
  keep(made);
}

CUresult register_host(char* low, size_t bytes, unsigned flags) {
  const auto address = reinterpret_cast<uintptr_t>(low);
  const auto next = memory().by_address.lower_bound(address);
  const bool meets_next = next != memory().by_address.end() && next->first < address + bytes;
  if (allocation_at(low) || meets_next) {
    return failure(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "part of the %zu bytes at %p is known to CUDA", bytes,
                   static_cast<void*>(low));
  }
  add_foreign(low, bytes, MemoryKind::kRegistered, current_device(), flags);
  return CUDA_SUCCESS;
}

void add_variable(void* low, size_t bytes, int device) {
  std::lock_guard<std::recursive_mutex> held(driver_lock());
  if (bytes > 0 && !allocation_at(low)) add_foreign(low, bytes, MemoryKind::kVariable, device, 0);
}

void remove_variable(void* low) {
  std::lock_guard<std::recursive_mutex> held(driver_lock());
  Allocation* variable = allocation_at(low);
  if (variable && variable->kind == MemoryKind::kVariable) release(*variable);
}

// ---- What has been written -----------------------------------------------------------------------------------------

void mark_initialised(const void* pointer, size_t bytes) {
  Allocation* allocation = allocation_at(pointer);
  if (!allocation || !allocation->initialised) return;
  const std::ptrdiff_t offset = static_cast<const char*>(pointer) - allocation->low;
  if (offset < 0 || static_cast<size_t>(offset) >= allocation->bytes) return;
  const size_t inside = std::min(bytes, allocation->bytes - static_cast<size_t>(offset));
  memset(allocation->initialised + offset, 1, inside);
}

static CUresult check_initialised(const char* what, const Allocation& allocation, const char* low, size_t bytes) {
  if (!allocation.initialised) return CUDA_SUCCESS;
  const size_t offset = static_cast<size_t>(low - allocation.low);
  const void* unwritten = memchr(allocation.initialised + offset, 0, bytes);
  if (!unwritten) return CUDA_SUCCESS;
  const std::ptrdiff_t first = static_cast<const uint8_t*>(unwritten) - allocation.initialised;
  return failure(CUDA_ERROR_LAUNCH_FAILED, "%s: byte %td of %s is read and was never written", what, first,
                 describe(allocation).c_str());
}

// ---- At exit -------------------------------------------------------------------------------------------------------

void report_leaks() {
  std::map<size_t, size_t> counts;
  size_t count = 0, bytes = 0;
  for (const Allocation* allocation : live_allocations()) {
    counts[allocation->bytes]++;
    count++;
    bytes += allocation->bytes;
  }
  if (count == 0) {
    fprintf(stderr, "simulated CUDA: no memory is left at exit\n");
    return;
  }
  fprintf(stderr, "simulated CUDA: %zu allocations of %zu bytes in all are left at exit; what a memory pool of the "
                  "program keeps is among them\n", count, bytes);
  for (const auto& entry : counts) fprintf(stderr, "  %zu of %zu bytes\n", entry.second, entry.first);
}

}  // namespace cudasim

using namespace cudasim;

CUDASIM_EXPORT CUresult cudasim_check_range(const char* what, const void* pointer, size_t bytes, bool writes) {
  std::lock_guard<std::recursive_mutex> held(driver_lock());
  if (bytes == 0) return CUDA_SUCCESS;
  Allocation* allocation = nullptr;
  if (CUresult error = live_range(CUDA_ERROR_ILLEGAL_ADDRESS, what, pointer, bytes, &allocation)) return error;
  if (CUresult error = check_stream_races(what, pointer, bytes, writes)) return error;
  const char* low = static_cast<const char*>(pointer);
  if (!writes) return check_initialised(what, *allocation, low, bytes);
  mark_initialised(low, bytes);
  return CUDA_SUCCESS;
}
