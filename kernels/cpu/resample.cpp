// Separable resampling of x [N, C, D, H, W] to y [N, C, TD, TH, TW], a sparse matrix for each axis: target t of an axis
// is the sum of weights[e] * source[index[e]] over its entries e in [starts[t], starts[t + 1]). Interpolation and its
// adjoint differ in their matrices only. Rows of y are computed some at a time: first along D and H, then along W.
#include "transpose.hpp"

struct Params {
  index_t n, c, d, h, w;
  index_t td, th, tw;
  index_t x_n, x_c, x_d, x_h;
  index_t is_last;  // whether channels are innermost: rows are [W, C], else [W]; contiguous in x, all of y is dense
  index_t planes;   // that grow together, or 0
  index_t items;
};

constexpr index_t L = LANES;  // rows of one channel at a time, which are the lanes of vectors along W

// One axis: starts [targets + 1].
struct Matrix {
  const int64_t *starts, *index;
  const scalar_t* weights;
};

// y[i] = f(i) for i in [0, count), `f` computing vectors: the last one overlaps the one before.
template <class Vectors, class Scalars>
INLINE void for_each(index_t count, Vectors vector_at, Scalars scalar_at, scalar_t* y) {
  if (count < LANES) {
    for (index_t i = 0; i < count; i++) y[i] = scalar_at(i);
    return;
  }
  for (index_t i = 0; i < count - LANES; i += LANES) store(y + i, vector_at(i));
  store(y + count - LANES, vector_at(count - LANES));
}

INLINE void scale(const scalar_t* x, scalar_t weight, scalar_t* y, index_t count) {
  for_each(count, [=](index_t i) { return weight * load(x + i); }, [=](index_t i) { return weight * x[i]; }, y);
}

INLINE void blend(const scalar_t* a, scalar_t of_a, const scalar_t* b, scalar_t of_b, scalar_t* y, index_t count) {
  for_each(
      count, [=](index_t i) { return of_a * load(a + i) + of_b * load(b + i); },
      [=](index_t i) { return of_a * a[i] + of_b * b[i]; }, y);
}

INLINE void add(const scalar_t* __restrict__ x, scalar_t weight, scalar_t* __restrict__ y, index_t count) {
  for (index_t i = 0; i < count; i++) y[i] += weight * x[i];
}

// Planes [D, H] of rows.
struct Planes {
  const scalar_t* x;
  index_t d_step, h_step;
};

// The sum of rows along H, and of those along D: y [count].
static void sum_down(const Matrix& depths, const Matrix& heights, index_t td, index_t th, const Planes& planes,
                     scalar_t* y, index_t count) {
  bool is_first = true;
  for (int64_t e = depths.starts[td]; e < depths.starts[td + 1]; e++) {
    const scalar_t* plane = planes.x + depths.index[e] * planes.d_step;
    auto row = [&](int64_t f) { return plane + heights.index[f] * planes.h_step; };
    auto weight = [&](int64_t f) { return depths.weights[e] * heights.weights[f]; };
    int64_t f = heights.starts[th], end = heights.starts[th + 1];
    if (is_first && f + 1 < end) {
      blend(row(f), weight(f), row(f + 1), weight(f + 1), y, count);
      is_first = false;
      f += 2;
    } else if (is_first && f < end) {
      scale(row(f), weight(f), y, count);
      is_first = false;
      f++;
    }
    for (; f < end; f++) add(row(f), weight(f), y, count);
  }
  if (is_first) std::fill_n(y, count, scalar_t(0));
}

// y [TW, C] of x [W, C].
static void sum_pixels(const Params* p, const Matrix& widths, const scalar_t* x, scalar_t* y) {
  index_t c = p->c;
  auto pixel = [=](int64_t e) { return x + widths.index[e] * c; };
  for (index_t t = 0; t < p->tw; t++, y += c) {
    int64_t e = widths.starts[t], end = widths.starts[t + 1];
    if (e + 1 < end) {
      blend(pixel(e), widths.weights[e], pixel(e + 1), widths.weights[e + 1], y, c);
      for (e += 2; e < end; e++) add(pixel(e), widths.weights[e], y, c);
    } else if (e < end) {
      scale(pixel(e), widths.weights[e], y, c);
    } else {
      std::fill_n(y, c, scalar_t(0));
    }
  }
}

