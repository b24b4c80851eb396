// cuMemset and its variants. All of them run in a stream, the plain ones in the default one, and none waits.
#include <string.h>

#include "control.h"
#include "stream_races.h"

namespace {

using namespace cudasim;

struct Fill {
  char* low;
  size_t pitch;
  size_t width;  // in elements
  size_t height;
  unsigned value;
  size_t element;  // bytes: 1, 2 or 4
};

CUresult check(CUresult error, const std::string& name, const Fill& fill) {
  Allocation* allocation = nullptr;
  const size_t row = fill.width * fill.element;
  const size_t span = (fill.height - 1) * fill.pitch + row;
  if (CUresult bad = live_range(error, name + ": the memory", fill.low, span, &allocation)) return bad;
  if (reinterpret_cast<uintptr_t>(fill.low) % fill.element || (fill.height > 1 && fill.pitch % fill.element)) {
    return failure(error, "%s: address and pitch must be multiples of %zu bytes", name.c_str(), fill.element);
  }
  if (fill.height == 1 || row <= fill.pitch) return CUDA_SUCCESS;
  return failure(error, "%s: rows of %zu bytes do not fit a pitch of %zu bytes", name.c_str(), row, fill.pitch);
}

void fill_row(char* row, const Fill& fill) {
  if (fill.element == 1) {
    memset(row, static_cast<int>(fill.value), fill.width);
    return;
  }
  for (size_t i = 0; i < fill.width; i++) memcpy(row + i * fill.element, &fill.value, fill.element);
}

CUresult check_call(const std::string& name, const Fill& fill) {
  std::lock_guard<std::recursive_mutex> held(driver_lock());
  if (CUresult error = require_context()) return error;
  return check(CUDA_ERROR_INVALID_VALUE, name, fill);
}

CUresult issue(const std::string& name, const Fill& fill, CUstream stream) {
  if (fill.width == 0 || fill.height == 0) return CUDA_SUCCESS;
  if (CUresult error = check_call(name, fill)) return error;
  return enqueue(stream, name, [name, fill] {
    if (CUresult error = check(CUDA_ERROR_ILLEGAL_ADDRESS, name, fill)) return error;
    for (size_t y = 0; y < fill.height; y++) {
      char* row = fill.low + y * fill.pitch;
      if (CUresult error = check_stream_races(name, row, fill.width * fill.element, true)) return error;
      fill_row(row, fill);
      mark_initialised(row, fill.width * fill.element);
    }
    return CUDA_SUCCESS;
  });
}

CUresult issue_line(const char* name, CUdeviceptr low, unsigned value, size_t element, size_t count, CUstream stream) {
  return issue(name, {reinterpret_cast<char*>(low), 0, count, 1, value, element}, stream);
}

CUresult issue_rows(const char* name, CUdeviceptr low, size_t pitch, unsigned value, size_t element, size_t width,
                    size_t height, CUstream stream) {
  return issue(name, {reinterpret_cast<char*>(low), pitch, width, height, value, element}, stream);
}

}  // namespace

ENTRY_POINT cuMemsetD8(CUdeviceptr low, unsigned char value, size_t count) {
  BEGIN_CALL();
  return issue_line("cuMemsetD8", low, value, sizeof value, count, nullptr);
}

ENTRY_POINT cuMemsetD16(CUdeviceptr low, unsigned short value, size_t count) {
  BEGIN_CALL();
  return issue_line("cuMemsetD16", low, value, sizeof value, count, nullptr);
}

ENTRY_POINT cuMemsetD32(CUdeviceptr low, unsigned value, size_t count) {
  BEGIN_CALL();
  return issue_line("cuMemsetD32", low, value, sizeof value, count, nullptr);
}

ENTRY_POINT cuMemsetD8Async(CUdeviceptr low, unsigned char value, size_t count, CUstream stream) {
  BEGIN_CALL();
  return issue_line("cuMemsetD8Async", low, value, sizeof value, count, stream);
}

ENTRY_POINT cuMemsetD16Async(CUdeviceptr low, unsigned short value, size_t count, CUstream stream) {
  BEGIN_CALL();
  return issue_line("cuMemsetD16Async", low, value, sizeof value, count, stream);
}

ENTRY_POINT cuMemsetD32Async(CUdeviceptr low, unsigned value, size_t count, CUstream stream) {
  BEGIN_CALL();
  return issue_line("cuMemsetD32Async", low, value, sizeof value, count, stream);
}

ENTRY_POINT cuMemsetD2D8(CUdeviceptr low, size_t pitch, unsigned char value, size_t width, size_t height) {
  BEGIN_CALL();
  return issue_rows("cuMemsetD2D8", low, pitch, value, sizeof value, width, height, nullptr);
}

ENTRY_POINT cuMemsetD2D16(CUdeviceptr low, size_t pitch, unsigned short value, size_t width, size_t height) {
  BEGIN_CALL();
  return issue_rows("cuMemsetD2D16", low, pitch, value, sizeof value, width, height, nullptr);
}

ENTRY_POINT cuMemsetD2D32(CUdeviceptr low, size_t pitch, unsigned value, size_t width, size_t height) {
  BEGIN_CALL();
  return issue_rows("cuMemsetD2D32", low, pitch, value, sizeof value, width, height, nullptr);
}

ENTRY_POINT cuMemsetD2D8Async(CUdeviceptr low, size_t pitch, unsigned char value, size_t width, size_t height,
                              CUstream stream) {
  BEGIN_CALL();
  return issue_rows("cuMemsetD2D8Async", low, pitch, value, sizeof value, width, height, stream);
}

ENTRY_POINT cuMemsetD2D16Async(CUdeviceptr low, size_t pitch, unsigned short value, size_t width, size_t height,
                               CUstream stream) {
  BEGIN_CALL();
  return issue_rows("cuMemsetD2D16Async", low, pitch, value, sizeof value, width, height, stream);
}

ENTRY_POINT cuMemsetD2D32Async(CUdeviceptr low, size_t pitch, unsigned value, size_t width, size_t height,
                               CUstream stream) {
  BEGIN_CALL();
  return issue_rows("cuMemsetD2D32Async", low, pitch, value, sizeof value, width, height, stream);
}
