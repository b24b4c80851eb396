// Copies: of one, two and three dimensions, between host and devices, at once or in a stream.
//
// Every copy is checked when it is called, against the allocations as they are then, and again when it is done, which
// may be later: memory that was freed in between is an error of its own.
#include <string.h>

#include <memory>

#include "control.h"
#include "stream_races.h"
#include "devices.h"

namespace {

using namespace cudasim;
using Lock = std::lock_guard<std::recursive_mutex>;

enum class Side { kHost, kDevice, kEither };

// One end of a copy: rows of the copy's width, `pitch` bytes apart, in slices `slice` bytes apart.
struct Place {
  Side side;
  char* low;
  size_t pitch;
  size_t slice;
  bool is_pageable;  // host memory that CUDA does not know
};

struct Copy {
  Place from;
  Place to;
  size_t width;
  size_t height;
  size_t depth;
};

enum class Waits { kNever, kForHostMemory };

// From the first byte to the last.
size_t span(const Copy& copy, const Place& place) {
  return (copy.depth - 1) * place.slice + (copy.height - 1) * place.pitch + copy.width;
}

bool is_host_kind(const Allocation& allocation) {
  return allocation.kind == MemoryKind::kPinned || allocation.kind == MemoryKind::kRegistered;
}

// ---- Checks --------------------------------------------------------------------------------------------------------

CUresult check_place(CUresult error, const std::string& what, const Copy& copy, Place* place) {
  const Allocation* known = place->low ? allocation_at(place->low) : nullptr;
  place->is_pageable = place->low && !known && place->side != Side::kDevice;
  if (place->is_pageable) return CUDA_SUCCESS;
  Allocation* allocation = nullptr;
  if (CUresult bad = live_range(error, what, place->low, span(copy, *place), &allocation)) return bad;
  const bool is_device = !is_host_kind(*allocation) && allocation->kind != MemoryKind::kManaged;
  if (place->side != Side::kHost || !is_device) return CUDA_SUCCESS;
  return failure(error, "%s must be host memory, and is %s", what.c_str(), describe(*allocation).c_str());
}

CUresult check_pitch(const std::string& what, const Copy& copy, const Place& place) {
  const bool rows_fit = copy.height * copy.depth <= 1 || copy.width <= place.pitch;
  const bool slices_fit = copy.depth <= 1 || copy.height * place.pitch <= place.slice;
  if (rows_fit && slices_fit) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_INVALID_VALUE, "%s has a pitch of %zu bytes, too little for rows of %zu bytes",
                 what.c_str(), place.pitch, copy.width);
}

CUresult check(CUresult error, const std::string& name, Copy* copy) {
  if (CUresult bad = check_pitch(name + ": the source", *copy, copy->from)) return bad;
  if (CUresult bad = check_pitch(name + ": the destination", *copy, copy->to)) return bad;
  if (CUresult bad = check_place(error, name + ": the source", *copy, &copy->from)) return bad;
  return check_place(error, name + ": the destination", *copy, &copy->to);
}

// ---- Doing it ------------------------------------------------------------------------------------------------------

// What is known of the source being written is known of the destination.
void copy_initialised(const char* from, char* to, size_t bytes) {
  const Allocation* source = allocation_at(from);
  const Allocation* target = allocation_at(to);
  if (!target || !target->initialised) return;
  uint8_t* written = target->initialised + (to - target->low);
  if (source && source->initialised) memmove(written, source->initialised + (from - source->low), bytes);
  else memset(written, 1, bytes);
}

void copy_row(const char* from, char* to, size_t bytes) {
  memmove(to, from, bytes);
  copy_initialised(from, to, bytes);
}

// Calls `visit` with source and destination of each row, until it returns an error.
template <class Visit>
CUresult for_each_row(const Copy& copy, Visit visit) {
  for (size_t z = 0; z < copy.depth; z++) {
    for (size_t y = 0; y < copy.height; y++) {
      char* from = copy.from.low + z * copy.from.slice + y * copy.from.pitch;
      char* to = copy.to.low + z * copy.to.slice + y * copy.to.pitch;
      if (CUresult error = visit(from, to)) return error;
    }
  }
  return CUDA_SUCCESS;
}

void do_copy(const Copy& copy) {
  for_each_row(copy, [&](const char* from, char* to) {
    copy_row(from, to, copy.width);
    return CUDA_SUCCESS;
  });
}

