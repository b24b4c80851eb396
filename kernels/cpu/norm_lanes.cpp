// Norms of x [B, O, L], L lanes being contiguous: channels of channels-last images, or channels with short planes.
// Neighbouring lanes share a statistic, and of these some a weight and a bias; statistics are of (b, lanes) over O.
//
// Where the rows of a strip of lanes fit in the cache, an item has whole statistics. Otherwise items sum parts of the
// rows, which are combined in order, and a second pass computes the values.
#include "norm.hpp"

struct Params {
  index_t b, o, lanes;
  index_t per_statistic, per_affine;  // lanes that share a statistic, and those that share a weight
  index_t width;                      // lanes of a strip, whole statistics
  index_t activation;
  double negative_slope;
  double eps;
  index_t has_rstd;  // whether rstd is passed as var
  index_t items;
  index_t parts;  // of the rows, of which moments are combined
};

struct Strip {
  index_t rows, stride, width;
};

// A strip within x: its image b, its first lane, and where its first row starts.
struct Lanes {
  index_t b, lane, start;
  Strip strip;
};

// The strip of an item: all rows of some lanes of an image.
INLINE Lanes strip_of(const Params* p, index_t item) {
  index_t strips = ceil_div(p->lanes, p->width), b = item / strips, lane = item % strips * p->width;
  return {b, lane, b * p->o * p->lanes + lane, {p->o, p->lanes, min(p->width, p->lanes - lane)}};
}

// All lanes of some rows of [B * O], which are of one image.
INLINE Lanes rows_of(const Params* p, Range rows) {
  return {rows.begin / p->o, 0, rows.begin * p->lanes, {rows.end - rows.begin, p->lanes, p->lanes}};
}

// Rows of a piece: enough to pay for its merging, few enough for the first cache and for sums in SCALAR.
INLINE index_t rows_of_piece(index_t width) { return clamp<index_t>((1 << 13) / width, 8, 64); }

// Call f(s, c, i) for the lanes i of a strip from `lane` on, their statistics s and channels c.
template <class F>
INLINE void for_lanes(const Params* p, index_t lane, index_t width, F f) {
  index_t s = lane / p->per_statistic, c = lane / p->per_affine, i = 0;
  for (; i < width; s++) {
    for (index_t end = i + p->per_statistic; i < end; c++) {
      for (index_t last = i + p->per_affine; i < last; i++) f(s, c, i);
    }
  }
}

// Moments of each lane: its mean and sum of squares, with 3 * width scalars of workspace.
INLINE void lane_moments(const scalar_t* x, Strip strip, double* mean, double* square, scalar_t* workspace) {
  index_t width = strip.width, most = rows_of_piece(width);
  scalar_t *centre = workspace, *first = centre + width, *second = first + width;
  fill(mean, mean + width, 0.0);
  fill(square, square + width, 0.0);
  for (index_t row = 0; row < strip.rows; row += most) {
    const scalar_t* from = x + row * strip.stride;
    index_t rows = min(most, strip.rows - row), sample = ceil_div(rows, 4);  // as in `sample_of`
    for_strips(width, [&]<class V, int S>(index_t i) LAMBDA {
      V sum[S] = {}, one[S] = {}, two[S] = {}, about[S];
      for (index_t r = 0; r < sample; r++) {
        for (int j = 0; j < S; j++) sum[j] += get<V>(from + r * strip.stride + i + j * WIDTH<V>);
      }
      for (int j = 0; j < S; j++) about[j] = sum[j] / all<V>(scalar_t(sample));
      for (index_t r = 0; r < rows; r++) {
        for (int j = 0; j < S; j++) {
          const scalar_t* at = from + r * strip.stride + i + j * WIDTH<V>;
          __builtin_prefetch(at + rows * strip.stride);  // of the next piece, while this one comes from the cache
          V away = get<V>(at) - about[j];
          one[j] += away;
          two[j] += away * away;
        }
      }
      for (int j = 0; j < S; j++) {
        put(centre + i + j * WIDTH<V>, about[j]);
        put(first + i + j * WIDTH<V>, one[j]);
        put(second + i + j * WIDTH<V>, two[j]);
      }
    });
    double count = double(rows), share = count / double(row + rows), per = 1 / count;
    for (index_t i = 0; i < width; i++) {  // Chan's formula
      double rest = first[i] * per, away = centre[i] + rest - mean[i];
      mean[i] += away * share;
      square[i] += (second[i] - first[i] * rest) + away * away * (double(row) * share);
    }
  }
}

