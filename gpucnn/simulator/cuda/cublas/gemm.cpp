// The GEMM family: one product, strided batches, and batches by tables of pointers, of all types.
#include <string.h>

#include "call.h"
#include "device_memory.h"
#include "multiply.h"

namespace cudasim::cublas {

// The matrices of a batch: `step` elements apart, or by a table of pointers in device memory.
struct Batch {
  const void* data;
  int lead;
  int64_t step = 0;
  bool table = false;

  template <class T>
  T* at(int index) const {
    if (table) return static_cast<T* const*>(data)[index];
    return static_cast<T*>(const_cast<void*>(data)) + index * step;
  }
};

struct Gemm {
  const char* name;
  Product product;
  Scalar alpha;
  Scalar beta;
  Batch a;
  Batch b;
  Batch c;
  int count;
  Workspace workspace;
};

// ---- Work on the device --------------------------------------------------------------------------------------------

template <class T>
Extent extent_of(const Batch& batch, int index, int rows, int columns) {
  return matrix(batch.at<T>(index), rows, columns, batch.lead);
}

template <class T>
Extent operand_extent(const Batch& batch, int index, cublasOperation_t op, int rows, int columns) {
  return op == CUBLAS_OP_N ? extent_of<T>(batch, index, rows, columns) : extent_of<T>(batch, index, columns, rows);
}

static void check_table(Checks& checks, const char* what, const Batch& batch, int count) {
  if (batch.table) checks.range(what, batch.data, static_cast<size_t>(count) * sizeof(void*), Access::kRead);
}

template <class In, class Out>
void check_product(Checks& checks, const Gemm& gemm, int index, bool reads_c) {
  const Product& product = gemm.product;
  const Extent a = operand_extent<In>(gemm.a, index, product.op_a, product.m, product.k);
  const Extent b = operand_extent<In>(gemm.b, index, product.op_b, product.k, product.n);
  const Extent c = extent_of<Out>(gemm.c, index, product.m, product.n);
  checks.reads("matrix A", a);
  checks.reads("matrix B", b);
  if (reads_c) checks.reads("matrix C", c);
  checks.apart("matrix C", c, "matrix A", a);
  checks.apart("matrix C", c, "matrix B", b);
  checks.writes("matrix C", c);
}

// A split product writes to the beginning of its workspace. Each product does so here: a workspace that was freed, or
// that two streams use at once, is noticed whatever the sizes of the matrices.
static void use_workspace(Checks& checks, const Workspace& workspace) {
  constexpr size_t kUsed = 4096;
  const size_t bytes = std::min(workspace.bytes, kUsed);
  if (!workspace.memory || !bytes) return;
  checks.range("workspace", workspace.memory, bytes, Access::kWrite);
  if (!checks.failed()) memset(workspace.memory, 0x5a, bytes);
}

template <class In, class Out, class Sum, class Scale>
CUresult run(const Gemm& gemm) {
  Scale alpha, beta;
  if (CUresult error = gemm.alpha.get(gemm.name + std::string(": alpha"), alpha)) return error;
  if (CUresult error = gemm.beta.get(gemm.name + std::string(": beta"), beta)) return error;
  const Sum factor = static_cast<Sum>(alpha), factor_c = static_cast<Sum>(beta);
  Checks checks(gemm.name);
  use_workspace(checks, gemm.workspace);
  check_table(checks, "table of matrices A", gemm.a, gemm.count);
  check_table(checks, "table of matrices B", gemm.b, gemm.count);
  check_table(checks, "table of matrices C", gemm.c, gemm.count);
  for (int i = 0; i < gemm.count && !checks.failed(); i++) {
    check_product<In, Out>(checks, gemm, i, !(factor_c == Sum(0)));
    if (checks.failed()) break;
    multiply<Sum>(gemm.product, factor, gemm.a.at<const In>(i), gemm.a.lead, gemm.b.at<const In>(i), gemm.b.lead,
                  factor_c, gemm.c.at<Out>(i), gemm.c.lead);
  }
  return checks.result();
}

// ---- Types ---------------------------------------------------------------------------------------------------------

struct Types {
  cudaDataType_t a;
  cudaDataType_t b;
  cudaDataType_t c;
  cublasComputeType_t compute;
};

// A combination of types that is supported, by the table of cublasGemmEx in cuBLAS's documentation.
struct Combination {
  cublasComputeType_t compute;  // without its speed
  cudaDataType_t inputs;
  cudaDataType_t output;
  size_t scale_bytes;  // of alpha and beta
  CUresult (*run)(const Gemm&);
};

using ComplexFloat = Complex<float>;
using ComplexDouble = Complex<double>;

static const Combination kCombinations[] = {
    {CUBLAS_COMPUTE_16F, CUDA_R_16F, CUDA_R_16F, 2, run<Half, Half, float, Half>},
    {CUBLAS_COMPUTE_32I, CUDA_R_8I, CUDA_R_32I, 4, run<int8_t, int32_t, uint32_t, int32_t>},
    {CUBLAS_COMPUTE_32F, CUDA_R_16BF, CUDA_R_16BF, 4, run<BFloat16, BFloat16, float, float>},
    {CUBLAS_COMPUTE_32F, CUDA_R_16F, CUDA_R_16F, 4, run<Half, Half, float, float>},
    {CUBLAS_COMPUTE_32F, CUDA_R_8I, CUDA_R_32F, 4, run<int8_t, float, float, float>},
    {CUBLAS_COMPUTE_32F, CUDA_R_16BF, CUDA_R_32F, 4, run<BFloat16, float, float, float>},
    {CUBLAS_COMPUTE_32F, CUDA_R_16F, CUDA_R_32F, 4, run<Half, float, float, float>},
    {CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_32F, 4, run<float, float, float, float>},
    {CUBLAS_COMPUTE_32F, CUDA_C_32F, CUDA_C_32F, 8, run<ComplexFloat, ComplexFloat, ComplexFloat, ComplexFloat>},
    {CUBLAS_COMPUTE_64F, CUDA_R_64F, CUDA_R_64F, 8, run<double, double, double, double>},
    {CUBLAS_COMPUTE_64F, CUDA_C_64F, CUDA_C_64F, 16, run<ComplexDouble, ComplexDouble, ComplexDouble, ComplexDouble>},
};

static cublasComputeType_t without_speed(cublasComputeType_t compute) {
  switch (compute) {
    case CUBLAS_COMPUTE_16F_PEDANTIC:
      return CUBLAS_COMPUTE_16F;
    case CUBLAS_COMPUTE_64F_PEDANTIC:
      return CUBLAS_COMPUTE_64F;
    case CUBLAS_COMPUTE_32I_PEDANTIC:
      return CUBLAS_COMPUTE_32I;
    case CUBLAS_COMPUTE_32F_PEDANTIC:
    case CUBLAS_COMPUTE_32F_FAST_16F:
    case CUBLAS_COMPUTE_32F_FAST_16BF:
    case CUBLAS_COMPUTE_32F_FAST_TF32:
      return CUBLAS_COMPUTE_32F;
    default:
      return compute;
  }
}

static bool is_single(cudaDataType_t type) { return type == CUDA_R_32F || type == CUDA_C_32F; }

static bool is_fast(cublasComputeType_t compute) {
  return compute == CUBLAS_COMPUTE_32F_FAST_16F || compute == CUBLAS_COMPUTE_32F_FAST_16BF ||
         compute == CUBLAS_COMPUTE_32F_FAST_TF32;
}

static const Combination* find(const Types& types) {
  const cublasComputeType_t compute = without_speed(types.compute);
  if (types.a != types.b || (is_fast(types.compute) && !is_single(types.a))) return nullptr;
  for (const Combination& known : kCombinations) {
    if (known.compute == compute && known.inputs == types.a && known.output == types.c) return &known;
  }
  return nullptr;
}

// Tensor cores are used wherever the compute type or the math mode allow them, so that their rounding shows in tests.
static Rounding rounding_of(const Types& types, cublasMath_t mode) {
  if (!is_single(types.a)) return Rounding::kNone;
  if (types.compute == CUBLAS_COMPUTE_32F_FAST_TF32) return Rounding::kTf32;
  if (types.compute == CUBLAS_COMPUTE_32F_FAST_16F) return Rounding::kHalf;
  if (types.compute == CUBLAS_COMPUTE_32F_FAST_16BF) return Rounding::kBFloat16;
  if (types.compute != CUBLAS_COMPUTE_32F) return Rounding::kNone;
  const int base = mode & ~CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
  if (base == CUBLAS_TF32_TENSOR_OP_MATH) return Rounding::kTf32;
  return base == CUBLAS_TENSOR_OP_MATH ? Rounding::kHalf : Rounding::kNone;
}

// ---- Calls ---------------------------------------------------------------------------------------------------------

struct Shape {
  cublasOperation_t op_a;
  cublasOperation_t op_b;
  int m;
  int n;
  int k;
  int count;
};

static void validate(Call& call, const Shape& shape, const void* alpha, const Batch& a, const Batch& b,
                     const void* beta, const Batch& c) {
  call.require_operation("transa", shape.op_a);
  call.require_operation("transb", shape.op_b);
  call.require(shape.m >= 0 && shape.n >= 0 && shape.k >= 0, "m, n and k must not be negative");
  call.require(shape.count >= 0, "batchCount must not be negative");
  call.require_lead("lda", a.lead, shape.op_a == CUBLAS_OP_N ? shape.m : shape.k);
  call.require_lead("ldb", b.lead, shape.op_b == CUBLAS_OP_N ? shape.k : shape.n);
  call.require_lead("ldc", c.lead, shape.m);
  call.require(alpha && beta, "alpha and beta must not be null");
}

static bool is_aligned(const Batch& batch) { return reinterpret_cast<uintptr_t>(batch.data) % 4 == 0; }

static void validate_types(Call& call, const Types& types, const Combination* known, const Batch& a, const Batch& b) {
  if (!known) {
    call.refuse_as_unsupported("no product of matrices of types " + std::to_string(types.a) + " and " +
                               std::to_string(types.b) + " into type " + std::to_string(types.c) +
                               " with compute type " + std::to_string(types.compute));
  } else if (known->compute == CUBLAS_COMPUTE_32I) {
    const bool aligned = is_aligned(a) && is_aligned(b) && a.lead % 4 == 0 && b.lead % 4 == 0;
    if (!aligned) call.refuse_as_unsupported("products of int8 need lda, ldb and the addresses to be multiples of 4");
  }
}

static cublasStatus_t multiply_batch(const char* name, cublasHandle_t handle, const Types& types, const Shape& shape,
                                     const void* alpha, const Batch& a, const Batch& b, const void* beta,
                                     const Batch& c) {
  Call call(name, handle);
  if (!call.valid()) return call.status();
  validate(call, shape, alpha, a, b, beta, c);
  const Combination* known = find(types);
  validate_types(call, types, known, a, b);
  if (!call.valid() || shape.m == 0 || shape.n == 0 || shape.count == 0) return call.status();
  const Product product = {shape.op_a, shape.op_b,  shape.m,
                           shape.n,    shape.k,     rounding_of(types, handle->math_mode),
                           known->compute == CUBLAS_COMPUTE_16F};
  const Gemm gemm = {name, product, call.scalar(alpha, known->scale_bytes), call.scalar(beta, known->scale_bytes),
                     a,    b,       c,
                     shape.count, handle->workspace};
  const auto run = known->run;
  return call.enqueue([=] { return run(gemm); });
}

static Types types_of(cudaDataType_t type) {
  const bool is_double = type == CUDA_R_64F || type == CUDA_C_64F;
  return {type, type, type, is_double ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F};
}

}  // namespace cudasim::cublas

