// Max pooling, forward, over sliding or adaptive windows:
// y[n, c, o] = max over the inputs i of window o of x[n, c, i], and where in its plane that maximum lies
//
// Source       the definition; NaN wins over numbers, as in PyTorch
// Reads        x [N, C, D, H, W]; any strides
// Writes       y [N, C, OD, OH, OW]; indices [N, C, OD, OH, OW], in [0, D * H * W): of equal maxima the first, of NaNs
//              the last. A window wholly in padding has the lowest value of the type, and index -1
// Mapping      one thread an output, in y's memory order: ow innermost, or c where channels are last
// Bytes        x is read KD * KH * KW / stride times, from L1 and L2 but for the first; y and indices written once
// Determinism  each window is scanned by one thread in the order of d, h, w
// Limits       none; a window that covers the whole plane is one thread's work
#include "common.cuh"
#include "params.cuh"
#include "windows.cuh"
#include "pooling.cuh"

// --- The order of values ---------------------------------------------------------------------------------------------

// What stands in for a value where it is compared: integers and floats themselves, 16-bit floats as float.
template <typename T>
__device__ __forceinline__ T comparable(T value) {
  return value;
}

__device__ __forceinline__ float comparable(half_t value) { return widen(value); }

__device__ __forceinline__ float comparable(bfloat16_t value) { return widen(value); }

template <typename T>
struct Lowest {  // of an integer type
  static constexpr bool IS_SIGNED = static_cast<T>(-1) < static_cast<T>(1);
  static constexpr T SIGN_BIT = static_cast<T>(1ULL << (8 * sizeof(T) - 1));
  static __device__ __forceinline__ T value() { return IS_SIGNED ? SIGN_BIT : T{}; }
};

template <>
struct Lowest<float> {
  static __device__ __forceinline__ float value() { return __uint_as_float(0xff800000u); }  // -inf
};

template <>
struct Lowest<double> {
  static __device__ __forceinline__ double value() { return Lowest<float>::value(); }
};

template <>
struct Lowest<half_t> {
  static __device__ __forceinline__ half_t value() { return {0xfc00}; }
};

template <>
struct Lowest<bfloat16_t> {
  static __device__ __forceinline__ bfloat16_t value() { return {0xff80}; }
};

// --- The kernels -----------------------------------------------------------------------------------------------------

template <bool WITH_INDICES>
__device__ __forceinline__ void scan_window(const scalar_t* __restrict__ x, scalar_t* __restrict__ y,
                                            long long* __restrict__ indices, const PoolParams& p) {
  const index_t i = thread_index();  // [0, N * C * OD * OH * OW)
  if (i >= p.n * p.c * p.od * p.oh * p.ow) return;
  const Position o = position(i, p.c, p.od, p.oh, p.ow, p.channels_last);
  const Steps ds = inputs_of(axis_d(p), o.d);
  const Steps hs = inputs_of(axis_h(p), o.h);
  const Steps ws = inputs_of(axis_w(p), o.w);

  scalar_t best = Lowest<scalar_t>::value();
  index_t at = -1;
  if (ds.count && hs.count && ws.count) at = (ds.first * p.h + hs.first) * p.w + ws.first;  // if none beats the lowest
  x += o.n * p.x_n + o.c * p.x_c;
  for (index_t kd = 0; kd < ds.count; ++kd) {
    const index_t d = ds.first + kd * ds.step;
    for (index_t kh = 0; kh < hs.count; ++kh) {
      const index_t h = hs.first + kh * hs.step;
      for (index_t kw = 0; kw < ws.count; ++kw) {
        const index_t w = ws.first + kw * ws.step;
        const scalar_t value = x[d * p.x_d + h * p.x_h + w * p.x_w];
        const bool is_nan = comparable(value) != comparable(value);
        if (is_nan || comparable(value) > comparable(best)) {
          best = value;
          at = (d * p.h + h) * p.w + w;
        }
      }
    }
  }
  y[o.n * p.y_n + o.c * p.y_c + o.d * p.y_d + o.h * p.y_h + o.w * p.y_w] = best;
  if (WITH_INDICES) indices[o.n * p.at_n + o.c * p.at_c + o.d * p.at_d + o.h * p.at_h + o.w * p.at_w] = at;
}

extern "C" __global__ void __launch_bounds__(256, 1)
max_pool(const scalar_t* __restrict__ x,  // [N, C, D, H, W]
         scalar_t* __restrict__ y,        // [N, C, OD, OH, OW]
         const PoolParams p) {
  scan_window<false>(x, y, nullptr, p);
}

extern "C" __global__ void __launch_bounds__(256, 1)
max_pool_with_indices(const scalar_t* __restrict__ x,   // [N, C, D, H, W]
                      scalar_t* __restrict__ y,         // [N, C, OD, OH, OW]
                      long long* __restrict__ indices,  // [N, C, OD, OH, OW]
                      const PoolParams p) {
  scan_window<true>(x, y, indices, p);
}
