// grad_x = grad_y times the activation's derivative by the signs of y, for arrays [N, R, I] of any strides, and partial
// sums of grad_x: of each row, [N, R], where the channels are the rows, else of each item by channel, [items, I]. Then the
// sums of these.
#include "activation.hpp"

struct Params {
  index_t n, r, i;
  index_t grad_y_n, grad_y_r, grad_y_i;
  index_t y_n, y_r, y_i;
  index_t grad_x_n, grad_x_r, grad_x_i;
  index_t activation;
  double negative_slope;
  index_t by_row;
  index_t items;
  index_t parts, channels;  // of the partial sums
  index_t sums_c;
};

constexpr index_t PART = 1024;       // elements of a row at once, which stay in the L1 cache for their sum
constexpr index_t ROWS_SUMMED = 64;  // into one sum by channel, before those are summed

template <int ACTIVATION>
INLINE void compute(const scalar_t* __restrict__ grad_y, index_t grad_y_step, const scalar_t* __restrict__ y,
                    index_t y_step, scalar_t* __restrict__ grad_x, index_t grad_x_step, index_t count, scalar_t slope) {
  for (index_t i = 0; i < count; i++) {
    grad_x[i * grad_x_step] = activation_gradient<ACTIVATION>(grad_y[i * grad_y_step], y[i * y_step], slope);
  }
}

template <int ACTIVATION>
static void compute(const Params* p, const scalar_t* grad_y, const scalar_t* y, scalar_t* grad_x, index_t count) {
  scalar_t slope = p->negative_slope;
  if (p->grad_y_i == 1 && p->y_i == 1 && p->grad_x_i == 1) {
    compute<ACTIVATION>(grad_y, 1, y, 1, grad_x, 1, count, slope);
  } else {
    compute<ACTIVATION>(grad_y, p->grad_y_i, y, p->y_i, grad_x, p->grad_x_i, count, slope);
  }
}

static double sum_of(const scalar_t* x, index_t step, index_t count) {
  double total = 0;  // one after the other, which would round too often in float32
  index_t i = 0;
  if (step == 1) {
    vector_t sums[4] = {};
    for (; i + 4 * LANES <= count; i += 4 * LANES) {
      for (int k = 0; k < 4; k++) sums[k] += load(x + i + k * LANES);
    }
    vector_t sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (; i + LANES <= count; i += LANES) sum += load(x + i);
    total = sum_of_lanes(sum);
  }
  for (; i < count; i++) total += x[i * step];
  return total;
}

INLINE void add(const scalar_t* __restrict__ x, index_t step, scalar_t* __restrict__ sums, index_t count) {
  for (index_t i = 0; i < count; i++) sums[i] += x[i * step];
}

static void add_by_channel(const scalar_t* x, index_t step, scalar_t* sums, index_t count) {
  step == 1 ? add(x, 1, sums, count) : add(x, step, sums, count);
}

// The sums of an item: in `latest` of up to ROWS_SUMMED rows, in `partial` of all before them.
struct Sums {
  scalar_t *partial, *latest;
  index_t count, rows;

  void flush() {
    add_by_channel(latest, 1, partial, count);
    fill_n(latest, count, scalar_t(0));
    rows = 0;
  }
};

KERNEL bias_activation_backward(const Params* p, const scalar_t* grad_y, const scalar_t* y, scalar_t* grad_x,
                                scalar_t* partial, scalar_t* workspace, int64_t item) {
  Sums sums = {partial ? partial + item * p->i : nullptr, workspace, p->i, 0};
  if (partial && !p->by_row) {
    fill_n(sums.partial, p->i, scalar_t(0));
    fill_n(sums.latest, p->i, scalar_t(0));
  }
  index_t unit = partial ? p->i : 1;  // items have whole rows where those are summed
  Range range = part_of(p->n * p->r * (p->i / unit), item, p->items);
  double total = 0;
  Place place(range.begin * unit, p->r, p->i);
  for (index_t at = range.begin * unit; at < range.end * unit;) {
    auto [n, r, i] = place;
    index_t count = min(PART, min(p->i - i, range.end * unit - at));
    const scalar_t* from = grad_y + n * p->grad_y_n + r * p->grad_y_r + i * p->grad_y_i;
    const scalar_t* signs = y + n * p->y_n + r * p->y_r + i * p->y_i;
    const scalar_t* result = from;
    index_t step = p->grad_y_i;
    if (grad_x) {
      scalar_t* to = grad_x + n * p->grad_x_n + r * p->grad_x_r + i * p->grad_x_i;
      if (p->activation == NO_ACTIVATION) compute<NO_ACTIVATION>(p, from, signs, to, count);
      if (p->activation == RELU) compute<RELU>(p, from, signs, to, count);
      if (p->activation == LEAKY_RELU) compute<LEAKY_RELU>(p, from, signs, to, count);
      if (p->activation == RELU6) compute<RELU6>(p, from, signs, to, count);
      result = to;
      step = p->grad_x_i;
    }
    at += count;
    place.advance(count, p->r, p->i);
    if (!partial) continue;
    bool ends_row = i + count == p->i;
    if (p->by_row) {
      total += sum_of(result, step, count);
      if (!ends_row) continue;
      partial[n * p->r + r] = total;
      total = 0;
    } else {
      add_by_channel(result, step, sums.latest + i, count);
      if (ends_row && ++sums.rows == ROWS_SUMMED) sums.flush();
    }
  }
  if (partial && !p->by_row) sums.flush();
}

// sums [C] of partial sums [parts, C].
KERNEL bias_activation_backward_total(const Params* p, const scalar_t* partial, scalar_t* sums, scalar_t* workspace,
                                      int64_t item) {
  for (index_t first = 0; first < p->channels; first += LANES) {
    index_t count = min<index_t>(LANES, p->channels - first);
    double totals[LANES] = {};
    for (index_t part = 0; part < p->parts; part++)
      for (index_t i = 0; i < count; i++) totals[i] += partial[part * p->channels + first + i];
    for (index_t i = 0; i < count; i++) sums[(first + i) * p->sums_c] = scalar_t(totals[i]);
  }
}
