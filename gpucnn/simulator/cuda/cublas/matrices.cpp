// Level 3 without products of general matrices, and cuBLAS's extensions to BLAS: sums, diagonals, packed triangles.
#include <vector>

#include "call.h"
#include "device_memory.h"
#include "multiply.h"

namespace cudasim::cublas {

static void require_fill(Call& call, cublasFillMode_t fill) {
  call.require(fill == CUBLAS_FILL_MODE_LOWER || fill == CUBLAS_FILL_MODE_UPPER, "uplo must be lower or upper");
}

// ---- syrk: a triangle of alpha * op(A) * op(A)^T + beta * C --------------------------------------------------------

template <class T>
struct Syrk {
  const char* name;
  bool upper;
  cublasOperation_t op;
  int n;
  int k;
  Scalar alpha;
  const T* a;
  int lead_a;
  Scalar beta;
  T* c;
  int lead_c;

  CUresult operator()() const {
    T factor, factor_c;
    if (CUresult error = alpha.get(std::string(name) + ": alpha", factor)) return error;
    if (CUresult error = beta.get(std::string(name) + ": beta", factor_c)) return error;
    const bool overwrites = factor_c == T(0);
    const Extent in_a = op == CUBLAS_OP_N ? matrix(a, n, k, lead_a) : matrix(a, k, n, lead_a);
    const Extent in_c = matrix(c, n, n, lead_c);
    Checks checks(name);
    checks.reads("matrix A", in_a);
    if (!overwrites) checks.triangle("matrix C", in_c, upper, 0, Access::kRead);
    checks.apart("matrix C", in_c, "matrix A", in_a);
    checks.triangle("matrix C", in_c, upper, 0, Access::kWrite);
    if (checks.failed()) return checks.result();
    const Product product = {op, op == CUBLAS_OP_N ? CUBLAS_OP_T : CUBLAS_OP_N, n, n, k};
    for_each_sum<T>(product, a, lead_a, a, lead_a, [=](int64_t i, int64_t j, T sum) {
      if (upper ? i > j : i < j) return;
      T& result = c[i + j * lead_c];
      result = overwrites ? factor * sum : factor * sum + factor_c * result;
    });
    return checks.result();
  }
};

template <class T>
cublasStatus_t syrk(const char* name, cublasHandle_t handle, cublasFillMode_t fill, cublasOperation_t op, int n, int k,
                    const T* alpha, const T* a, int lead_a, const T* beta, T* c, int lead_c) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  const bool is_real = std::is_same<T, Real<T>>::value;
  require_fill(call, fill);
  call.require_operation("trans", op);
  call.require(is_real || op != CUBLAS_OP_C, "trans must not be CUBLAS_OP_C for complex matrices");
  call.require(n >= 0 && k >= 0, "n and k must not be negative");
  call.require_lead("lda", lead_a, op == CUBLAS_OP_N ? n : k);
  call.require_lead("ldc", lead_c, n);
  call.require(alpha && beta, "alpha and beta must not be null");
  if (!call.valid() || n == 0) return call.status();
  const cublasOperation_t turn = op == CUBLAS_OP_N ? CUBLAS_OP_N : CUBLAS_OP_T;
  return call.enqueue(Syrk<T>{name, fill == CUBLAS_FILL_MODE_UPPER, turn, n, k, call.scalar(alpha), a, lead_a,
                              call.scalar(beta), c, lead_c});
}

// ---- geam: C = alpha * op(A) + beta * op(B) ------------------------------------------------------------------------

template <class T>
struct Term {  // a matrix with its operation and factor
  const char* what;
  cublasOperation_t op;
  const T* data;
  int lead;

  Extent extent(int m, int n) const { return op == CUBLAS_OP_N ? matrix(data, m, n, lead) : matrix(data, n, m, lead); }

  // In place is allowed where C is the matrix itself, not transposed.
  void check(Checks& checks, int m, int n, const T* c, int lead_c) const {
    checks.reads(what, extent(m, n));
    const bool in_place = data == c && lead == lead_c && op == CUBLAS_OP_N;
    if (!in_place) checks.apart("matrix C", matrix(c, m, n, lead_c), what, extent(m, n));
  }
};

template <class T>
struct Geam {
  const char* name;
  int m;
  int n;
  Scalar alpha;
  Term<T> a;
  Scalar beta;
  Term<T> b;
  T* c;
  int lead;

