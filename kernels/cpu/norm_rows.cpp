// Norms of rows x [N, G, C] with statistics of (n, g), and weights and biases of (g, c): layer and RMS norm, and group
// norm without positions. A row is read for its sums, and again from the cache.
#include "norm.hpp"
#include "transpose.hpp"

struct Params {
  index_t n, g, c;
  index_t activation;
  double negative_slope;
  double eps;
  index_t has_rstd;  // whether rstd is passed as var
  index_t centred;  // 0 for a mean of 0
  index_t items;
};

constexpr index_t BLOCK = 16;   // long rows whose sums of (g, c) are taken in SCALAR
constexpr index_t SUMMED = 64;  // rows whose sums of (g, c) are taken in SCALAR
constexpr index_t SHORT = 16;   // values of a row whose statistics are taken in SCALAR, those of LANES rows at once

template <class Become>
INLINE void become(const Params* p, Become op, index_t row, scalar_t mean, scalar_t rstd, const scalar_t* weight,
                   const scalar_t* bias) {
  index_t of_group = row % p->g * p->c;
  for_vectors(p->c, [&]<class V>(index_t i) LAMBDA {
    V scale = all<V>(rstd) * get<V>(weight + of_group + i);
    index_t at = row * p->c + i;
    put(op.y + at, op(at, all<V>(mean), scale, get<V>(bias + of_group + i)));
  });
}

INLINE Statistic row_statistic(const Params* p, const scalar_t* x) {
  Runs run = {1, 0, p->c};
  Moments all = moments(x, run);
  return statistic(x, run, p->eps, p->centred ? all : about_zero(all), p->centred);
}

// The statistics of up to LANES short rows, each in a lane of its own; with LANES * C scalars of workspace.
static void short_statistics(const Params* p, const scalar_t* x, index_t rows, Statistic* found, scalar_t* workspace) {
  if (rows < LANES) fill_n(workspace, LANES * p->c, scalar_t(0));
  copy_transposed(x, p->c, workspace, LANES, rows, p->c);
  scalar_t count = scalar_t(p->c), eps = scalar_t(p->eps);
  vector_t sum = {}, first = {}, second = {};
  for (index_t i = 0; i < p->c; i++) sum += load(workspace + i * LANES);
  vector_t centre = sum / count;
  for (index_t i = 0; i < p->c; i++) {
    vector_t away = load(workspace + i * LANES) - centre;
    first += away, second += away * away;
  }
  vector_t rest = first / count, mean = centre + rest, square = second - first * rest;  // of the centre's rounding
  if (!p->centred) square += count * mean * mean, mean = vector_t{};
  vector_t var = square / count;
  for (index_t row = 0; row < rows; row++) {
    scalar_t positive = var[row] < 0 ? 0 : var[row];
    if (fits(positive, eps)) {
      found[row] = {mean[row], positive, reciprocal(positive, eps)};
    } else {
      found[row] = row_statistic(p, x + row * p->c);
    }
  }
}

// Statistics and, unless y is null, values.
KERNEL norm_rows_forward(const Params* p, const scalar_t* x, const scalar_t* weight, const scalar_t* bias,
                         const scalar_t* residual, scalar_t* mean, scalar_t* var, scalar_t* rstd, scalar_t* y,
                         scalar_t* workspace, int64_t item) {
  Range rows = part_of(p->n * p->g, item, p->items);
  index_t most = p->c <= SHORT ? LANES : 1;
  with_forward(p->activation, p->negative_slope, x, residual, y, [&](auto op) LAMBDA {
    for (index_t first = rows.begin; first < rows.end; first += most) {
      Statistic found[LANES];
      index_t count = min(most, rows.end - first);
      if (most > 1) {
        short_statistics(p, x + first * p->c, count, found, workspace);
      } else {
        found[0] = row_statistic(p, x + first * p->c);
      }
      for (index_t i = 0; i < count; i++) {
        index_t row = first + i;
        mean[row] = found[i].mean, var[row] = found[i].var, rstd[row] = found[i].rstd;
        if (y) become(p, op, row, found[i].mean, found[i].rstd, weight, bias);
      }
    }
  });
}

// Values by given statistics, or with grad_y the gradient with respect to the activation's input.
KERNEL norm_rows_apply(const Params* p, const scalar_t* grad_y, const scalar_t* x, const scalar_t* mean,
                       const scalar_t* var, const scalar_t* weight, const scalar_t* bias, const scalar_t* residual,
                       scalar_t* y, scalar_t* workspace, int64_t item) {
  Range rows = part_of(p->n * p->g, item, p->items);
  with_activation(p->activation, p->negative_slope, grad_y, x, residual, y, [&](auto op) LAMBDA {
    for (index_t row = rows.begin; row < rows.end; row++) {
      become(p, op, row, mean[row], *reciprocals(var + row, p->has_rstd, 1, p->eps, workspace), weight, bias);
    }
  });
}

