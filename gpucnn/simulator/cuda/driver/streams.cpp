// Streams. Work is kept in a queue per stream. It runs as soon as it is issued or, with a stream seed, as late as the
// program allows and in a random order among the streams that may go on: a missing wait then gives wrong numbers.
#include "streams.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <condition_variable>
#include <map>

#include "handles.h"

using namespace cudasim;

namespace cudasim {

// ---- All streams ---------------------------------------------------------------------------------------------------

static Handles<CUstream_st>& streams() {
  static auto& all = *new Handles<CUstream_st>;  // never destroyed: other libraries call in at exit
  return all;
}

// Destroyed by the program, but with work that is still to be done.
static std::vector<StreamPointer>& leaving() {
  static auto& all = *new std::vector<StreamPointer>;
  return all;
}

static std::map<CUcontext, StreamPointer>& legacy_streams() {
  static auto& all = *new std::map<CUcontext, StreamPointer>;
  return all;
}

static StreamPointer make_stream(CUcontext context, unsigned flags, int priority, bool is_legacy) {
  static uint64_t last_id = 0;
  auto stream = std::make_shared<CUstream_st>();
  stream->id = ++last_id;
  stream->context = context;
  stream->flags = flags;
  stream->priority = priority;
  stream->is_legacy = is_legacy;
  return stream;
}

static StreamPointer legacy_stream(CUcontext context) {
  StreamPointer& stream = legacy_streams()[context];
  if (!stream) stream = make_stream(context, CU_STREAM_DEFAULT, 0, true);
  return stream;
}

static StreamPointer per_thread_stream(CUcontext context) {
  static thread_local auto& own = *new std::map<CUcontext, StreamPointer>;
  StreamPointer& stream = own[context];
  if (!stream) {
    stream = make_stream(context, CU_STREAM_DEFAULT, 0, false);
    streams().add(stream);
  }
  return stream;
}

StreamPointer stream_of(CUstream handle, CUresult* error) {
  const bool is_special = !handle || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD;
  if (is_special) {
    CUcontext context = current_context();
    if (!context) *error = failure(CUDA_ERROR_INVALID_CONTEXT, "no context is current in this thread");
    if (!context) return nullptr;
    return handle == CU_STREAM_PER_THREAD ? per_thread_stream(context) : legacy_stream(context);
  }
  StreamPointer stream = streams().find(handle);
  if (!stream) *error = failure(CUDA_ERROR_INVALID_HANDLE, "%p is no stream, or one that was destroyed", (void*)handle);
  return stream;
}

std::vector<StreamPointer> streams_of(CUcontext context) {
  std::vector<StreamPointer> found;
  auto add = [&](const StreamPointer& stream) {
    if (!context || stream->context == context) found.push_back(stream);
  };
  for (const auto& [owner, stream] : legacy_streams()) add(stream);
  for (const auto& [handle, stream] : streams()) add(stream);
  for (const StreamPointer& stream : leaving()) add(stream);
  return found;
}

static void forget_finished_streams() {
  auto is_empty = [](const StreamPointer& stream) { return stream->pending.empty() && !stream->busy; };
  auto& all = leaving();
  all.erase(std::remove_if(all.begin(), all.end(), is_empty), all.end());
}

// ---- Errors that stay ----------------------------------------------------------------------------------------------

static std::map<int, CUresult>& sticky_errors() {
  static auto& all = *new std::map<int, CUresult>;
  return all;
}

void note_sticky_error(int device, CUresult error) {
  if (settings().sticky_errors) sticky_errors().emplace(device, error);
}

CUresult sticky_error(int device) {
  Guard guard(driver_lock());
  auto found = sticky_errors().find(device);
  if (found == sticky_errors().end()) return CUDA_SUCCESS;
  return failure(found->second, "a kernel has failed on device %d, which stays unusable until cuDevicePrimaryCtxReset",
                 device);
}

void clear_sticky_error(int device) {
  Guard guard(driver_lock());
  sticky_errors().erase(device);
}

// ---- Running -------------------------------------------------------------------------------------------------------

static thread_local bool this_thread_in_host_function = false;
static bool running_late = false;

bool in_host_function() { return this_thread_in_host_function; }
bool is_running_late() { return running_late; }

static std::condition_variable_any& host_function_ended() {
  static auto& condition = *new std::condition_variable_any;
  return condition;
}

uint64_t draw(uint64_t below) {
  static uint64_t seed = 0, state = 0;
  if (seed != settings().stream_seed) seed = state = settings().stream_seed;
  state += 0x9e3779b97f4a7c15ull;
  uint64_t mixed = (state ^ state >> 30) * 0xbf58476d1ce4e5b9ull;
  mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebull;
  return (mixed ^ mixed >> 31) % below;
}

using Needs = std::map<StreamPointer, uint64_t>;  // up to which piece each stream must get

// Adds what `goals` need: the work before them in their streams, and what that waits for.
static void add_needs(Needs& needs, std::vector<Position> goals) {
  while (!goals.empty()) {
    const Position goal = goals.back();
    goals.pop_back();
    uint64_t& so_far = needs[goal.stream];
    if (goal.number <= so_far) continue;
    for (const Item& item : goal.stream->pending) {
      if (item.number > so_far && item.number <= goal.number) {
        goals.insert(goals.end(), item.after.begin(), item.after.end());
      }
    }
    so_far = goal.number;
  }
}

static bool can_go_on(const CUstream_st& stream, uint64_t up_to) {
  if (stream.busy || stream.pending.empty() || stream.pending.front().number > up_to) return false;
  const std::vector<Position>& after = stream.pending.front().after;
  return std::all_of(after.begin(), after.end(), [](const Position& position) { return position.is_done(); });
}

static std::vector<StreamPointer> streams_that_can_go_on(const Needs& needs) {
  std::vector<StreamPointer> ready;
  for (const auto& [stream, up_to] : needs) {
    if (can_go_on(*stream, up_to)) ready.push_back(stream);
  }
  // By age: the order of addresses would differ from run to run.
  std::sort(ready.begin(), ready.end(), [](const auto& a, const auto& b) { return a->id < b->id; });
  return ready;
}

// Host functions run without the lock: they may wait for another thread, for instance for Python's interpreter lock.
static CUresult run_host_function(CUstream_st& stream, const Work& work) {
  stream.busy = true;
  this_thread_in_host_function = true;
  driver_lock().unlock();
  const CUresult result = work();
  driver_lock().lock();
  this_thread_in_host_function = false;
  stream.busy = false;
  host_function_ended().notify_all();
  return result;
}

static CUresult run_next(const StreamPointer& stream, bool late) {
  const Item item = std::move(stream->pending.front());
  stream->pending.pop_front();
  const bool outer = running_late;
  running_late = late;
  CUresult result = CUDA_SUCCESS;
  if (item.clock) begin_work({stream->id, item.number, item.name, item.clock});
  if (item.work) result = item.kind == WorkKind::kHost ? run_host_function(*stream, item.work) : item.work();
  if (item.clock) end_work();
  running_late = outer;
  stream->done = item.number;
  return result;
}

static bool is_anything_left(const Needs& needs) {
  return std::any_of(needs.begin(), needs.end(),
                     [](const auto& need) { return need.first->done < need.second; });
}

// Runs at most `pieces` of what is needed. Ends at the first failure; what is left may be run by a later call.
static CUresult run(const Needs& needs, size_t pieces, bool late) {
  CUresult result = CUDA_SUCCESS;
  while (pieces > 0 && !result && is_anything_left(needs)) {
    const std::vector<StreamPointer> ready = streams_that_can_go_on(needs);
    if (ready.empty()) {  // another thread runs a host function that this waits for
      host_function_ended().wait(driver_lock());
      continue;
    }
    result = run_next(ready.size() == 1 ? ready[0] : ready[draw(ready.size())], late);
    pieces--;
  }
  forget_finished_streams();
  return result;
}

static CUresult refuse_host_function() {
  if (!in_host_function()) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_NOT_PERMITTED, "a host function in a stream must not call CUDA");
}

