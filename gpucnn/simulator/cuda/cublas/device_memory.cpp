#include "device_memory.h"

#include "call.h"

namespace cudasim::cublas {

static const char* end_of(const Extent& extent) { return extent.column(extent.columns - 1) + extent.run_bytes(); }

// Goes through the columns of both by address: they come in ascending order, as leads are not negative.
bool overlap(const Extent& a, const Extent& b) {
  if (a.empty() || b.empty() || end_of(a) <= b.low || end_of(b) <= a.low) return false;
  int64_t i = 0, j = 0;
  while (i < a.columns && j < b.columns) {
    const char *in_a = a.column(i), *in_b = b.column(j);
    if (in_a < in_b + b.run_bytes() && in_b < in_a + a.run_bytes()) return true;
    if (in_a < in_b) {
      i++;
    } else {
      j++;
    }
  }
  return false;
}

void Checks::range(const char* what, const void* pointer, size_t bytes, Access access) {
  if (failed() || bytes == 0) return;
  result_ = cudasim_check_range(label(what).c_str(), pointer, bytes, access == Access::kWrite);
}

void Checks::each_column(const char* what, const Extent& extent, Access access) {
  if (failed() || extent.empty()) return;
  const bool writes = access == Access::kWrite;
  const std::string name = label(what);
  if (extent.contiguous()) {
    const size_t bytes = extent.run_bytes() * static_cast<size_t>(extent.columns);
    result_ = cudasim_check_range(name.c_str(), extent.low, bytes, writes);
    return;
  }
  const int64_t distinct = extent.lead == 0 ? 1 : extent.columns;
  for (int64_t j = 0; j < distinct && !failed(); j++) {
    result_ = cudasim_check_range(name.c_str(), extent.column(j), extent.run_bytes(), writes);
  }
}

void Checks::reads(const char* what, const Extent& extent) { each_column(what, extent, Access::kRead); }

void Checks::writes(const char* what, const Extent& extent) { each_column(what, extent, Access::kWrite); }

void Checks::triangle(const char* what, const Extent& matrix, bool upper, int skipped, Access access) {
  const int64_t n = matrix.columns;
  for (int64_t j = 0; j < n; j++) {
    const int64_t first = upper ? 0 : j + skipped;
    const int64_t rows = std::max<int64_t>(0, upper ? j + 1 - skipped : n - first);
    const char* low = matrix.column(j) + first * static_cast<int64_t>(matrix.element);
    range(what, low, static_cast<size_t>(rows) * matrix.element, access);
  }
}

void Checks::apart(const char* result, const Extent& written, const char* operand, const Extent& read) {
  if (failed() || !overlap(written, read)) return;
  report(label(result) + " overlaps " + operand + ", so the result is undefined");
  result_ = CUDA_ERROR_LAUNCH_FAILED;
}

}  // namespace cudasim::cublas
