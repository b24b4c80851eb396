// 1 x 1 convolution of images in C order, without transposes: y[n, (g, m), p] = bias[g, m] + sum over c of
// w[g, m, c] * x[n, (g, c), p]. Lanes run over positions, rows over filters.
//
// A work item is an image, a group and a part of the positions. For each panel of positions and chunk of channels, x is
// copied to the workspace, where rows follow each other, and all filters pass over it.
#include "gemm.hpp"

struct Params {
  index_t n, groups, channels, filters;  // of one group
  index_t positions;
  index_t x_n, x_c, y_n, y_c;
  index_t bias_g, bias_m;
  index_t parts;                         // of the positions of an image
  index_t acts;                          // the epilogue
  double least, most, slope;
};

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
  scalar_t* columns = workspace;
  scalar_t* partial = columns + CHUNK * MAX_VECTORS * LANES;
  index_t* at = reinterpret_cast<index_t*>(partial + p->filters * MAX_VECTORS * LANES);
  index_t* to = at + p->filters + ROWS[1];
  for (index_t i = 0; i < p->filters + ROWS[1]; i++) to[i] = min(i, p->filters - 1), at[i] = to[i] * p->channels;
  x += n * p->x_n + g * p->channels * p->x_c;
  index_t begin = n * p->y_n + g * p->filters * p->y_c;
  y += begin, residual = residual ? residual + begin : nullptr;
  for (index_t panel = part.begin; panel < part.end; panel++) {
    index_t first = panels.first(panel) * LANES, end = min(panels.first(panel + 1) * LANES, p->positions);
    with_vectors<MAX_VECTORS>(ceil_div(end - first, LANES), [&](auto v) {
      multiply_panel<v()>(p, x + first, at, to, end - first, w + g * p->filters * p->channels,
                          bias ? bias + g * p->bias_g : nullptr, residual ? residual + first : nullptr, y + first,
                          columns, partial);
    });
  }
}
