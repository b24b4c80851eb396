// A convolution with a filter for each position: w [OC, positions, K], K = (C, KD, KH, KW), all arrays in C order.
//
// Each weight is used once for each image, so w's bytes are the limit. Some positions of a row are taken together: what
// they read is gathered as [positions, N, K], by rows and a transposition in registers, and then each position is a
// product of small matrices with its filters, whose rows are contiguous along K.
#include "transpose.hpp"
#include "windows.hpp"

struct Params {
  index_t n, c, d, h, w;
  index_t outputs;
  index_t kd, kh, kw;
  index_t od, oh, ow;
  index_t sd, sh, sw;
  index_t dd, dh, dw;
  index_t pd, ph, pw;
  index_t together;  // positions, at most
  index_t c_block;   // channels of an item of the gradient with respect to x
  index_t items;
};

constexpr index_t IMAGES = min(4, LANES), FILTERS = LANES / IMAGES;  // of a tile, whose sums are one vector

INLINE index_t positions_of(const Params* p) { return p->od * p->oh * p->ow; }

INLINE index_t depth_of(const Params* p) { return p->c * p->kd * p->kh * p->kw; }

// Positions [ow, ow + count) of an output row.
struct Block {
  index_t od, oh, ow, count, first;  // `first` of all positions

  Block(const Params* p, index_t number) {
    index_t in_row = ceil_div(p->ow, p->together), row = number / in_row;
    od = row / p->oh, oh = row % p->oh, ow = number % in_row * p->together;
    count = min(p->together, p->ow - ow);
    first = row * p->ow + ow;
  }
};

INLINE index_t blocks_of(const Params* p) { return p->od * p->oh * ceil_div(p->ow, p->together); }

// Calls visit(k, from, step, inner) for each tap of the channels of a block's windows: the positions `inner` of the block
// read x[from + i * step], the others padding.
template <class Visit>
INLINE void for_each_tap(const Params* p, const Block& block, index_t channels, Visit visit) {
  index_t k = 0;
  for (index_t c = 0; c < channels; c++) {
    for (index_t kd = 0; kd < p->kd; kd++) {
      index_t d = block.od * p->sd + kd * p->dd - p->pd;
      for (index_t kh = 0; kh < p->kh; kh++) {
        index_t h = block.oh * p->sh + kh * p->dh - p->ph;
        bool is_inside = d >= 0 && d < p->d && h >= 0 && h < p->h;
        for (index_t kw = 0; kw < p->kw; kw++, k++) {
          index_t w = block.ow * p->sw + kw * p->dw - p->pw;
          Range inner = is_inside ? inside(w, p->sw, p->w, block.count) : Range{0, 0};
          visit(k, ((c * p->d + d) * p->h + h) * p->w + w, p->sw, inner);
        }
      }
    }
  }
}

// columns [count, N, K] of what a block's positions read; rows of K begin `step` apart, a position `step` * images.
static void gather(const Params* p, const Block& block, const scalar_t* x, scalar_t* columns, index_t step,
                   index_t images, scalar_t* rows) {
  index_t plane = p->c * p->d * p->h * p->w;
  for (index_t n = 0; n < p->n; n++) {
    const scalar_t* image = x + n * plane;
    for_each_tap(p, block, p->c, [&](index_t k, index_t from, index_t stride, Range inner) {
      scalar_t* row = rows + k * p->together;
      for (index_t i = 0; i < inner.begin; i++) row[i] = 0;
      for (index_t i = inner.end; i < block.count; i++) row[i] = 0;
      if (stride == 1) {
        copy_run(image + from + inner.begin, row + inner.begin, inner.end - inner.begin);
      } else {
        for (index_t i = inner.begin; i < inner.end; i++) row[i] = image[from + i * stride];
      }
    });
    copy_transposed(rows, p->together, columns + n * step, images * step, depth_of(p), block.count);
  }
}

