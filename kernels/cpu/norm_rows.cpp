// Norms of rows x [N, G, C] with statistics of (n, g), and weights and biases of (g, c): layer norm, and group norm
// without positions. A row is read for its sums, and again from the cache.
#include "norm.hpp"

struct Params {
  index_t n, g, c;
  index_t activation;
  double negative_slope;
  double eps;
  index_t items;
};

constexpr index_t BLOCK = 16;  // rows whose sums of (g, c) are taken in SCALAR

template <class Become>
INLINE void become(const Params* p, Become op, index_t row, scalar_t mean, scalar_t rstd, const scalar_t* weight,
                   const scalar_t* bias) {
  index_t of_group = row % p->g * p->c;
  for_vectors(p->c, [&]<class V>(index_t i) LAMBDA {
    V scale = all<V>(rstd) * get<V>(weight + of_group + i);
    op(row * p->c + i, all<V>(mean), scale, get<V>(bias + of_group + i));
  });
}

// Statistics and, unless y is null, values.
KERNEL norm_rows_forward(const Params* p, const scalar_t* x, const scalar_t* weight, const scalar_t* bias,
                         const scalar_t* residual, scalar_t* mean, scalar_t* var, scalar_t* rstd, scalar_t* y,
                         scalar_t* workspace, int64_t item) {
  Range rows = part_of(p->n * p->g, item, p->items);
  Runs run = {1, 0, p->c};
  with_activation(p->activation, p->negative_slope, nullptr, x, residual, y, [&](auto op) LAMBDA {
    for (index_t row = rows.begin; row < rows.end; row++) {
      const scalar_t* values = x + row * p->c;
      Statistic found = statistic(values, run, p->eps, moments(values, run));
      mean[row] = found.mean, var[row] = found.var, rstd[row] = found.rstd;
      if (y) become(p, op, row, found.mean, found.rstd, weight, bias);
    }
  });
}

// Values by given statistics, or with grad_y the gradient with respect to the activation's input.
KERNEL norm_rows_apply(const Params* p, const scalar_t* grad_y, const scalar_t* x, const scalar_t* mean,
                       const scalar_t* rstd, const scalar_t* weight, const scalar_t* bias, const scalar_t* residual,
                       scalar_t* y, scalar_t* workspace, int64_t item) {
  Range rows = part_of(p->n * p->g, item, p->items);
  with_activation(p->activation, p->negative_slope, grad_y, x, residual, y, [&](auto op) LAMBDA {
    for (index_t row = rows.begin; row < rows.end; row++) become(p, op, row, mean[row], rstd[row], weight, bias);
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

// The sums over a block of rows, `stride` apart, of each column's grad_y and grad_y * h, in columns [2, C]; and, unless
// grad_x is null, the gradient.
INLINE void block_backward(Gradient op, index_t rows, index_t stride, index_t length, const scalar_t* mean,
                           const scalar_t* rstd, index_t of_row, const scalar_t* weight, const scalar_t* of_h,
                           const scalar_t* shift, scalar_t* columns) {
  for_strips(length, [&]<class V, int S>(index_t i) LAMBDA {
    V g[S] = {}, gh[S] = {};
    for (index_t r = 0; r < rows; r++) {
      V centre = all<V>(mean[r * of_row]), scale = all<V>(rstd[r * of_row]);
      for (int j = 0; j < S; j++) {
        index_t column = i + j * WIDTH<V>, at = r * stride + column;
        V grad = get<V>(op.grad_y + at), h = (get<V>(op.x + at) - centre) * scale;
        g[j] += grad;
        gh[j] += grad * h;
        if (op.grad_x) {
          V of_grad = scale * get<V>(weight + column);
          put(op.grad_x + at, grad * of_grad + (h * all<V>(of_h[r]) + all<V>(shift[r])));
        }
      }
    }
    for (int j = 0; j < S; j++) {
      put(columns + i + j * WIDTH<V>, g[j]);
      put(columns + length + i + j * WIDTH<V>, gh[j]);
    }
  });
}

// Sums [items, 2, G * C] of grad_y and of grad_y * h and, unless grad_x is null, the gradient.
KERNEL norm_rows_backward(const Params* p, const scalar_t* grad_y, const scalar_t* x, const scalar_t* mean,
                          const scalar_t* rstd, const scalar_t* weight, double* sums, scalar_t* grad_x,
                          scalar_t* workspace, int64_t item) {
  Range images = part_of(p->n, item, p->items);
  index_t length = p->c, stride = p->g * length, most = std::clamp<index_t>((1 << 15) / length, 1, BLOCK);
  sums += item * 2 * stride;
  std::fill(sums, sums + 2 * stride, 0.0);
  for (index_t n = images.begin; n < images.end; n += most) {
    index_t rows = std::min(most, images.end - n);
    for (index_t g = 0; g < p->g; g++) {
      const scalar_t *centre = mean + n * p->g + g, *scale = rstd + n * p->g + g, *factor = weight + g * length;
      index_t start = n * stride + g * length;
      scalar_t of_h[BLOCK], shift[BLOCK];
      for (index_t r = 0; r < rows; r++) {
        index_t at = start + r * stride;
        scalar_t by = scale[r * p->g];
        Sums found = row_sums(grad_y + at, x + at, factor, length, centre[r * p->g], by);
        of_h[r] = -by * scalar_t(found.gh / double(length));
        shift[r] = -by * scalar_t(found.g / double(length));
      }
      Gradient op = {grad_y + start, x + start, grad_x ? grad_x + start : nullptr};
      block_backward(op, rows, stride, length, centre, scale, p->g, factor, of_h, shift, workspace);
      double *of_g = sums + g * length, *of_gh = of_g + stride;
      for (index_t i = 0; i < length; i++) of_g[i] += workspace[i];
      for (index_t i = 0; i < length; i++) of_gh[i] += workspace[length + i];
    }
  }
}
