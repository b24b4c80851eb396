// y = x for arrays [A, B, R, C] of any strides: by tiles where R is contiguous in x, and C in y. Strides of x may be 0, of
// what is broadcast.
#include "transpose.hpp"

struct Params {
  index_t a, b, r, c;
  index_t x_a, x_b, x_r, x_c;
  index_t y_a, y_b, y_r, y_c;
  index_t r_block, c_block;
  index_t items;
};

static void copy_block(const Params* p, const scalar_t* x, scalar_t* y, index_t r, index_t c) {
  if (p->x_c == 1 && p->y_c == 1) {
    for (index_t i = 0; i < r; i++) memcpy(y + i * p->y_r, x + i * p->x_r, c * sizeof(scalar_t));
  } else if (p->x_c == 0 && p->y_c == 1) {
    for (index_t i = 0; i < r; i++) fill_n(y + i * p->y_r, c, x[i * p->x_r]);
  } else if (p->x_r == 1 && p->y_c == 1) {
    copy_transposed(x, p->x_c, y, p->y_r, c, r);
  } else {
    for (index_t i = 0; i < r; i++) {
      for (index_t j = 0; j < c; j++) y[i * p->y_r + j * p->y_c] = x[i * p->x_r + j * p->x_c];
    }
  }
}

KERNEL copy(const Params* p, const scalar_t* x, scalar_t* y, scalar_t* workspace, int64_t item) {
  index_t across = ceil_div(p->c, p->c_block), blocks = ceil_div(p->r, p->r_block) * across;
  Range range = part_of(p->a * p->b * blocks, item, p->items);
  for (index_t at = range.begin; at < range.end; at++) {
    index_t outer = at / blocks, a = outer / p->b, b = outer % p->b;
    index_t r = at % blocks / across * p->r_block, c = at % across * p->c_block;
    copy_block(p, x + a * p->x_a + b * p->x_b + r * p->x_r + c * p->x_c,
               y + a * p->y_a + b * p->y_b + r * p->y_r + c * p->y_c, min(p->r_block, p->r - r),
               min(p->c_block, p->c - c));
  }
}