CUresult check_races(const std::string& name, const Copy& copy) {
  return for_each_row(copy, [&](const char* from, const char* to) {
    if (CUresult error = check_stream_races(name, from, copy.width, false)) return error;
    return check_stream_races(name, to, copy.width, true);
  });
}

// The source's bytes as they are now, one after the other.
std::shared_ptr<std::vector<char>> stage(const Copy& copy) {
  auto staged = std::make_shared<std::vector<char>>(copy.width * copy.height * copy.depth);
  Copy whole = copy;
  whole.to = {Side::kHost, staged->data(), copy.width, copy.width * copy.height, true};
  do_copy(whole);
  return staged;
}

// Whether the call waits for the copy: it writes pageable memory, or is not asynchronous and touches host memory.
bool must_wait(const Copy& copy, Waits waits) {
  const Allocation* source = allocation_at(copy.from.low);
  const Allocation* target = allocation_at(copy.to.low);
  const bool touches_host = !source || !target || is_host_kind(*source) || is_host_kind(*target);
  return copy.to.is_pageable || (waits == Waits::kForHostMemory && touches_host);
}

// What is known when the call is made.
struct Plan {
  bool waits = false;
  std::shared_ptr<std::vector<char>> staged;
};

CUresult make_plan(const std::string& name, Copy* copy, CUstream stream, Waits waits, Plan* plan) {
  Lock held(driver_lock());
  if (CUresult error = require_context()) return error;
  if (CUresult error = check(CUDA_ERROR_INVALID_VALUE, name, copy)) return error;
  if (is_capturing(stream)) return CUDA_SUCCESS;
  plan->waits = must_wait(*copy, waits);
  if (!copy->from.is_pageable || plan->waits) return CUDA_SUCCESS;
  plan->staged = stage(*copy);
  copy->from = {Side::kHost, plan->staged->data(), copy->width, copy->width * copy->height, true};
  return CUDA_SUCCESS;
}

// Copies in the order of `stream`. As documented, pageable memory is read before the call returns and written before
// it returns; where the stream is captured, whenever the graph runs. A call that is not asynchronous also waits for
// pinned memory, but not for copies within devices. The lock is not held while the stream works: a host function in it
// may wait for another thread that needs the lock.
CUresult issue(const std::string& name, Copy copy, CUstream stream, Waits waits) {
  if (copy.width == 0 || copy.height == 0 || copy.depth == 0) return CUDA_SUCCESS;
  Plan plan;
  if (CUresult error = make_plan(name, &copy, stream, waits, &plan)) return error;
  const CUresult error = enqueue(stream, name, [name, copy, staged = plan.staged]() mutable {
    if (CUresult bad = check(CUDA_ERROR_ILLEGAL_ADDRESS, name, &copy)) return bad;
    if (CUresult bad = check_races(name, copy)) return bad;
    do_copy(copy);
    return CUDA_SUCCESS;
  });
  return error || !plan.waits ? error : finish_stream(stream);
}

Place line(Side side, const void* pointer) {
  return {side, const_cast<char*>(static_cast<const char*>(pointer)), 0, 0, false};
}

Place line(Side side, CUdeviceptr pointer) { return line(side, reinterpret_cast<const void*>(pointer)); }

CUresult issue_line(const char* name, Place to, Place from, size_t bytes, CUstream stream, Waits waits) {
  return issue(name, {from, to, bytes, 1, 1}, stream, waits);
}

// ---- Descriptions of two- and three-dimensional copies -------------------------------------------------------------

// The two ends of CUDA_MEMCPY3D and its relatives, with the same names in each.
struct End {
  CUmemorytype type;
  const void* host;
  CUdeviceptr device;
  size_t x, y, z;
  size_t pitch;
  size_t height;  // of a slice, in rows
};

