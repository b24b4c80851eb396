// y = activation(x + bias + residual) for arrays [N, R, I] of any strides, fast where I is contiguous: the channels are
// the rows R, or the elements I.
#include "activation.hpp"
#include "runs.hpp"
#include "smooth.hpp"

struct Params {
  index_t n, r, i;
  index_t x_n, x_r, x_i;
  index_t y_n, y_r, y_i;
  index_t residual_n, residual_r, residual_i;
  index_t bias_r, bias_i;
  index_t activation, smooth;  // a smooth activation follows the other
  double negative_slope;
  index_t items;
};

// A part of a row, whose `bias` is one number or as long as the row. A residual that is null counts as zero.
struct Part {
  const scalar_t *x, *bias, *residual;
  scalar_t* y;
  index_t count;
  index_t x_step, bias_step, residual_step, y_step;
};

template <int ACTIVATION>
INLINE void compute(const Part& part, scalar_t slope, index_t x_step, index_t bias_step, index_t residual_step,
                    index_t y_step) {
  const scalar_t* __restrict__ x = part.x;
  const scalar_t* __restrict__ bias = part.bias;
  const scalar_t* __restrict__ residual = part.residual;
  scalar_t* __restrict__ y = part.y;
  for (index_t i = 0; i < part.count; i++) {
    scalar_t value = x[i * x_step] + bias[i * bias_step];
    if (residual) value += residual[i * residual_step];
    y[i * y_step] = activated<ACTIVATION>(value, slope);
  }
}

template <int ACTIVATION>
static void compute(const Part& part, scalar_t slope) {
  bool is_contiguous = part.x_step == 1 && part.y_step == 1 && (part.residual_step == 1 || !part.residual);
  if (is_contiguous && part.bias_step == 0) {
    compute<ACTIVATION>(part, slope, 1, 0, 1, 1);
  } else if (is_contiguous && part.bias_step == 1) {
    compute<ACTIVATION>(part, slope, 1, 1, 1, 1);
  } else {
    compute<ACTIVATION>(part, slope, part.x_step, part.bias_step, part.residual_step, part.y_step);
  }
}

// The smooth activation of a part that has been written.
static void smooth(const Part& part, index_t kind) {
  if (part.y_step == 1) return smooth_row(kind, part.y, part.count);
  for (index_t i = 0; i < part.count; i += LANES) {
    scalar_t lanes[LANES] = {};
    index_t count = min<index_t>(LANES, part.count - i);
    for (index_t j = 0; j < count; j++) lanes[j] = part.y[(i + j) * part.y_step];
    smooth_row(kind, lanes, LANES);
    for (index_t j = 0; j < count; j++) part.y[(i + j) * part.y_step] = lanes[j];
  }
}

KERNEL bias_activation(const Params* p, const scalar_t* x, const scalar_t* bias, const scalar_t* residual, scalar_t* y,
                       scalar_t* workspace, int64_t item) {
  const scalar_t nothing = -0.0, slope = p->negative_slope;
  Range range = part_of(p->n * p->r * p->i, item, p->items);
  Place place(range.begin, p->r, p->i);
  for (index_t at = range.begin; at < range.end;) {
    auto [n, r, i] = place;
    Part part;
    part.count = min(min(p->i - i, range.end - at), PIECE);
    part.x = x + n * p->x_n + r * p->x_r + i * p->x_i;
    part.bias = bias ? bias + r * p->bias_r + i * p->bias_i : &nothing;  // x + -0 is x, of -0 too
    part.residual = residual ? residual + n * p->residual_n + r * p->residual_r + i * p->residual_i : nullptr;
    part.y = y + n * p->y_n + r * p->y_r + i * p->y_i;
    part.x_step = p->x_i, part.bias_step = p->bias_i, part.residual_step = p->residual_i, part.y_step = p->y_i;
    if (p->activation == NO_ACTIVATION) compute<NO_ACTIVATION>(part, slope);
    if (p->activation == RELU) compute<RELU>(part, slope);
    if (p->activation == LEAKY_RELU) compute<LEAKY_RELU>(part, slope);
    if (p->activation == RELU6) compute<RELU6>(part, slope);
    if (p->smooth) smooth(part, p->smooth);
    at += part.count;
    place.advance(part.count, p->r, p->i);
  }
}
