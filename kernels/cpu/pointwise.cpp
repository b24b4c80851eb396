// 1 x 1 convolution of images in C order, without transposes: y[n, (g, m), p] = bias[g, m] + sum over c of
// w[g, m, c] * x[n, (g, c), p]. Lanes run over positions, rows over filters.
//
// A work item is an image, a group and a part of the positions. For each panel of positions and chunk of channels, x is
// copied to the workspace, where rows follow each other, and all filters pass over it. Few channels or filters, for
// which register tiles would be filled with zeros, go through strips of positions instead, at the speed of memory.
//
// `pointwise_dots` is for few filters of images with channels innermost: lanes run over channels, of which each filter
// has a dot product with a pixel.
#include "gemm.hpp"

struct Params {
  index_t n, groups, channels, filters;  // of one group
  index_t positions;
  index_t x_n, x_c, x_w, y_n, y_c, y_w;
  index_t w_g, w_m, w_c;                 // of pointwise_dots
  index_t bias_g, bias_m;
  index_t parts;                         // of the positions of an image
  index_t acts, smooth;                  // the epilogue
  double least, most, slope;
};

constexpr index_t FEW = 4;                          // channels or filters
constexpr index_t STRIP = 4096 / sizeof(scalar_t);  // positions: those of x and of y stay in the first-level cache

// To y[m * y_step + i] is added, or comes after first[m], the sum over k of w[m * w_step + k] * x[k * x_step + i], for
// i in [0, count). `first` is null where sums are continued.
template <int K, int M>
REGISTERS void add_strip(const scalar_t* x, index_t x_step, const scalar_t* w, index_t w_step, const scalar_t* first,
                         scalar_t* y, index_t y_step, index_t count) {
  vector_t weight[M][K], begin[M] = {};
  for (int m = 0; m < M && first; m++) begin[m] = broadcast(first[m]);
  UNROLLED for (int m = 0; m < M; m++)
    UNROLLED for (int k = 0; k < K; k++) weight[m][k] = broadcast(w[m * w_step + k]);
  index_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    vector_t value[K];
    UNROLLED for (int k = 0; k < K; k++) value[k] = load(x + k * x_step + i);
    UNROLLED for (int m = 0; m < M; m++) {
      vector_t sum = first ? begin[m] : load(y + m * y_step + i);
      UNROLLED for (int k = 0; k < K; k++) sum += weight[m][k] * value[k];
      store(y + m * y_step + i, sum);
    }
  }
  for (; i < count; i++)
    for (int m = 0; m < M; m++) {
      scalar_t sum = first ? first[m] : y[m * y_step + i];
      for (int k = 0; k < K; k++) sum += w[m * w_step + k] * x[k * x_step + i];
      y[m * y_step + i] = sum;
    }
}

static void multiply_strips(const Params* p, const scalar_t* x, const scalar_t* w, const scalar_t* bias,
                            const scalar_t* residual, scalar_t* y, Range positions) {
  Epilogue epilogue(p);
  for (index_t i = positions.begin; i < positions.end; i += STRIP) {
    index_t count = min(STRIP, positions.end - i);
    for (index_t m = 0; m < p->filters; m += FEW) {
      index_t filters = min(FEW, p->filters - m);
      scalar_t *to = y + m * p->y_c + i, first[FEW] = {};
      for (index_t a = 0; a < filters && bias; a++) first[a] = bias[(m + a) * p->bias_m];
      for (index_t c = 0; c < p->channels; c += FEW)
        with_number<FEW>(filters, [&](auto some) {
          with_number<FEW>(min(FEW, p->channels - c), [&](auto k) {
            add_strip<k(), some()>(x + c * p->x_c + i, p->x_c, w + m * p->channels + c, p->channels,
                                   c ? nullptr : first, to, p->y_c, count);
          });
        });
      for (index_t a = 0; a < filters && epilogue.acts; a++) {
        scalar_t* row = to + a * p->y_c;
        finish_row(epilogue, row, residual ? residual + (m + a) * p->y_c + i : nullptr, count, row);
      }
    }
  }
}

