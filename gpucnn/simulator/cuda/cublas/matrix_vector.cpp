// Level 2: matrices and vectors.
#include <vector>

#include "call.h"
#include "device_memory.h"
#include "multiply.h"
#include "sums.h"

namespace cudasim::cublas {


// ---- General matrices ----------------------------------------------------------------------------------------------

template <class T>
struct Gemv {
  const char* name;
  cublasOperation_t op;
  int m;
  int n;
  Scalar alpha;
  const T* a;
  int lead;
  const T* x;
  int step_x;
  Scalar beta;
  T* y;
  int step_y;

  int rows() const { return op == CUBLAS_OP_N ? m : n; }  // of op(A)
  int columns() const { return op == CUBLAS_OP_N ? n : m; }

  CUresult operator()() const {
    T factor, factor_y;
    if (CUresult error = alpha.get(std::string(name) + ": alpha", factor)) return error;
    if (CUresult error = beta.get(std::string(name) + ": beta", factor_y)) return error;
    Checks checks(name);
    check(checks, !(factor_y == T(0)));
    if (!checks.failed()) run(factor, factor_y);
    return checks.result();
  }

 private:
  void check(Checks& checks, bool reads_y) const {
    const Extent in_a = matrix(a, m, n, lead), in_x = vector(x, columns(), step_x), in_y = vector(y, rows(), step_y);
    checks.reads("matrix A", in_a);
    checks.reads("vector x", in_x);
    if (reads_y) checks.reads("vector y", in_y);
    checks.apart("vector y", in_y, "matrix A", in_a);
    checks.apart("vector y", in_y, "vector x", in_x);
    checks.writes("vector y", in_y);
  }

  void run(T factor, T factor_y) const {
    std::vector<T> dense(static_cast<size_t>(columns()));
    const T* from = first_element(x, columns(), step_x);
    for (int64_t i = 0; i < columns(); i++) dense[static_cast<size_t>(i)] = from[i * step_x];
    T* to = first_element(y, rows(), step_y);
    const Product product = {op, CUBLAS_OP_N, rows(), 1, columns()};
    const bool overwrites = factor_y == T(0);
    for_each_sum<T>(product, a, lead, dense.data(), std::max(1, columns()), [=](int64_t i, int64_t, T sum) {
      T& result = to[i * step_y];
      result = overwrites ? factor * sum : factor * sum + factor_y * result;
    });
  }
};

template <class T>
cublasStatus_t gemv(const char* name, cublasHandle_t handle, cublasOperation_t op, int m, int n, const T* alpha,
                    const T* a, int lead, const T* x, int step_x, const T* beta, T* y, int step_y) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  call.require_operation("trans", op);
  call.require(m >= 0 && n >= 0, "m and n must not be negative");
  call.require_lead("lda", lead, m);
  call.require(step_x != 0 && step_y != 0, "incx and incy must not be 0");
  call.require(alpha && beta, "alpha and beta must not be null");
  if (!call.valid() || m == 0 || n == 0) return call.status();
  return call.enqueue(
      Gemv<T>{name, op, m, n, call.scalar(alpha), a, lead, x, step_x, call.scalar(beta), y, step_y});
}

template <class T>
cublasStatus_t ger(const char* name, cublasHandle_t handle, int m, int n, const T* alpha, const T* x, int step_x,
                   const T* y, int step_y, T* a, int lead, bool conjugated) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  call.require(m >= 0 && n >= 0, "m and n must not be negative");
  call.require_lead("lda", lead, m);
  call.require(step_x != 0 && step_y != 0, "incx and incy must not be 0");
  call.require(alpha, "alpha must not be null");
  if (!call.valid() || m == 0 || n == 0) return call.status();
  const Scalar scale = call.scalar(alpha);
  return call.enqueue([=] {
    T factor;
    if (CUresult error = scale.get(std::string(name) + ": alpha", factor)) return error;
    Checks checks(name);
    checks.reads("vector x", vector(x, m, step_x));
    checks.reads("vector y", vector(y, n, step_y));
    checks.reads("matrix A", matrix(a, m, n, lead));
    checks.writes("matrix A", matrix(a, m, n, lead));
    if (checks.failed()) return checks.result();
    const T *rows = first_element(x, m, step_x), *columns = first_element(y, n, step_y);
    for (int64_t j = 0; j < n; j++) {
      const T of_y = conjugated ? conjugate(columns[j * step_y]) : columns[j * step_y];
      for (int64_t i = 0; i < m; i++) a[i + j * lead] += factor * rows[i * step_x] * of_y;
    }
    return checks.result();
  });
}

// ---- Symmetric band matrices ---------------------------------------------------------------------------------------

// Element (i, j), |i - j| <= k, of the matrix whose lower or upper band is stored by columns.
template <class T>
T band_element(const T* a, int lead, bool upper, int k, int64_t i, int64_t j) {
  const int64_t row = std::max(i, j), column = std::min(i, j);  // of the lower half
  return upper ? a[k + column - row + row * lead] : a[row - column + column * lead];
}

