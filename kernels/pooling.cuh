// The windows of a pooling along one axis, seen from its outputs and from its inputs.

constexpr index_t DIVIDES_NOTHING = 0;  // a sum stays a sum
constexpr index_t DIVIDES_PADDED = 1;   // by the taps that lie on the input or its padding
constexpr index_t DIVIDES_VALID = 2;    // by the taps that lie on the input
constexpr index_t DIVIDES_NUMBER = 3;   // by a number of the caller's

struct PoolAxis {
  index_t size, out;
  bool adaptive;
  index_t kernel, stride, dilation, low, high, output_step;  // of an axis that is not adaptive
};

__device__ __forceinline__ PoolAxis axis_d(const PoolParams& p) {
  return {p.d, p.od, p.adaptive_d != 0, p.kd, p.stride_d, p.dilation_d, p.low_d, p.high_d, p.output_step_d};
}

__device__ __forceinline__ PoolAxis axis_h(const PoolParams& p) {
  return {p.h, p.oh, p.adaptive_h != 0, p.kh, p.stride_h, p.dilation_h, p.low_h, p.high_h, p.output_step_h};
}

__device__ __forceinline__ PoolAxis axis_w(const PoolParams& p) {
  return {p.w, p.ow, p.adaptive_w != 0, p.kw, p.stride_w, p.dilation_w, p.low_w, p.high_w, p.output_step_w};
}

// Positions first, first + step, …, `count` of them, in ascending order.
struct Steps {
  index_t first, step, count;
};

// The part of [0, total) that i of [0, parts) stands for: [floor(i * total / parts), ceil((i + 1) * total / parts)).
__device__ __forceinline__ Steps share(index_t i, index_t parts, index_t total) {
  const long long first = static_cast<long long>(i) * total / parts;
  const long long last = (static_cast<long long>(i + 1) * total + parts - 1) / parts;
  return {static_cast<index_t>(first), 1, static_cast<index_t>(last - first)};
}

// The inputs that output o's window reads; taps on the padding read none. Padding is smaller than a window here.
__device__ __forceinline__ Steps inputs_of(const PoolAxis& axis, index_t o) {
  if (axis.adaptive) return share(o, axis.out, axis.size);
  const index_t start = o * axis.stride - axis.low;
  const Range taps = taps_inside(start, axis.kernel, axis.dilation, axis.size);
  return {start + taps.first * axis.dilation, axis.dilation, taps.last - taps.first};
}

// The outputs whose windows read input i.
__device__ __forceinline__ Steps outputs_of(const PoolAxis& axis, index_t i) {
  if (axis.adaptive) return share(i, axis.size, axis.out);  // the same rule, read the other way round
  const index_t shift = i + axis.low;  // = output * stride + tap * dilation
  const index_t last = least(shift / axis.stride, axis.out - 1);
  index_t first = most(ceil_div(shift - (axis.kernel - 1) * axis.dilation, axis.stride), 0);
  while (first <= last && (shift - first * axis.stride) % axis.dilation != 0) ++first;
  return {first, axis.output_step, first <= last ? (last - first) / axis.output_step + 1 : 0};
}

// Whether position is one of steps.
__device__ __forceinline__ bool holds(const Steps& steps, index_t position) {
  const index_t offset = position - steps.first;
  return offset >= 0 && offset % steps.step == 0 && offset / steps.step < steps.count;
}

// How many taps of output o's window its divisor counts along one axis; 1 where taps are not what divides.
__device__ __forceinline__ index_t counted_taps(const PoolAxis& axis, index_t o, index_t divides) {
  if (divides == DIVIDES_NOTHING || divides == DIVIDES_NUMBER) return 1;
  if (divides == DIVIDES_VALID || axis.adaptive) return inputs_of(axis, o).count;
  return taps_inside(o * axis.stride, axis.kernel, axis.dilation, axis.low + axis.size + axis.high).last;
}

// A window's sum over its divisor, which is `taps` or the caller's number. A window without taps sums to 0: it stays 0.
__device__ __forceinline__ acc_t divided(acc_t sum, index_t taps, const PoolParams& p) {
  if (p.divides == DIVIDES_NOTHING) return sum;
  if (p.divides == DIVIDES_NUMBER) return sum / static_cast<real_t>(p.divisor);
  return sum / static_cast<real_t>(most(taps, 1));
}
