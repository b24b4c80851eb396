// getrf, getrs, getri: LU factorization of batches of square matrices, and what is solved with it.
#include "call.h"
#include "device_memory.h"
#include "triangular.h"

namespace cudasim::cublas {

static size_t table_bytes(int count) { return static_cast<size_t>(count) * sizeof(void*); }
static size_t int_bytes(int count) { return static_cast<size_t>(count) * sizeof(int); }

// ---- One matrix ----------------------------------------------------------------------------------------------------

template <class T>
void swap_rows(T* a, int64_t lead, int64_t columns, int64_t one, int64_t other) {
  for (int64_t j = 0; j < columns && one != other; j++) std::swap(a[one + j * lead], a[other + j * lead]);
}

template <class T>
int64_t largest_below(const T* a, int64_t lead, int64_t n, int64_t k) {
  int64_t best = k;
  for (int64_t i = k + 1; i < n; i++) {
    if (magnitude(a[i + k * lead]) > magnitude(a[best + k * lead])) best = i;
  }
  return best;
}

// A = P * L * U in place. Returns 0, or the first k, from 1, for which U(k, k) is zero. Pivots count from 1; without
// them no rows are exchanged.
template <class T>
int factorize(T* a, int64_t lead, int64_t n, int* pivots) {
  int info = 0;
  for (int64_t k = 0; k < n; k++) {
    const int64_t pivot = pivots ? largest_below(a, lead, n, k) : k;
    if (pivots) pivots[k] = static_cast<int>(pivot) + 1;
    swap_rows(a, lead, n, k, pivot);
    if (a[k + k * lead] == T(0)) {
      if (info == 0) info = static_cast<int>(k) + 1;
      continue;
    }
    for (int64_t i = k + 1; i < n; i++) a[i + k * lead] = a[i + k * lead] / a[k + k * lead];
    for (int64_t j = k + 1; j < n; j++) {
      for (int64_t i = k + 1; i < n; i++) a[i + j * lead] = a[i + j * lead] - a[i + k * lead] * a[k + j * lead];
    }
  }
  return info;
}

template <class T>
void solve(const T* lu, int64_t lead, int64_t n, const int* pivots, cublasOperation_t op, T* b, int64_t lead_b,
           int64_t sides) {
  const Operand<T> factors(lu, lead, op);
  const Sides<T> x = {b, 1, lead_b};
  if (op == CUBLAS_OP_N) {
    for (int64_t i = 0; i < n && pivots; i++) swap_rows(b, lead_b, sides, i, pivots[i] - 1);
    solve_triangle(factors, n, false, true, x, sides);
    solve_triangle(factors, n, true, false, x, sides);
  } else {
    solve_triangle(factors, n, false, false, x, sides);
    solve_triangle(factors, n, true, true, x, sides);
    for (int64_t i = n - 1; i >= 0 && pivots; i--) swap_rows(b, lead_b, sides, i, pivots[i] - 1);
  }
}

template <class T>
int invert(const T* lu, int64_t lead, int64_t n, const int* pivots, T* c, int64_t lead_c) {
  for (int64_t k = 0; k < n; k++) {
    if (lu[k + k * lead] == T(0)) return static_cast<int>(k) + 1;
  }
  for (int64_t j = 0; j < n; j++) {
    for (int64_t i = 0; i < n; i++) c[i + j * lead_c] = T(i == j ? 1 : 0);
  }
  solve(lu, lead, n, pivots, CUBLAS_OP_N, c, lead_c, n);
  return 0;
}

static void check_pivots(Checks& checks, const int* pivots, int n) {
  checks.range("pivots", pivots, int_bytes(n), Access::kRead);
}

// Pivots of another matrix, or of none, would exchange rows beyond the matrix.
static bool are_rows(const char* name, const int* pivots, int n) {
  for (int i = 0; i < n; i++) {
    if (pivots[i] >= 1 && pivots[i] <= n) continue;
    report(std::string(name) + ": pivot " + std::to_string(pivots[i]) + " is no row of a matrix of order " +
           std::to_string(n));
    return false;
  }
  return true;
}

// ---- Batches -------------------------------------------------------------------------------------------------------

template <class T>
cublasStatus_t getrf(const char* name, cublasHandle_t handle, int n, T* const* a, int lead, int* pivots, int* info,
                     int count) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  call.require(n >= 0 && count >= 0, "n and batchSize must not be negative");
  call.require_lead("lda", lead, n);
  call.require(info, "infoArray must not be null");
  if (!call.valid() || n == 0 || count == 0) return call.status();
  return call.enqueue([=] {
    Checks checks(name);
    checks.range("table of matrices A", a, table_bytes(count), Access::kRead);
    checks.range("infoArray", info, int_bytes(count), Access::kWrite);
    for (int i = 0; i < count && !checks.failed(); i++) {
      int* own_pivots = pivots ? pivots + static_cast<int64_t>(i) * n : nullptr;
      checks.reads("matrix A", matrix(a[i], n, n, lead));
      checks.writes("matrix A", matrix(a[i], n, n, lead));
      if (pivots) checks.range("pivots", own_pivots, int_bytes(n), Access::kWrite);
      if (!checks.failed()) info[i] = factorize(a[i], lead, n, own_pivots);
    }
    return checks.result();
  });
}