// What is stored of a column: the band as far as it lies in the matrix.
template <class T>
void check_band(Checks& checks, const T* a, int lead, bool upper, int64_t k, int64_t n) {
  for (int64_t j = 0; j < n; j++) {
    const int64_t count = std::min(k, upper ? j : n - 1 - j) + 1;
    const T* low = a + j * lead + (upper ? k + 1 - count : 0);
    checks.range("band of matrix A", low, static_cast<size_t>(count) * sizeof(T), Access::kRead);
  }
}

template <class T>
cublasStatus_t sbmv(const char* name, cublasHandle_t handle, cublasFillMode_t fill, int n, int k, const T* alpha,
                    const T* a, int lead, const T* x, int step_x, const T* beta, T* y, int step_y) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  call.require(n >= 0 && k >= 0, "n and k must not be negative");
  call.require_lead("lda", lead, k + 1);
  call.require(step_x != 0 && step_y != 0, "incx and incy must not be 0");
  call.require(fill == CUBLAS_FILL_MODE_LOWER || fill == CUBLAS_FILL_MODE_UPPER, "uplo must be lower or upper");
  call.require(alpha && beta, "alpha and beta must not be null");
  if (!call.valid() || n == 0) return call.status();
  const bool upper = fill == CUBLAS_FILL_MODE_UPPER;
  const Scalar scale = call.scalar(alpha), scale_y = call.scalar(beta);
  return call.enqueue([=] {
    T factor, factor_y;
    if (CUresult error = scale.get(std::string(name) + ": alpha", factor)) return error;
    if (CUresult error = scale_y.get(std::string(name) + ": beta", factor_y)) return error;
    Checks checks(name);
    check_band(checks, a, lead, upper, k, n);
    checks.reads("vector x", vector(x, n, step_x));
    if (factor_y != T(0)) checks.reads("vector y", vector(y, n, step_y));
    checks.apart("vector y", vector(y, n, step_y), "vector x", vector(x, n, step_x));
    checks.writes("vector y", vector(y, n, step_y));
    if (checks.failed()) return checks.result();
    const T* from = first_element(x, n, step_x);
    T* to = first_element(y, n, step_y);
    for (int64_t i = 0; i < n; i++) {
      const int64_t first = std::max<int64_t>(0, i - k), last = std::min<int64_t>(n - 1, i + k);
      const T sum = blocked_sum<T>(last - first + 1, [=](int64_t j) {
        return band_element(a, lead, upper, k, i, first + j) * from[(first + j) * step_x];
      });
      T& result = to[i * step_y];
      result = factor_y == T(0) ? factor * sum : factor * sum + factor_y * result;
    }
    return checks.result();
  });
}

using ComplexFloat = Complex<float>;
using ComplexDouble = Complex<double>;

}  // namespace cudasim::cublas

using namespace cudasim::cublas;

// ---- Entry points --------------------------------------------------------------------------------------------------

#define GEMV(NAME, T)                                                                                               \
  CUBLAS_ENTRY NAME##_v2(cublasHandle_t handle, cublasOperation_t op, int m, int n, const T* alpha, const T* a,     \
                         int lead, const T* x, int step_x, const T* beta, T* y, int step_y) {                       \
    return gemv(#NAME, handle, op, m, n, alpha, a, lead, x, step_x, beta, y, step_y);                               \
  }
GEMV(cublasSgemv, float)
GEMV(cublasDgemv, double)
GEMV(cublasCgemv, ComplexFloat)
GEMV(cublasZgemv, ComplexDouble)

#define GER(NAME, T, CONJUGATED)                                                                                \
  CUBLAS_ENTRY NAME##_v2(cublasHandle_t handle, int m, int n, const T* alpha, const T* x, int step_x, const T* y, \
                         int step_y, T* a, int lead) {                                                          \
    return ger(#NAME, handle, m, n, alpha, x, step_x, y, step_y, a, lead, CONJUGATED);                          \
  }
GER(cublasSger, float, false)
GER(cublasDger, double, false)
GER(cublasCgeru, ComplexFloat, false)
GER(cublasCgerc, ComplexFloat, true)
GER(cublasZgeru, ComplexDouble, false)
GER(cublasZgerc, ComplexDouble, true)

#define SBMV(NAME, T)                                                                                          \
  CUBLAS_ENTRY NAME##_v2(cublasHandle_t handle, cublasFillMode_t fill, int n, int k, const T* alpha, const T* a, \
                         int lead, const T* x, int step_x, const T* beta, T* y, int step_y) {                  \
    return sbmv(#NAME, handle, fill, n, k, alpha, a, lead, x, step_x, beta, y, step_y);                        \
  }
SBMV(cublasSsbmv, float)
SBMV(cublasDsbmv, double)