// The statistics of lanes whose moments are given.
INLINE void store_statistics(const Params* p, const scalar_t* x, Lanes place, const double* lane_mean,
                             const double* square, scalar_t* mean, scalar_t* var, scalar_t* rstd) {
  Strip strip = place.strip;
  index_t together = p->per_statistic, s = (place.b * p->lanes + place.lane) / together;
  for (index_t i = 0; i < strip.width; i += together, s++) {
    Moments found = {};
    for (index_t j = i; j < i + together; j++) {
      found = merged(found, {double(strip.rows), lane_mean[j], square[j]});
    }
    Statistic of_lanes = statistic(x + place.start + i, {strip.rows, strip.stride, together}, p->eps, found);
    mean[s] = of_lanes.mean, var[s] = of_lanes.var, rstd[s] = of_lanes.rstd;
  }
}

// Store op's values of a strip, with what is given for its lanes. Row by row: of rows together, a load would wait for
// the store to the same place in another page.
template <class Become, class... Given>
INLINE void become(Become op, Lanes place, Given... given) {
  for (index_t row = 0; row < place.strip.rows; row++) {
    index_t at = place.start + row * place.strip.stride;
    for_vectors(place.strip.width, [&]<class V>(index_t i) LAMBDA {
      put(op.y + at + i, op(at + i, get<V>(given + i)...));
    });
  }
}

// As above for values by the statistics of their image, with 3 * width scalars of workspace.
template <class Become>
INLINE void normalise(const Params* p, Become op, Lanes place, const scalar_t* mean, const scalar_t* rstd,
                      const scalar_t* weight, const scalar_t* bias, scalar_t* workspace) {
  scalar_t *centre = workspace, *scale = centre + place.strip.width, *shift = scale + place.strip.width;
  index_t of_image = place.b * (p->lanes / p->per_statistic);
  for_lanes(p, place.lane, place.strip.width, [&](index_t s, index_t c, index_t i) LAMBDA {
    centre[i] = mean[of_image + s];
    scale[i] = rstd[of_image + s] * weight[c];
    shift[i] = bias[c];
  });
  become(op, place, centre, scale, shift);
}

// Statistics and, unless y is null, values; an item is a strip of an image.
KERNEL norm_lanes_forward(const Params* p, const scalar_t* x, const scalar_t* weight, const scalar_t* bias,
                          const scalar_t* residual, scalar_t* mean, scalar_t* var, scalar_t* rstd, scalar_t* y,
                          scalar_t* workspace, int64_t item) {
  Lanes place = strip_of(p, item);
  double *lane_mean = reinterpret_cast<double*>(workspace), *square = lane_mean + p->width;
  scalar_t* room = reinterpret_cast<scalar_t*>(square + p->width);
  lane_moments(x + place.start, place.strip, lane_mean, square, room);
  store_statistics(p, x, place, lane_mean, square, mean, var, rstd);
  if (!y) return;
  with_forward(p->activation, p->negative_slope, x, residual, y, [&](auto op) LAMBDA {
    normalise(p, op, place, mean, rstd, weight, bias, room);
  });
}

// Moments [items, 2, L] of parts of the rows.
KERNEL norm_lanes_moments(const Params* p, const scalar_t* x, double* partial, scalar_t* workspace, int64_t item) {
  Lanes place = rows_of(p, part_of(p->o, item, p->items));
  double* mean = partial + item * 2 * p->lanes;
  lane_moments(x + place.start, place.strip, mean, mean + p->lanes, workspace);
}