using namespace cudasim::cublas;
using Op = cublasOperation_t;

// ---- Entry points: one type ----------------------------------------------------------------------------------------

#define GEMM(NAME, T, TYPE)                                                                                         \
  CUBLAS_ENTRY NAME##_v2(cublasHandle_t handle, Op op_a, Op op_b, int m, int n, int k, const T* alpha, const T* a,  \
                         int lda, const T* b, int ldb, const T* beta, T* c, int ldc) {                              \
    const Shape shape = {op_a, op_b, m, n, k, 1};                                                                   \
    return multiply_batch(#NAME, handle, types_of(TYPE), shape, alpha, {a, lda}, {b, ldb}, beta, {c, ldc});         \
  }                                                                                                                 \
  CUBLAS_ENTRY NAME##StridedBatched(cublasHandle_t handle, Op op_a, Op op_b, int m, int n, int k, const T* alpha,   \
                                    const T* a, int lda, long long step_a, const T* b, int ldb, long long step_b,   \
                                    const T* beta, T* c, int ldc, long long step_c, int count) {                    \
    const Shape shape = {op_a, op_b, m, n, k, count};                                                               \
    return multiply_batch(#NAME "StridedBatched", handle, types_of(TYPE), shape, alpha, {a, lda, step_a},           \
                          {b, ldb, step_b}, beta, {c, ldc, step_c});                                                \
  }                                                                                                                 \
  CUBLAS_ENTRY NAME##Batched(cublasHandle_t handle, Op op_a, Op op_b, int m, int n, int k, const T* alpha,          \
                             const T* const* a, int lda, const T* const* b, int ldb, const T* beta, T* const* c,    \
                             int ldc, int count) {                                                                  \
    const Shape shape = {op_a, op_b, m, n, k, count};                                                               \
    return multiply_batch(#NAME "Batched", handle, types_of(TYPE), shape, alpha, {a, lda, 0, true},                 \
                          {b, ldb, 0, true}, beta, {c, ldc, 0, true});                                              \
  }

