// Waiting for a device where CUDA does so by itself, as in cuMemFree.
#include "control.h"
#include "streams.h"

namespace cudasim {

CUresult finish_uncaptured(int device) {
  std::vector<Position> ends;
  Guard guard(driver_lock());
  for (const StreamPointer& stream : streams_of(nullptr)) {
    if (device_of(stream->context) != device || stream->capture) continue;
    for (const Position& end : end_of(stream)) ends.push_back(end);
  }
  return run_until(ends);
}

}  // namespace cudasim