// y [rows, TW] of x [L, W], of which `rows` are valid: along W in vectors of L rows.
static void sum_across(const Params* p, const Matrix& widths, const scalar_t* x, scalar_t* y, index_t rows,
                       scalar_t* workspace) {
  scalar_t *columns = workspace, *sums = workspace + p->w * L;
  copy_transposed(x, p->w, columns, L, L, p->w);
  for (index_t t = 0; t < p->tw; t++) {
    vector_t sum = {};
    for (int64_t e = widths.starts[t]; e < widths.starts[t + 1]; e++) {
      sum += widths.weights[e] * load(columns + widths.index[e] * L);
    }
    store(sums + t * L, sum);
  }
  copy_transposed(sums, L, y, p->tw, p->tw, rows);
}

struct Matrices {
  Matrix depths, heights, widths;
};

static Planes planes_of(const Params* p, const scalar_t* x, index_t plane) {
  index_t channels = p->is_last ? 1 : p->c;
  return {x + plane / channels * p->x_n + plane % channels * p->x_c, p->x_d, p->x_h};
}

// Rows [begin, end) of y [planes, TD, TH]: down, then across.
static void shrink(const Params* p, const Matrices& of, const scalar_t* x, scalar_t* y, Range range,
                   scalar_t* workspace) {
  index_t length = p->is_last ? p->w * p->c : p->w, target = p->is_last ? p->tw * p->c : p->tw;
  index_t together = p->is_last ? 1 : L;
  for (index_t first = range.begin; first < range.end; first += together) {
    index_t rows = std::min(together, range.end - first);
    for (index_t i = 0; i < rows; i++) {
      index_t row = first + i, plane = row / (p->td * p->th), td = row / p->th % p->td, th = row % p->th;
      sum_down(of.depths, of.heights, td, th, planes_of(p, x, plane), workspace + i * length, length);
    }
    if (p->is_last) {
      sum_pixels(p, of.widths, workspace, y + first * target);
    } else {
      std::fill_n(workspace + rows * length, (L - rows) * length, scalar_t(0));
      sum_across(p, of.widths, workspace, y + first * target, rows, workspace + L * length);
    }
  }
}

// Planes [begin, end) of y, some at a time: across, then down, which is less work where there are more rows after it.
static void grow(const Params* p, const Matrices& of, const scalar_t* x, scalar_t* y, Range range,
                 scalar_t* workspace) {
  index_t rows = p->d * p->h;  // of a plane
  scalar_t *wide = workspace, *given = wide + p->planes * rows * p->tw, *rest = given + L * p->w;
  for (index_t first = range.begin; first < range.end; first += p->planes) {
    index_t planes = std::min(p->planes, range.end - first);
    for (index_t row = 0; row < planes * rows; row += L) {
      index_t count = std::min(L, planes * rows - row);
      for (index_t i = 0; i < count; i++) {
        auto [from, d_step, h_step] = planes_of(p, x, first + (row + i) / rows);
        index_t d = (row + i) % rows / p->h, h = (row + i) % p->h;
        memcpy(given + i * p->w, from + d * d_step + h * h_step, p->w * sizeof(scalar_t));
      }
      std::fill_n(given + count * p->w, (L - count) * p->w, scalar_t(0));
      sum_across(p, of.widths, given, wide + row * p->tw, count, rest);
    }
    for (index_t i = 0; i < planes; i++) {
      Planes source = {wide + i * rows * p->tw, p->h * p->tw, p->tw};
      scalar_t* to = y + (first + i) * p->td * p->th * p->tw;
      for (index_t t = 0; t < p->td * p->th; t++, to += p->tw) {
        sum_down(of.depths, of.heights, t / p->th, t % p->th, source, to, p->tw);
      }
    }
  }
}

KERNEL resample(const Params* p, const scalar_t* x, const int64_t* starts, const int64_t* index,
                const scalar_t* weights, scalar_t* y, scalar_t* workspace, int64_t item) {
  Matrices of = {{starts, index, weights},
                 {starts + p->td + 1, index, weights},
                 {starts + p->td + p->th + 2, index, weights}};
  index_t planes = p->is_last ? p->n : p->n * p->c;
  if (p->planes) {
    grow(p, of, x, y, part_of(planes, item, p->items), workspace);
  } else {
    shrink(p, of, x, y, part_of(planes * p->td * p->th, item, p->items), workspace);
  }
}
