// Level 1: vectors.
#include <math.h>

#include "call.h"
#include "device_memory.h"
#include "numbers.h"
#include "sums.h"

namespace cudasim::cublas {

// A vector that a call reads or writes: element i, backwards from the end if the increment is negative.
template <class T>
struct Vector {
  T* data;
  int n;
  int increment;

  T& operator[](int64_t i) const { return first_element(data, n, increment)[i * increment]; }
  Extent extent() const { return vector(data, n, increment); }
};

// ---- Results that are one number -----------------------------------------------------------------------------------

// Computes `value()` in stream order, after the checks, and stores it in memory of the host or of the device.
template <class Value, class Check>
cublasStatus_t store(Call& call, decltype(std::declval<Value>()())* result, Check check, Value value) {
  call.require(result != nullptr, "the result's pointer must not be null");
  if (!call.valid()) return call.status();
  const bool on_device = call.handle()->pointer_mode == CUBLAS_POINTER_MODE_DEVICE;
  return call.enqueue_with_result([=, name = call.name()] {
    Checks checks(name);
    check(checks);
    if (on_device) checks.range("result", result, sizeof *result, Access::kWrite);
    if (!checks.failed()) *result = value();
    return checks.result();
  });
}

template <class T>
cublasStatus_t dot(const char* name, cublasHandle_t handle, int n, const T* x, int step_x, const T* y, int step_y,
                   T* result, bool conjugated) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  const Vector<const T> a = {x, std::max(n, 0), step_x}, b = {y, std::max(n, 0), step_y};
  const auto check = [=](Checks& checks) {
    checks.reads("vector x", a.extent());
    checks.reads("vector y", b.extent());
  };
  return store(call, result, check, [=] {
    return blocked_sum<T>(a.n, [=](int64_t i) { return (conjugated ? conjugate(a[i]) : a[i]) * b[i]; });
  });
}

// Of no elements, where the increment is not positive: as BLAS has it.
template <class T>
Vector<const T> forward(const T* x, int n, int increment) {
  return {x, increment > 0 ? std::max(n, 0) : 0, increment};
}

template <class T>
cublasStatus_t norm(const char* name, cublasHandle_t handle, int n, const T* x, int step, Real<T>* result) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  const Vector<const T> a = forward(x, n, step);
  // The squares of long doubles neither overflow nor vanish.
  return store(
      call, result, [=](Checks& checks) { checks.reads("vector x", a.extent()); },
      [=] {
        long double sum = 0;
        for (int i = 0; i < a.n; i++) sum += square(a[i]);
        return static_cast<Real<T>>(sqrtl(sum));
      });
}

template <class T>
cublasStatus_t sum_of_magnitudes(const char* name, cublasHandle_t handle, int n, const T* x, int step,
                                 Real<T>* result) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  const Vector<const T> a = forward(x, n, step);
  return store(
      call, result, [=](Checks& checks) { checks.reads("vector x", a.extent()); },
      [=] { return blocked_sum<Real<T>>(a.n, [=](int64_t i) { return magnitude(a[i]); }); });
}

// The first of the largest, or smallest, elements, counted from 1; 0 of none.
template <class T>
int extreme(const Vector<const T>& a, bool largest) {
  int best = 0;
  for (int i = 1; i < a.n; i++) {
    const auto now = magnitude(a[i]), before = magnitude(a[best]);
    if (largest ? now > before : now < before) best = i;
  }
  return a.n > 0 ? best + 1 : 0;
}

template <class T>
cublasStatus_t index_of_extreme(const char* name, cublasHandle_t handle, int n, const T* x, int step, int* result,
                                bool largest) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  const Vector<const T> a = forward(x, n, step);
  return store(
      call, result, [=](Checks& checks) { checks.reads("vector x", a.extent()); }, [=] { return extreme(a, largest); });
}

// ---- Results that are vectors --------------------------------------------------------------------------------------

template <class T>
cublasStatus_t add_scaled(const char* name, cublasHandle_t handle, int n, const T* alpha, const T* x, int step_x, T* y,
                          int step_y) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  call.require(alpha, "alpha must not be null");
  if (!call.valid() || n <= 0) return call.status();
  const Vector<const T> a = {x, n, step_x};
  const Vector<T> b = {y, n, step_y};
  const Scalar scale = call.scalar(alpha);
  return call.enqueue([=] {
    T factor;
    if (CUresult error = scale.get(std::string(name) + ": alpha", factor)) return error;
    Checks checks(name);
    checks.reads("vector x", a.extent());
    checks.reads("vector y", b.extent());
    checks.writes("vector y", b.extent());
    for (int i = 0; i < n && !checks.failed(); i++) b[i] += factor * a[i];
    return checks.result();
  });
}

template <class T>
T times(T factor, T value) {
  return factor * value;
}
template <class R>
Complex<R> times(R factor, Complex<R> value) {
  return {factor * value.re, factor * value.im};
}

template <class Factor, class T>
cublasStatus_t scale_vector(const char* name, cublasHandle_t handle, int n, const Factor* alpha, T* x, int step) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  call.require(alpha, "alpha must not be null");
  if (!call.valid() || n <= 0 || step <= 0) return call.status();
  const Vector<T> a = {x, n, step};
  const Scalar scale = call.scalar(alpha);
  return call.enqueue([=] {
    Factor factor;
    if (CUresult error = scale.get(std::string(name) + ": alpha", factor)) return error;
    Checks checks(name);
    checks.reads("vector x", a.extent());
    checks.writes("vector x", a.extent());
    for (int i = 0; i < n && !checks.failed(); i++) a[i] = times(factor, a[i]);
    return checks.result();
  });
}