// The sums over K of FILTERS rows of w with IMAGES columns, as the lanes [FILTERS, IMAGES]. The rows that come next,
// `ahead` of these, are fetched: they are too short for the processor to see them coming.
INLINE vector_t multiply(const scalar_t* const* filters, index_t ahead, const scalar_t* columns, index_t step,
                         index_t depth) {
  vector_t sums[LANES] = {};
  index_t k = 0;
  for (; k + LANES <= depth; k += LANES) {
    for (index_t o = 0; o < FILTERS; o++) {
      __builtin_prefetch(filters[o] + k + ahead);
      vector_t w = load(filters[o] + k);
      for (index_t n = 0; n < IMAGES; n++) sums[o * IMAGES + n] += w * load(columns + n * step + k);
    }
  }
  for (index_t o = 0; k < depth && o < FILTERS; o++) {
    vector_t w = load_first(filters[o] + k, depth - k);
    for (index_t n = 0; n < IMAGES; n++) sums[o * IMAGES + n] += w * load(columns + n * step + k);
  }
  return sums_of(sums);
}

KERNEL locally_connect(const Params* p, const scalar_t* x, const scalar_t* w, const scalar_t* bias, scalar_t* y,
                       scalar_t* workspace, int64_t item) {
  index_t depth = depth_of(p), step = round_up(depth, LANES), images = round_up(p->n, IMAGES);
  index_t positions = positions_of(p);
  scalar_t *columns = workspace, *rest = columns + p->together * images * step;
  fill_n(columns, p->together * images * step, scalar_t(0));
  Range range = part_of(blocks_of(p), item, p->items);
  for (index_t number = range.begin; number < range.end; number++) {
    Block block(p, number);
    gather(p, block, x, columns, step, images, rest);
    for (index_t i = 0; i < block.count; i++) {
      index_t position = block.first + i;
      for (index_t oc = 0; oc < p->outputs; oc += FILTERS) {
        const scalar_t* filters[FILTERS];
        index_t ahead = (oc + FILTERS < p->outputs ? FILTERS * positions : 1 - oc * positions) * depth;
        for (index_t o = 0; o < FILTERS; o++) {
          filters[o] = w + (min(oc + o, p->outputs - 1) * positions + position) * depth;
        }
        for (index_t n = 0; n < p->n; n += IMAGES) {
          vector_t sums = multiply(filters, ahead, columns + (i * images + n) * step, step, depth);
          for (index_t o = 0; o < min(FILTERS, p->outputs - oc); o++) {
            index_t at = (oc + o) * positions + position;
            for (index_t m = 0; m < min(IMAGES, p->n - n); m++) {
              y[(n + m) * p->outputs * positions + at] = sums[o * IMAGES + m] + (bias ? bias[at] : scalar_t(0));
            }
          }
        }
      }
    }
  }
}

// columns [IMAGES, depth] += gradients [COUNT, IMAGES] times the rows of COUNT filters, `next` apart. The rows of the
// next ones are fetched.
template <int COUNT>
INLINE void spread(const scalar_t* gradients, index_t images, const scalar_t* w, index_t next, index_t depth,
                   scalar_t* columns, index_t step) {
  for (index_t k = 0; k < depth; k += LANES) {
    vector_t filters[COUNT];
    for (index_t o = 0; o < COUNT; o++) {
      __builtin_prefetch(w + (COUNT + o) * next + k);
      filters[o] = k + LANES <= depth ? load(w + o * next + k) : load_first(w + o * next + k, depth - k);
    }
    for (index_t n = 0; n < IMAGES; n++) {
      vector_t sum = load(columns + n * step + k);
      for (index_t o = 0; o < COUNT; o++) sum += gradients[o * images + n] * filters[o];
      store(columns + n * step + k, sum);
    }
  }
}

// gradients [OC, images] of a position, those beyond N zero.
static void gather_gradients(const Params* p, const scalar_t* grad_y, index_t position, index_t images,
                             scalar_t* gradients) {
  index_t positions = positions_of(p);
  for (index_t oc = 0; oc < p->outputs; oc++) {
    for (index_t n = 0; n < images; n++) {
      gradients[oc * images + n] = n < p->n ? grad_y[(n * p->outputs + oc) * positions + position] : scalar_t(0);
    }
  }
}

