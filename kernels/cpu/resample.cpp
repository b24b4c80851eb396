// Separable resampling of x [N, C, D, H, W] to y [N, C, TD, TH, TW], a sparse matrix for each axis: target t of an axis
// is the sum of weights[e] * source[index[e]] over its entries e in [starts[t], starts[t + 1]). Interpolation and its
// adjoint differ in their matrices only. Rows of y are computed some at a time: first along D and H, then along W.
#include "transpose.hpp"
#include "windows.hpp"

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
  if (is_first) fill_n(y, count, scalar_t(0));
}

// Rows [W, C] whose weighted sum is resampled along W: two at most, read once for each pixel.
struct Rows {
  const scalar_t* x[2];
  scalar_t weights[2];
};

// y [TW, C] of COUNT rows.
template <int COUNT>
static void sum_pixels(const Params* p, const Matrix& widths, const Rows& rows, scalar_t* y) {
  index_t c = p->c;
  const scalar_t *upper = rows.x[0], *lower = rows.x[COUNT - 1];
  scalar_t of_upper = rows.weights[0], of_lower = rows.weights[COUNT - 1];
  for (index_t t = 0; t < p->tw; t++, y += c) {
    int64_t e = widths.starts[t], end = widths.starts[t + 1];
    if (e + 1 < end) {
      index_t a = widths.index[e] * c, b = widths.index[e + 1] * c;
      scalar_t of_a = widths.weights[e], of_b = widths.weights[e + 1];
      if (COUNT == 1) blend(upper + a, of_upper * of_a, upper + b, of_upper * of_b, y, c);
      if (COUNT == 2) {
        for_each(
            c,
            [=](index_t i) {
              return of_upper * (of_a * load(upper + a + i) + of_b * load(upper + b + i)) +
                     of_lower * (of_a * load(lower + a + i) + of_b * load(lower + b + i));
            },
            [=](index_t i) {
              return of_upper * (of_a * upper[a + i] + of_b * upper[b + i]) +
                     of_lower * (of_a * lower[a + i] + of_b * lower[b + i]);
            },
            y);
      }
      e += 2;
    } else if (e < end) {
      index_t a = widths.index[e] * c;
      scalar_t of_a = widths.weights[e];
      if (COUNT == 1) scale(upper + a, of_upper * of_a, y, c);
      if (COUNT == 2) blend(upper + a, of_upper * of_a, lower + a, of_lower * of_a, y, c);
      e++;
    } else {
      fill_n(y, c, scalar_t(0));
    }
    for (; e < end; e++) {
      for (int k = 0; k < COUNT; k++) {
        add(rows.x[k] + widths.index[e] * c, rows.weights[k] * widths.weights[e], y, c);
      }
    }
  }
}

// Along W in vectors of L rows: y [rows, columns] of x [L, W], whose rows are a multiple of L long in memory, and so is
// the buffer of sums. What y has beyond TW is not valid.
static void sum_across(const Params* p, const Matrix& widths, const scalar_t* x, scalar_t* y, index_t y_step,
                       index_t rows, index_t columns, scalar_t* workspace) {
  index_t x_step = round_up(p->w, L);
  scalar_t *turned = workspace, *sums = workspace + x_step * L;
  copy_transposed(x, x_step, turned, L, L, x_step);
  for (index_t t = 0; t < p->tw; t++) {
    vector_t sum = {};
    for (int64_t e = widths.starts[t]; e < widths.starts[t + 1]; e++) {
      sum += widths.weights[e] * load(turned + widths.index[e] * L);
    }
    store(sums + t * L, sum);
  }
  copy_transposed(sums, L, y, y_step, columns, rows);
}

struct Matrices {
  Matrix depths, heights, widths;
};

static Planes planes_of(const Params* p, const scalar_t* x, index_t plane) {
  index_t channels = p->is_last ? 1 : p->c;
  return {x + plane / channels * p->x_n + plane % channels * p->x_c, p->x_d, p->x_h};
}

