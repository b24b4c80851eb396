// The first error of a launch: its text, its place, and the block and thread it happened in.
#include "errors.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim;

namespace gpucnn {

static ErrorReport report;

static void record(ErrorKind kind, Where where, const char* format, va_list arguments) {
  if (has_error()) return;
  report.kind = static_cast<int32_t>(kind);
  vsnprintf(report.message, sizeof report.message, format, arguments);
  report.address = where.address ? where.address - machine.image_low : 0;
  report.line = 0;
  report.file[0] = 0;
  if (where.site && where.site->file) {
    report.line = where.site->line;
    snprintf(report.file, sizeof report.file, "%s", where.site->file);
  }
  const uint3 thread = machine.current ? machine.current->index : threadIdx;
  const unsigned place[6] = {thread.x, thread.y, thread.z, blockIdx.x, blockIdx.y, blockIdx.z};
  memcpy(report.thread, place, sizeof report.thread);
  memcpy(report.block, place + 3, sizeof report.block);
}

void record_error(ErrorKind kind, Where where, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  record(kind, where, format, arguments);
  va_end(arguments);
}

void fail(ErrorKind kind, Where where, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  record(kind, where, format, arguments);
  va_end(arguments);
  yield();  // the scheduler sees the error and never comes back
  __builtin_unreachable();
}

void trap(const char* message, Site site) { fail(ErrorKind::kTrap, Where(site), "%s", message); }

bool has_error() { return report.kind != 0; }

void clear_error() { report.kind = 0; }

const ErrorReport& error_report() { return report; }

const char* thread_name(unsigned number) {
  static char names[4][48];
  static int next = 0;
  char* name = names[next++ % 4];
  const unsigned x = number % blockDim.x;
  const unsigned y = number / blockDim.x % blockDim.y;
  const unsigned z = number / blockDim.x / blockDim.y;
  snprintf(name, sizeof names[0], "(%u, %u, %u)", x, y, z);
  return name;
}

}  // namespace gpucnn