  CUresult operator()() const {
    T factor_a, factor_b;
    if (CUresult error = alpha.get(std::string(name) + ": alpha", factor_a)) return error;
    if (CUresult error = beta.get(std::string(name) + ": beta", factor_b)) return error;
    const bool uses_a = !(factor_a == T(0)), uses_b = !(factor_b == T(0));
    Checks checks(name);
    if (uses_a) a.check(checks, m, n, c, lead);
    if (uses_b) b.check(checks, m, n, c, lead);
    checks.writes("matrix C", matrix(c, m, n, lead));
    if (checks.failed()) return checks.result();
    const Operand<T> left(a.data, a.lead, a.op), right(b.data, b.lead, b.op);
    for (int64_t j = 0; j < n; j++) {
      for (int64_t i = 0; i < m; i++) {
        T sum = uses_a ? factor_a * left.template at<T>(i, j) : T(0);
        if (uses_b) sum += factor_b * right.template at<T>(i, j);
        c[i + j * lead] = sum;
      }
    }
    return checks.result();
  }
};

template <class T>
cublasStatus_t geam(const char* name, cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m,
                    int n, const T* alpha, const T* a, int lead_a, const T* beta, const T* b, int lead_b, T* c,
                    int lead_c) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  call.require_operation("transa", op_a);
  call.require_operation("transb", op_b);
  call.require(m >= 0 && n >= 0, "m and n must not be negative");
  call.require(alpha && beta, "alpha and beta must not be null");
  if (a) call.require_lead("lda", lead_a, op_a == CUBLAS_OP_N ? m : n);
  if (b) call.require_lead("ldb", lead_b, op_b == CUBLAS_OP_N ? m : n);
  call.require_lead("ldc", lead_c, m);
  call.require(c, "C must not be null");
  call.require(a != c || (op_a == CUBLAS_OP_N && lead_a == lead_c), "C may be A only if lda = ldc, not transposed");
  call.require(b != c || (op_b == CUBLAS_OP_N && lead_b == lead_c), "C may be B only if ldb = ldc, not transposed");
  if (!call.valid() || m == 0 || n == 0) return call.status();
  return call.enqueue(Geam<T>{name, m, n, call.scalar(alpha), {"matrix A", op_a, a, lead_a}, call.scalar(beta),
                              {"matrix B", op_b, b, lead_b}, c, lead_c});
}

// ---- dgmm: C = A * diag(x) or diag(x) * A --------------------------------------------------------------------------

template <class T>
cublasStatus_t dgmm(const char* name, cublasHandle_t handle, cublasSideMode_t side, int m, int n, const T* a,
                    int lead_a, const T* x, int step, T* c, int lead_c) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  call.require(side == CUBLAS_SIDE_LEFT || side == CUBLAS_SIDE_RIGHT, "mode must be left or right");
  call.require(m >= 0 && n >= 0, "m and n must not be negative");
  call.require_lead("lda", lead_a, m);
  call.require_lead("ldc", lead_c, m);
  if (!call.valid() || m == 0 || n == 0) return call.status();
  const int length = side == CUBLAS_SIDE_LEFT ? m : n;
  return call.enqueue([=] {
    Checks checks(name);
    checks.reads("matrix A", matrix(a, m, n, lead_a));
    checks.reads("vector x", step == 0 ? vector(x, 1, 1) : vector(x, length, step));
    if (a != c || lead_a != lead_c) {
      checks.apart("matrix C", matrix(c, m, n, lead_c), "matrix A", matrix(a, m, n, lead_a));
    }
    checks.writes("matrix C", matrix(c, m, n, lead_c));
    if (checks.failed()) return checks.result();
    const T* diagonal = first_element(x, length, step);
    for (int64_t j = 0; j < n; j++) {
      for (int64_t i = 0; i < m; i++) {
        c[i + j * lead_c] = a[i + j * lead_a] * diagonal[(side == CUBLAS_SIDE_LEFT ? i : j) * step];
      }
    }
    return checks.result();
  });
}

// ---- tpttr, trttp: triangles in packed and in square storage -------------------------------------------------------

// Calls move(packed index, i, j) for each element of a triangle, in the order of packed storage.
template <class Move>
void for_each_of_triangle(int64_t n, bool upper, Move move) {
  int64_t index = 0;
  for (int64_t j = 0; j < n; j++) {
    const int64_t first = upper ? 0 : j, last = upper ? j : n - 1;
    for (int64_t i = first; i <= last; i++) move(index++, i, j);
  }
}

static size_t triangle_size(int n) { return static_cast<size_t>(n) * (static_cast<size_t>(n) + 1) / 2; }

