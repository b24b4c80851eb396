// The functions of cupy.cuda.thrust, which sort on the host. CuPy declares them in cupy_thrust.h; its wheel has them in
// NVIDIA's machine code. cupy.sort, argsort, lexsort, unique, median, percentile and permutation are made of them.
//
// Equal elements keep their order, and the order is NumPy's: NaN comes last; complex numbers go by their real parts and
// then by their imaginary parts, first those without NaN, then those with a NaN in the imaginary part, the real part,
// and both.
#include <Python.h>
#include <cuda.h>

#include <algorithm>
#include <complex>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "cupy_thrust.h"
#include "driver/services.h"

namespace cudasim::sorting {

// The numbers that CuPy gives its types.
enum Type {
  kInt8,
  kUint8,
  kInt16,
  kUint16,
  kInt32,
  kUint32,
  kInt64,
  kUint64,
  kFloat16,
  kFloat32,
  kFloat64,
  kComplex64,
  kComplex128,
  kBool,
};

// ---- Order ---------------------------------------------------------------------------------------------------------

struct Half {
  uint16_t bits;

  bool is_nan() const { return (bits & 0x7fff) > 0x7c00; }
  // A number in the order of the values: both zeros are 0.
  int ordered() const { return bits & 0x8000 ? -(bits & 0x7fff) : bits; }
};

template <class T>
static bool is_nan(T value) {
  return value != value;
}
static bool is_nan(Half value) { return value.is_nan(); }

template <class T>
static bool is_less_number(T a, T b) {
  return a < b;
}
static bool is_less_number(Half a, Half b) { return a.ordered() < b.ordered(); }

// Whether `a` comes before `b`: false for two NaNs, as an order has to be.
template <class T>
static bool comes_before(T a, T b) {
  if (is_nan(a) || is_nan(b)) return !is_nan(a) && is_nan(b);
  return is_less_number(a, b);
}

template <class T>
static bool comes_before(std::complex<T> a, std::complex<T> b) {
  const auto group = [](std::complex<T> value) { return 2 * is_nan(value.real()) + is_nan(value.imag()); };
  if (group(a) != group(b)) return group(a) < group(b);
  if (comes_before(a.real(), b.real())) return true;
  if (comes_before(b.real(), a.real())) return false;
  return comes_before(a.imag(), b.imag());
}

// ---- Work in stream order ------------------------------------------------------------------------------------------

// CuPy 13 does not expect C++ exceptions here: one of Python's is set, which is raised on the return to Python.
static void raise(const std::string& sentence) {
  const PyGILState_STATE held = PyGILState_Ensure();
  PyErr_SetString(PyExc_RuntimeError, sentence.c_str());
  PyGILState_Release(held);
}

template <class Work>
static void enqueue(const char* name, intptr_t stream, Work work) {
  const auto run = [](void* data) { return (*static_cast<Work*>(data))(); };
  const auto destroy = [](void* data) { delete static_cast<Work*>(data); };
  CUresult status = cudasim_begin_call(name);
  if (!status) {
    status = cudasim_enqueue(reinterpret_cast<CUstream>(stream), name, run, new Work(std::move(work)), destroy);
  }
  if (!status) return;
  const char* text = nullptr;
  if (cuGetErrorString(status, &text) || !text) text = "failed";
  raise(std::string(name) + ": " + text);
}

static CUresult check(const char* what, const void* pointer, size_t bytes, bool writes) {
  return cudasim_check_range(what, pointer, bytes, writes);
}

// An array whose rows are sorted one by one.
struct Rows {
  size_t count;
  size_t width;