CUresult run_until(const std::vector<Position>& goals) {
  if (CUresult error = refuse_host_function()) return error;
  Needs needs;
  add_needs(needs, goals);
  const CUresult result = run(needs, SIZE_MAX, true);
  for (const Position& goal : goals) {
    if (!result && goal.number == goal.stream->issued) merge(host_clock(), goal.stream->clock);
  }
  return result;
}

CUresult poll(const Position& goal) {
  if (goal.is_done()) return CUDA_SUCCESS;
  Needs needs;
  add_needs(needs, {goal});
  if (streams_that_can_go_on(needs).empty()) return CUDA_ERROR_NOT_READY;
  if (CUresult error = run(needs, 1, true)) return error;
  return CUDA_ERROR_NOT_READY;
}

// ---- Issuing -------------------------------------------------------------------------------------------------------

static void add_end(std::vector<Position>& ends, const StreamPointer& stream) {
  if (stream->done < stream->issued) ends.push_back({stream, stream->issued});
}

// The streams that are ordered with `stream` by the rules of the legacy stream, whether they have work or not.
static bool is_implicitly_ordered(const CUstream_st& stream, const CUstream_st& other) {
  return stream.is_legacy ? other.is_blocking() : stream.is_blocking() && other.is_legacy;
}

// The legacy stream waits for all blocking streams of its context, and they wait for it.
static std::vector<Position> implicit_order(const CUstream_st& stream) {
  std::vector<Position> after;
  for (const StreamPointer& other : streams_of(stream.context)) {
    if (is_implicitly_ordered(stream, *other)) add_end(after, other);
  }
  return after;
}