// Statistics of the moments of parts; a single item.
KERNEL norm_lanes_combine(const Params* p, const scalar_t* x, const double* partial, scalar_t* mean, scalar_t* var,
                          scalar_t* rstd, scalar_t* workspace, int64_t item) {
  index_t lanes = p->lanes;
  double *centre = reinterpret_cast<double*>(workspace), *square = centre + lanes;
  fill(centre, centre + 2 * lanes, 0.0);
  for (index_t part = 0; part < p->parts; part++) {
    const double *of_part = partial + part * 2 * lanes, *squares = of_part + lanes;
    Range rows = part_of(p->o, part, p->parts);
    double before = double(rows.begin), share = double(rows.end - rows.begin) / double(rows.end);
    for (index_t i = 0; i < lanes; i++) {
      double away = of_part[i] - centre[i];
      centre[i] += away * share;
      square[i] += squares[i] + away * away * (before * share);
    }
  }
  store_statistics(p, x, rows_of(p, {0, p->o}), centre, square, mean, var, rstd);
}

// Values by given statistics, or with grad_y the gradient with respect to the activation's input; an item is some rows.
KERNEL norm_lanes_apply(const Params* p, const scalar_t* grad_y, const scalar_t* x, const scalar_t* mean,
                        const scalar_t* var, const scalar_t* weight, const scalar_t* bias, const scalar_t* residual,
                        scalar_t* y, scalar_t* workspace, int64_t item) {
  Range rows = part_of(p->b * p->o, item, p->items);
  index_t statistics = p->b * p->lanes / p->per_statistic;
  const scalar_t* rstd = reciprocals(var, p->has_rstd, statistics, p->eps, workspace + 3 * p->lanes);
  with_activation(p->activation, p->negative_slope, grad_y, x, residual, y, [&](auto op) LAMBDA {
    for (index_t row = rows.begin, end; row < rows.end; row = end) {
      end = min(rows.end, (row / p->o + 1) * p->o);
      normalise(p, op, rows_of(p, {row, end}), mean, rstd, weight, bias, workspace);
    }
  });
}

// Sums of each lane's grad_y and grad_y * h by its mean and rstd, with 2 * width scalars of workspace.
INLINE void lane_sums(const scalar_t* grad_y, const scalar_t* x, Strip strip, const scalar_t* mean,
                      const scalar_t* rstd, double* of_g, double* of_gh, scalar_t* workspace) {
  index_t width = strip.width, most = rows_of_piece(width);
  fill(of_g, of_g + width, 0.0);
  fill(of_gh, of_gh + width, 0.0);
  for (index_t row = 0; row < strip.rows; row += most) {
    index_t rows = min(most, strip.rows - row);
    for_strips(width, [&]<class V, int S>(index_t i) LAMBDA {
      V g[S] = {}, gh[S] = {};
      for (index_t r = 0; r < rows; r++) {
        for (int j = 0; j < S; j++) {
          index_t lane = i + j * WIDTH<V>, at = (row + r) * strip.stride + lane;
          V grad = get<V>(grad_y + at);
          g[j] += grad;
          gh[j] += grad * ((get<V>(x + at) - get<V>(mean + lane)) * get<V>(rstd + lane));
        }
      }
      for (int j = 0; j < S; j++) {
        put(workspace + i + j * WIDTH<V>, g[j]);
        put(workspace + width + i + j * WIDTH<V>, gh[j]);
      }
    });
    for (index_t i = 0; i < width; i++) of_g[i] += workspace[i];
    for (index_t i = 0; i < width; i++) of_gh[i] += workspace[width + i];
  }
}