template <class T>
cublasStatus_t getrs(const char* name, cublasHandle_t handle, cublasOperation_t op, int n, int sides,
                     const T* const* a, int lead, const int* pivots, T* const* b, int lead_b, int* info, int count) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  call.require_operation("trans", op);
  call.require(n >= 0 && sides >= 0 && count >= 0, "n, nrhs and batchSize must not be negative");
  call.require_lead("lda", lead, n);
  call.require_lead("ldb", lead_b, n);
  call.require(info, "info must not be null");  // in host memory, unlike that of the others
  if (!call.valid()) return call.status();
  *info = 0;
  if (n == 0 || sides == 0 || count == 0) return call.status();
  return call.enqueue([=] {
    Checks checks(name);
    checks.range("table of matrices A", a, table_bytes(count), Access::kRead);
    checks.range("table of matrices B", b, table_bytes(count), Access::kRead);
    for (int i = 0; i < count && !checks.failed(); i++) {
      const int* own_pivots = pivots ? pivots + static_cast<int64_t>(i) * n : nullptr;
      if (pivots) check_pivots(checks, own_pivots, n);
      checks.reads("matrix A", matrix(a[i], n, n, lead));
      checks.reads("matrix B", matrix(b[i], n, sides, lead_b));
      checks.apart("matrix B", matrix(b[i], n, sides, lead_b), "matrix A", matrix(a[i], n, n, lead));
      checks.writes("matrix B", matrix(b[i], n, sides, lead_b));
      if (checks.failed()) break;
      if (pivots && !are_rows(name, own_pivots, n)) return CUDA_ERROR_LAUNCH_FAILED;
      solve(a[i], lead, n, own_pivots, op, b[i], lead_b, sides);
    }
    return checks.result();
  });
}

template <class T>
cublasStatus_t getri(const char* name, cublasHandle_t handle, int n, const T* const* a, int lead, const int* pivots,
                     T* const* c, int lead_c, int* info, int count) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  call.require(n >= 0 && count >= 0, "n and batchSize must not be negative");
  call.require_lead("lda", lead, n);
  call.require_lead("ldc", lead_c, n);
  call.require(info, "infoArray must not be null");
  if (!call.valid() || n == 0 || count == 0) return call.status();
  return call.enqueue([=] {
    Checks checks(name);
    checks.range("table of matrices A", a, table_bytes(count), Access::kRead);
    checks.range("table of matrices C", c, table_bytes(count), Access::kRead);
    checks.range("infoArray", info, int_bytes(count), Access::kWrite);
    for (int i = 0; i < count && !checks.failed(); i++) {
      const int* own_pivots = pivots ? pivots + static_cast<int64_t>(i) * n : nullptr;
      if (pivots) check_pivots(checks, own_pivots, n);
      checks.reads("matrix A", matrix(a[i], n, n, lead));
      checks.apart("matrix C", matrix(c[i], n, n, lead_c), "matrix A", matrix(a[i], n, n, lead));
      checks.writes("matrix C", matrix(c[i], n, n, lead_c));
      if (checks.failed()) break;
      if (pivots && !are_rows(name, own_pivots, n)) return CUDA_ERROR_LAUNCH_FAILED;
      info[i] = invert(a[i], lead, n, own_pivots, c[i], lead_c);
    }
    return checks.result();
  });
}

using ComplexFloat = Complex<float>;
using ComplexDouble = Complex<double>;

}  // namespace cudasim::cublas

using namespace cudasim::cublas;

// ---- Entry points --------------------------------------------------------------------------------------------------

#define FACTORIZATIONS(LETTER, T)                                                                                     \
  CUBLAS_ENTRY cublas##LETTER##getrfBatched(cublasHandle_t handle, int n, T* const* a, int lead, int* pivots,         \
                                            int* info, int count) {                                                   \
    return getrf("cublas" #LETTER "getrfBatched", handle, n, a, lead, pivots, info, count);                           \
  }                                                                                                                   \
  CUBLAS_ENTRY cublas##LETTER##getrsBatched(cublasHandle_t handle, cublasOperation_t op, int n, int sides,            \
                                            const T* const* a, int lead, const int* pivots, T* const* b, int lead_b,  \
                                            int* info, int count) {                                                   \
    return getrs("cublas" #LETTER "getrsBatched", handle, op, n, sides, a, lead, pivots, b, lead_b, info, count);     \
  }                                                                                                                   \
  CUBLAS_ENTRY cublas##LETTER##getriBatched(cublasHandle_t handle, int n, const T* const* a, int lead,                \
                                            const int* pivots, T* const* c, int lead_c, int* info, int count) {       \
    return getri("cublas" #LETTER "getriBatched", handle, n, a, lead, pivots, c, lead_c, info, count);                \
  }
FACTORIZATIONS(S, float)
FACTORIZATIONS(D, double)
FACTORIZATIONS(C, ComplexFloat)
FACTORIZATIONS(Z, ComplexDouble)