std::vector<Position> end_of(const StreamPointer& stream) {
  std::vector<Position> ends;
  if (stream->is_legacy) ends = implicit_order(*stream);
  ends.push_back({stream, stream->issued});
  return ends;
}

// What the next piece of work of a stream comes after.
static std::shared_ptr<const Clock> next_clock(CUstream_st& stream) {
  if (!are_stream_races_wanted()) return nullptr;
  merge(stream.clock, host_clock());
  for (const StreamPointer& other : streams_of(stream.context)) {
    if (is_implicitly_ordered(stream, *other)) merge(stream.clock, other->clock);
  }
  stream.clock[stream.id] = stream.issued + 1;
  return std::make_shared<const Clock>(stream.clock);
}

static Position append(const StreamPointer& stream, std::string name, WorkKind kind, Work work,
                       std::vector<Position> after) {
  std::shared_ptr<const Clock> clock = next_clock(*stream);
  stream->pending.push_back(
      {std::move(name), kind, std::move(work), ++stream->issued, std::move(after), std::move(clock)});
  return {stream, stream->issued};
}

static CUresult run_if_immediate(const Position& position) {
  if (settings().stream_seed) return CUDA_SUCCESS;
  Needs needs;
  add_needs(needs, {position});
  return run(needs, SIZE_MAX, false);
}

CUresult issue(const StreamPointer& stream, std::string name, WorkKind kind, Work work) {
  if (CUresult error = refuse_host_function()) return error;
  if (CUresult error = sticky_error(device_of(stream->context))) return error;
  if (stream->capture) return capture_work(stream, std::move(name), kind, std::move(work));
  if (stream->is_legacy) {
    if (CUresult error = refuse_legacy_stream(stream->context, true)) return error;
  }
  return run_if_immediate(append(stream, std::move(name), kind, std::move(work), implicit_order(*stream)));
}

CUresult issue_wait(const StreamPointer& stream, const Recording& recording) {
  if (stream->is_legacy) {
    if (CUresult error = refuse_legacy_stream(stream->context, true)) return error;
  }
  std::vector<Position> after = implicit_order(*stream);
  if (!recording.position.is_done()) after.push_back(recording.position);
  merge(stream->clock, recording.clock);
  return run_if_immediate(append(stream, "cuStreamWaitEvent", WorkKind::kEmpty, nullptr, std::move(after)));
}

static WorkKind kind_of(const std::string& name) {
  if (name.rfind("cuMemcpy", 0) == 0) return WorkKind::kCopy;
  if (name.rfind("cuMemset", 0) == 0) return WorkKind::kSet;
  return WorkKind::kKernel;
}