// A row's sums of g = grad_y * weight and of g * h.
INLINE Sums row_sums(const scalar_t* grad_y, const scalar_t* x, const scalar_t* weight, index_t length, scalar_t mean,
                     scalar_t rstd) {
  Sums sums = {};
  for_pieces({1, 0, length}, [&](index_t start, Runs piece) LAMBDA {
    vector_t g[4] = {}, gh[4] = {};
    for_runs(piece, [&](auto at, int k) LAMBDA {
      vector_t grad = at.of(grad_y + start, 0) * at.of(weight + start, 0);
      vector_t h = (at.of(x + start, mean) - broadcast(mean)) * broadcast(rstd);
      g[k] += grad;
      gh[k] += grad * h;
    });
    sums.g += total((g[0] + g[1]) + (g[2] + g[3]));
    sums.gh += total((gh[0] + gh[1]) + (gh[2] + gh[3]));
  });
  return sums;
}

// What rows `stride` values apart have for the gradient, each `step` values apart.
struct Block {
  index_t rows, stride, step;
  const scalar_t *mean, *rstd, *of_h, *shift;
};

// Add the sums over a block's rows of each column's grad_y and grad_y * h to of_g and of_gh; with 2 * length scalars of
// workspace.
INLINE void column_sums(Gradient op, Block block, index_t length, double* of_g, double* of_gh, scalar_t* workspace) {
  for_strips(length, [&]<class V, int S>(index_t i) LAMBDA {
    V g[S] = {}, gh[S] = {};
    for (index_t r = 0; r < block.rows; r++) {
      V mean = all<V>(block.mean[r * block.step]), rstd = all<V>(block.rstd[r * block.step]);
      for (int j = 0; j < S; j++) {
        index_t at = r * block.stride + i + j * WIDTH<V>;
        V grad = get<V>(op.grad_y + at);
        g[j] += grad;
        gh[j] += grad * ((get<V>(op.x + at) - mean) * rstd);
      }
    }
    for (int j = 0; j < S; j++) {
      put(workspace + i + j * WIDTH<V>, g[j]);
      put(workspace + length + i + j * WIDTH<V>, gh[j]);
    }
  });
  for (index_t i = 0; i < length; i++) of_g[i] += workspace[i];
  for (index_t i = 0; i < length; i++) of_gh[i] += workspace[length + i];
}

// As above and, unless its array is null, the gradient. They are apart, so that sums have the same bits without it.
INLINE void block_backward(Gradient op, Block block, index_t length, const scalar_t* weight, double* of_g,
                           double* of_gh, scalar_t* workspace) {
  column_sums(op, block, length, of_g, of_gh, workspace);
  for (index_t r = 0; op.y && r < block.rows; r++) {
    index_t row = r * block.step, at = r * block.stride;
    scalar_t mean = block.mean[row], rstd = block.rstd[row], of_h = block.of_h[row], shift = block.shift[row];
    for_vectors(length, [&]<class V>(index_t i) LAMBDA {
      V of_grad = all<V>(rstd) * get<V>(weight + i);
      put(op.y + at + i, op(at + i, all<V>(mean), all<V>(rstd), of_grad, all<V>(of_h), all<V>(shift)));
    });
  }
}

// What a row has in common for the gradient: the factor of h, and what is added.
INLINE void store_shares(const scalar_t* grad_y, const scalar_t* x, const scalar_t* weight, index_t length,
                         scalar_t mean, scalar_t rstd, scalar_t* of_h, scalar_t* shift) {
  Sums found = row_sums(grad_y, x, weight, length, mean, rstd);
  *of_h = -rstd * scalar_t(found.gh / double(length));
  *shift = -rstd * scalar_t(found.g / double(length));
}

// Add the sums of R rows' grad_y and grad_y * h to those of columns, of_g and of_gh, and return the rows' own of
// g = grad_y * weight and of g * h: all in one pass, in which a vector of columns is read and written once for R rows.
template <int R>
INLINE void block_sums(Gradient op, Block block, index_t length, const scalar_t* weight, scalar_t* of_g, scalar_t* of_gh,
                       Sums* sums) {
  for_pieces({1, 0, length}, [&](index_t start, Runs piece) LAMBDA {
    vector_t g[R] = {}, gh[R] = {};
    auto add = [&](auto at, index_t column) LAMBDA {
      vector_t scale = at.of(weight + start, 0), column_g = load(of_g + column), column_gh = load(of_gh + column);
      for (int r = 0; r < R; r++) {
        index_t row = start + r * block.stride;
        vector_t grad = at.of(op.grad_y + row, 0), away = at.of(op.x + row, block.mean[r]) - broadcast(block.mean[r]);
        vector_t product = grad * (away * broadcast(block.rstd[r]));
        column_g += grad, column_gh += product;
        g[r] += grad * scale, gh[r] += product * scale;
      }
      store(of_g + column, column_g);
      store(of_gh + column, column_gh);
    };
    index_t i = 0, rest = piece.length % LANES;
    for (; i + LANES <= piece.length; i += LANES) add(Whole{i}, start + i);
    if (rest) add(Rest{0, piece.length, rest}, start + max<index_t>(0, piece.length - LANES));
    for (int r = 0; r < R; r++) sums[r].g += total(g[r]), sums[r].gh += total(gh[r]);
  });
}

