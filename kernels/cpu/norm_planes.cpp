// Norms of x [N, G, C, P] in C order, P values of a channel being contiguous: statistics of (g) or of (n, g), weights
// and biases of (g, c). An item has whole statistics: it sums their values, then reads them again from the cache.
#include "norm.hpp"

struct Params {
  index_t n, g, c, p;
  index_t per_image;  // whether each image has its own statistics
  index_t activation;
  double negative_slope;
  double eps;
  index_t has_rstd;  // whether rstd is passed as var
  index_t items;
};

INLINE index_t statistics(const Params* p) { return p->per_image ? p->n * p->g : p->g; }

// The values of a statistic: N runs of [C, P], or one.
INLINE Runs runs_of(const Params* p) {
  return {p->per_image ? 1 : p->n, p->g * p->c * p->p, p->c * p->p};
}

// Call f(c, i) for the runs of P values at i of a statistic's channels c.
template <class F>
INLINE void for_channels(const Params* p, index_t number, F f) {
  Runs runs = runs_of(p);
  for (index_t run = 0; run < runs.count; run++) {
    for (index_t c = 0; c < p->c; c++) {
      f(number % p->g * p->c + c, number * runs.length + run * runs.stride + c * p->p);
    }
  }
}

// A function of its own: compiled once, not for each activation.
__attribute__((noinline)) static Statistic statistic_of(const scalar_t* x, Runs runs, double eps) {
  return statistic(x, runs, eps, moments(x, runs));
}

template <class Become>
INLINE void become(Become op, index_t at, index_t length, scalar_t mean, scalar_t scale, scalar_t shift) {
  for_vectors(length, [&]<class V>(index_t i) LAMBDA {
    put(op.y + at + i, op(at + i, all<V>(mean), all<V>(scale), all<V>(shift)));
  });
}

// Statistics and, unless y is null, values.
KERNEL norm_planes_forward(const Params* p, const scalar_t* x, const scalar_t* weight, const scalar_t* bias,
                           const scalar_t* residual, scalar_t* mean, scalar_t* var, scalar_t* rstd, scalar_t* y,
                           scalar_t* workspace, int64_t item) {
  Range part = part_of(statistics(p), item, p->items);
  Runs runs = runs_of(p);
  with_forward(p->activation, p->negative_slope, x, residual, y, [&](auto op) LAMBDA {
    for (index_t s = part.begin; s < part.end; s++) {
      const scalar_t* values = x + s * runs.length;
      Statistic found = statistic_of(values, runs, p->eps);
      mean[s] = found.mean, var[s] = found.var, rstd[s] = found.rstd;
      if (!y) continue;
      for_channels(p, s, [&](index_t c, index_t at) LAMBDA {
        become(op, at, p->p, found.mean, found.rstd * weight[c], bias[c]);
      });
    }
  });
}

// Values by given statistics, or with grad_y the gradient with respect to the activation's input.
KERNEL norm_planes_apply(const Params* p, const scalar_t* grad_y, const scalar_t* x, const scalar_t* mean,
                         const scalar_t* var, const scalar_t* weight, const scalar_t* bias, const scalar_t* residual,
                         scalar_t* y, scalar_t* workspace, int64_t item) {
  Range part = part_of(p->n * p->g * p->c, item, p->items);
  const scalar_t* rstd = reciprocals(var, p->has_rstd, statistics(p), p->eps, workspace);
  with_activation(p->activation, p->negative_slope, grad_y, x, residual, y, [&](auto op) LAMBDA {
    index_t channels = p->g * p->c, c = part.begin % channels;
    index_t s = (p->per_image ? part.begin : c) / p->c, left = p->c - c % p->c;
    for (index_t run = part.begin; run < part.end; run++) {
      become(op, run * p->p, p->p, mean[s], rstd[s] * weight[c], bias[c]);
      if (++c == channels) c = 0;
      if (--left) continue;
      left = p->c, s = p->per_image || c ? s + 1 : 0;
    }
  });
}

INLINE Sums gradient_sums(const scalar_t* grad_y, const scalar_t* x, Runs runs, scalar_t mean, scalar_t rstd) {
  Sums sums = {};
  for_pieces(runs, [&](index_t start, Runs piece) LAMBDA {
    vector_t g[4] = {}, gh[4] = {};
    for_runs(piece, [&](auto at, int k) LAMBDA {
      vector_t grad = at.of(grad_y + start, 0), h = (at.of(x + start, mean) - broadcast(mean)) * broadcast(rstd);
      g[k] += grad;
      gh[k] += grad * h;
    });
    sums.g += total((g[0] + g[1]) + (g[2] + g[3]));
    sums.gh += total((gh[0] + gh[1]) + (gh[2] + gh[3]));
  });
  return sums;
}

// Sums [N or 1, 2, G * C] of grad_y and of grad_y * h and, unless grad_x is null, the gradient.
KERNEL norm_planes_backward(const Params* p, const scalar_t* grad_y, const scalar_t* x, const scalar_t* mean,
                            const scalar_t* rstd, const scalar_t* weight, double* sums, scalar_t* grad_x,
                            scalar_t* workspace, int64_t item) {
  Range part = part_of(statistics(p), item, p->items);
  Runs runs = runs_of(p);
  index_t channels = p->g * p->c;
  Gradient op = {grad_y, x, grad_x};
  for (index_t s = part.begin; s < part.end; s++) {
    Sums shares = {};
    for (index_t c = 0; c < p->c; c++) {
      index_t at = s * runs.length + c * p->p, channel = s % p->g * p->c + c;
      Sums found = gradient_sums(grad_y + at, x + at, {runs.count, runs.stride, p->p}, mean[s], rstd[s]);
      double* to = sums + s / p->g * 2 * channels + channel;
      to[0] = found.g, to[channels] = found.gh;
      shares.g += found.g * weight[channel], shares.gh += found.gh * weight[channel];
    }
    if (!grad_x) continue;
    double count = double(runs.count * runs.length);
    scalar_t of_h = -rstd[s] * scalar_t(shares.gh / count), shift = -rstd[s] * scalar_t(shares.g / count);
    for_channels(p, s, [&](index_t c, index_t at) LAMBDA {
      for_vectors(p->p, [&]<class V>(index_t i) LAMBDA {
        V of_grad = all<V>(rstd[s] * weight[c]);
        put(grad_x + at + i, op(at + i, all<V>(mean[s]), all<V>(rstd[s]), of_grad, all<V>(of_h), all<V>(shift)));
      });
    });
  }
}
