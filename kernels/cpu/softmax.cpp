// Softmax of x [A, L, B] along L, or its logarithm, and their gradients; arrays are in C order.
//
// Where B is 1, an item has rows of L, which are read again from the cache. Else it has some of the lanes B of an image
// A, [L, width], in its workspace: strides of a power of two would fall on few sets of the cache.
#include <cmath>
#include <limits>

#include "exponential.hpp"
#include "runs.hpp"

struct Params {
  index_t a, l, b;
  index_t is_log;
  index_t width;  // lanes of an item, a multiple of LANES
  index_t items;
};

constexpr scalar_t LOWEST = -std::numeric_limits<scalar_t>::infinity();
constexpr index_t BLOCK = 64;  // values of a lane that are summed before their sum is added

template <class V>
INLINE V greater(V a, V b) {
  return a > b ? a : b;
}

// --- Rows -------------------------------------------------------------------------------------------------------------

INLINE scalar_t maximum(const scalar_t* x, index_t length) {
  vector_t most[4];
  for (vector_t& each : most) each = broadcast(LOWEST);
  for_runs({1, 0, length}, [&](auto at, int k) LAMBDA { most[k] = greater(at.of(x, LOWEST), most[k]); });
  vector_t lanes = greater(greater(most[0], most[1]), greater(most[2], most[3]));
  scalar_t found = lanes[0];
  for (int i = 1; i < LANES; i++) found = max(found, lanes[i]);
  return found;
}

// The sum of f(vector, x of a piece) over the vectors of a row.
template <class F>
INLINE scalar_t row_sum(index_t length, F f) {
  double sum = 0;
  for_pieces({1, 0, length}, [&](index_t start, Runs piece) LAMBDA {
    vector_t sums[4] = {};
    for_runs(piece, [&](auto at, int k) LAMBDA { sums[k] += f(at, start); });
    sum += total((sums[0] + sums[1]) + (sums[2] + sums[3]));
  });
  return scalar_t(sum);
}

INLINE void row_softmax(const scalar_t* x, index_t length, scalar_t* y) {
  scalar_t most = maximum(x, length);
  for_vectors(length, [&]<class V>(index_t i) LAMBDA { put(y + i, exponential(get<V>(x + i) - all<V>(most))); });
  scalar_t scale = 1 / row_sum(length, [&](auto at, index_t start) LAMBDA { return at.of(y + start, 0); });
  index_t whole = length / LANES * LANES;
  for (index_t i = 0; i < whole; i += LANES) store(y + i, load(y + i) * scale);
  if (whole == length) return;
  if (whole) {  // the last vector overlaps the one before it
    index_t i = length - LANES;
    store(y + i, exponential(load(x + i) - most) * scale);
  } else {
    for (index_t i = 0; i < length; i++) y[i] *= scale;
  }
}

INLINE void row_log_softmax(const scalar_t* x, index_t length, scalar_t* y) {
  scalar_t most = maximum(x, length);
  scalar_t shift = std::log(row_sum(length, [&](auto at, index_t start) LAMBDA {
    return exponential(at.of(x + start, LOWEST) - most);
  }));
  for_vectors(length, [&]<class V>(index_t i) LAMBDA { put(y + i, get<V>(x + i) - all<V>(most) - all<V>(shift)); });
}

KERNEL softmax_rows(const Params* p, const scalar_t* x, scalar_t* y, scalar_t* workspace, int64_t item) {
  Range rows = part_of(p->a, item, p->items);
  for (index_t at = rows.begin * p->l; at < rows.end * p->l; at += p->l) {
    p->is_log ? row_log_softmax(x + at, p->l, y + at) : row_softmax(x + at, p->l, y + at);
  }
}

KERNEL softmax_rows_backward(const Params* p, const scalar_t* grad_y, const scalar_t* y, scalar_t* grad_x,
                             scalar_t* workspace, int64_t item) {
  Range rows = part_of(p->a, item, p->items);
  index_t length = p->l;
  for (index_t row = rows.begin; row < rows.end; row++) {
    const scalar_t *g = grad_y + row * length, *of = y + row * length;
    scalar_t* to = grad_x + row * length;
    if (p->is_log) {
      scalar_t sum = row_sum(length, [&](auto at, index_t start) LAMBDA { return at.of(g + start, 0); });
      for_vectors(length, [&]<class V>(index_t i) LAMBDA {
        put(to + i, get<V>(g + i) - exponential(get<V>(of + i)) * all<V>(sum));
      });
    } else {
      scalar_t sum = row_sum(length, [&](auto at, index_t start) LAMBDA {
        return at.of(g + start, 0) * at.of(of + start, 0);
      });
      for_vectors(length, [&]<class V>(index_t i) LAMBDA {
        put(to + i, get<V>(of + i) * (get<V>(g + i) - all<V>(sum)));
      });
    }
  }
}