// The gradient of a row by its sums.
INLINE void row_gradient(Gradient op, index_t length, scalar_t mean, scalar_t rstd, const scalar_t* weight, Sums sums) {
  scalar_t of_h = -rstd * scalar_t(sums.gh / double(length)), shift = -rstd * scalar_t(sums.g / double(length));
  for_vectors(length, [&]<class V>(index_t i) LAMBDA {
    V of_grad = all<V>(rstd) * get<V>(weight + i);
    put(op.y + i, op(i, all<V>(mean), all<V>(rstd), of_grad, all<V>(of_h), all<V>(shift)));
  });
}

// Sums [items, 2, G * C] of grad_y and of grad_y * h and, unless grad_x is null, the gradient; an item is some images,
// four at a time, whose rows are read again from the first cache.
KERNEL norm_rows_backward(const Params* p, const scalar_t* grad_y, const scalar_t* x, const scalar_t* mean,
                          const scalar_t* rstd, const scalar_t* weight, double* sums, scalar_t* grad_x,
                          scalar_t* workspace, int64_t item) {
  Range images = part_of(p->n, item, p->items);
  index_t length = p->c, stride = p->g * length, room = round_up(length, LANES);
  scalar_t *column_g = workspace, *column_gh = column_g + room;
  for (index_t g = 0; g < p->g; g++) {
    const scalar_t* of_group = weight + g * length;
    double *of_g = sums + item * 2 * stride + g * length, *of_gh = of_g + stride;
    fill(of_g, of_g + length, 0.0);
    fill(of_gh, of_gh + length, 0.0);
    for (index_t n = images.begin, end; n < images.end;) {
      fill(workspace, workspace + 2 * room, scalar_t(0));
      for (end = min(images.end, n + SUMMED); n < end;) {
        index_t rows = end - n >= 4 ? 4 : 1, first = n * p->g + g;
        scalar_t centre[4], scale[4];
        for (index_t r = 0; r < rows; r++) centre[r] = mean[first + r * p->g], scale[r] = rstd[first + r * p->g];
        Gradient op = {grad_y + first * length, x + first * length, grad_x ? grad_x + first * length : nullptr};
        Block block = {rows, stride, 1, centre, scale, nullptr, nullptr};
        Sums found[4] = {};
        if (rows == 4) block_sums<4>(op, block, length, of_group, column_g, column_gh, found);
        if (rows == 1) block_sums<1>(op, block, length, of_group, column_g, column_gh, found);
        for (index_t r = 0; op.y && r < rows; r++) {
          if (!p->centred) found[r].g = 0;
          row_gradient(op.at(r * stride), length, centre[r], scale[r], of_group, found[r]);
        }
        n += rows;
      }
      for (index_t i = 0; i < length; i++) of_g[i] += column_g[i];
      for (index_t i = 0; i < length; i++) of_gh[i] += column_gh[i];
    }
  }
}

// For long rows, of which sums [2, G * C] of each item would take too long: first what rows have in common.
KERNEL norm_rows_shares(const Params* p, const scalar_t* grad_y, const scalar_t* x, const scalar_t* mean,
                        const scalar_t* rstd, const scalar_t* weight, scalar_t* of_h, scalar_t* shift,
                        scalar_t* workspace, int64_t item) {
  Range rows = part_of(p->n * p->g, item, p->items);
  for (index_t row = rows.begin; row < rows.end; row++) {
    index_t at = row * p->c;
    store_shares(grad_y + at, x + at, weight + row % p->g * p->c, p->c, mean[row], rstd[row], of_h + row, shift + row);
    if (!p->centred) shift[row] = 0;
  }
}

// Then the sums [2, G * C] and the gradient; an item is some columns of a group.
KERNEL norm_rows_columns(const Params* p, const scalar_t* grad_y, const scalar_t* x, const scalar_t* mean,
                         const scalar_t* rstd, const scalar_t* weight, const scalar_t* of_h, const scalar_t* shift,
                         double* sums, scalar_t* grad_x, scalar_t* workspace, int64_t item) {
  index_t parts = p->items / p->g, g = item / parts, row = p->g * p->c;
  Range columns = part_of(p->c, item % parts, parts);
  index_t length = columns.end - columns.begin, first = g * p->c + columns.begin;
  double *of_g = sums + first, *of_gh = of_g + row;
  fill(of_g, of_g + length, 0.0);
  fill(of_gh, of_gh + length, 0.0);
  for (index_t n = 0; n < p->n; n += BLOCK) {
    index_t start = n * row + first, s = n * p->g + g;
    Gradient op = {grad_y + start, x + start, grad_x ? grad_x + start : nullptr};
    Block block = {min(BLOCK, p->n - n), row, p->g, mean + s, rstd + s, of_h + s, shift + s};
    block_backward(op, block, length, weight + first, of_g, of_gh, workspace);
  }
}