static Call triangle_call(const char* name, cublasHandle_t handle, cublasFillMode_t fill, int n, int lead) {
  Call call(name, handle);
  if (!call.valid()) return call;
  require_fill(call, fill);
  call.require(n >= 0, "n must not be negative");
  call.require_lead("lda", lead, n);
  return call;
}

template <class T>
cublasStatus_t unpack_triangle(const char* name, cublasHandle_t handle, cublasFillMode_t fill, int n, const T* packed,
                               T* a, int lead) {
  Call call = triangle_call(name, handle, fill, n, lead);
  if (!call.valid() || n == 0) return call.status();
  const bool upper = fill == CUBLAS_FILL_MODE_UPPER;
  return call.enqueue([=] {
    Checks checks(name);
    checks.range("packed matrix AP", packed, triangle_size(n) * sizeof(T), Access::kRead);
    checks.triangle("matrix A", matrix(a, n, n, lead), upper, 0, Access::kWrite);
    if (checks.failed()) return checks.result();
    for_each_of_triangle(n, upper, [=](int64_t at, int64_t i, int64_t j) { a[i + j * lead] = packed[at]; });
    return checks.result();
  });
}

template <class T>
cublasStatus_t pack_triangle(const char* name, cublasHandle_t handle, cublasFillMode_t fill, int n, const T* a,
                             int lead, T* packed) {
  Call call = triangle_call(name, handle, fill, n, lead);
  if (!call.valid() || n == 0) return call.status();
  const bool upper = fill == CUBLAS_FILL_MODE_UPPER;
  return call.enqueue([=] {
    Checks checks(name);
    checks.triangle("matrix A", matrix(a, n, n, lead), upper, 0, Access::kRead);
    checks.range("packed matrix AP", packed, triangle_size(n) * sizeof(T), Access::kWrite);
    if (checks.failed()) return checks.result();
    for_each_of_triangle(n, upper, [=](int64_t at, int64_t i, int64_t j) { packed[at] = a[i + j * lead]; });
    return checks.result();
  });
}

using ComplexFloat = Complex<float>;
using ComplexDouble = Complex<double>;

}  // namespace cudasim::cublas

using namespace cudasim::cublas;

// ---- Entry points --------------------------------------------------------------------------------------------------

#define MATRICES(LETTER, T)                                                                                          \
  CUBLAS_ENTRY cublas##LETTER##syrk_v2(cublasHandle_t handle, cublasFillMode_t fill, cublasOperation_t op, int n,    \
                                       int k, const T* alpha, const T* a, int lead_a, const T* beta, T* c,           \
                                       int lead_c) {                                                                 \
    return syrk("cublas" #LETTER "syrk", handle, fill, op, n, k, alpha, a, lead_a, beta, c, lead_c);                 \
  }                                                                                                                  \
  CUBLAS_ENTRY cublas##LETTER##geam(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m,    \
                                    int n, const T* alpha, const T* a, int lead_a, const T* beta, const T* b,        \
                                    int lead_b, T* c, int lead_c) {                                                  \
    return geam("cublas" #LETTER "geam", handle, op_a, op_b, m, n, alpha, a, lead_a, beta, b, lead_b, c, lead_c);    \
  }                                                                                                                  \
  CUBLAS_ENTRY cublas##LETTER##dgmm(cublasHandle_t handle, cublasSideMode_t side, int m, int n, const T* a,          \
                                    int lead_a, const T* x, int step, T* c, int lead_c) {                            \
    return dgmm("cublas" #LETTER "dgmm", handle, side, m, n, a, lead_a, x, step, c, lead_c);                         \
  }                                                                                                                  \
  CUBLAS_ENTRY cublas##LETTER##tpttr(cublasHandle_t handle, cublasFillMode_t fill, int n, const T* packed, T* a,     \
                                     int lead) {                                                                     \
    return unpack_triangle("cublas" #LETTER "tpttr", handle, fill, n, packed, a, lead);                              \
  }                                                                                                                  \
  CUBLAS_ENTRY cublas##LETTER##trttp(cublasHandle_t handle, cublasFillMode_t fill, int n, const T* a, int lead,      \
                                     T* packed) {                                                                    \
    return pack_triangle("cublas" #LETTER "trttp", handle, fill, n, a, lead, packed);                                \
  }
MATRICES(S, float)
MATRICES(D, double)
MATRICES(C, ComplexFloat)
MATRICES(Z, ComplexDouble)
