// Taps of samples at the positions of a grid: along each axis the TAPS inputs that a sample reads, one (nearest), two
// (bilinear) or four (bicubic), with a weight and the weight's slope with respect to the grid.

constexpr index_t ZEROS = 0, BORDER = 1, REFLECTION = 2;  // p.padding
constexpr int CHANNELS = 8;                               // of a thread
constexpr int DEPTH_TAPS = TAPS < 4 ? TAPS : 1;           // along D, at most: no volume is sampled bicubically
constexpr acc_t SHARPNESS = static_cast<acc_t>(-0.75);    // of the cubic: its slope at the neighbours

struct AxisTaps {
  index_t at[TAPS];  // [0, size); of a tap outside any, with a weight and a slope of 0
  acc_t weight[TAPS], slope[TAPS];
};

// The input at a coordinate, of which -1 and 1 are the ends of the axis.
__device__ __forceinline__ acc_t placed(acc_t coordinate, acc_t size, const GridSampleParams& p) {
  return p.aligned ? (coordinate + 1) / 2 * (size - 1) : ((coordinate + 1) * size - 1) / 2;
}

// Inputs after which their reflections repeat.
__device__ __forceinline__ index_t period_of(index_t size, const GridSampleParams& p) {
  return p.aligned ? most(1, 2 * (size - 1)) : 2 * size;
}

__device__ __forceinline__ acc_t clamped(acc_t x, acc_t low, acc_t high) { return x < low ? low : x > high ? high : x; }

// The position that the padding moves x to, within the axis; `direction` becomes 0 for those held at an end. With zeros
// it stays outside, but near enough for integers.
__device__ __forceinline__ acc_t padded(acc_t x, acc_t size, acc_t& direction, const GridSampleParams& p) {
  direction = 1;
  if (p.padding == ZEROS) return clamped(x, -2, size + 1);
  if (p.padding == REFLECTION) {
    const acc_t low = p.aligned ? static_cast<acc_t>(0) : static_cast<acc_t>(-0.5);
    const acc_t span = p.aligned ? size - 1 : size;
    if (x < low) direction = -1;
    x = fmod(fabs(x - low), 2 * (span > 1 ? span : 1));
    if (x > span) {
      direction = -direction;
      x = 2 * span - x;
    }
    x = x + low;
  }
  if (!(x > 0 && x < size - 1)) direction = 0;
  return clamped(x, 0, size - 1);
}

// Weight and slope of the cubic at a distance in [0, 1].
__device__ __forceinline__ void cubic_near(acc_t s, acc_t& weight, acc_t& slope) {
  weight = ((SHARPNESS + 2) * s - (SHARPNESS + 3)) * s * s + 1;
  slope = (3 * (SHARPNESS + 2) * s - 2 * (SHARPNESS + 3)) * s;
}

// And in [1, 2].
__device__ __forceinline__ void cubic_far(acc_t s, acc_t& weight, acc_t& slope) {
  weight = ((SHARPNESS * s - 5 * SHARPNESS) * s + 8 * SHARPNESS) * s - 4 * SHARPNESS;
  slope = (3 * SHARPNESS * s - 10 * SHARPNESS) * s + 8 * SHARPNESS;
}

// Weights and slopes of the taps of a position of t in [0, 1) between two inputs.
__device__ __forceinline__ void weigh(acc_t t, AxisTaps& taps) {
  if constexpr (TAPS == 1) {
    taps.weight[0] = 1;
    taps.slope[0] = 0;
  } else if constexpr (TAPS == 2) {
    taps.weight[0] = 1 - t;
    taps.weight[1] = t;
    taps.slope[0] = -1;
    taps.slope[1] = 1;
  } else {
    cubic_far(1 + t, taps.weight[0], taps.slope[0]);
    cubic_near(t, taps.weight[1], taps.slope[1]);
    cubic_near(1 - t, taps.weight[2], taps.slope[2]);
    cubic_far(2 - t, taps.weight[3], taps.slope[3]);
    taps.slope[2] = -taps.slope[2];
    taps.slope[3] = -taps.slope[3];
  }
}

