// Shared code of the norms: positions in x, compensated sums, and packs of values.

// --- Positions in x --------------------------------------------------------------------------------------------------

struct Place {  // along axes 0 to 3, see params.cuh
  index_t i0, i1, i2, i3;
};

// The i-th position, axis 3 fastest. Axis 0 takes the quotient, so its size is not needed.
__device__ __forceinline__ Place place(index_t i, index_t size_1, index_t size_2, index_t size_3) {
  const index_t rest_3 = quotient(i, size_3), rest_2 = quotient(rest_3, size_2), rest_1 = quotient(rest_2, size_1);
  return {rest_1, rest_2 - rest_1 * size_1, rest_3 - rest_2 * size_2, i - rest_3 * size_3};
}

__device__ __forceinline__ index_t offset(Place at, index_t step_0, index_t step_1, index_t step_2, index_t step_3) {
  return at.i0 * step_0 + at.i1 * step_1 + at.i2 * step_2 + at.i3 * step_3;
}

// --- Compensated sums ------------------------------------------------------------------------------------------------

// A rounded sum and its accumulated rounding errors (Knuth's two-sum, The Art of Computer Programming 2, 4.2.2): nearly
// twice the precision of acc_t, for some additions in memory-bound code. A plain float32 sum is off by 4e-5 after four
// thousand times 0.1, and by a hundredth after a million.
struct Sum {
  acc_t value, lost;
};

// The same bits for a + b and b + a.
__device__ __forceinline__ Sum operator+(Sum a, Sum b) {
  const acc_t value = a.value + b.value;
  const acc_t from_b = value - a.value;
  const acc_t lost = (a.value - (value - from_b)) + (b.value - from_b);
  return {value, a.lost + b.lost + lost};
}

__device__ __forceinline__ Sum operator+(Sum a, acc_t b) { return a + Sum{b, 0}; }

// Exact for a factor that is a power of two.
__device__ __forceinline__ Sum operator*(Sum a, acc_t factor) { return {a.value * factor, a.lost * factor}; }

// The sum in acc_t. Where it is infinite, the error term is NaN and is ignored.
__device__ __forceinline__ acc_t rounded(Sum sum) { return sum.lost == sum.lost ? sum.value + sum.lost : sum.value; }

// The sum of a few values in pairs.
template <int N>
__device__ __forceinline__ acc_t paired(acc_t (&values)[N]) {
#pragma unroll
  for (int half = N / 2; half > 0; half /= 2) {
#pragma unroll
    for (int e = 0; e < half; ++e) values[e] = values[e] + values[e + half];
  }
  return values[0];
}

__device__ __forceinline__ acc_t of_lane(acc_t value, int distance) {
  return __shfl_xor_sync(0xffffffffu, value, distance);
}

__device__ __forceinline__ Sum of_lane(Sum sum, int distance) {
  return {of_lane(sum.value, distance), of_lane(sum.lost, distance)};
}

// Sums over lanes of a warp with stride `apart`, within groups of `lanes`; both are powers of two, and all lanes of the
// warp call it. The result is in each of them.
template <int N, typename T>
__device__ __forceinline__ void add_lanes(T (&sums)[N], int lanes, int apart) {
  for (int distance = lanes / 2; distance >= apart; distance /= 2) {
#pragma unroll
    for (int k = 0; k < N; ++k) sums[k] = sums[k] + of_lane(sums[k], distance);
  }
}

// --- Statistics of values of any size --------------------------------------------------------------------------------

// The squares of float32 values beyond 2^64 overflow, and those of values below 2^-63 lose digits. Where the sum of
// squares shows that, a block recomputes its sums from values scaled by a power of two: both scales keep the squares of
// all values that need them in range, and sums of 2^31 of them. Other values cost two comparisons a sum.
constexpr bool IS_FLOAT = sizeof(acc_t) == 4;
constexpr acc_t UP = static_cast<acc_t>(IS_FLOAT ? 0x1p96 : 0x1p768);
constexpr acc_t DOWN = static_cast<acc_t>(IS_FLOAT ? 0x1p-96 : 0x1p-768);
constexpr acc_t LARGEST = static_cast<acc_t>(IS_FLOAT ? 0x1.fffffep127 : 0x1.fffffffffffffp1023);
constexpr acc_t SMALLEST = static_cast<acc_t>(IS_FLOAT ? 0x1p-103 : 0x1p-970);  // of a variance with full precision

template <typename T>
constexpr bool SQUARES_FIT = false;  // the squares of all values of the type
template <>
constexpr bool SQUARES_FIT<half_t> = true;

// Scale for n values whose squares about the mean sum to `squares`; 1 where none is needed.
__device__ __forceinline__ acc_t scale_for(acc_t squares, acc_t n, double eps) {
  if (!(squares <= LARGEST)) return DOWN;  // NaN as well: it may be inf - inf
  return squares < n * (SMALLEST - static_cast<acc_t>(eps)) ? UP : 1;
}

// Mean, biased variance and 1 / sqrt(variance + eps). A variance beyond acc_t is infinite; its rstd is correct.
struct Statistics {
  acc_t mean, var, rstd;
};

__device__ __forceinline__ acc_t reciprocal_deviation(acc_t var, double eps) {
  return 1 / sqrt(var + static_cast<acc_t>(eps));
}

// Statistics of n values multiplied by `scale`, from the sums of d = x - pivot and of d^2. Rounding cannot make the
// variance negative.
__device__ __forceinline__ Statistics statistics(acc_t pivot, acc_t sum_d, acc_t sum_dd, acc_t n, double eps,
                                                 acc_t scale) {
  const acc_t mean_d = sum_d / n, scaled = (sum_dd - sum_d * mean_d) / n, back = 1 / scale;
  const acc_t variance = scaled < 0 ? 0 : scaled;  // NaN stays
  Statistics result;
  result.mean = (pivot + mean_d) * back;
  result.var = variance * back * back;
  result.rstd = reciprocal_deviation(result.var, eps);
  const acc_t sum = result.var + static_cast<acc_t>(eps);
  if (!(sum >= SMALLEST && sum <= LARGEST)) {
    result.rstd = scale / sqrt(variance + static_cast<acc_t>(eps) * scale * scale);
  }
  return result;
}

// --- Vectorised accesses to acc_t ------------------------------------------------------------------------------------

constexpr int WIDEST = 16 / sizeof(acc_t);

template <int N>
__device__ __forceinline__ void load_values(const acc_t* from, acc_t (&values)[N]) {
  constexpr int WIDTH = N < WIDEST ? N : WIDEST;
#pragma unroll
  for (int i = 0; i < N; i += WIDTH) {
    const Pack<acc_t, WIDTH> pack = load_pack<WIDTH>(from + i);
#pragma unroll
    for (int e = 0; e < WIDTH; ++e) values[i + e] = pack.at[e];
  }
}

template <int N>
__device__ __forceinline__ void store_values(acc_t* to, const acc_t (&values)[N]) {
  constexpr int WIDTH = N < WIDEST ? N : WIDEST;
#pragma unroll
  for (int i = 0; i < N; i += WIDTH) {
    Pack<acc_t, WIDTH> pack;
#pragma unroll
    for (int e = 0; e < WIDTH; ++e) pack.at[e] = values[i + e];
    store_pack(to + i, pack);
  }
}