GEMM(cublasSgemm, float, CUDA_R_32F)
GEMM(cublasDgemm, double, CUDA_R_64F)
GEMM(cublasCgemm, ComplexFloat, CUDA_C_32F)
GEMM(cublasZgemm, ComplexDouble, CUDA_C_64F)

// ---- Entry points: any types ---------------------------------------------------------------------------------------

// The algorithm is a hint, without effect on devices since Ampere.
CUBLAS_ENTRY cublasGemmEx(cublasHandle_t handle, Op op_a, Op op_b, int m, int n, int k, const void* alpha,
                          const void* a, cudaDataType_t type_a, int lda, const void* b, cudaDataType_t type_b, int ldb,
                          const void* beta, void* c, cudaDataType_t type_c, int ldc, cublasComputeType_t compute,
                          cublasGemmAlgo_t) {
  const Types types = {type_a, type_b, type_c, compute};
  const Shape shape = {op_a, op_b, m, n, k, 1};
  return multiply_batch("cublasGemmEx", handle, types, shape, alpha, {a, lda}, {b, ldb}, beta, {c, ldc});
}

CUBLAS_ENTRY cublasGemmStridedBatchedEx(cublasHandle_t handle, Op op_a, Op op_b, int m, int n, int k,
                                        const void* alpha, const void* a, cudaDataType_t type_a, int lda,
                                        long long step_a, const void* b, cudaDataType_t type_b, int ldb,
                                        long long step_b, const void* beta, void* c, cudaDataType_t type_c, int ldc,
                                        long long step_c, int count, cublasComputeType_t compute, cublasGemmAlgo_t) {
  const Types types = {type_a, type_b, type_c, compute};
  const Shape shape = {op_a, op_b, m, n, k, count};
  return multiply_batch("cublasGemmStridedBatchedEx", handle, types, shape, alpha, {a, lda, step_a}, {b, ldb, step_b},
                        beta, {c, ldc, step_c});
}

