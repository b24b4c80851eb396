// Types and small functions shared by all kernels.
//
// The compiled program text begins with three definitions, one set for each build of a kernel:
//   SCALAR       what arrays hold:      float, double, half_t, bfloat16_t, Complex<float>, signed char, …
//   ACCUMULATOR  what sums are kept in: float for 16-bit floats, unsigned integers for integers, else SCALAR itself
//   INDEX        int, or long long where an extent, an offset or the number of threads reaches 2^31
// Contraction into fused multiply-adds is off, and multiply_add fuses explicitly: so all builds, generic and
// specialised, give the same bits.

// --- 16-bit floats: storage only; arithmetic is in float -------------------------------------------------------------

struct half_t {  // IEEE binary16
  unsigned short bits;
};

struct bfloat16_t {  // the upper half of a float
  unsigned short bits;
};

// --- Complex numbers -------------------------------------------------------------------------------------------------

template <typename Real>
struct Complex {
  Real re, im;
};

template <typename Real>
__device__ __forceinline__ Complex<Real> operator+(Complex<Real> a, Complex<Real> b) {
  return {a.re + b.re, a.im + b.im};
}

template <typename Real>
__device__ __forceinline__ Complex<Real> operator*(Complex<Real> a, Real b) {
  return {a.re * b, a.im * b};
}

template <typename Real>
__device__ __forceinline__ Complex<Real> operator/(Complex<Real> a, Real b) {
  return {a.re / b, a.im / b};
}

// --- The types of this build -----------------------------------------------------------------------------------------

using scalar_t = SCALAR;
using acc_t = ACCUMULATOR;
using index_t = INDEX;

template <typename T>
struct RealOf {
  using type = T;
};

template <typename Real>
struct RealOf<Complex<Real>> {
  using type = Real;
};

using real_t = typename RealOf<acc_t>::type;  // of divisors and weights of sums

// --- From storage to accumulator and back ----------------------------------------------------------------------------

template <typename T>
__device__ __forceinline__ acc_t widen(T value) {
  return static_cast<acc_t>(value);
}

__device__ __forceinline__ float widen(half_t value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}

__device__ __forceinline__ float widen(bfloat16_t value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}

template <typename T>
struct Narrow {
  static __device__ __forceinline__ T from(acc_t value) { return static_cast<T>(value); }
};

template <>
struct Narrow<half_t> {
  static __device__ __forceinline__ half_t from(float value) {
    half_t result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
  }
};

