// trsm: B = alpha * op(A)^-1 * B or alpha * B * op(A)^-1 with a triangular A, one or a batch.
#include "triangular.h"

#include "call.h"
#include "device_memory.h"

namespace cudasim::cublas {

struct Triangle {
  cublasSideMode_t side;
  cublasFillMode_t fill;
  cublasOperation_t op;
  cublasDiagType_t diagonal;
  int m;
  int n;

  bool left() const { return side == CUBLAS_SIDE_LEFT; }
  bool upper() const { return fill == CUBLAS_FILL_MODE_UPPER; }
  bool unit() const { return diagonal == CUBLAS_DIAG_UNIT; }
  int order() const { return left() ? m : n; }
};

static void validate(Call& call, const Triangle& shape, const void* alpha, int lead_a, int lead_b) {
  call.require(shape.side == CUBLAS_SIDE_LEFT || shape.side == CUBLAS_SIDE_RIGHT, "side must be left or right");
  call.require(shape.fill == CUBLAS_FILL_MODE_LOWER || shape.fill == CUBLAS_FILL_MODE_UPPER,
               "uplo must be lower or upper");
  call.require_operation("trans", shape.op);
  call.require(shape.diagonal == CUBLAS_DIAG_UNIT || shape.diagonal == CUBLAS_DIAG_NON_UNIT,
               "diag must be unit or non-unit");
  call.require(shape.m >= 0 && shape.n >= 0, "m and n must not be negative");
  call.require_lead("lda", lead_a, shape.order());
  call.require_lead("ldb", lead_b, shape.m);
  call.require(alpha, "alpha must not be null");
}

template <class T>
void check(Checks& checks, const Triangle& shape, const T* a, int lead_a, const T* b, int lead_b) {
  const Extent in_a = matrix(a, shape.order(), shape.order(), lead_a), in_b = matrix(b, shape.m, shape.n, lead_b);
  checks.triangle("matrix A", in_a, shape.upper(), shape.unit() ? 1 : 0, Access::kRead);
  checks.reads("matrix B", in_b);
  checks.apart("matrix B", in_b, "matrix A", in_a);
  checks.writes("matrix B", in_b);
}

// From the right, the transposes are solved: op(A)^T * X^T = alpha * B^T.
template <class T>
void solve(const Triangle& shape, T alpha, const T* a, int lead_a, T* b, int lead_b) {
  for (int64_t j = 0; j < shape.n; j++) {
    for (int64_t i = 0; i < shape.m; i++) b[i + j * lead_b] = alpha == T(0) ? T(0) : alpha * b[i + j * lead_b];
  }
  if (alpha == T(0)) return;
  Operand<T> matrix(a, lead_a, shape.op);
  const bool upper = shape.upper() == (shape.op == CUBLAS_OP_N);
  if (shape.left()) {
    solve_triangle(matrix, shape.m, upper, shape.unit(), Sides<T>{b, 1, lead_b}, shape.n);
  } else {
    std::swap(matrix.row_step, matrix.column_step);
    solve_triangle(matrix, shape.n, !upper, shape.unit(), Sides<T>{b, lead_b, 1}, shape.m);
  }
}

template <class T>
cublasStatus_t trsm(const char* name, cublasHandle_t handle, const Triangle& shape, const T* alpha, const T* a,
                    int lead_a, T* b, int lead_b) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  validate(call, shape, alpha, lead_a, lead_b);
  if (!call.valid() || shape.m == 0 || shape.n == 0) return call.status();
  const Scalar scale = call.scalar(alpha);
  return call.enqueue([=] {
    T factor;
    if (CUresult error = scale.get(std::string(name) + ": alpha", factor)) return error;
    Checks checks(name);
    check(checks, shape, a, lead_a, b, lead_b);
    if (!checks.failed()) solve(shape, factor, a, lead_a, b, lead_b);
    return checks.result();
  });
}

template <class T>
cublasStatus_t trsm_batched(const char* name, cublasHandle_t handle, const Triangle& shape, const T* alpha,
                            const T* const* a, int lead_a, T* const* b, int lead_b, int count) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  validate(call, shape, alpha, lead_a, lead_b);
  call.require(count >= 0, "batchCount must not be negative");
  if (!call.valid() || shape.m == 0 || shape.n == 0 || count == 0) return call.status();
  const Scalar scale = call.scalar(alpha);
  return call.enqueue([=] {
    T factor;
    if (CUresult error = scale.get(std::string(name) + ": alpha", factor)) return error;
    Checks checks(name);
    const size_t bytes = static_cast<size_t>(count) * sizeof(void*);
    checks.range("table of matrices A", a, bytes, Access::kRead);
    checks.range("table of matrices B", b, bytes, Access::kRead);
    for (int i = 0; i < count && !checks.failed(); i++) {
      check(checks, shape, a[i], lead_a, b[i], lead_b);
      if (!checks.failed()) solve(shape, factor, a[i], lead_a, b[i], lead_b);
    }
    return checks.result();
  });
}

using ComplexFloat = Complex<float>;
using ComplexDouble = Complex<double>;

}  // namespace cudasim::cublas

using namespace cudasim::cublas;

// ---- Entry points --------------------------------------------------------------------------------------------------

#define TRSM(NAME, T)                                                                                                 \
  CUBLAS_ENTRY NAME##_v2(cublasHandle_t handle, cublasSideMode_t side, cublasFillMode_t fill, cublasOperation_t op,   \
                         cublasDiagType_t diagonal, int m, int n, const T* alpha, const T* a, int lead_a, T* b,       \
                         int lead_b) {                                                                                \
    return trsm(#NAME, handle, {side, fill, op, diagonal, m, n}, alpha, a, lead_a, b, lead_b);                        \
  }                                                                                                                   \
  CUBLAS_ENTRY NAME##Batched(cublasHandle_t handle, cublasSideMode_t side, cublasFillMode_t fill,                     \
                             cublasOperation_t op, cublasDiagType_t diagonal, int m, int n, const T* alpha,           \
                             const T* const* a, int lead_a, T* const* b, int lead_b, int count) {                     \
    return trsm_batched(#NAME "Batched", handle, {side, fill, op, diagonal, m, n}, alpha, a, lead_a, b, lead_b,       \
                        count);                                                                                       \
  }
TRSM(cublasStrsm, float)
TRSM(cublasDtrsm, double)
TRSM(cublasCtrsm, ComplexFloat)
TRSM(cublasZtrsm, ComplexDouble)
