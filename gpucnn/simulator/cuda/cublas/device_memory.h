// Checks of the device memory that a call reads and writes, element by element where elements are apart.
#pragma once
#include <algorithm>
#include <string>

#include "interface.h"

namespace cudasim::cublas {

enum class Access { kRead, kWrite };

// `columns` runs of `rows` elements, `lead` elements apart: a column-major matrix, or with `rows` 1 a strided vector.
struct Extent {
  const char* low;
  size_t element;
  int64_t rows;
  int64_t lead;
  int64_t columns;

  bool empty() const { return rows == 0 || columns == 0; }
  bool contiguous() const { return rows == lead || columns == 1; }
  const char* column(int64_t j) const { return low + j * lead * static_cast<int64_t>(element); }
  size_t run_bytes() const { return static_cast<size_t>(rows) * element; }
};

template <class T>
Extent matrix(const T* data, int64_t rows, int64_t columns, int64_t lead) {
  return {reinterpret_cast<const char*>(data), sizeof(T), rows, lead, columns};
}

// Where the first element of a vector is, which BLAS reads backwards if its increment is negative.
template <class T>
T* first_element(T* data, int64_t n, int64_t increment) {
  return increment < 0 ? data - (n - 1) * increment : data;
}

template <class T>
Extent vector(const T* data, int64_t n, int64_t increment) {
  const int64_t step = increment < 0 ? -increment : increment;
  return {reinterpret_cast<const char*>(data), sizeof(T), 1, step, n};
}

// Whether an element of one lies in an element of the other.
bool overlap(const Extent& a, const Extent& b);

// The checks of a call, which stop at the first failure.
class Checks {
 public:
  explicit Checks(const char* call) : call_(call) {}

  void range(const char* what, const void* pointer, size_t bytes, Access access);
  void reads(const char* what, const Extent& extent);
  void writes(const char* what, const Extent& extent);
  // One of the triangles of a square matrix; `skipped` of 1 leaves its diagonal out.
  void triangle(const char* what, const Extent& matrix, bool upper, int skipped, Access access);
  // A result that overlaps an operand is undefined on a GPU.
  void apart(const char* result, const Extent& written, const char* operand, const Extent& read);

  template <class T>
  void reads_value(const char* what, const T& value) {
    reads(what, matrix(&value, 1, 1, 1));
  }

  bool failed() const { return result_ != CUDA_SUCCESS; }
  CUresult result() const { return result_; }
  const char* call() const { return call_; }

 private:
  void each_column(const char* what, const Extent& extent, Access access);
  std::string label(const char* what) const { return std::string(call_) + ": " + what; }

  const char* call_;
  CUresult result_ = CUDA_SUCCESS;
};

}  // namespace cudasim::cublas
