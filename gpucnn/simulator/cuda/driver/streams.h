// Streams and events as queues of work: shared by streams.cpp, events.cpp and graphs.cpp.
#pragma once
#include <time.h>

#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "driver.h"
#include "stream_races.h"

namespace cudasim {

using Guard = std::lock_guard<std::recursive_mutex>;
using StreamPointer = std::shared_ptr<CUstream_st>;

struct Capture;

// All work of `stream` up to piece `number`.
struct Position {
  StreamPointer stream;
  uint64_t number;

  bool is_done() const;
};

enum class WorkKind { kKernel, kCopy, kSet, kHost, kEmpty, kGraph };

struct Item {
  std::string name;
  WorkKind kind;
  Work work;  // null: only waits
  uint64_t number;
  std::vector<Position> after;  // what else must be done first
  std::shared_ptr<const Clock> clock;  // null where races are not looked for
};

// A record of an event in a stream. Later records of the same event do not change what waits for this one.
struct Recording {
  Position position;
  Clock clock;
  timespec time;
};

}  // namespace cudasim

struct CUstream_st {
  uint64_t id;
  CUcontext context;
  unsigned flags;
  int priority;
  bool is_legacy;

  std::deque<cudasim::Item> pending;
  uint64_t issued = 0;
  uint64_t done = 0;
  cudasim::Clock clock;  // of the last piece of work that was issued
  bool busy = false;  // a host function of it runs, without the lock

  std::shared_ptr<cudasim::Capture> capture;
  std::vector<size_t> tips;  // the nodes that the next captured piece of work comes after

  bool is_blocking() const { return !is_legacy && !(flags & CU_STREAM_NON_BLOCKING); }
};

struct CUevent_st {
  unsigned flags;
  CUcontext context;
  std::shared_ptr<cudasim::Recording> recording;  // null: never recorded
  std::shared_ptr<cudasim::Capture> capture;      // of the last record, if it was captured
  std::vector<size_t> tips;
};

namespace cudasim {

inline bool Position::is_done() const { return stream->done >= number; }

// The stream of a handle, the special ones among them; null after failure() where there is none.
StreamPointer stream_of(CUstream handle, CUresult* error);

// Of this context or, with null, of all.
std::vector<StreamPointer> streams_of(CUcontext context);

// Puts work into the queue of a stream, or into the graph that it is being captured into.
CUresult issue(const StreamPointer& stream, std::string name, WorkKind kind, Work work);

// Lets the stream wait for a position of another one.
CUresult issue_wait(const StreamPointer& stream, const Recording& recording);

// Runs what these positions need.
CUresult run_until(const std::vector<Position>& goals);

// Runs one piece of what `goal` needs: a program that polls gets on. NOT_READY unless all was done before.
CUresult poll(const Position& goal);

// The end of a stream as it is now; that of the legacy stream includes the blocking streams.
std::vector<Position> end_of(const StreamPointer& stream);

// A kernel has failed on the device.
void note_sticky_error(int device, CUresult error);

// Whether this thread is inside a host function, where CUDA must not be called.
bool in_host_function();

// A random number below `below`, by the stream seed.
uint64_t draw(uint64_t below);

// Whether work that runs now was issued by an earlier call: messages say so.
bool is_running_late();

// ---- Capture (graphs.cpp) ------------------------------------------------------------------------------------------

// Refuses a call that must not be made on a stream that is being captured, and invalidates the capture.
CUresult refuse_capturing(const StreamPointer& stream, const char* what);

// Refuses the use of the legacy stream while a blocking stream of the context is being captured.
CUresult refuse_legacy_stream(CUcontext context, bool invalidates);

CUresult capture_work(const StreamPointer& stream, std::string name, WorkKind kind, Work work);
CUresult capture_record(const StreamPointer& stream, CUevent_st& event);
CUresult capture_wait(const StreamPointer& stream, const CUevent_st& event);
void leave_capture(const StreamPointer& stream);  // it is destroyed

}  // namespace cudasim
