// The shared memory of the block under way, and cp.async, which fills it.
#include <string.h>
#include <sys/mman.h>

#include "machine.h"

namespace gpucnn {

constexpr size_t kGap = 64;  // between variables, so that an access past one does not hit the next
constexpr size_t kMinAlign = 16;
constexpr size_t kDynamicAlign = 128;

alignas(128) static char arena[kArenaBytes];
static size_t arena_used;
static size_t static_bytes;

// Shared memory holds what an earlier block left there: NaN for every kind of float here.
static char* allocate(size_t bytes, size_t align, const char* name, Where where) {
  const size_t gap = arena_used ? kGap : 0;
  const size_t offset = (arena_used + gap + align - 1) / align * align;
  if (offset + bytes > kArenaBytes) {
    fail(ErrorKind::kSharedMemory, where, "'%s' of %zu bytes does not fit into shared memory", name, bytes);
  }
  arena_used = offset + bytes;
  char* low = arena + offset;
  memset(low, 0xff, bytes);
  add_shared_region(low, bytes, name);
  return low;
}

void begin_block_shared_memory() {
  arena_used = 0;
  static_bytes = 0;
  allocate(machine.dynamic_bytes, kDynamicAlign, "dynamic shared memory", Where());
  arena_used += 1;  // a gap follows even where there is no dynamic shared memory
}

void* SharedVariable::get() {
  if (block == machine.block) return address;
  static_bytes += bytes;
  if (static_bytes > kStaticSharedLimit) {
    fail(ErrorKind::kSharedMemory, Where(site), "%zu bytes of static shared memory exceed the limit of %zu",
         static_bytes, kStaticSharedLimit);
  }
  if (static_bytes + machine.dynamic_bytes > kSharedLimit) {
    fail(ErrorKind::kSharedMemory, Where(site), "%zu bytes of shared memory exceed the limit of %zu",
         static_bytes + machine.dynamic_bytes, kSharedLimit);
  }
  address = allocate(bytes, align > kMinAlign ? align : kMinAlign, name, Where(site));
  block = machine.block;
  return address;
}

void* dynamic_shared() { return arena; }

char* shared_base() { return arena; }

bool is_shared(const void* pointer) {
  return static_cast<const char*>(pointer) >= arena && static_cast<const char*>(pointer) < arena + kArenaBytes;
}

uint32_t shared_address(const void* pointer, Site site) {
  if (!is_shared(pointer)) {
    fail(ErrorKind::kAddressSpace, Where(site), "__cvta_generic_to_shared() of a pointer that is not to shared memory");
  }
  return static_cast<uint32_t>(static_cast<const char*>(pointer) - arena);
}

char* shared_pointer(uint32_t address, Where where) {
  if (address >= kArenaBytes) {
    fail(ErrorKind::kAddressSpace, where, "0x%x is not an address of shared memory", address);
  }
  return arena + address;
}

void* generic_address(uint32_t shared, Site site) { return shared_pointer(shared, Where(site)); }

// ---- cp.async ------------------------------------------------------------------------------------------------------

static AsyncCopies& own_copies() {
  machine.copies_in_use = true;
  return machine.copies[machine.current->number];
}

void async_copy(uint32_t destination, const void* source, int bytes, int source_bytes, Site site) {
  const Where where(site);
  char* target = shared_pointer(destination, where);
  if (bytes != 4 && bytes != 8 && bytes != 16) {
    fail(ErrorKind::kMisaligned, where, "cp.async copies 4, 8 or 16 bytes, not %d", bytes);
  }
  if (source_bytes < 0 || source_bytes > bytes) {
    fail(ErrorKind::kOutOfBounds, where, "cp.async of %d bytes from a source of %d", bytes, source_bytes);
  }
  if (destination % bytes || (source_bytes && reinterpret_cast<uintptr_t>(source) % bytes)) {
    fail(ErrorKind::kMisaligned, where, "cp.async of %d bytes needs both addresses to be multiples of %d", bytes,
         bytes);
  }
  if (source_bytes) check_access(source, source_bytes, Access::kRead, where);
  check_access(target, bytes, Access::kAsyncCopy, where);
  own_copies().open.push_back({target, static_cast<const char*>(source), bytes, source_bytes});
}

void async_commit() {
  AsyncCopies& copies = own_copies();
  copies.groups.push_back(copies.open);
  copies.open.clear();
}

static void land(const PendingCopy& copy, Where where) {
  check_access(copy.destination, copy.bytes, Access::kAsyncLanding, where);
  if (copy.source_bytes) memcpy(copy.destination, copy.source, copy.source_bytes);
  memset(copy.destination + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

void async_wait(int groups_left, Site site) {
  AsyncCopies& copies = own_copies();
  if (static_cast<int>(copies.groups.size()) <= groups_left) return;
  const size_t landing = copies.groups.size() - groups_left;
  for (size_t group = 0; group < landing; group++) {
    for (const PendingCopy& copy : copies.groups[group]) land(copy, Where(site));
  }
  copies.groups.erase(copies.groups.begin(), copies.groups.begin() + landing);
}

}  // namespace gpucnn