// One row of y [TW, C]: at once of up to two rows of x, else of their sum.
static void resample_pixels(const Params* p, const Matrices& of, index_t td, index_t th, const Planes& planes,
                            scalar_t* y, scalar_t* workspace) {
  int64_t e = of.depths.starts[td], f = of.heights.starts[th];
  index_t depths = of.depths.starts[td + 1] - e, heights = of.heights.starts[th + 1] - f;
  if (depths != 1 || heights < 1 || heights > 2) {
    sum_down(of.depths, of.heights, td, th, planes, workspace, p->w * p->c);
    sum_pixels<1>(p, of.widths, {{workspace}, {1}}, y);
    return;
  }
  Rows rows = {};
  for (index_t k = 0; k < heights; k++) {
    rows.x[k] = planes.x + of.depths.index[e] * planes.d_step + of.heights.index[f + k] * planes.h_step;
    rows.weights[k] = of.depths.weights[e] * of.heights.weights[f + k];
  }
  heights == 1 ? sum_pixels<1>(p, of.widths, rows, y) : sum_pixels<2>(p, of.widths, rows, y);
}

// Rows [begin, end) of y [planes, TD, TH]: down, then across.
static void resample_rows(const Params* p, const Matrices& of, const scalar_t* x, scalar_t* y, Range range,
                          scalar_t* workspace) {
  index_t together = p->is_last ? 1 : L, step = round_up(p->w, L);
  for (index_t first = range.begin; first < range.end; first += together) {
    index_t rows = min(together, range.end - first);
    for (index_t i = 0; i < rows; i++) {
      index_t row = first + i, plane = row / (p->td * p->th), td = row / p->th % p->td, th = row % p->th;
      Planes planes = planes_of(p, x, plane);
      if (p->is_last) {
        resample_pixels(p, of, td, th, planes, y + row * p->tw * p->c, workspace);
      } else {
        sum_down(of.depths, of.heights, td, th, planes, workspace + i * step, p->w);
      }
    }
    if (p->is_last) continue;
    sum_across(p, of.widths, workspace, y + first * p->tw, p->tw, rows, p->tw, workspace + L * step);
  }
}

// A plane of y [TD, TH, TW] of one that is resampled along W, whose rows are `step` long in memory.
static void sum_plane(const Params* p, const Matrices& of, const scalar_t* x, index_t step, scalar_t* y) {
  const Matrix& heights = of.heights;
  Planes planes = {x, p->h * step, step};
  for (index_t td = 0; td < p->td; td++) {
    int64_t e = of.depths.starts[td];
    bool is_copied = of.depths.starts[td + 1] == e + 1 && of.depths.weights[e] == 1;
    const scalar_t* plane = is_copied ? x + of.depths.index[e] * planes.d_step : nullptr;
    for (index_t th = 0; th < p->th; th++, y += p->tw) {
      int64_t f = heights.starts[th], count = heights.starts[th + 1] - f;
      if (is_copied && count == 1) {  // no call for each row, which may be short
        scale(plane + heights.index[f] * step, heights.weights[f], y, p->tw);
      } else if (is_copied && count == 2) {
        blend(plane + heights.index[f] * step, heights.weights[f], plane + heights.index[f + 1] * step,
              heights.weights[f + 1], y, p->tw);
      } else {
        sum_down(of.depths, heights, td, th, planes, y, p->tw);
      }
    }
  }
}

// Planes [begin, end) of y, some at a time: across, then down, which is less work where there are more rows after it.
static void resample_planes(const Params* p, const Matrices& of, const scalar_t* x, scalar_t* y, Range range,
                            scalar_t* workspace) {
  index_t rows = p->d * p->h, from_step = round_up(p->w, L), step = round_up(p->tw, L);
  scalar_t *wide = workspace, *given = wide + round_up(p->planes * rows, L) * step, *rest = given + L * from_step;
  for (index_t first = range.begin; first < range.end; first += p->planes) {
    index_t planes = min(p->planes, range.end - first);
    for (index_t row = 0; row < planes * rows; row++) {
      auto [from, d_step, h_step] = planes_of(p, x, first + row / rows);
      index_t d = row % rows / p->h, h = row % p->h;
      copy_run(from + d * d_step + h * h_step, given + row % L * from_step, p->w);
      if (row % L == L - 1 || row == planes * rows - 1) {
        sum_across(p, of.widths, given, wide + row / L * L * step, step, L, step, rest);
      }
    }
    for (index_t i = 0; i < planes; i++) {
      sum_plane(p, of, wide + i * rows * step, step, y + (first + i) * p->td * p->th * p->tw);
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
    resample_planes(p, of, x, y, part_of(planes, item, p->items), workspace);
  } else {
    resample_rows(p, of, x, y, part_of(planes * p->td * p->th, item, p->items), workspace);
  }
}
