// The activations without corners and those that stand in for them, and their derivatives, as in
// gpucnn/backends/smooth.py: each is a share of 1, or that share of x.
#pragma once

#include "exponential.hpp"

enum { NOT_SMOOTH, SIGMOID, HARD_SIGMOID, SILU, HARD_SWISH, GELU, GELU_TANH };  // as Epilogue.SMOOTH in base.py

template <int KIND>
constexpr bool IS_SHARE = KIND == SIGMOID || KIND == HARD_SIGMOID;  // of 1, not of x

constexpr scalar_t BOUND = 1000;  // beyond it shares and slopes do not change

template <class V>
INLINE V bounded(V x, scalar_t least, scalar_t most) {
  x = x < all<V>(least) ? all<V>(least) : x;
  return x > all<V>(most) ? all<V>(most) : x;
}

template <class V>
INLINE V sigmoid(V x) {
  return all<V>(1) / (all<V>(1) + exponential(-x));
}

// sigmoid(x) * sigmoid(-x), which is exp(-|x|) / (1 + exp(-|x|))^2.
template <class V>
INLINE V sigmoid_slope(V x) {
  V power = exponential(x < all<V>(0) ? x : -x), above = power + all<V>(1);
  return power / above / above;
}

template <class V>
struct Curve {
  V share, slope;  // the share, and its derivative
};

// The share of the normal distribution below x, and its density: see normal.py, which has the coefficients too.
template <class V>
INLINE Curve<V> normal(V x) {
  constexpr double IN_DOUBLE[] = {
      1.2375126308378275,     -0.14024059858554697,   0.0035854154854644293,   0.0822767384901452,
      -0.10880393014174886,   0.09230432116037748,    -0.05869339858963677,    0.028362277418956406,
      -0.009746579558029276,  0.0017556258528952954,  0.0002937136655913448,   -0.0002901540805408417,
      5.164909889268241e-05,  2.238423915508223e-05,  -1.1444146237700524e-05, -9.73559896736775e-07,
      1.751637648849062e-06,  -5.7218230603224086e-08, -2.5866850716155884e-07, 2.3263508708859124e-08,
      3.8675334242222354e-08, -3.744210080962018e-09, -5.1739902140113095e-09, 3.1114333809799254e-10,
      4.2514714447963895e-10};
  constexpr double IN_FLOAT[] = {1.23751262,     -0.140240658,  0.00358627039,  0.08227842,
                                 -0.10881427,    0.0922907696,  -0.0586468587,  0.0284092524,
                                 -0.00984449486, 0.00167591222, 0.000396307613, -0.000224116747};
  constexpr int COUNT = IS_DOUBLE ? 25 : 12;
  const double* coefficients = IS_DOUBLE ? IN_DOUBLE : IN_FLOAT;
  V z = (x < all<V>(0) ? -x : x) * all<V>(scalar_t(0.70710678118654752)), centre = all<V>(scalar_t(3.75));
  V t = (z - centre) / (z + centre), tail = all<V>(scalar_t(coefficients[COUNT - 1]));
  for (int i = COUNT - 2; i >= 0; i--) tail = tail * t + all<V>(scalar_t(coefficients[i]));
  V power = exponential(x * x * all<V>(scalar_t(-0.5)));
  tail = tail * power / (z * all<V>(4) + all<V>(2));
  return {x < all<V>(0) ? tail : all<V>(1) - tail, power * all<V>(scalar_t(0.39894228040143268))};
}

template <int KIND, class V>
INLINE Curve<V> curve(V x) {
  if constexpr (KIND == SIGMOID || KIND == SILU) return {sigmoid(x), sigmoid_slope(x)};
  if constexpr (KIND == GELU) return normal(x);
  if constexpr (KIND == HARD_SIGMOID || KIND == HARD_SWISH) {
    V sixth = all<V>(scalar_t(1) / 6);  // by which 6 is 1 in both precisions
    V slope = x > all<V>(-3) ? sixth : all<V>(0);  // of a NaN 0
    slope = x < all<V>(3) ? slope : all<V>(0);
    return {bounded(x + all<V>(3), 0, 6) * sixth, slope};
  }
  V scale = all<V>(scalar_t(1.5957691216057308)), cubic = all<V>(scalar_t(0.044715 * 1.5957691216057308));
  V square = x * x, angle = (square * cubic + scale) * x;  // (1 + tanh(u)) / 2 is sigmoid(2 u)
  return {sigmoid(angle), sigmoid_slope(angle) * (square * cubic * all<V>(3) + scale)};
}

template <int KIND, class V>
INLINE V smoothed(V x) {
  V share = curve<KIND>(bounded(x, -BOUND, BOUND)).share;
  return IS_SHARE<KIND> ? share : share * x;
}

template <int KIND, class V>
INLINE V smooth_derivative(V x) {
  x = bounded(x, -BOUND, BOUND);
  Curve<V> found = curve<KIND>(x);
  return IS_SHARE<KIND> ? found.slope : found.slope * x + found.share;
}

// Call f with the kind as a constant.
template <class F>
INLINE void with_kind(index_t kind, F f) {
  if (kind == SIGMOID) f(std::integral_constant<int, SIGMOID>());
  if (kind == HARD_SIGMOID) f(std::integral_constant<int, HARD_SIGMOID>());
  if (kind == SILU) f(std::integral_constant<int, SILU>());
  if (kind == HARD_SWISH) f(std::integral_constant<int, HARD_SWISH>());
  if (kind == GELU) f(std::integral_constant<int, GELU>());
  if (kind == GELU_TANH) f(std::integral_constant<int, GELU_TANH>());
}

// Applies an activation to a row in place. The last lanes have a vector of their own: one that overlaps would activate
// twice.
[[maybe_unused]] static __attribute__((noinline)) void smooth_row(index_t kind, scalar_t* row, index_t count) {
  with_kind(kind, [&](auto k) LAMBDA {
    index_t i = 0;
    for (; i + LANES <= count; i += LANES) store(row + i, smoothed<k()>(load(row + i)));
    if (i < count) store_first(row + i, smoothed<k()>(load_first(row + i, count - i)), count - i);
  });
}
