// Windows of a pooling along one axis, by output and by input.

constexpr index_t DIVIDES_NOTHING = 0;  // a sum stays a sum
constexpr index_t DIVIDES_PADDED = 1;   // by the taps on the input or its padding
constexpr index_t DIVIDES_VALID = 2;    // by the taps on the input
constexpr index_t DIVIDES_NUMBER = 3;   // by a number of the caller's

struct PoolAxis {
  index_t size, out;
  bool adaptive;
  index_t kernel;  // taps of the longest window
  index_t stride, dilation, low, high, output_step;  // of an axis that is not adaptive
  index_t readers;  // outputs that read one input, at most
};

__device__ __forceinline__ PoolAxis axis_d(const PoolParams& p) {
  return {p.d, p.od, p.adaptive_d != 0, p.kd, p.stride_d, p.dilation_d, p.low_d, p.high_d, p.output_step_d,
          p.readers_d};
}

__device__ __forceinline__ PoolAxis axis_h(const PoolParams& p) {
  return {p.h, p.oh, p.adaptive_h != 0, p.kh, p.stride_h, p.dilation_h, p.low_h, p.high_h, p.output_step_h,
          p.readers_h};
}

__device__ __forceinline__ PoolAxis axis_w(const PoolParams& p) {
  return {p.w, p.ow, p.adaptive_w != 0, p.kw, p.stride_w, p.dilation_w, p.low_w, p.high_w, p.output_step_w,
          p.readers_w};
}

// Positions first, first + step, …, `count` of them, in ascending order.
struct Steps {
  index_t first, step, count;
};

// The i-th of `parts` shares of [0, total): [floor(i * total / parts), ceil((i + 1) * total / parts)).
__device__ __forceinline__ Steps share(index_t i, index_t parts, index_t total) {
  const index_t first = quotient(i * total, parts);
  return {first, 1, quotient((i + 1) * total + parts - 1, parts) - first};
}

// The inputs that output o's window reads; taps on the padding read none. Padding is smaller than a window here.
__device__ __forceinline__ Steps inputs_of(const PoolAxis& axis, index_t o) {
  if (axis.adaptive) return share(o, axis.out, axis.size);
  const index_t start = o * axis.stride - axis.low;
  const Range taps = taps_inside(start, axis.kernel, axis.dilation, axis.size);
  return {start + taps.first * axis.dilation, axis.dilation, taps.last - taps.first};
}

// The outputs whose windows read input i: first, first + step, …, as far as they are outputs and not beyond `last`; or,
// `always`, the first alone.
struct Readings {
  index_t first, step, last;
  bool always;
};

__device__ __forceinline__ Readings readings_of(const PoolAxis& axis, index_t i) {
  if (axis.adaptive) {  // the rule of windows, inverted
    const Steps outputs = share(i, axis.size, axis.out);
    return {outputs.first, 1, outputs.first + outputs.count - 1, axis.size % axis.out == 0};
  }
  const index_t shift = i + axis.low;  // = output * stride + tap * dilation
  if (axis.kernel == axis.stride && axis.dilation == 1 && axis.low == 0 && axis.out * axis.stride >= axis.size) {
    return {quotient(shift, axis.stride), 1, 0, true};
  }
  const index_t last = quotient(shift, axis.stride), reach = (axis.kernel - 1) * axis.dilation;
  const index_t lift = (reach + axis.stride - 1) / axis.stride;  // so that what is divided is not negative
  index_t first = quotient(shift - reach + lift * axis.stride + axis.stride - 1, axis.stride) - lift;
  if (axis.readers == axis.out) first = most(first, 0);  // no more are looked at
  while (first <= last && (shift - first * axis.stride) % axis.dilation != 0) ++first;
  return {first, axis.output_step, last, false};
}

// A window's taps, the same number for every output, so that the threads of a warp stay converged: tap k is at
// first + k * step, and belongs to the window where that is in [begin, end), or `always`.
struct Taps {
  index_t first, step, begin, end;
  bool always;
};

__device__ __forceinline__ Taps taps_of(const PoolAxis& axis, index_t o) {
  if (!axis.adaptive) {
    const bool fits = axis.low == 0 && (axis.out - 1) * axis.stride + (axis.kernel - 1) * axis.dilation < axis.size;
    return {o * axis.stride - axis.low, axis.dilation, 0, axis.size, fits};
  }
  const Steps inputs = share(o, axis.out, axis.size);
  return {inputs.first, 1, inputs.first, inputs.first + inputs.count, axis.size % axis.out == 0};
}