template <int V>
static void multiply_panel(const Params* p, const scalar_t* x, const index_t* at, const index_t* to, index_t width,
                           const scalar_t* w, const scalar_t* bias, const scalar_t* residual, scalar_t* y,
                           scalar_t* columns, scalar_t* partial) {
  Epilogue epilogue(p);
  bool is_whole = width == V * LANES;
  scalar_t* sums = is_whole ? y : partial;
  index_t step = is_whole ? p->y_c : V * LANES;
  for (index_t m = 0; m < p->filters; m++)
    for (int v = 0; v < V; v++)
      store(sums + m * step + v * LANES, broadcast(bias ? bias[m * p->bias_m] : scalar_t(0)));
  for (index_t c = 0, most = piece_of(p->channels); c < p->channels; c += most) {
    Piece piece{c, min(most, p->channels - c)};
    for (index_t k = 0; k < piece.length; k++) {
      const scalar_t* from = x + (c + k) * p->x_c;
      scalar_t* column = columns + k * V * LANES;
      for (int v = 0; v < V && is_whole; v++) store(column + v * LANES, load(from + v * LANES));
      for (index_t i = 0; i < V * LANES && !is_whole; i++) column[i] = i < width ? from[i] : scalar_t(0);
    }
    Product product{w, at, &piece, 1, columns, V * LANES, sums, to, step};
    if (is_whole && epilogue.acts && c + most >= p->channels) product.epilogue = &epilogue, product.residual = residual;
    multiply<V>(product, p->filters, nullptr);
  }
  for (index_t m = 0; m < p->filters && !is_whole; m++) {
    const scalar_t* from = partial + m * V * LANES;
    if (epilogue.acts) finish_row(epilogue, from, residual ? residual + m * p->y_c : nullptr, width, y + m * p->y_c);
    else memcpy(y + m * p->y_c, from, width * sizeof(scalar_t));
  }
}

KERNEL pointwise(const Params* p, const scalar_t* x, const scalar_t* w, const scalar_t* bias, const scalar_t* residual,
                 scalar_t* y, scalar_t* workspace, int64_t item) {
  Panels panels(p->positions);
  Range part = part_of(panels.count, item % p->parts, p->parts);
  index_t g = item / p->parts % p->groups, n = item / p->parts / p->groups;
  x += n * p->x_n + g * p->channels * p->x_c;
  index_t begin = n * p->y_n + g * p->filters * p->y_c;
  y += begin, residual = residual ? residual + begin : nullptr;
  w += g * p->filters * p->channels, bias = bias ? bias + g * p->bias_g : nullptr;
  bool has_short_tail = p->positions % LANES * 4 <= p->positions;  // of which strips take one position at a time
  if (min(p->channels, p->filters) <= FEW && has_short_tail) {
    Range positions{panels.first(part.begin) * LANES, min(panels.first(part.end) * LANES, p->positions)};
    return multiply_strips(p, x, w, bias, residual, y, positions);
  }
  scalar_t* columns = workspace;
  scalar_t* partial = columns + CHUNK * MAX_VECTORS * LANES;
  index_t* at = reinterpret_cast<index_t*>(partial + p->filters * MAX_VECTORS * LANES);
  index_t* to = at + p->filters + ROWS[1];
  for (index_t i = 0; i < p->filters + ROWS[1]; i++) to[i] = min(i, p->filters - 1), at[i] = to[i] * p->channels;
  for (index_t panel = part.begin; panel < part.end; panel++) {
    index_t first = panels.first(panel) * LANES, end = min(panels.first(panel + 1) * LANES, p->positions);
    with_number<MAX_VECTORS>(ceil_div(end - first, LANES), [&](auto v) {
      multiply_panel<v()>(p, x + first, at, to, end - first, w, bias, residual ? residual + first : nullptr, y + first,
                          columns, partial);
    });
  }
}

