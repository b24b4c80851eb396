// Threads that share the work items of a kernel.
//
// A call of a kernel is one job: its thread and up to `threads` - 1 helpers take items one by one. Each begins with a share
// of its own, the same of each job, and so finds in its cache what it wrote in the layer before: on two cores MobileNetV2
// takes 0.85 of the time that it takes where items are taken from one end. Helpers that have nothing to do look for a job
// for 200 us, which is longer than it takes from one layer to the next, and then sleep: to wake one takes about 50 us.
// There is one job at a time; a thread that finds another one's does its own work alone.
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <cstdlib>
#include <ctime>
#include <new>
#include <utility>

#include "vectors.hpp"

static constexpr int64_t MAX_SHARES = 64;
static constexpr int MAX_ARGUMENTS = 24;  // pointers of a kernel: its Params and arrays
static constexpr int64_t PATIENCE = 200'000;  // ns of a helper, before it sleeps
static constexpr int POLLS = 10000;           // of the helpers of a job, before its thread yields

// Most bytes of a workspace that a thread keeps; none where AddressSanitizer shall see what is beyond that of a job.
#ifdef __SANITIZE_ADDRESS__
static constexpr size_t KEPT = 0;
#else
static constexpr size_t KEPT = 16 << 20;
#endif

INLINE void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

INLINE int64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

// --- Jobs -----------------------------------------------------------------------------------------------------------

using call_t = void (*)(void* function, void* const* arguments, void* workspace, int64_t item);

template <size_t... I>
static void call(void* function, void* const* arguments, void* workspace, int64_t item, std::index_sequence<I...>) {
  using kernel_t = void (*)(decltype((void)I, (void*)nullptr)..., void*, int64_t);
  reinterpret_cast<kernel_t>(function)(arguments[I]..., workspace, item);
}

template <size_t... N>
static call_t call_with(int64_t count, std::index_sequence<N...>) {
  static constexpr call_t calls[] = {[](void* function, void* const* arguments, void* workspace, int64_t item) {
    call(function, arguments, workspace, item, std::make_index_sequence<N>());
  }...};
  return calls[count];
}

// Memory of this thread, at the start of a cache line; kept for the next job unless it is large.
struct Workspace {
  void* memory = nullptr;
  size_t size = 0;
  ~Workspace() { release(); }

  void release() {
    free(memory);
    memory = nullptr, size = 0;
  }

  void* of(size_t bytes) {
    if (bytes > size) {
      release();
      if (posix_memalign(&memory, 64, bytes) == 0) size = bytes;
    }
    return memory;
  }
};

// The work items with which one thread begins, in a cache line of their own. No std::atomic: to make all that a job has
// room for would set each of them to zero.
struct alignas(64) Share {
  int64_t next, end;

  int64_t take() { return std::atomic_ref(next).fetch_add(1); }
};

struct Job {
  void* function;
  void* const* arguments;
  call_t call;
  size_t workspace;
  int64_t shares;  // at least 1
  std::atomic<bool> lacks_memory{false};
  Share share[MAX_SHARES];

  void cut(int64_t items, int64_t threads) {
    shares = min(threads, MAX_SHARES);
    for (int64_t i = 0; i < shares; i++) share[i] = {items * i / shares, items * (i + 1) / shares};
  }

  // Of the thread of that number: its share first, then what is left of the others'.
  void work(int64_t number) {
    static thread_local Workspace mine;
    void* memory = workspace ? mine.of(workspace) : nullptr;
    if (workspace && !memory) {
      lacks_memory = true;
      return;
    }
    for (int64_t i = 0; i < shares; i++) {
      Share& from = share[(number + i) % shares];
      for (int64_t item; (item = from.take()) < from.end;) call(function, arguments, memory, item);
    }
    if (mine.size > KEPT) mine.release();
  }

  bool is_done() const {
    for (const Share* each = share; each < share + shares; each++)
      if (each->next < each->end) return false;
    return true;
  }
};

// --- Helpers --------------------------------------------------------------------------------------------------------

// Never destroyed: helpers wait in it when the process ends.
struct Pool {
  pthread_mutex_t use = PTHREAD_MUTEX_INITIALIZER;  // of the thread whose job it is
  std::atomic<Job*> job{nullptr};
  std::atomic<int64_t> seats{0};      // helpers that may still join the job
  std::atomic<int64_t> inside{0};     // helpers that may be reading it
  std::atomic<int64_t> jobs{0};       // begun so far
  std::atomic<int64_t> sleepers{0};
  pthread_mutex_t sleep = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
  int64_t helpers = 0;
  std::atomic<int64_t> numbered{0};   // helpers that have a number

