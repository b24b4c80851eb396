// The state of the simulated device. One launch runs at a time, and its blocks one after another.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "context_switch.h"
#include "launch.h"

namespace gpucnn {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kArenaBytes = 512 << 10;     // shared memory of one block, with the gaps between its variables
constexpr size_t kStaticSharedLimit = 48 << 10;
constexpr size_t kSharedLimit = 227 << 10;
constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;

// ---- Errors --------------------------------------------------------------------------------------------------------

// Where in the source something happens: known as a place, or as a code address that debug information explains.
struct Where {
  uintptr_t address = 0;
  const Site* site = nullptr;

  explicit Where(uintptr_t address) : address(address) {}
  explicit Where(const Site& site) : site(&site) {}
  Where() = default;
};

// Records the first error and leaves the thread for good. Nothing on its stack is destroyed.
[[noreturn]] void fail(ErrorKind kind, Where where, const char* format, ...) __attribute__((format(printf, 3, 4)));

// Records the first error; for the scheduler, which is not a thread.
void record_error(ErrorKind kind, Where where, const char* format, ...) __attribute__((format(printf, 3, 4)));

bool has_error();

// "(x,y,z)" of a thread of the block, in a buffer that later calls use again.
const char* thread_name(unsigned number);

// ---- Threads and warps ---------------------------------------------------------------------------------------------

enum class ThreadState : uint8_t { kReady, kAtBarrier, kInWarpOperation, kReturned };

struct PendingCopy {
  char* destination;
  const char* source;
  int bytes;
  int source_bytes;
};

// The cp.async operations of one thread: committed groups, oldest first, and the group that is still open.
struct AsyncCopies {
  std::vector<std::vector<PendingCopy>> groups;
  std::vector<PendingCopy> open;
};

struct Thread {
  Context context;
  char* stack;
  uint3 index;
  unsigned number;  // x + y * blockDim.x + ...
  ThreadState state;
  bool started;
  bool predicate;  // of the barrier it waits at
  uintptr_t code_block;  // where it is, for the profile; 0 before its first block
  Site site;       // of the barrier or warp operation it waits at
};

// Lanes that have arrived at one warp operation. Operations with disjoint masks may be under way together.
struct Rendezvous {
  WarpCall call;  // of the first lane
  unsigned arrived;
  const WarpCall* lanes[kWarpSize];
};

struct Warp {
  Rendezvous rendezvous[kWarpSize];  // by the lowest lane of the mask
  unsigned existing;
  unsigned alive;
  uint32_t epoch;  // counts __syncwarp since the last barrier
};

// ---- The launch ----------------------------------------------------------------------------------------------------

enum class Order : int { kForward, kReverse, kRandom };

struct Machine {
  // Of the launch.
  const Entry* entry;
  void** arguments;
  size_t dynamic_bytes;
  bool check;
  bool profile;
  Order order;
  uint32_t yield_every;  // at about one access in so many another thread goes on; 0: never
  uint64_t random_state;
  uint32_t launch_epoch;
  uintptr_t image_low, image_high;  // of the module that the kernel is in
  const Buffer* (*find)(const void* address);  // as in Launch
  const char* (*conflict)(const void* address, size_t bytes, Use use);  // as in Launch
  bool tolerant;  // as in Launch

  // Of the block. Epochs count barriers and blocks, over all launches: what an earlier epoch left is over.
  unsigned thread_count;
  uint64_t block;  // counts the blocks of all launches
  uint32_t epoch;
  uint32_t block_epoch;
  bool block_used_atomics;
  int barrier_count;  // threads whose predicate held at the last barrier
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<AsyncCopies> copies;
  bool copies_in_use;

  Thread* current;  // null while the scheduler runs
  Context scheduler;
};

extern Machine machine;

inline unsigned current_warp() { return machine.current->number / kWarpSize; }
inline unsigned current_lane() { return machine.current->number % kWarpSize; }

uint64_t next_random();

// Lets another thread go on; returns when it is this one's turn again.
void yield();

// ---- Shared memory -------------------------------------------------------------------------------------------------

char* shared_base();
bool is_shared(const void* pointer);
char* shared_pointer(uint32_t address, Where where);
void begin_block_shared_memory();

// ---- Checked accesses ----------------------------------------------------------------------------------------------

enum class Access : uint8_t { kRead, kWrite, kAtomic, kAsyncCopy, kAsyncLanding };

// Checks one access of the current thread; does not return if it is wrong.
void check_access(const void* pointer, size_t bytes, Access access, Where where);

// False where there is not enough address space for the shadow.
bool begin_launch_checks(const Buffer* buffers, int count);
void end_launch_checks();

// Epochs start again before they run out; between launches only.
void restart_late_epochs();

void begin_block_checks();
void add_shared_region(char* low, size_t bytes, const char* name);
void publish_writes();

}  // namespace gpucnn