  explicit Rows(const std::vector<ptrdiff_t>& shape) : count(1), width(static_cast<size_t>(shape.back())) {
    for (size_t dimension = 0; dimension + 1 < shape.size(); dimension++) {
      count *= static_cast<size_t>(shape[dimension]);
    }
  }
  size_t size() const { return count * width; }
};

template <class T>
static CUresult sort_rows(T* data, Rows rows) {
  const size_t bytes = rows.size() * sizeof(T);
  if (CUresult status = check("cupy.cuda.thrust.sort: data", data, bytes, false)) return status;
  if (CUresult status = check("cupy.cuda.thrust.sort: data", data, bytes, true)) return status;
  const auto before = [](const T& a, const T& b) { return comes_before(a, b); };
  for (size_t row = 0; row < rows.count; row++) {
    std::stable_sort(data + row * rows.width, data + (row + 1) * rows.width, before);
  }
  return CUDA_SUCCESS;
}

template <class T>
static CUresult argsort_rows(size_t* index, const T* data, Rows rows) {
  const size_t size = rows.size();
  if (CUresult status = check("cupy.cuda.thrust.argsort: data", data, size * sizeof(T), false)) return status;
  if (CUresult status = check("cupy.cuda.thrust.argsort: result", index, size * sizeof(size_t), true)) return status;
  for (size_t row = 0; row < rows.count; row++) {
    const T* values = data + row * rows.width;
    size_t* low = index + row * rows.width;
    std::iota(low, low + rows.width, size_t{0});
    const auto before = [values](size_t a, size_t b) { return comes_before(values[a], values[b]); };
    std::stable_sort(low, low + rows.width, before);
  }
  return CUDA_SUCCESS;
}

// By the last of the `count` rows of keys first.
template <class T>
static CUresult lexsort_rows(size_t* index, const T* keys, size_t count, size_t width) {
  const size_t bytes = count * width * sizeof(T);
  if (CUresult status = check("cupy.cuda.thrust.lexsort: keys", keys, bytes, false)) return status;
  if (CUresult status = check("cupy.cuda.thrust.lexsort: result", index, width * sizeof(size_t), true)) return status;
  std::iota(index, index + width, size_t{0});
  for (size_t row = 0; row < count; row++) {
    const T* values = keys + row * width;
    const auto before = [values](size_t a, size_t b) { return comes_before(values[a], values[b]); };
    std::stable_sort(index, index + width, before);
  }
  return CUDA_SUCCESS;
}

// Calls `call` with a null pointer to the type of this number.
template <class Call>
static void with_type(int type, Call call) {
  switch (type) {
    case kInt8:
      return call(static_cast<int8_t*>(nullptr));
    case kUint8:
    case kBool:
      return call(static_cast<uint8_t*>(nullptr));
    case kInt16:
      return call(static_cast<int16_t*>(nullptr));
    case kUint16:
      return call(static_cast<uint16_t*>(nullptr));
    case kInt32:
      return call(static_cast<int32_t*>(nullptr));
    case kUint32:
      return call(static_cast<uint32_t*>(nullptr));
    case kInt64:
      return call(static_cast<int64_t*>(nullptr));
    case kUint64:
      return call(static_cast<uint64_t*>(nullptr));
    case kFloat16:
      return call(static_cast<Half*>(nullptr));
    case kFloat32:
      return call(static_cast<float*>(nullptr));
    case kFloat64:
      return call(static_cast<double*>(nullptr));
    case kComplex64:
      return call(static_cast<std::complex<float>*>(nullptr));
    case kComplex128:
      return call(static_cast<std::complex<double>*>(nullptr));
    default:
      return raise("cupy.cuda.thrust: an unknown type of elements");
  }
}

}  // namespace cudasim::sorting

using namespace cudasim::sorting;

// The memory for keys and the allocator are for the GPU's way to sort rows.

void thrust_sort(int type, void* data, size_t* /*keys*/, const std::vector<ptrdiff_t>& shape, intptr_t stream,
                 void* /*allocator*/) {
  const Rows rows(shape);
  with_type(type, [=](auto* null) {
    auto* values = static_cast<decltype(null)>(data);
    enqueue("cupy.cuda.thrust.sort", stream, [=] { return sort_rows(values, rows); });
  });
}

void thrust_argsort(int type, size_t* index, void* data, void* /*keys*/, const std::vector<ptrdiff_t>& shape,
                    intptr_t stream, void* /*allocator*/) {
  const Rows rows(shape);
  with_type(type, [=](auto* null) {
    const auto* values = static_cast<decltype(null)>(data);
    enqueue("cupy.cuda.thrust.argsort", stream, [=] { return argsort_rows(index, values, rows); });
  });
}

void thrust_lexsort(int type, size_t* index, void* keys, size_t count, size_t width, intptr_t stream,
                    void* /*allocator*/) {
  with_type(type, [=](auto* null) {
    const auto* values = static_cast<decltype(null)>(keys);
    enqueue("cupy.cuda.thrust.lexsort", stream, [=] { return lexsort_rows(index, values, count, width); });
  });
}