// --- Few filters of pixels ------------------------------------------------------------------------------------------

// Filters in rows of whole vectors. The last one is of the last channels, with zeros for those that the one before has.
static void pack(const Params* p, const scalar_t* w, scalar_t* to) {
  index_t whole = p->channels / LANES * LANES, row = round_up(p->channels, LANES);
  for (index_t m = 0; m < p->filters; m++)
    for (index_t i = 0; i < row; i++) {
      index_t c = i < whole ? i : p->channels - row + i;
      to[m * row + i] = i < whole || c >= whole ? w[m * p->w_m + c * p->w_c] : scalar_t(0);
    }
}

// The sums of M filters at LANES / M positions from `first` on, in this order; positions beyond `end` repeat the last.
template <int M>
REGISTERS vector_t dots(const Params* p, const scalar_t* x, const scalar_t* weights, index_t first, index_t end) {
  constexpr int P = LANES / M;
  index_t whole = p->channels / LANES * LANES, row = round_up(p->channels, LANES);
  vector_t total[LANES] = {}, lane;
  for (int i = 0; i < LANES; i++) lane[i] = scalar_t(i);
  UNROLLED for (int i = 0; i < P; i++) {
    const scalar_t* pixel = x + min(first + i, end - 1) * p->x_w;
    for (index_t c = 0; c < whole; c += LANES)
      UNROLLED for (int m = 0; m < M; m++) total[i * M + m] += load(pixel + c) * load(weights + m * row + c);
    if (whole == row) continue;
    vector_t value = load(pixel + p->channels - LANES);  // zeros for others, which may be infinite
    value = lane >= broadcast(scalar_t(row - p->channels)) ? value : vector_t{};
    UNROLLED for (int m = 0; m < M; m++) total[i * M + m] += value * load(weights + m * row + whole);
  }
  return sums_of(total);
}

template <int M>
static void multiply_pixels(const Params* p, const scalar_t* x, const scalar_t* weights, const scalar_t* bias,
                            const scalar_t* residual, scalar_t* y, Range positions) {
  constexpr int P = LANES / M;
  Epilogue epilogue(p);
  bool is_dense = p->y_w == M && (M == 1 || p->y_c == 1);
  vector_t shift = {};
  for (int i = 0; i < P * M && bias; i++) shift[i] = bias[i % M * p->bias_m];
  for (index_t first = positions.begin; first < positions.end; first += P) {
    index_t count = min<index_t>(P, positions.end - first) * M;
    vector_t sums = dots<M>(p, x, weights, first, positions.end) + shift;
    if (is_dense && !epilogue.acts && count == LANES) {
      store(y + first * M, sums);
      continue;
    }
    scalar_t values[LANES], beside[LANES] = {};
    store(values, sums);
    auto at = [&](index_t i) { return (first + i / M) * p->y_w + i % M * p->y_c; };
    for (index_t i = 0; i < count && residual; i++) beside[i] = residual[at(i)];
    if (epilogue.acts) finish_row(epilogue, values, residual ? beside : nullptr, LANES, values);
    for (index_t i = 0; i < count; i++) y[at(i)] = values[i];
  }
}

KERNEL pointwise_dots(const Params* p, const scalar_t* x, const scalar_t* w, const scalar_t* bias,
                      const scalar_t* residual, scalar_t* y, scalar_t* workspace, int64_t item) {
  Range positions = part_of(p->positions, item % p->parts, p->parts);
  index_t g = item / p->parts % p->groups, n = item / p->parts / p->groups;
  index_t begin = n * p->y_n + g * p->filters * p->y_c;
  pack(p, w + g * p->w_g, workspace);
  with_number<FEW>(p->filters, [&](auto m) {
    multiply_pixels<m()>(p, x + n * p->x_n + g * p->channels * p->x_c, workspace, bias ? bias + g * p->bias_g : nullptr,
                         residual ? residual + begin : nullptr, y + begin, positions);
  });
}