KERNEL locally_connect_backward_input(const Params* p, const scalar_t* grad_y, const scalar_t* w, scalar_t* grad_x,
                                      scalar_t* workspace, int64_t item) {
  index_t c = item * p->c_block, channels = min(p->c_block, p->c - c), taps = p->kd * p->kh * p->kw;
  index_t depth = channels * taps, step = round_up(depth, LANES), images = round_up(p->n, IMAGES);
  index_t plane = p->d * p->h * p->w, next = positions_of(p) * depth_of(p);
  scalar_t *columns = workspace, *rows = columns + p->together * images * step, *gradients = rows + depth * p->together;
  for (index_t n = 0; n < p->n; n++) fill_n(grad_x + (n * p->c + c) * plane, channels * plane, scalar_t(0));
  for (index_t number = 0; number < blocks_of(p); number++) {
    Block block(p, number);
    for (index_t i = 0; i < block.count; i++) {
      const scalar_t* filters = w + (block.first + i) * depth_of(p) + c * taps;
      scalar_t* to = columns + i * images * step;
      gather_gradients(p, grad_y, block.first + i, images, gradients);
      fill_n(to, images * step, scalar_t(0));
      index_t oc = 0;
      for (; oc + 4 <= p->outputs; oc += 4) {
        for (index_t n = 0; n < p->n; n += IMAGES) {
          spread<4>(gradients + oc * images + n, images, filters + oc * next, next, depth, to + n * step, step);
        }
      }
      for (; oc < p->outputs; oc++) {
        for (index_t n = 0; n < p->n; n += IMAGES) {
          spread<1>(gradients + oc * images + n, images, filters + oc * next, next, depth, to + n * step, step);
        }
      }
    }
    for (index_t n = 0; n < p->n; n++) {
      copy_transposed(columns + n * step, images * step, rows, p->together, block.count, depth);
      scalar_t* image = grad_x + (n * p->c + c) * plane;
      for_each_tap(p, block, channels, [&](index_t k, index_t from, index_t stride, Range inner) {
        const scalar_t* row = rows + k * p->together;
        scalar_t* to = image + from;
        if (stride == 1) {
          for (index_t i = inner.begin; i < inner.end; i++) to[i] += row[i];
        } else {
          for (index_t i = inner.begin; i < inner.end; i++) to[i * stride] += row[i];
        }
      });
    }
  }
}

KERNEL locally_connect_backward_weight(const Params* p, const scalar_t* x, const scalar_t* grad_y, scalar_t* grad_w,
                                       scalar_t* workspace, int64_t item) {
  index_t depth = depth_of(p), step = round_up(depth, LANES), images = p->n;
  index_t next = positions_of(p) * depth;
  scalar_t *columns = workspace, *rows = columns + p->together * images * step, *gradients = rows + depth * p->together;
  Range range = part_of(blocks_of(p), item, p->items);
  for (index_t number = range.begin; number < range.end; number++) {
    Block block(p, number);
    gather(p, block, x, columns, step, images, rows);
    for (index_t i = 0; i < block.count; i++) {
      gather_gradients(p, grad_y, block.first + i, images, gradients);
      const scalar_t* read = columns + i * images * step;
      scalar_t* to = grad_w + (block.first + i) * depth;
      for (index_t oc = 0; oc < p->outputs; oc++, to += next) {
        const scalar_t* of_filter = gradients + oc * images;
        for (index_t k = 0; k < depth; k += LANES) {
          vector_t sum = {};
          for (index_t n = 0; n < images; n++) sum += of_filter[n] * load(read + n * step + k);
          if (k + LANES <= depth) store(to + k, sum);
          if (k + LANES > depth) store_first(to + k, sum, depth - k);
        }
      }
    }
  }
}
