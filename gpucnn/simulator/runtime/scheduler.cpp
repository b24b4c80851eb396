// Runs the threads of a block as fibers until all have returned, and releases them from barriers.
#include <algorithm>
#include <numeric>

#include <string.h>
#include <sys/mman.h>

#include "errors.h"
#include "profile.h"
#include "scheduler.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace gpucnn {

Machine machine;

uint64_t next_random() {  // xorshift64
  uint64_t& state = machine.random_state;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

template <class T>
static void shuffle(std::vector<T>& values) {
  for (size_t i = values.size(); i > 1; i--) std::swap(values[i - 1], values[next_random() % i]);
}

// ---- Stacks --------------------------------------------------------------------------------------------------------

static std::vector<char*> free_stacks;

// A stack with a page below it that must not be touched.
static char* take_stack() {
  if (!free_stacks.empty()) {
    char* stack = free_stacks.back();
    free_stacks.pop_back();
    return stack;
  }
  constexpr size_t kGuardBytes = 64 << 10;  // a multiple of every page size
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  char* low = static_cast<char*>(memory);
  mprotect(low, kGuardBytes, PROT_NONE);
  return low + kGuardBytes;
}

// ---- Fibers --------------------------------------------------------------------------------------------------------

void yield() { switch_context(machine.current->context, machine.scheduler); }

static void run_kernel() {
  machine.entry->call(machine.arguments);
  machine.current->state = ThreadState::kReturned;
  yield();
  __builtin_trap();
}

static bool start(Thread& thread) {
  thread.stack = take_stack();
  if (!thread.stack) {
    record_error(ErrorKind::kTrap, Where(), "not enough memory for the stacks of the simulated threads");
    return false;
  }
  thread.started = true;
  const size_t spread = thread.number % 31 * 128;  // or all stacks would use the same cache sets
  prepare_context(thread.context, thread.stack, kStackBytes - spread, run_kernel);
  return true;
}

static void finish(Thread& thread) {
  free_stacks.push_back(thread.stack);
  machine.warps[thread.number / kWarpSize].alive &= ~(1u << thread.number % kWarpSize);
}

static void resume(Thread& thread) {
  if (!thread.started && !start(thread)) return;
  machine.current = &thread;
  threadIdx = thread.index;
  switch_context(machine.scheduler, thread.context);
  machine.current = nullptr;
  if (thread.state == ThreadState::kReturned) finish(thread);
}

// ---- Barriers ------------------------------------------------------------------------------------------------------

int barrier(bool predicate, Site site) {
  Thread& thread = *machine.current;
  thread.state = ThreadState::kAtBarrier;
  thread.predicate = predicate;
  thread.site = site;
  if (machine.profile) profile_collective("__syncthreads", site);
  yield();
  return machine.barrier_count;
}

static void begin_epoch() {
  machine.epoch++;
  for (Warp& warp : machine.warps) warp.epoch = 0;
}

// All threads have arrived: lets them go on, if it is one barrier that they have arrived at.
static bool release_barrier() {
  const auto is_waiting = [](const Thread& thread) { return thread.state == ThreadState::kAtBarrier; };
  const Thread& first = *std::find_if(machine.threads.begin(), machine.threads.end(), is_waiting);
  machine.barrier_count = 0;
  for (const Thread& thread : machine.threads) {
    if (!is_waiting(thread)) continue;
    if (thread.site.line != first.site.line || strcmp(thread.site.file, first.site.file) != 0) {
      threadIdx = thread.index;
      record_error(ErrorKind::kSynchronisation, Where(thread.site),
                   "this thread waits at this barrier, but thread %s waits at the one of %s:%d",
                   thread_name(first.number), first.site.file, first.site.line);
      return false;
    }
    machine.barrier_count += thread.predicate;
  }
  for (Thread& thread : machine.threads) {
    if (is_waiting(thread)) thread.state = ThreadState::kReady;
  }
  if (machine.profile) flush_profile();
  begin_epoch();
  return true;
}

// ---- Blocks --------------------------------------------------------------------------------------------------------

struct Census {
  unsigned ready = 0;
  unsigned returned = 0;
  unsigned at_barrier = 0;
  const Thread* a_returned = nullptr;
  const Thread* a_waiting = nullptr;  // at the barrier
  const Thread* in_warp_operation = nullptr;
};

static Census take_census() {
  Census census;
  for (const Thread& thread : machine.threads) {
    if (thread.state == ThreadState::kReady) census.ready++;
    if (thread.state == ThreadState::kInWarpOperation) census.in_warp_operation = &thread;
    if (thread.state == ThreadState::kReturned) {
      census.returned++;
      census.a_returned = &thread;
    }
    if (thread.state == ThreadState::kAtBarrier) {
      census.at_barrier++;
      census.a_waiting = &thread;
    }
  }
  return census;
}

static const Rendezvous* rendezvous_of(const Thread& thread) {
  const Warp& warp = machine.warps[thread.number / kWarpSize];
  for (const Rendezvous& candidate : warp.rendezvous) {
    if (candidate.arrived >> thread.number % kWarpSize & 1) return &candidate;
  }
  return nullptr;
}

static void report_missing_lanes(const Thread& thread) {
  const Warp& warp = machine.warps[thread.number / kWarpSize];
  const Rendezvous* meeting = rendezvous_of(thread);
  record_error(ErrorKind::kSynchronisation, Where(thread.site),
               "deadlock: this thread waits in %s with mask 0x%08x, but only lanes 0x%08x have arrived "
               "and lanes 0x%08x have returned",
               operation_name(meeting->call.operation), meeting->call.mask, meeting->arrived,
               warp.existing & ~warp.alive);
}

// No thread can go on.
static void report_stuck(const Census& census) {
  if (census.in_warp_operation) {
    threadIdx = census.in_warp_operation->index;
    report_missing_lanes(*census.in_warp_operation);
    return;
  }
  threadIdx = census.a_waiting->index;
  record_error(ErrorKind::kSynchronisation, Where(census.a_waiting->site),
               "%u threads wait at this barrier, but %u threads, thread %s among them, have already returned",
               census.at_barrier, census.returned, thread_name(census.a_returned->number));
}

static void begin_warps() {
  for (size_t w = 0; w < machine.warps.size(); w++) {
    const unsigned lanes = std::min<unsigned>(kWarpSize, machine.thread_count - w * kWarpSize);
    Warp& warp = machine.warps[w];
    warp.existing = warp.alive = lanes == kWarpSize ? ~0u : (1u << lanes) - 1;
    for (Rendezvous& rendezvous : warp.rendezvous) rendezvous.arrived = 0;
  }
}

static void begin_threads() {
  uint3 index = {0, 0, 0};
  for (unsigned number = 0; number < machine.thread_count; number++) {
    Thread& thread = machine.threads[number];
    thread.index = index;
    thread.number = number;
    thread.state = ThreadState::kReady;
    thread.started = false;
    thread.code_block = 0;
    if (++index.x < blockDim.x) continue;
    index.x = 0;
    if (++index.y < blockDim.y) continue;
    index.y = 0;
    index.z++;
  }
}

static void begin_block() {
  machine.block++;
  machine.block_used_atomics = false;
  begin_epoch();
  machine.block_epoch = machine.epoch;
  begin_threads();
  begin_warps();
  if (machine.copies_in_use) machine.copies.assign(machine.thread_count, AsyncCopies());
  machine.copies_in_use = false;
  begin_block_checks();
  begin_block_shared_memory();
}

// Threads that will not be resumed give their stacks back.
static void abandon_block() {
  for (Thread& thread : machine.threads) {
    if (thread.started && thread.state != ThreadState::kReturned) free_stacks.push_back(thread.stack);
  }
  machine.current = nullptr;
}

// Gives each thread that can go on one turn.
static bool run_round(std::vector<unsigned>& order) {
  if (machine.order == Order::kRandom) shuffle(order);
  for (unsigned number : order) {
    Thread& thread = machine.threads[number];
    if (thread.state != ThreadState::kReady) continue;
    resume(thread);
    if (has_error()) return false;
  }
  return true;
}

static bool run_block(std::vector<unsigned>& order) {
  begin_block();
  while (!has_error() && run_round(order)) {
    const Census census = take_census();
    if (census.ready) continue;
    if (census.returned == machine.thread_count) {
      if (machine.profile) flush_profile();
      return true;
    }
    const unsigned left = machine.tolerant ? census.returned : 0;
    if (census.at_barrier + left != machine.thread_count) report_stuck(census);
    else release_barrier();
  }
  abandon_block();
  return false;
}

static std::vector<unsigned> thread_order() {
  std::vector<unsigned> order(machine.thread_count);
  std::iota(order.begin(), order.end(), 0);
  if (machine.order == Order::kReverse) std::reverse(order.begin(), order.end());
  return order;
}

bool run_grid() {
  machine.threads.resize(machine.thread_count);
  machine.warps.resize((machine.thread_count + kWarpSize - 1) / kWarpSize);
  machine.copies.resize(machine.thread_count);
  std::vector<unsigned> threads = thread_order();
  const uint64_t count = uint64_t{gridDim.x} * gridDim.y * gridDim.z;
  std::vector<uint64_t> shuffled;
  if (machine.order == Order::kRandom) {
    shuffled.resize(count);
    std::iota(shuffled.begin(), shuffled.end(), 0);
    shuffle(shuffled);
  }
  for (uint64_t i = 0; i < count; i++) {
    uint64_t block = i;
    if (machine.order == Order::kReverse) block = count - 1 - i;
    if (machine.order == Order::kRandom) block = shuffled[i];
    blockIdx.x = static_cast<unsigned>(block % gridDim.x);
    blockIdx.y = static_cast<unsigned>(block / gridDim.x % gridDim.y);
    blockIdx.z = static_cast<unsigned>(block / gridDim.x / gridDim.y);
    if (!run_block(threads)) return false;
  }
  return true;
}

}  // namespace gpucnn
