// Fully connected layers of few rows, which read or write the weights once, at the speed of memory: y = x w^T + bias and
// its gradients, for x [N, IN], w [OUT, IN] and y [N, OUT] in C order.
//
// All go along IN, which is contiguous, for BLOCK rows of w and of x at once, so that what is loaded of the ones meets
// all of the others in registers. Items are parts of OUT; for grad_x, whose sums are over OUT, parts of IN.
#include <type_traits>

#include "vectors.hpp"

struct Params {
  index_t n, inputs, outputs;
  index_t items;
};

constexpr index_t BLOCK = 4;

#define LAMBDA __attribute__((always_inline))

using Whole = std::integral_constant<index_t, LANES>;

INLINE vector_t get(const scalar_t* from, Whole) { return load(from); }
INLINE vector_t get(const scalar_t* from, index_t count) { return load_first(from, count); }
INLINE void put(scalar_t* to, vector_t v, Whole) { store(to, v); }
INLINE void put(scalar_t* to, vector_t v, index_t count) { store_first(to, v, count); }

// Call f(at, count) for the vectors of a range, of which the last one may have less than LANES.
template <class F>
INLINE void for_vectors(Range range, F f) {
  index_t at = range.begin;
  for (; at + LANES <= range.end; at += LANES) f(at, Whole());
  if (at < range.end) f(at, range.end - at);
}

// Call f(first, count) for blocks of a range; counts are BLOCK, and 1 for what is left, as constants.
template <class F>
INLINE void for_blocks(Range range, F f) {
  index_t at = range.begin;
  for (; at + BLOCK <= range.end; at += BLOCK) f(at, std::integral_constant<int, BLOCK>());
  for (; at < range.end; at++) f(at, std::integral_constant<int, 1>());
}

// Call f(o, outs, n, rows) for blocks of a range of OUT, and for each of them blocks of all rows.
template <class F>
INLINE void for_pairs(Range outputs, index_t n, F f) {
  for_blocks(outputs, [&](index_t o, auto outs) LAMBDA {
    for_blocks({0, n}, [&](index_t row, auto rows) LAMBDA { f(o, outs, row, rows); });
  });
}

// The gradients grad_y [N, OUT] of a block, each in all lanes.
template <int OUTS, int ROWS>
struct Factors {
  vector_t of[OUTS][ROWS];
  Factors(const scalar_t* grad_y, index_t step) {
    for (int o = 0; o < OUTS; o++)
      for (int n = 0; n < ROWS; n++) of[o][n] = broadcast(grad_y[n * step + o]);
  }
};

KERNEL linear(const Params* p, const scalar_t* x, const scalar_t* w, const scalar_t* bias, scalar_t* y,
              scalar_t* workspace, int64_t item) {
  index_t inputs = p->inputs;
  for_pairs(part_of(p->outputs, item, p->items), p->n, [&](index_t first, auto outs, index_t row, auto rows) LAMBDA {
    vector_t sums[outs()][rows()] = {};
    for_vectors({0, inputs}, [&](index_t i, auto count) LAMBDA {
      vector_t values[rows()];
      for (int n = 0; n < rows(); n++) values[n] = get(x + (row + n) * inputs + i, count);
      for (int o = 0; o < outs(); o++) {
        vector_t weight = get(w + (first + o) * inputs + i, count);
        for (int n = 0; n < rows(); n++) sums[o][n] += weight * values[n];
      }
    });
    for (int o = 0; o < outs(); o++)
      for (int n = 0; n < rows(); n++)
        y[(row + n) * p->outputs + first + o] = sum_of_lanes(sums[o][n]) + (bias ? bias[first + o] : scalar_t(0));
  });
}

KERNEL linear_backward_input(const Params* p, const scalar_t* grad_y, const scalar_t* w, scalar_t* grad_x,
                             scalar_t* workspace, int64_t item) {
  index_t inputs = p->inputs;
  Range vectors = part_of(ceil_div(inputs, LANES), item, p->items);
  Range part = {vectors.begin * LANES, min(vectors.end * LANES, inputs)};
  for (index_t n = 0; n < p->n; n++) fill(grad_x + n * inputs + part.begin, grad_x + n * inputs + part.end, 0);
  for_pairs({0, p->outputs}, p->n, [&](index_t first, auto outs, index_t row, auto rows) LAMBDA {
    Factors<outs(), rows()> factors(grad_y + row * p->outputs + first, p->outputs);
    for_vectors(part, [&](index_t i, auto count) LAMBDA {
      vector_t weights[outs()];
      for (int o = 0; o < outs(); o++) weights[o] = get(w + (first + o) * inputs + i, count);
      for (int n = 0; n < rows(); n++) {
        scalar_t* to = grad_x + (row + n) * inputs + i;
        vector_t sum = get(to, count);
        for (int o = 0; o < outs(); o++) sum += factors.of[o][n] * weights[o];
        put(to, sum, count);
      }
    });
  });
}

KERNEL linear_backward_weight(const Params* p, const scalar_t* x, const scalar_t* grad_y, scalar_t* grad_w,
                              scalar_t* workspace, int64_t item) {
  index_t inputs = p->inputs;
  for_pairs(part_of(p->outputs, item, p->items), p->n, [&](index_t first, auto outs, index_t row, auto rows) LAMBDA {
    Factors<outs(), rows()> factors(grad_y + row * p->outputs + first, p->outputs);
    for_vectors({0, inputs}, [&](index_t i, auto count) LAMBDA {
      vector_t values[rows()];
      for (int n = 0; n < rows(); n++) values[n] = get(x + (row + n) * inputs + i, count);
      for (int o = 0; o < outs(); o++) {
        scalar_t* to = grad_w + (first + o) * inputs + i;
        vector_t sum = row ? get(to, count) : vector_t{};
        for (int n = 0; n < rows(); n++) sum += factors.of[o][n] * values[n];
        put(to, sum, count);
      }
    });
  });
}