// What a strip's lanes have in common with their statistic, written to centre and scale.
INLINE void spread(const Params* p, Lanes place, const scalar_t* mean, const scalar_t* rstd, scalar_t* centre,
                   scalar_t* scale) {
  index_t of_image = place.b * (p->lanes / p->per_statistic);
  for_lanes(p, place.lane, place.strip.width, [&](index_t s, index_t c, index_t i) LAMBDA {
    centre[i] = mean[of_image + s];
    scale[i] = rstd[of_image + s];
  });
}

// The gradient of a strip by the sums of its lanes, whose mean and rstd are given, with 3 * width scalars of workspace.
INLINE void gradient(const Params* p, Gradient op, Lanes place, const double* of_g, const double* of_gh,
                     const scalar_t* weight, const scalar_t* centre, const scalar_t* scale, scalar_t* workspace) {
  index_t width = place.strip.width, together = p->per_statistic, c = place.lane / p->per_affine;
  scalar_t *of_grad = workspace, *of_h = of_grad + width, *shift = of_h + width;
  for (index_t i = 0; i < width; i += together) {
    Sums shares = {};
    for (index_t j = i; j < i + together; c++) {
      for (index_t last = j + p->per_affine; j < last; j++) {
        of_grad[j] = scale[j] * weight[c];
        shares.g += of_g[j] * weight[c];
        shares.gh += of_gh[j] * weight[c];
      }
    }
    double count = double(p->o * together);
    fill(of_h + i, of_h + i + together, -scale[i] * scalar_t(shares.gh / count));
    fill(shift + i, shift + i + together, -scale[i] * scalar_t(shares.g / count));
  }
  become(op, place, centre, scale, of_grad, of_h, shift);
}

// Sums [B, 2, L] of grad_y and of grad_y * h and, unless grad_x is null, the gradient; an item is a strip of an image.
KERNEL norm_lanes_backward(const Params* p, const scalar_t* grad_y, const scalar_t* x, const scalar_t* mean,
                           const scalar_t* rstd, const scalar_t* weight, double* sums, scalar_t* grad_x,
                           scalar_t* workspace, int64_t item) {
  Lanes place = strip_of(p, item);
  index_t width = place.strip.width, start = place.start;
  scalar_t *centre = workspace, *scale = centre + width, *room = scale + width;
  double *of_g = sums + place.b * 2 * p->lanes + place.lane, *of_gh = of_g + p->lanes;
  spread(p, place, mean, rstd, centre, scale);
  lane_sums(grad_y + start, x + start, place.strip, centre, scale, of_g, of_gh, room);
  if (grad_x) gradient(p, {grad_y, x, grad_x}, place, of_g, of_gh, weight, centre, scale, room);
}

// Sums [items, 2, L] of grad_y and of grad_y * h over parts of the rows.
KERNEL norm_lanes_sums(const Params* p, const scalar_t* grad_y, const scalar_t* x, const scalar_t* mean,
                       const scalar_t* rstd, double* sums, scalar_t* workspace, int64_t item) {
  Lanes place = rows_of(p, part_of(p->o, item, p->items));
  scalar_t *centre = workspace, *scale = centre + p->lanes;
  double* of_g = sums + item * 2 * p->lanes;
  spread(p, place, mean, rstd, centre, scale);
  lane_sums(grad_y + place.start, x + place.start, place.strip, centre, scale, of_g, of_g + p->lanes, scale + p->lanes);
}

// The gradient by the sums [2, L]; an item is some rows.
KERNEL norm_lanes_gradient(const Params* p, const scalar_t* grad_y, const scalar_t* x, const scalar_t* mean,
                           const scalar_t* rstd, const scalar_t* weight, const double* sums, scalar_t* grad_x,
                           scalar_t* workspace, int64_t item) {
  Lanes place = rows_of(p, part_of(p->o, item, p->items));
  scalar_t *centre = workspace, *scale = centre + p->lanes;
  spread(p, place, mean, rstd, centre, scale);
  gradient(p, {grad_y, x, grad_x}, place, sums, sums + p->lanes, weight, centre, scale, scale + p->lanes);
}