CUBLAS_ENTRY cublasGemmBatchedEx(cublasHandle_t handle, Op op_a, Op op_b, int m, int n, int k, const void* alpha,
                                 const void* const* a, cudaDataType_t type_a, int lda, const void* const* b,
                                 cudaDataType_t type_b, int ldb, const void* beta, void* const* c,
                                 cudaDataType_t type_c, int ldc, int count, cublasComputeType_t compute,
                                 cublasGemmAlgo_t) {
  const Types types = {type_a, type_b, type_c, compute};
  const Shape shape = {op_a, op_b, m, n, k, count};
  return multiply_batch("cublasGemmBatchedEx", handle, types, shape, alpha, {a, lda, 0, true}, {b, ldb, 0, true}, beta,
                        {c, ldc, 0, true});
}

CUBLAS_ENTRY cublasSgemmEx(cublasHandle_t handle, Op op_a, Op op_b, int m, int n, int k, const float* alpha,
                           const void* a, cudaDataType_t type_a, int lda, const void* b, cudaDataType_t type_b, int ldb,
                           const float* beta, void* c, cudaDataType_t type_c, int ldc) {
  const Types types = {type_a, type_b, type_c, CUBLAS_COMPUTE_32F};
  const Shape shape = {op_a, op_b, m, n, k, 1};
  return multiply_batch("cublasSgemmEx", handle, types, shape, alpha, {a, lda}, {b, ldb}, beta, {c, ldc});
}

// Complex products in 32 bits; of int8 inputs there are none here.
CUBLAS_ENTRY cublasCgemmEx(cublasHandle_t handle, Op op_a, Op op_b, int m, int n, int k, const ComplexFloat* alpha,
                           const void* a, cudaDataType_t type_a, int lda, const void* b, cudaDataType_t type_b, int ldb,
                           const ComplexFloat* beta, void* c, cudaDataType_t type_c, int ldc) {
  const Types types = {type_a, type_b, type_c, CUBLAS_COMPUTE_32F};
  const Shape shape = {op_a, op_b, m, n, k, 1};
  return multiply_batch("cublasCgemmEx", handle, types, shape, alpha, {a, lda}, {b, ldb}, beta, {c, ldc});
}