// --- Lanes ------------------------------------------------------------------------------------------------------------

// An item's lanes: where they begin in the arrays, and how many there are.
struct Strip {
  index_t start, count;
};

INLINE Strip strip_of(const Params* p, index_t item) {
  index_t strips = ceil_div(p->b, p->width), lane = item % strips * p->width;
  return {item / strips * p->l * p->b + lane, min(p->width, p->b - lane)};
}

// Copy a strip to [L, width]; what is in lanes that it does not have is computed too, and not copied back.
INLINE void take(const Params* p, const scalar_t* x, Strip strip, scalar_t* to) {
  for (index_t l = 0; l < p->l; l++, to += p->width) {
    memcpy(to, x + strip.start + l * p->b, strip.count * sizeof(scalar_t));
  }
}

INLINE void give(const Params* p, const scalar_t* from, Strip strip, scalar_t* y) {
  for (index_t l = 0; l < p->l; l++, from += p->width) {
    memcpy(y + strip.start + l * p->b, from, strip.count * sizeof(scalar_t));
  }
}

// Call f<S>(i) for S vectors of lanes at i, that cover the strip.
template <class F>
INLINE void for_lanes(Strip strip, F f) {
  index_t i = 0;
  for (; i + 4 * LANES <= strip.count; i += 4 * LANES) f.template operator()<4>(i);
  for (; i < strip.count; i += LANES) f.template operator()<1>(i);
}

// The sums of S vectors of lanes of f(j, where), `where` being that of the j-th vector in [L, width].
template <int S, class F>
INLINE void lane_sums(const Params* p, index_t i, vector_t* sums, F f) {
  for (int j = 0; j < S; j++) sums[j] = vector_t{};
  for (index_t begin = 0; begin < p->l; begin += BLOCK) {
    vector_t part[S] = {};
    for (index_t l = begin; l < min(begin + BLOCK, p->l); l++) {
      for (int j = 0; j < S; j++) part[j] += f(j, l * p->width + i + j * LANES);
    }
    for (int j = 0; j < S; j++) sums[j] += part[j];
  }
}

// Softmax of lanes in place.
template <int S>
INLINE void lane_softmax(const Params* p, scalar_t* x, index_t i) {
  vector_t most[S], sums[S];
  for (vector_t& each : most) each = broadcast(LOWEST);
  for (index_t l = 0; l < p->l; l++) {
    for (int j = 0; j < S; j++) most[j] = greater(load(x + l * p->width + i + j * LANES), most[j]);
  }
  lane_sums<S>(p, i, sums, [&](int j, index_t at) LAMBDA {
    vector_t power = exponential(load(x + at) - most[j]);
    if (!p->is_log) store(x + at, power);
    return power;
  });
  for (int j = 0; j < S; j++) {
    for (int lane = 0; lane < LANES; lane++) sums[j][lane] = p->is_log ? std::log(sums[j][lane]) : 1 / sums[j][lane];
  }
  for (index_t l = 0; l < p->l; l++) {
    for (int j = 0; j < S; j++) {
      scalar_t* at = x + l * p->width + i + j * LANES;
      store(at, p->is_log ? load(at) - most[j] - sums[j] : load(at) * sums[j]);
    }
  }
}

KERNEL softmax_lanes(const Params* p, const scalar_t* x, scalar_t* y, scalar_t* workspace, int64_t item) {
  Strip strip = strip_of(p, item);
  take(p, x, strip, workspace);
  for_lanes(strip, [&]<int S>(index_t i) LAMBDA { lane_softmax<S>(p, workspace, i); });
  give(p, workspace, strip, y);
}

KERNEL softmax_lanes_backward(const Params* p, const scalar_t* grad_y, const scalar_t* y, scalar_t* grad_x,
                              scalar_t* workspace, int64_t item) {
  Strip strip = strip_of(p, item);
  scalar_t *g = workspace, *of = g + p->l * p->width;
  take(p, grad_y, strip, g);
  take(p, y, strip, of);
  for_lanes(strip, [&]<int S>(index_t i) LAMBDA {
    vector_t sums[S];
    lane_sums<S>(p, i, sums, [&](int, index_t at) LAMBDA {
      return p->is_log ? load(g + at) : load(g + at) * load(of + at);
    });
    for (index_t l = 0; l < p->l; l++) {
      for (int j = 0; j < S; j++) {
        index_t at = l * p->width + i + j * LANES;
        vector_t grad = load(g + at), value = load(of + at);
        store(g + at, p->is_log ? grad - exponential(value) * sums[j] : value * (grad - sums[j]));
      }
    }
  });
  give(p, g, strip, grad_x);
}