CUresult place_of(const char* name, const End& end, const Copy& copy, Place* place) {
  const bool on_host = end.type == CU_MEMORYTYPE_HOST;
  if (end.type == CU_MEMORYTYPE_ARRAY) return failure(CUDA_ERROR_NOT_SUPPORTED, "%s: arrays are not simulated", name);
  if (!on_host && end.type != CU_MEMORYTYPE_DEVICE && end.type != CU_MEMORYTYPE_UNIFIED) {
    return failure(CUDA_ERROR_INVALID_VALUE, "%s: there is no memory type %d", name, end.type);
  }
  place->side = on_host ? Side::kHost : end.type == CU_MEMORYTYPE_DEVICE ? Side::kDevice : Side::kEither;
  place->pitch = end.pitch ? end.pitch : end.x + copy.width;  // 0: one row after the other
  place->slice = place->pitch * (end.height ? end.height : end.y + copy.height);
  char* base = on_host ? static_cast<char*>(const_cast<void*>(end.host)) : reinterpret_cast<char*>(end.device);
  place->low = base ? base + end.z * place->slice + end.y * place->pitch + end.x : nullptr;
  const bool row_fits = end.x + copy.width <= place->pitch || copy.height * copy.depth <= 1;
  if (row_fits) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_INVALID_VALUE, "%s: rows of %zu bytes from byte %zu on do not fit a pitch of %zu bytes",
                 name, copy.width, end.x, end.pitch);
}

CUresult issue_box(const char* name, const End& from, const End& to, Copy copy, CUstream stream, Waits waits) {
  if (CUresult error = place_of(name, from, copy, &copy.from)) return error;
  if (CUresult error = place_of(name, to, copy, &copy.to)) return error;
  return issue(name, copy, stream, waits);
}

CUresult issue_2d(const char* name, const CUDA_MEMCPY2D* given, CUstream stream, Waits waits) {
  if (!given) return failure(CUDA_ERROR_INVALID_VALUE, "%s: the copy must not be null", name);
  const End from = {given->srcMemoryType, given->srcHost, given->srcDevice, given->srcXInBytes, given->srcY, 0,
                    given->srcPitch,      0};
  const End to = {given->dstMemoryType, given->dstHost, given->dstDevice, given->dstXInBytes, given->dstY, 0,
                  given->dstPitch,      0};
  return issue_box(name, from, to, {{}, {}, given->WidthInBytes, given->Height, 1}, stream, waits);
}

// CUDA_MEMCPY3D and CUDA_MEMCPY3D_PEER.
template <class Description>
CUresult issue_3d(const char* name, const Description* given, CUstream stream, Waits waits) {
  if (!given) return failure(CUDA_ERROR_INVALID_VALUE, "%s: the copy must not be null", name);
  if (given->srcLOD || given->dstLOD) return failure(CUDA_ERROR_INVALID_VALUE, "%s: LOD must be 0", name);
  const End from = {given->srcMemoryType, given->srcHost, given->srcDevice, given->srcXInBytes, given->srcY,
                    given->srcZ,          given->srcPitch, given->srcHeight};
  const End to = {given->dstMemoryType, given->dstHost, given->dstDevice, given->dstXInBytes, given->dstY,
                  given->dstZ,          given->dstPitch, given->dstHeight};
  return issue_box(name, from, to, {{}, {}, given->WidthInBytes, given->Height, given->Depth}, stream, waits);
}

// Whether memory of a copy between peers lies where its caller says.
CUresult check_owner(const char* what, CUdeviceptr pointer, CUcontext context) {
  Lock held(driver_lock());
  if (CUresult error = require_context(context)) return error;
  const Allocation* allocation = allocation_at(reinterpret_cast<const void*>(pointer));
  if (!allocation || is_host_kind(*allocation) || allocation->device == device_of(context)) return CUDA_SUCCESS;
  return failure(CUDA_ERROR_INVALID_VALUE, "%s is %s of device %d, not of device %d", what,
                 describe(*allocation).c_str(), allocation->device, device_of(context));
}

CUresult issue_peer(const char* name, CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context,
                    size_t bytes, CUstream stream) {
  if (CUresult error = check_owner("the destination", to, to_context)) return error;
  if (CUresult error = check_owner("the source", from, from_context)) return error;
  return issue_line(name, line(Side::kDevice, to), line(Side::kDevice, from), bytes, stream, Waits::kNever);
}

CUresult check_peer_box(const CUDA_MEMCPY3D_PEER* given) {
  if (!given) return failure(CUDA_ERROR_INVALID_VALUE, "the copy must not be null");
  const bool from_device = given->srcMemoryType == CU_MEMORYTYPE_DEVICE;
  const bool to_device = given->dstMemoryType == CU_MEMORYTYPE_DEVICE;
  const CUresult error = from_device ? check_owner("the source", given->srcDevice, given->srcContext) : CUDA_SUCCESS;
  if (error || !to_device) return error;
  return check_owner("the destination", given->dstDevice, given->dstContext);
}

}  // namespace

// ---- One dimension -------------------------------------------------------------------------------------------------