// Position of a tap; clamped to a nearby input if it is not in the window.
struct Tap {
  index_t at;
  bool inside;
};

__device__ __forceinline__ Tap tap_of(const Taps& taps, index_t k) {
  const index_t at = taps.first + k * taps.step;
  if (taps.always) return {at, true};
  return {most(least(at, taps.end - 1), taps.begin), at >= taps.begin && at < taps.end};
}

// The k-th of the outputs that read an input; clamped to one of [begin, end) where there are fewer.
__device__ __forceinline__ Tap reader_of(const PoolAxis& axis, const Readings& outputs, index_t k, index_t begin,
                                         index_t end) {
  const index_t at = outputs.first + k * outputs.step;
  if (outputs.always) return {least(at, end - 1), true};  // beyond the end where the input is
  return {most(least(at, end - 1), begin), at >= 0 && at < axis.out && at <= outputs.last};
}

// Whether output o's window reads input i, which is within the axis.
__device__ __forceinline__ bool reads(const PoolAxis& axis, index_t o, index_t i) {
  if (axis.adaptive) {
    const Steps inputs = share(o, axis.out, axis.size);
    return i >= inputs.first && i < inputs.first + inputs.count;
  }
  const index_t offset = i + axis.low - o * axis.stride;  // = tap * dilation
  return offset >= 0 && offset % axis.dilation == 0 && offset / axis.dilation < axis.kernel;
}

// The inputs from the first to the last that the windows of outputs [first, last) read; one at least.
__device__ __forceinline__ Range inputs_within(const PoolAxis& axis, index_t first, index_t last) {
  if (axis.adaptive) {
    const Steps end = share(last - 1, axis.out, axis.size);
    return {share(first, axis.out, axis.size).first, end.first + end.count};
  }
  const index_t begin = least(most(first * axis.stride - axis.low, 0), axis.size - 1);
  const index_t end = (last - 1) * axis.stride - axis.low + (axis.kernel - 1) * axis.dilation + 1;
  return {begin, most(begin + 1, least(end, axis.size))};
}

// The outputs from the first to the last whose windows read any of the inputs [first, last); one at least.
__device__ __forceinline__ Range outputs_within(const PoolAxis& axis, index_t first, index_t last) {
  if (axis.adaptive) {
    const Steps end = share(last - 1, axis.size, axis.out);
    return {share(first, axis.size, axis.out).first, end.first + end.count};
  }
  const index_t reach = (axis.kernel - 1) * axis.dilation;
  const index_t begin = least(most(ceil_div(first + axis.low - reach, axis.stride), 0), axis.out - 1);
  return {begin, most(begin + 1, least((last - 1 + axis.low) / axis.stride + 1, axis.out))};
}

// Number of taps of output o's window that count for its divisor along one axis; 1 where taps are not counted.
__device__ __forceinline__ index_t counted_taps(const PoolAxis& axis, index_t o, index_t divides) {
  if (divides == DIVIDES_NOTHING || divides == DIVIDES_NUMBER) return 1;
  if (taps_of(axis, 0).always) return axis.kernel;  // whatever the output
  if (divides == DIVIDES_VALID || axis.adaptive) return inputs_of(axis, o).count;
  if ((axis.out - 1) * axis.stride + (axis.kernel - 1) * axis.dilation < axis.low + axis.size + axis.high) {
    return axis.kernel;
  }
  return taps_inside(o * axis.stride, axis.kernel, axis.dilation, axis.low + axis.size + axis.high).last;
}

// A window's sum over its divisor, which is `taps` or the caller's number. A window without taps stays 0.
__device__ __forceinline__ acc_t divided(acc_t sum, index_t taps, const PoolParams& p) {
  if (p.divides == DIVIDES_NOTHING) return sum;
  if (p.divides == DIVIDES_NUMBER) return sum / static_cast<real_t>(p.divisor);
  return sum / static_cast<real_t>(most(taps, 1));
}

// The axis that bands are cut along, and the positions of one input and of one output of it; and the next axis.
struct Band {
  PoolAxis axis;
  index_t input_unit, output_unit;
  PoolAxis row_axis;
  index_t row_input_unit, row_output_unit;
};

__device__ __forceinline__ Band band_of(const PoolParams& p) {
  if (p.band_axis == 0) return {axis_d(p), p.h * p.w, p.oh * p.ow, axis_h(p), p.w, p.ow};
  if (p.band_axis == 1) return {axis_h(p), p.w, p.ow, axis_w(p), 1, 1};
  return {axis_w(p), 1, 1, axis_w(p), 1, 1};
}