// The input that a bicubic sample's padding moves a tap to, each tap on its own.
__device__ __forceinline__ index_t bounded(index_t at, index_t size, const GridSampleParams& p) {
  if (p.padding == BORDER) return most(0, least(at, size - 1));
  if (p.padding == REFLECTION) {
    const index_t period = period_of(size, p), rest = at % period, within = rest < 0 ? rest + period : rest;
    return within < size ? within : (p.aligned ? period : period - 1) - within;
  }
  return at;
}

__device__ __forceinline__ AxisTaps taps_of(acc_t coordinate, index_t length, const GridSampleParams& p) {
  const acc_t size = static_cast<acc_t>(length);
  acc_t x = placed(coordinate, size, p), direction = 1;
  const bool is_infinite = x == x && x - x != 0;
  if (x != x || (is_infinite && p.padding == REFLECTION)) x = placed(-1, size, p);
  if (TAPS < 4) {
    x = padded(x, size, direction, p);
  } else if (p.padding == REFLECTION) {
    x = fmod(x, static_cast<acc_t>(period_of(length, p)));
  } else {
    x = clamped(x, -4, size + 3);
  }

  AxisTaps taps;
  const acc_t first = TAPS == 1 ? rint(x) : floor(x);
  weigh(x - first, taps);
  const acc_t rate = direction * (p.aligned ? size - 1 : size) / 2;
#pragma unroll
  for (int k = 0; k < TAPS; ++k) {
    index_t at = static_cast<index_t>(first) + k - (TAPS == 4 ? 1 : 0);
    if (TAPS == 4) at = bounded(at, length, p);
    const bool inside = at >= 0 && at < length;
    taps.at[k] = inside ? at : 0;
    taps.weight[k] = inside ? taps.weight[k] : 0;
    taps.slope[k] = inside ? taps.slope[k] * rate : 0;
  }
  return taps;
}

// The one tap of an axis that images do not have.
__device__ __forceinline__ AxisTaps single_tap() {
  AxisTaps taps = {};
  taps.weight[0] = 1;
  return taps;
}

struct SampleTaps {
  AxisTaps d, h, w;
};

// Whether samples are of volumes, which no bicubic ones are.
__device__ __forceinline__ bool has_depth(const GridSampleParams& p) { return TAPS < 4 && p.rank == 3; }

// Those of the sample o of the image n; the grid's coordinates are along W, H and D.
__device__ __forceinline__ SampleTaps sample_taps(const scalar_t* __restrict__ grid, index_t n, const Position& o,
                                                  const GridSampleParams& p) {
  const scalar_t* const from = grid + n * p.grid_n + o.d * p.grid_d + o.h * p.grid_h + o.w * p.grid_w;
  SampleTaps taps;
  taps.w = taps_of(widen(from[0]), p.w, p);
  taps.h = taps_of(widen(from[p.grid_a]), p.h, p);
  taps.d = has_depth(p) ? taps_of(widen(from[2 * p.grid_a]), p.d, p) : single_tap();
  return taps;
}

// Taps along D: images have one.
__device__ __forceinline__ int taps_d(const GridSampleParams& p) { return has_depth(p) ? TAPS : 1; }

// The position in [0, OD * OH * OW) of a sample.
__device__ __forceinline__ Position sample_position(index_t o, const GridSampleParams& p) {
  return position(o, 1, p.od, p.oh, p.ow, false);
}

// A thread's image, position in [0, size) of a plane, and first channel; the next is `slots` on. Adjacent threads have
// adjacent positions or, where channels are last, adjacent channels.
struct Share {
  index_t n, at, slot;
};

__device__ __forceinline__ Share share(index_t i, index_t size, const GridSampleParams& p) {
  if (p.channels_last) {
    const index_t rest = quotient(i, p.slots), n = quotient(rest, size);
    return {n, rest - n * size, i - rest * p.slots};
  }
  const index_t rest = quotient(i, size), n = quotient(rest, p.slots);
  return {n, i - rest * size, rest - n * p.slots};
}
