// Events: marks in streams, which other streams and the program wait for.
#include "handles.h"
#include "streams.h"

using namespace cudasim;

static Handles<CUevent_st>& events() {
  static auto& all = *new Handles<CUevent_st>;  // never destroyed: other libraries call in at exit
  return all;
}

// Calls `answer` with the event of a handle.
template <class Answer>
static CUresult with_event(CUevent handle, Answer answer) {
  Guard guard(driver_lock());
  std::shared_ptr<CUevent_st> event = events().find(handle);
  if (!event) return failure(CUDA_ERROR_INVALID_HANDLE, "%p is no event, or one that was destroyed", (void*)handle);
  return answer(*event);
}

static CUresult refuse_captured(const CUevent_st& event) {
  if (!event.capture) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_CAPTURED_EVENT, "the event was last recorded in a stream that was being captured");
}

ENTRY_POINT cuEventCreate(CUevent* handle, unsigned flags) {
  BEGIN_CALL();
  constexpr unsigned kKnown = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;
  if (!handle || flags & ~kKnown) return failure(CUDA_ERROR_INVALID_VALUE, "event flags 0x%x", flags);
  if (flags & CU_EVENT_INTERPROCESS) {
    return failure(CUDA_ERROR_NOT_SUPPORTED, "events for several processes are not simulated");
  }
  Guard guard(driver_lock());
  CUcontext context = current_context();
  if (!context) return failure(CUDA_ERROR_INVALID_CONTEXT, "no context is current in this thread");
  auto event = std::make_shared<CUevent_st>();
  event->flags = flags;
  event->context = context;
  *handle = events().add(event);
  return CUDA_SUCCESS;
}

ENTRY_POINT cuEventDestroy(CUevent handle) {
  BEGIN_CALL();
  Guard guard(driver_lock());
  if (events().remove(handle)) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_INVALID_HANDLE, "%p is no event, or one that was destroyed", (void*)handle);
}

static CUresult record(CUevent_st& event, CUstream handle) {
  CUresult error = CUDA_SUCCESS;
  StreamPointer stream = stream_of(handle, &error);
  if (!stream) return error;
  if (stream->context != event.context) {
    return failure(CUDA_ERROR_INVALID_HANDLE, "the event and the stream belong to different contexts");
  }
  if (stream->capture) return capture_record(stream, event);
  auto recording = std::make_shared<Recording>();
  recording->position = {stream, stream->issued + 1};
  event.capture = nullptr;
  event.recording = recording;
  const CUresult result = issue(stream, "cuEventRecord", WorkKind::kEmpty, [recording] {
    clock_gettime(CLOCK_MONOTONIC, &recording->time);
    return CUDA_SUCCESS;
  });
  recording->clock = stream->clock;
  return result;
}

static CUresult refuse_external(const char* flag) {
  return failure(CUDA_ERROR_NOT_SUPPORTED, "event nodes in graphs (%s) are not simulated", flag);
}

ENTRY_POINT cuEventRecord(CUevent handle, CUstream stream) {
  BEGIN_CALL();
  return with_event(handle, [&](CUevent_st& event) { return record(event, stream); });
}

ENTRY_POINT cuEventRecordWithFlags(CUevent handle, CUstream stream, unsigned flags) {
  BEGIN_CALL();
  if (flags) return refuse_external("CU_EVENT_RECORD_EXTERNAL");
  return with_event(handle, [&](CUevent_st& event) { return record(event, stream); });
}

ENTRY_POINT cuEventQuery(CUevent handle) {
  BEGIN_CALL();
  return with_event(handle, [](CUevent_st& event) {
    if (CUresult error = refuse_captured(event)) return error;
    if (!event.recording) return CUDA_SUCCESS;
    const CUresult result = poll(event.recording->position);
    if (!result) merge(host_clock(), event.recording->clock);
    return result;
  });
}

ENTRY_POINT cuEventSynchronize(CUevent handle) {
  BEGIN_CALL();
  return with_event(handle, [](CUevent_st& event) {
    if (CUresult error = refuse_captured(event)) return error;
    if (!event.recording) return CUDA_SUCCESS;
    const CUresult result = run_until({event.recording->position});
    if (!result) merge(host_clock(), event.recording->clock);
    return result;
  });
}

static double milliseconds(const timespec& from, const timespec& to) {
  return static_cast<double>(to.tv_sec - from.tv_sec) * 1e3 + static_cast<double>(to.tv_nsec - from.tv_nsec) * 1e-6;
}

static CUresult elapsed_time(float* elapsed, CUevent start, CUevent end) {
  return with_event(start, [&](CUevent_st& from) {
    return with_event(end, [&](CUevent_st& to) {
      if (CUresult error = refuse_captured(from)) return error;
      if (CUresult error = refuse_captured(to)) return error;
      if ((from.flags | to.flags) & CU_EVENT_DISABLE_TIMING) {
        return failure(CUDA_ERROR_INVALID_HANDLE, "an event that was created without timing");
      }
      if (!from.recording || !to.recording) {
        return failure(CUDA_ERROR_INVALID_HANDLE, "an event that was never recorded");
      }
      if (!from.recording->position.is_done() || !to.recording->position.is_done()) return CUDA_ERROR_NOT_READY;
      *elapsed = static_cast<float>(milliseconds(from.recording->time, to.recording->time));
      return CUDA_SUCCESS;
    });
  });
}

// The time that the simulation took: it says nothing about a GPU.
#undef cuEventElapsedTime
ENTRY_POINT cuEventElapsedTime(float* elapsed, CUevent start, CUevent end) {
  BEGIN_CALL();
  return elapsed_time(elapsed, start, end);
}

ENTRY_POINT cuEventElapsedTime_v2(float* elapsed, CUevent start, CUevent end) {
  BEGIN_CALL();
  return elapsed_time(elapsed, start, end);
}

static CUresult wait_for(const StreamPointer& stream, const CUevent_st& event) {
  if (event.capture || stream->capture) return capture_wait(stream, event);
  if (!event.recording) return CUDA_SUCCESS;
  return issue_wait(stream, *event.recording);
}

ENTRY_POINT cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned flags) {
  BEGIN_CALL();
  if (flags) return refuse_external("CU_EVENT_WAIT_EXTERNAL");
  return with_event(event_handle, [&](CUevent_st& event) {
    CUresult error = CUDA_SUCCESS;
    StreamPointer stream = stream_of(handle, &error);
    return stream ? wait_for(stream, event) : error;
  });
}