ENTRY_POINT cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  BEGIN_CALL();
  return issue_line("cuMemcpy", line(Side::kEither, to), line(Side::kEither, from), bytes, nullptr,
                    Waits::kForHostMemory);
}

ENTRY_POINT cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  BEGIN_CALL();
  return issue_line("cuMemcpyAsync", line(Side::kEither, to), line(Side::kEither, from), bytes, stream, Waits::kNever);
}

ENTRY_POINT cuMemcpyHtoD(CUdeviceptr to, const void* from, size_t bytes) {
  BEGIN_CALL();
  return issue_line("cuMemcpyHtoD", line(Side::kDevice, to), line(Side::kHost, from), bytes, nullptr,
                    Waits::kForHostMemory);
}

ENTRY_POINT cuMemcpyHtoDAsync(CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  BEGIN_CALL();
  return issue_line("cuMemcpyHtoDAsync", line(Side::kDevice, to), line(Side::kHost, from), bytes, stream,
                    Waits::kNever);
}

ENTRY_POINT cuMemcpyDtoH(void* to, CUdeviceptr from, size_t bytes) {
  BEGIN_CALL();
  return issue_line("cuMemcpyDtoH", line(Side::kHost, to), line(Side::kDevice, from), bytes, nullptr,
                    Waits::kForHostMemory);
}

ENTRY_POINT cuMemcpyDtoHAsync(void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  BEGIN_CALL();
  return issue_line("cuMemcpyDtoHAsync", line(Side::kHost, to), line(Side::kDevice, from), bytes, stream,
                    Waits::kNever);
}

ENTRY_POINT cuMemcpyDtoD(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  BEGIN_CALL();
  return issue_line("cuMemcpyDtoD", line(Side::kDevice, to), line(Side::kDevice, from), bytes, nullptr,
                    Waits::kForHostMemory);
}

ENTRY_POINT cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  BEGIN_CALL();
  return issue_line("cuMemcpyDtoDAsync", line(Side::kDevice, to), line(Side::kDevice, from), bytes, stream,
                    Waits::kNever);
}

// Without peer access too, as documented: a card then copies by way of the host.
ENTRY_POINT cuMemcpyPeer(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context,
                         size_t bytes) {
  BEGIN_CALL();
  return issue_peer("cuMemcpyPeer", to, to_context, from, from_context, bytes, nullptr);
}

ENTRY_POINT cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context,
                              size_t bytes, CUstream stream) {
  BEGIN_CALL();
  return issue_peer("cuMemcpyPeerAsync", to, to_context, from, from_context, bytes, stream);
}

// ---- Two and three dimensions --------------------------------------------------------------------------------------

ENTRY_POINT cuMemcpy2D(const CUDA_MEMCPY2D* copy) {
  BEGIN_CALL();
  return issue_2d("cuMemcpy2D", copy, nullptr, Waits::kForHostMemory);
}

ENTRY_POINT cuMemcpy2DUnaligned(const CUDA_MEMCPY2D* copy) {
  BEGIN_CALL();
  return issue_2d("cuMemcpy2DUnaligned", copy, nullptr, Waits::kForHostMemory);
}

ENTRY_POINT cuMemcpy2DAsync(const CUDA_MEMCPY2D* copy, CUstream stream) {
  BEGIN_CALL();
  return issue_2d("cuMemcpy2DAsync", copy, stream, Waits::kNever);
}

ENTRY_POINT cuMemcpy3D(const CUDA_MEMCPY3D* copy) {
  BEGIN_CALL();
  return issue_3d("cuMemcpy3D", copy, nullptr, Waits::kForHostMemory);
}

ENTRY_POINT cuMemcpy3DAsync(const CUDA_MEMCPY3D* copy, CUstream stream) {
  BEGIN_CALL();
  return issue_3d("cuMemcpy3DAsync", copy, stream, Waits::kNever);
}

ENTRY_POINT cuMemcpy3DPeer(const CUDA_MEMCPY3D_PEER* copy) {
  BEGIN_CALL();
  if (CUresult error = check_peer_box(copy)) return error;
  return issue_3d("cuMemcpy3DPeer", copy, nullptr, Waits::kForHostMemory);
}

ENTRY_POINT cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D_PEER* copy, CUstream stream) {
  BEGIN_CALL();
  if (CUresult error = check_peer_box(copy)) return error;
  return issue_3d("cuMemcpy3DPeerAsync", copy, stream, Waits::kNever);
}