CUresult enqueue(CUstream handle, std::string name, Work work) {
  Guard guard(driver_lock());
  CUresult error = CUDA_SUCCESS;
  StreamPointer stream = stream_of(handle, &error);
  if (!stream) return error;
  const WorkKind kind = kind_of(name);
  return issue(stream, std::move(name), kind, std::move(work));
}

// ---- The end of a context ------------------------------------------------------------------------------------------

void release_streams(CUcontext context) {
  Guard guard(driver_lock());
  for (const StreamPointer& stream : streams_of(context)) {
    if (stream->capture) leave_capture(stream);
    stream->pending.clear();  // what a failure left
    stream->done = stream->issued;
  }
  for (const StreamPointer& stream : streams().of(context)) streams().remove(stream.get());
  forget_finished_streams();
}

// ---- Waiting for streams -------------------------------------------------------------------------------------------

CUresult finish_stream(CUstream handle) {
  Guard guard(driver_lock());
  CUresult error = CUDA_SUCCESS;
  StreamPointer stream = stream_of(handle, &error);
  if (!stream) return error;
  if (stream->capture) return refuse_capturing(stream, "synchronising it");
  if (stream->is_legacy) {
    if (CUresult refused = refuse_legacy_stream(stream->context, true)) return refused;
  }
  if (CUresult spoilt = sticky_error(device_of(stream->context))) return spoilt;
  return run_until(end_of(stream));
}

CUresult finish_device(int device) {
  Guard guard(driver_lock());
  if (CUresult error = sticky_error(device)) return error;
  std::vector<Position> ends;
  for (const StreamPointer& stream : streams_of(nullptr)) {
    if (device_of(stream->context) != device) continue;
    if (stream->capture) return refuse_capturing(stream, "synchronising its device");
    ends.push_back({stream, stream->issued});
  }
  return run_until(ends);
}

static CUresult query(const StreamPointer& stream) {
  if (stream->capture) return refuse_capturing(stream, "querying it");
  if (stream->is_legacy) {
    if (CUresult refused = refuse_legacy_stream(stream->context, true)) return refused;
  }
  CUresult result = CUDA_SUCCESS;
  for (const Position& end : end_of(stream)) {
    const CUresult one = poll(end);
    if (one) result = one;
    if (one && one != CUDA_ERROR_NOT_READY) return one;
  }
  if (!result) merge(host_clock(), stream->clock);
  return result;
}

bool is_capturing(CUstream handle) {
  Guard guard(driver_lock());
  CUresult error = CUDA_SUCCESS;
  StreamPointer stream = stream_of(handle, &error);
  return stream && stream->capture;
}

}  // namespace cudasim

// ---- Entry points --------------------------------------------------------------------------------------------------

constexpr int kLeastPriority = 0;
constexpr int kGreatestPriority = -5;

static CUresult create(CUstream* handle, unsigned flags, int priority) {
  if (!handle) return failure(CUDA_ERROR_INVALID_VALUE, "no place for the stream was given");
  if (flags & ~unsigned{CU_STREAM_NON_BLOCKING}) return failure(CUDA_ERROR_INVALID_VALUE, "stream flags 0x%x", flags);
  Guard guard(driver_lock());
  CUcontext context = current_context();
  if (!context) return failure(CUDA_ERROR_INVALID_CONTEXT, "no context is current in this thread");
  priority = std::min(std::max(priority, kGreatestPriority), kLeastPriority);
  *handle = streams().add(make_stream(context, flags, priority, false));
  return CUDA_SUCCESS;
}

// Calls `answer` with the stream of a handle.
template <class Answer>
static CUresult with_stream(CUstream handle, Answer answer) {
  Guard guard(driver_lock());
  CUresult error = CUDA_SUCCESS;
  StreamPointer stream = stream_of(handle, &error);
  return stream ? answer(stream) : error;
}

ENTRY_POINT cuStreamCreate(CUstream* stream, unsigned flags) {
  BEGIN_CALL();
  return create(stream, flags, kLeastPriority);
}