template <>
struct Narrow<bfloat16_t> {
  // Round to nearest, ties to even; NaN stays NaN.
  static __device__ __forceinline__ bfloat16_t from(float value) {
    const unsigned bits = __float_as_uint(value);
    if (value != value) return {static_cast<unsigned short>((bits >> 16) | 0x40u)};
    return {static_cast<unsigned short>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
  }
};

__device__ __forceinline__ scalar_t narrow(acc_t value) { return Narrow<scalar_t>::from(value); }

// --- Arithmetic ------------------------------------------------------------------------------------------------------

// a * b + sum, rounded once where the type is a float.
template <typename T>
__device__ __forceinline__ T multiply_add(T a, T b, T sum) {
  return a * b + sum;
}

template <>
__device__ __forceinline__ float multiply_add(float a, float b, float sum) {
  return fmaf(a, b, sum);
}

template <>
__device__ __forceinline__ double multiply_add(double a, double b, double sum) {
  return fma(a, b, sum);
}

template <typename Real>
__device__ __forceinline__ Complex<Real> multiply_add(Complex<Real> a, Complex<Real> b, Complex<Real> sum) {
  return {multiply_add(a.re, b.re, multiply_add(-a.im, b.im, sum.re)),
          multiply_add(a.re, b.im, multiply_add(a.im, b.re, sum.im))};
}

// value * weight + sum for a real weight.
template <typename T>
__device__ __forceinline__ T weigh_add(T value, T weight, T sum) {
  return multiply_add(value, weight, sum);
}

template <typename Real>
__device__ __forceinline__ Complex<Real> weigh_add(Complex<Real> value, Real weight, Complex<Real> sum) {
  return {multiply_add(value.re, weight, sum.re), multiply_add(value.im, weight, sum.im)};
}

template <int BYTES>
struct Unsigned {
  using type = unsigned int;
};
template <>
struct Unsigned<8> {
  using type = unsigned long long;
};

// a / b for a >= 0 and b > 0, in one to two instructions less for a constant b than a signed division.
__device__ __forceinline__ index_t quotient(index_t a, index_t b) {
  using Number = Unsigned<sizeof(index_t)>::type;
  return static_cast<index_t>(static_cast<Number>(a) / static_cast<Number>(b));
}

// Whether a float is neither infinite nor NaN.
template <typename T>
__device__ __forceinline__ bool is_finite(T) {
  return true;
}

template <>
__device__ __forceinline__ bool is_finite(float value) {
  return value - value == 0.0f;
}

// The least a with a * step >= value, for step > 0 and any value.
__device__ __forceinline__ index_t ceil_div(index_t value, index_t step) {
  return value >= 0 ? (value + step - 1) / step : -(-value / step);
}

__device__ __forceinline__ index_t least(index_t a, index_t b) { return a < b ? a : b; }

__device__ __forceinline__ index_t most(index_t a, index_t b) { return a > b ? a : b; }

// --- Vectorised accesses ---------------------------------------------------------------------------------------------

// N contiguous elements, of 1, 2, 4, 8 or 16 bytes in all. The host chooses the vector width, as it knows the array's
// alignment.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};

template <int BYTES>
struct WordOf;
template <>
struct WordOf<1> {
  using type = unsigned char;
};
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned int;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* from) {
  using Word = typename WordOf<sizeof(T) * N>::type;
  const Word word = *reinterpret_cast<const Word*>(from);
  Pack<T, N> pack;
  memcpy(&pack, &word, sizeof(Word));
  return pack;
}

template <typename T, int N>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, N>& pack) {
  using Word = typename WordOf<sizeof(T) * N>::type;
  Word word;
  memcpy(&word, &pack, sizeof(Word));
  *reinterpret_cast<Word*>(to) = word;
}

// --- Thread positions ------------------------------------------------------------------------------------------------

// This thread's number in the launch, [0, gridDim.x * blockDim.x).
__device__ __forceinline__ index_t thread_index() {
  return static_cast<index_t>(blockIdx.x) * static_cast<index_t>(blockDim.x) + static_cast<index_t>(threadIdx.x);
}

__device__ __forceinline__ index_t grid_threads() {
  return static_cast<index_t>(gridDim.x) * static_cast<index_t>(blockDim.x);
}

struct Position {  // in an array [N, C, D, H, W]
  index_t n, c, d, h, w;
};

// The i-th element of an array [N, c, d, h, w] in memory order: consecutive i are adjacent in memory.
__device__ __forceinline__ Position position(index_t i, index_t c, index_t d, index_t h, index_t w,
                                             bool channels_last) {
  Position at;
  const auto next = [&](index_t size) {
    const index_t rest = quotient(i, size), found = i - rest * size;
    i = rest;
    return found;
  };
  if (channels_last) at.c = next(c);
  at.w = next(w);
  at.h = next(h);
  at.d = next(d);
  if (!channels_last) at.c = next(c);
  at.n = i;
  return at;
}

// --- Sums over a block -----------------------------------------------------------------------------------------------

// The block-wide sum of the threads' values, in every thread. All threads of the block, a power of two, call it; the
// pairing is fixed, so the sum is reproducible. `scratch` [blockDim.x] may be rewritten only after another barrier.
template <typename T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  const int thread = static_cast<int>(threadIdx.x);
  scratch[thread] = value;
  __syncthreads();
  for (int half = static_cast<int>(blockDim.x) / 2; half > 0; half /= 2) {
    if (thread < half) scratch[thread] = scratch[thread] + scratch[thread + half];
    __syncthreads();
  }
  return scratch[0];
}