template <class T>
cublasStatus_t copy(const char* name, cublasHandle_t handle, int n, const T* x, int step_x, T* y, int step_y) {
  Call call(name, handle);
  if (!call.valid() || n <= 0) return call.status();
  const Vector<const T> a = {x, n, step_x};
  const Vector<T> b = {y, n, step_y};
  return call.enqueue([=] {
    Checks checks(name);
    checks.reads("vector x", a.extent());
    checks.writes("vector y", b.extent());
    for (int i = 0; i < n && !checks.failed(); i++) b[i] = a[i];
    return checks.result();
  });
}

template <class T>
cublasStatus_t swap(const char* name, cublasHandle_t handle, int n, T* x, int step_x, T* y, int step_y) {
  Call call(name, handle);
  if (!call.valid() || n <= 0) return call.status();
  const Vector<T> a = {x, n, step_x}, b = {y, n, step_y};
  return call.enqueue([=] {
    Checks checks(name);
    checks.reads("vector x", a.extent());
    checks.reads("vector y", b.extent());
    checks.writes("vector x", a.extent());
    checks.writes("vector y", b.extent());
    for (int i = 0; i < n && !checks.failed(); i++) std::swap(a[i], b[i]);
    return checks.result();
  });
}

using ComplexFloat = Complex<float>;
using ComplexDouble = Complex<double>;

}  // namespace cudasim::cublas

using namespace cudasim::cublas;

// ---- Entry points --------------------------------------------------------------------------------------------------

#define DOT(NAME, T, CONJUGATED)                                                                                  \
  CUBLAS_ENTRY NAME##_v2(cublasHandle_t handle, int n, const T* x, int step_x, const T* y, int step_y, T* result) { \
    return dot(#NAME, handle, n, x, step_x, y, step_y, result, CONJUGATED);                                       \
  }
DOT(cublasSdot, float, false)
DOT(cublasDdot, double, false)
DOT(cublasCdotu, ComplexFloat, false)
DOT(cublasCdotc, ComplexFloat, true)
DOT(cublasZdotu, ComplexDouble, false)
DOT(cublasZdotc, ComplexDouble, true)

#define REDUCTION(NAME, FUNCTION, T, RESULT)                                                        \
  CUBLAS_ENTRY NAME##_v2(cublasHandle_t handle, int n, const T* x, int step, RESULT* result) {      \
    return FUNCTION(#NAME, handle, n, x, step, result);                                             \
  }
REDUCTION(cublasSnrm2, norm, float, float)
REDUCTION(cublasDnrm2, norm, double, double)
REDUCTION(cublasScnrm2, norm, ComplexFloat, float)
REDUCTION(cublasDznrm2, norm, ComplexDouble, double)
REDUCTION(cublasSasum, sum_of_magnitudes, float, float)
REDUCTION(cublasDasum, sum_of_magnitudes, double, double)
REDUCTION(cublasScasum, sum_of_magnitudes, ComplexFloat, float)
REDUCTION(cublasDzasum, sum_of_magnitudes, ComplexDouble, double)

#define EXTREME(NAME, T, LARGEST)                                                           \
  CUBLAS_ENTRY NAME##_v2(cublasHandle_t handle, int n, const T* x, int step, int* result) { \
    return index_of_extreme(#NAME, handle, n, x, step, result, LARGEST);                    \
  }
EXTREME(cublasIsamax, float, true)
EXTREME(cublasIdamax, double, true)
EXTREME(cublasIcamax, ComplexFloat, true)
EXTREME(cublasIzamax, ComplexDouble, true)
EXTREME(cublasIsamin, float, false)
EXTREME(cublasIdamin, double, false)
EXTREME(cublasIcamin, ComplexFloat, false)
EXTREME(cublasIzamin, ComplexDouble, false)

#define VECTORS(LETTER, T)                                                                                            \
  CUBLAS_ENTRY cublas##LETTER##axpy_v2(cublasHandle_t handle, int n, const T* alpha, const T* x, int step_x, T* y,    \
                                       int step_y) {                                                                  \
    return add_scaled("cublas" #LETTER "axpy", handle, n, alpha, x, step_x, y, step_y);                               \
  }                                                                                                                   \
  CUBLAS_ENTRY cublas##LETTER##copy_v2(cublasHandle_t handle, int n, const T* x, int step_x, T* y, int step_y) {      \
    return copy("cublas" #LETTER "copy", handle, n, x, step_x, y, step_y);                                            \
  }                                                                                                                   \
  CUBLAS_ENTRY cublas##LETTER##swap_v2(cublasHandle_t handle, int n, T* x, int step_x, T* y, int step_y) {            \
    return swap("cublas" #LETTER "swap", handle, n, x, step_x, y, step_y);                                            \
  }                                                                                                                   \
  CUBLAS_ENTRY cublas##LETTER##scal_v2(cublasHandle_t handle, int n, const T* alpha, T* x, int step) {                \
    return scale_vector("cublas" #LETTER "scal", handle, n, alpha, x, step);                                          \
  }
VECTORS(S, float)
VECTORS(D, double)
VECTORS(C, ComplexFloat)
VECTORS(Z, ComplexDouble)

CUBLAS_ENTRY cublasCsscal_v2(cublasHandle_t handle, int n, const float* alpha, ComplexFloat* x, int step) {
  return scale_vector("cublasCsscal", handle, n, alpha, x, step);
}

CUBLAS_ENTRY cublasZdscal_v2(cublasHandle_t handle, int n, const double* alpha, ComplexDouble* x, int step) {
  return scale_vector("cublasZdscal", handle, n, alpha, x, step);
}
