// Sigmoid, GELU and GELU by a hyperbolic tangent of each element, or the gradient behind it, as in
// gpucnn/backends/smooth.py; arrays are without gaps, in one order.
#include "exponential.hpp"

enum { SIGMOID, GELU, GELU_TANH };  // as KINDS in smooth.py

struct Params {
  index_t count;
  index_t kind;
  index_t terms;  // of the polynomial for GELU, the highest power last
  index_t items;
};

constexpr scalar_t BOUND = 50;  // beyond it the share below x does not change

template <class V>
struct Curve {
  V share, slope;  // the factor of x and its derivative; of the sigmoid, itself and its derivative
};

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

// The share of the normal distribution below x, and its density: see normal.py.
template <class V>
INLINE Curve<V> normal(const Params* p, V x, const scalar_t* coefficients) {
  V z = (x < all<V>(0) ? -x : x) * all<V>(scalar_t(0.70710678118654752)), centre = all<V>(scalar_t(3.75));
  V t = (z - centre) / (z + centre), tail = all<V>(coefficients[p->terms - 1]);
  for (index_t i = p->terms - 2; i >= 0; i--) tail = tail * t + all<V>(coefficients[i]);
  V power = exponential(x * x * all<V>(scalar_t(-0.5)));
  tail = tail * power / (z * all<V>(4) + all<V>(2));
  return {x < all<V>(0) ? tail : all<V>(1) - tail, power * all<V>(scalar_t(0.39894228040143268))};
}

template <int KIND, class V>
INLINE Curve<V> curve(const Params* p, V x, const scalar_t* coefficients) {
  if constexpr (KIND == SIGMOID) return {sigmoid(x), sigmoid_slope(x)};
  if constexpr (KIND == GELU) return normal(p, x, coefficients);
  V scale = all<V>(scalar_t(1.5957691216057308)), cubic = all<V>(scalar_t(0.044715 * 1.5957691216057308));
  V square = x * x, angle = (square * cubic + scale) * x;  // (1 + tanh(u)) / 2 is sigmoid(2 u)
  return {sigmoid(angle), sigmoid_slope(angle) * (square * cubic * all<V>(3) + scale)};
}

template <class V>
INLINE V bounded(V x) {
  x = x < all<V>(-BOUND) ? all<V>(-BOUND) : x;
  return x > all<V>(BOUND) ? all<V>(BOUND) : x;
}

template <int KIND>
INLINE void compute(const Params* p, Range part, const scalar_t* grad_y, const scalar_t* x,
                    const scalar_t* coefficients, scalar_t* y) {
  for_vectors(part.end - part.begin, [&]<class V>(index_t i) LAMBDA {
    index_t at = part.begin + i;
    V value = get<V>(x + at), within = KIND == SIGMOID ? value : bounded(value);
    Curve<V> found = curve<KIND>(p, within, coefficients);
    V slope = KIND == SIGMOID ? found.slope : found.slope * within + found.share;
    put(y + at, grad_y ? slope * get<V>(grad_y + at) : KIND == SIGMOID ? found.share : found.share * value);
  });
}

// Without grad_y the activation, else the gradient; an item is some elements.
KERNEL smooth_activation(const Params* p, const scalar_t* grad_y, const scalar_t* x, const scalar_t* coefficients,
                         scalar_t* y, scalar_t* workspace, int64_t item) {
  Range part = part_of(p->count, item, p->items);
  if (p->kind == SIGMOID) compute<SIGMOID>(p, part, grad_y, x, coefficients, y);
  if (p->kind == GELU) compute<GELU>(p, part, grad_y, x, coefficients, y);
  if (p->kind == GELU_TANH) compute<GELU_TANH>(p, part, grad_y, x, coefficients, y);
}