ENTRY_POINT cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int priority) {
  BEGIN_CALL();
  return create(stream, flags, priority);
}

ENTRY_POINT cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  BEGIN_CALL();
  if (least) *least = kLeastPriority;
  if (greatest) *greatest = kGreatestPriority;
  return CUDA_SUCCESS;
}

// Returns at once; the stream's work is still done.
ENTRY_POINT cuStreamDestroy(CUstream handle) {
  BEGIN_CALL();
  Guard guard(driver_lock());
  StreamPointer stream = streams().find(handle);
  if (!stream) return failure(CUDA_ERROR_INVALID_HANDLE, "%p is no stream that can be destroyed", (void*)handle);
  if (stream->capture) leave_capture(stream);
  if (!stream->pending.empty()) leaving().push_back(stream);
  streams().remove(handle);
  return CUDA_SUCCESS;
}

ENTRY_POINT cuStreamSynchronize(CUstream stream) {
  BEGIN_CALL();
  return finish_stream(stream);
}

ENTRY_POINT cuStreamQuery(CUstream handle) {
  BEGIN_CALL();
  return with_stream(handle, query);
}

ENTRY_POINT cuStreamGetFlags(CUstream handle, unsigned* flags) {
  BEGIN_CALL();
  return with_stream(handle, [&](const StreamPointer& stream) {
    *flags = stream->flags;
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuStreamGetPriority(CUstream handle, int* priority) {
  BEGIN_CALL();
  return with_stream(handle, [&](const StreamPointer& stream) {
    *priority = stream->priority;
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuStreamGetCtx(CUstream handle, CUcontext* context) {
  BEGIN_CALL();
  return with_stream(handle, [&](const StreamPointer& stream) {
    *context = stream->context;
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuStreamGetDevice(CUstream handle, CUdevice* device) {
  BEGIN_CALL();
  return with_stream(handle, [&](const StreamPointer& stream) {
    *device = device_of(stream->context);
    return CUDA_SUCCESS;
  });
}

ENTRY_POINT cuStreamGetId(CUstream handle, unsigned long long* id) {
  BEGIN_CALL();
  return with_stream(handle, [&](const StreamPointer& stream) {
    *id = stream->id;
    return CUDA_SUCCESS;
  });
}

// ---- Host functions ------------------------------------------------------------------------------------------------

static CUresult issue_host_function(CUstream handle, const char* name, std::function<void()> call) {
  return with_stream(handle, [&](const StreamPointer& stream) {
    return issue(stream, name, WorkKind::kHost, [call = std::move(call)] {
      call();
      return CUDA_SUCCESS;
    });
  });
}

ENTRY_POINT cuLaunchHostFunc(CUstream stream, CUhostFn function, void* data) {
  BEGIN_CALL();
  if (!function) return failure(CUDA_ERROR_INVALID_VALUE, "no host function was given");
  return issue_host_function(stream, "cuLaunchHostFunc", [=] { function(data); });
}

// Unlike a host function, a callback cannot be captured.
ENTRY_POINT cuStreamAddCallback(CUstream handle, CUstreamCallback callback, void* data, unsigned flags) {
  BEGIN_CALL();
  if (!callback || flags) return failure(CUDA_ERROR_INVALID_VALUE, "no callback, or flags, which must be 0");
  {
    Guard guard(driver_lock());
    CUresult error = CUDA_SUCCESS;
    StreamPointer stream = stream_of(handle, &error);
    if (!stream) return error;
    if (stream->capture) return refuse_capturing(stream, "cuStreamAddCallback");
  }
  return issue_host_function(handle, "cuStreamAddCallback", [=] { callback(handle, CUDA_SUCCESS, data); });
}

// ---- Driver-side services ------------------------------------------------------------------------------------------

CUresult cudasim_enqueue(CUstream stream, const char* name, CUresult (*work)(void* data), void* data,
                         void (*destroy)(void* data)) {
  auto destroy_if_any = [destroy](void* last) {
    if (destroy) destroy(last);
  };
  std::shared_ptr<void> owned(data, destroy_if_any);
  return enqueue(stream, name, [work, owned] { return work(owned.get()); });
}
