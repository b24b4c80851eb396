// y = activation(x + bias + residual) for arrays [N, C, P] of any strides, a row (n, c, :) or (n, :, p) at a time.
#include "vectors.hpp"

struct Params {
  index_t n, c, p;
  index_t x_n, x_c, x_p;
  index_t y_n, y_c, y_p;
  index_t residual_n, residual_c, residual_p;
  index_t bias_c;
  index_t activation;  // 0 none, 1 relu, 2 leaky relu
  double negative_slope;
  index_t items;
};

INLINE scalar_t activated(const Params* p, scalar_t value) {
  if (p->activation == 0) return value;
  scalar_t off = p->activation == 1 ? scalar_t(0) : value * scalar_t(p->negative_slope);
  return value > 0 || value != value ? value : off;
}

KERNEL bias_activation(const Params* p, const scalar_t* x, const scalar_t* bias, const scalar_t* residual, scalar_t* y,
                       scalar_t* workspace, int64_t item) {
  Range rows = part_of(p->n * p->c, item, p->items);
  for (index_t row = rows.begin; row < rows.end; row++) {
    index_t n = row / p->c, c = row % p->c;
    const scalar_t* from = x + n * p->x_n + c * p->x_c;
    const scalar_t* more = residual ? residual + n * p->residual_n + c * p->residual_c : nullptr;
    scalar_t* to = y + n * p->y_n + c * p->y_c;
    scalar_t shift = bias ? bias[c * p->bias_c] : scalar_t(0);
    for (index_t i = 0; i < p->p; i++) {
      scalar_t value = from[i * p->x_p] + shift;
      if (more) value += more[i * p->residual_p];
      to[i * p->y_p] = activated(p, value);
    }
  }
}