  // A helper enters before it reads the job, and the job's thread takes that away before it looks who is inside: so either
  // the helper finds no job, or the thread waits for it.
  void help(int64_t number) {
    for (int64_t seen = 0;;) {
      seen = next_job(seen);
      inside++;
      Job* found = job;
      if (found && seats.fetch_sub(1) > 0) found->work(number);
      inside--;
    }
  }

  int64_t next_job(int64_t seen) {
    // by the clock: a pause takes 20 ns on one processor and 60 on another
    for (int64_t start = nanoseconds(); nanoseconds() - start < PATIENCE; pause_briefly())
      if (jobs != seen) return jobs;
    pthread_mutex_lock(&sleep);
    sleepers++;
    while (jobs == seen) pthread_cond_wait(&wake, &sleep);
    sleepers--;
    pthread_mutex_unlock(&sleep);
    return jobs;
  }

  void share(Job& mine, int64_t wanted) {
    while (helpers < wanted && start()) helpers++;
    seats = min(wanted, helpers);
    job = &mine;
    jobs++;
    if (sleepers > 0) {
      pthread_mutex_lock(&sleep);
      pthread_cond_broadcast(&wake);
      pthread_mutex_unlock(&sleep);
    }
    mine.work(0);
    job = nullptr;
    for (int i = 0; inside > 0; i++) i < POLLS ? pause_briefly() : void(sched_yield());
  }

  bool start() {
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the program's own threads
    int failed = pthread_create(&thread, nullptr, [](void* pool) -> void* {
      static_cast<Pool*>(pool)->help(++static_cast<Pool*>(pool)->numbered);
      return nullptr;
    }, this);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (!failed) pthread_detach(thread);
    return !failed;
  }
};

static Pool* pool = nullptr;

static void make_pool() { pool = new (std::nothrow) Pool; }

// The child of a fork has none of the helpers: it begins anew.
static Pool* the_pool() {
  static int made = (make_pool(), pthread_atfork(nullptr, nullptr, make_pool));
  return made == 0 ? pool : nullptr;
}

// A program as the host packs it: calls in a row, each with the places of the pointers that its kernel takes after it.
struct Program {
  int64_t calls;
  int64_t head;      // bytes of an object of Python before its own fields
  const char* none;  // the object None
};

struct Call {
  void* function;
  int64_t count, workspace, items;  // pointers, bytes of workspace of a thread, work items
};

struct Place {
  int64_t array, distance;  // bytes from the first element of an array, or from zero for one that is none
};

// Where the elements of an array of Python are: its object's own first field (PyArray_DATA).
INLINE int64_t elements(const Program* program, const char* object) {
  int64_t at = 0;
  if (object != program->none) memcpy(&at, object + program->head, sizeof at);
  return at;
}

// Calls function(pointers..., workspace, item) for each item in [0, items), on up to `threads` threads.
static bool run_call(const Call* call, void* const* arguments, int64_t threads) {
  Job job;
  job.function = call->function, job.arguments = arguments;
  job.workspace = size_t(call->workspace);
  job.call = call_with(call->count, std::make_index_sequence<MAX_ARGUMENTS + 1>());
  int64_t helpers = min(threads, call->items) - 1;
  job.cut(call->items, helpers + 1);
  Pool* shared = helpers > 0 ? the_pool() : nullptr;
  if (shared && pthread_mutex_trylock(&shared->use) == 0) {
    shared->share(job, helpers);
    pthread_mutex_unlock(&shared->use);
  } else {
    job.work(0);
  }
  return !job.lacks_memory || job.is_done();
}

// Runs the calls of a program one after the other. Returns the bytes of a workspace that there is no memory for, else 0.
extern "C" __attribute__((visibility("default"))) int64_t run(const Program* program, const char* const* arrays,
                                                              int64_t threads) {
  const Call* call = reinterpret_cast<const Call*>(program + 1);
  for (int64_t i = 0; i < program->calls; i++) {
    const Place* places = reinterpret_cast<const Place*>(call + 1);
    void* arguments[MAX_ARGUMENTS];
    for (int64_t k = 0; k < call->count; k++)
      arguments[k] = reinterpret_cast<void*>(elements(program, arrays[places[k].array]) + places[k].distance);
    if (!run_call(call, arguments, threads)) return call->workspace;
    call = reinterpret_cast<const Call*>(places + call->count);
  }
  return 0;
}
