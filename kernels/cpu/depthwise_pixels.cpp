// Depthwise convolution with channels innermost, in three directions: lanes run along the channels of a pixel.
//
// A block is up to BLOCK targets along the width. A table holds where each row of taps finds its pixels, a pixel of zeros
// where that is padding; then a pass over the channels reads the pixels and rows of taps whole, in memory's order.
#include "vectors.hpp"

struct Params {
  index_t n, c;
  index_t target_d, target_h, target_w;  // sizes: of y, or of grad_x in dgrad
  index_t source_d, source_h, source_w;  // of x, or of grad_y in dgrad
  index_t kernel_d, kernel_h, kernel_w;
  index_t stride_d, stride_h, stride_w;
  index_t dilation_d, dilation_h, dilation_w;
  index_t low_d, low_h, low_w;
  index_t to_n, to_d, to_h, to_w;
  index_t from_n, from_d, from_h, from_w;
  index_t w_c, w_d, w_h, w_w;
  index_t items;
  index_t pixels;  // positions whose products are summed before they join the others, in wgrad
};

constexpr int BLOCK = 7;  // divides the sizes of most networks' planes: 112, 56, 28, 14, 7

using pixel_t = const scalar_t*;

// The position that tap k of a target reads along one axis, -1 if there is none.
template <bool dgrad>
INLINE index_t position(index_t target, index_t k, index_t stride, index_t dilation, index_t low, index_t sources) {
  index_t at = dgrad ? target + low - k * dilation : target * stride + k * dilation - low;
  if (dgrad && at % stride) return -1;
  if (dgrad) at /= stride;
  return at < sources ? at : -1;
}

// Targets first, first + hop, ... along the width: the j-th reads pixel j * step + base + t * spacing through kernel column
// tap + t * tap_step, t in [0, taps). A strided dgrad has one run for each residue.
struct Run {
  index_t first, hop, tap, tap_step, taps, base, step, spacing;
};

template <bool dgrad>
INLINE Run run_of(const Params* p, index_t residue) {
  if (!dgrad) return {0, 1, 0, 1, p->kernel_w, -p->low_w, p->stride_w, p->dilation_w};
  Run run = {residue, p->stride_w, 0, -1, 0, 0, 1, 1};
  index_t last = -1;
  for (index_t k = 0; k < p->kernel_w; k++) {
    index_t at = residue + p->low_w - k * p->dilation_w;
    if (at % p->stride_w) continue;
    if (run.taps++) {
      run.tap_step = run.tap - k;
      run.spacing = last - at / p->stride_w;
    }
    run.tap = k;
    run.base = last = at / p->stride_w;
  }
  return run;
}

// The rows of taps that find a row of the source, for one row of targets.
struct Rows {
  index_t count;
  pixel_t* start;  // of the source's row
  index_t* tap;    // of the weight's row
};

template <bool dgrad>
INLINE void find_rows(const Params* p, const scalar_t* image, index_t d, index_t h, Rows& rows) {
  rows.count = 0;
  for (index_t kd = 0; kd < p->kernel_d; kd++) {
    index_t from_d = position<dgrad>(d, kd, p->stride_d, p->dilation_d, p->low_d, p->source_d);
    if (from_d < 0) continue;
    for (index_t kh = 0; kh < p->kernel_h; kh++) {
      index_t from_h = position<dgrad>(h, kh, p->stride_h, p->dilation_h, p->low_h, p->source_h);
      if (from_h < 0) continue;
      rows.start[rows.count] = image + from_d * p->from_d + from_h * p->from_h;
      rows.tap[rows.count++] = (kd * p->kernel_h + kh) * p->kernel_w;
    }
  }
}

INLINE pixel_t pixel(const Params* p, pixel_t row, index_t column, pixel_t zeros) {
  return column >= 0 && column < p->source_w ? row + column * p->from_w : zeros;
}

// The pixels of a block of `count` targets from the j-th on: [rows][columns], or [rows][taps][BLOCK] if not `dense`.
INLINE void find_pixels(const Params* p, const Rows& rows, const Run& run, index_t j, index_t count, bool dense,
                        pixel_t zeros, pixel_t* pixels) {
  index_t columns = (BLOCK - 1) * run.step + run.taps;
  for (index_t row = 0; row < rows.count; row++) {
    if (dense) {
      for (index_t i = 0; i < columns; i++)
        *pixels++ = pixel(p, rows.start[row], j * run.step + run.base + i, zeros);
      continue;
    }
    for (index_t t = 0; t < run.taps; t++)
      for (index_t b = 0; b < BLOCK; b++)
        *pixels++ = b < count ? pixel(p, rows.start[row], (j + b) * run.step + run.base + t * run.spacing, zeros) : zeros;
  }
}

// The targets of a block: sums over rows of taps. TAPS = 0 stands for any taps, each with BLOCK pixels of its own.
template <int TAPS, int STEP>
INLINE void sum_block(const Params* p, const Rows& rows, const Run& run, const pixel_t* pixels, const scalar_t* weight,
                      const scalar_t* bias, scalar_t* to, index_t count) {
  constexpr int COLUMNS = (BLOCK - 1) * STEP + TAPS;
  for (index_t v = 0; v < p->c; v += LANES) {
    index_t c = std::min(v, p->c - LANES);  // the last lanes may be computed twice
    vector_t sums[BLOCK];
    vector_t first = bias ? load(bias + c) : vector_t{};
    for (int b = 0; b < BLOCK; b++) sums[b] = first;
    const pixel_t* next = pixels;
    for (index_t row = 0; row < rows.count; row++) {
      const scalar_t* taps = weight + (rows.tap[row] + run.tap) * p->c + c;
      if constexpr (TAPS > 0) {
        vector_t w[TAPS];
        for (int t = 0; t < TAPS; t++) w[t] = load(taps + t * run.tap_step * p->c);
#pragma GCC unroll 32
        for (int i = 0; i < COLUMNS; i++) {
          vector_t x = load(next[i] + c);
#pragma GCC unroll 8
          for (int t = 0; t < TAPS; t++)
            if (i >= t && (i - t) % STEP == 0 && (i - t) / STEP < BLOCK) sums[(i - t) / STEP] += w[t] * x;
        }
        next += COLUMNS;
      } else {
        for (index_t t = 0; t < run.taps; t++, next += BLOCK) {
          vector_t w = load(taps + t * run.tap_step * p->c);
          for (int b = 0; b < BLOCK; b++) sums[b] += w * load(next[b] + c);
        }
      }
    }
    for (int b = 0; b < BLOCK; b++)
      if (b < count) store(to + b * run.hop * p->to_w + c, sums[b]);
  }
}

// The gradients of the taps of a block's rows: sums [taps, v], v counting whole vectors, grow by the block's products.
template <int TAPS, int STEP>
INLINE void add_products(const Params* p, const Rows& rows, const Run& run, const pixel_t* pixels, const pixel_t* grads,
                         scalar_t* sums) {
  constexpr int COLUMNS = (BLOCK - 1) * STEP + TAPS;
  index_t width = round_up(p->c, LANES);
  for (index_t v = 0; v < p->c; v += LANES) {
    index_t c = std::min(v, p->c - LANES);
    vector_t g[BLOCK];
    for (int b = 0; b < BLOCK; b++) g[b] = load(grads[b] + c);
    const pixel_t* next = pixels;
    for (index_t row = 0; row < rows.count; row++) {
      scalar_t* taps = sums + rows.tap[row] * width + v;
      if constexpr (TAPS > 0) {
        vector_t s[TAPS];
        for (int t = 0; t < TAPS; t++) s[t] = load(taps + t * width);
#pragma GCC unroll 32
        for (int i = 0; i < COLUMNS; i++) {
          vector_t x = load(next[i] + c);
#pragma GCC unroll 8
          for (int t = 0; t < TAPS; t++)
            if (i >= t && (i - t) % STEP == 0 && (i - t) / STEP < BLOCK) s[t] += g[(i - t) / STEP] * x;
        }
        for (int t = 0; t < TAPS; t++) store(taps + t * width, s[t]);
        next += COLUMNS;
      } else {
        for (index_t t = 0; t < run.taps; t++, next += BLOCK) {
          vector_t s = load(taps + t * width);
          for (int b = 0; b < BLOCK; b++) s += g[b] * load(next[b] + c);
          store(taps + t * width, s);
        }
      }
    }
  }
}

// Calls `body` with TAPS and STEP as constants for the windows of networks, else with 0 and 1.
template <class Body>
INLINE void specialised(const Run& run, Body body) {
  auto is = [&](index_t taps, index_t step) {
    return run.taps == taps && run.step == step && (taps == 1 || run.spacing == 1);
  };
  if (is(3, 1)) return body.template operator()<3, 1>();
  if (is(5, 1)) return body.template operator()<5, 1>();
  if (is(7, 1)) return body.template operator()<7, 1>();
  if (is(3, 2)) return body.template operator()<3, 2>();
  if (is(5, 2)) return body.template operator()<5, 2>();
  if (is(1, 1)) return body.template operator()<1, 1>();
  if (is(2, 1)) return body.template operator()<2, 1>();
  body.template operator()<0, 1>();
}

// What a call keeps in its workspace: a pixel of zeros, and tables.
struct Room {
  scalar_t* zeros;
  Rows rows;
  pixel_t* pixels;
  scalar_t* sums;

  Room(const Params* p, scalar_t* workspace) {
    index_t taps = p->kernel_d * p->kernel_h;
    zeros = workspace;
    memset(zeros, 0, p->c * sizeof(scalar_t));
    scalar_t* tables = workspace + round_up(p->c, 64);
    rows = {0, reinterpret_cast<pixel_t*>(tables), reinterpret_cast<index_t*>(tables) + taps};
    pixels = reinterpret_cast<pixel_t*>(tables) + 2 * taps;
    index_t most = std::max((BLOCK - 1) * p->stride_w + p->kernel_w, BLOCK * p->kernel_w);
    sums = tables + round_up((2 + most) * taps * sizeof(pixel_t) / sizeof(scalar_t), 64);
  }
};

template <bool dgrad>
INLINE void contract(const Params* p, const scalar_t* from, const scalar_t* weight, const scalar_t* bias, scalar_t* to,
                     scalar_t* workspace, index_t item) {
  Room room(p, workspace);
  Range part = part_of(p->n * p->target_d * p->target_h, item, p->items);
  for (index_t row = part.begin; row < part.end; row++) {
    index_t h = row % p->target_h, d = row / p->target_h % p->target_d, n = row / p->target_h / p->target_d;
    find_rows<dgrad>(p, from + n * p->from_n, d, h, room.rows);
    scalar_t* line = to + n * p->to_n + d * p->to_d + h * p->to_h;
    index_t residues = dgrad ? std::min(p->stride_w, p->target_w) : 1;
    for (index_t residue = 0; residue < residues; residue++) {
      Run run = run_of<dgrad>(p, residue);
      index_t targets = ceil_div(p->target_w - run.first, run.hop);
      specialised(run, [&]<int TAPS, int STEP>() __attribute__((always_inline)) {
        for (index_t j = 0; j < targets; j += BLOCK) {
          index_t count = std::min<index_t>(BLOCK, targets - j);
          find_pixels(p, room.rows, run, j, count, TAPS > 0, room.zeros, room.pixels);
          sum_block<TAPS, STEP>(p, room.rows, run, room.pixels, weight, bias, line + (run.first + j * run.hop) * p->to_w,
                                count);
        }
      });
    }
  }
}

// y = x * weight + bias for x [N, D, H, W, C], weight [KD, KH, KW, C].
KERNEL depthwise_pixels(const Params* p, const scalar_t* from, const scalar_t* weight, const scalar_t* bias, scalar_t* to,
                        scalar_t* workspace, int64_t item) {
  contract<false>(p, from, weight, bias, to, workspace, item);
}

// grad_x, and bias, from grad_y.
KERNEL depthwise_pixels_backward_input(const Params* p, const scalar_t* from, const scalar_t* weight,
                                       const scalar_t* bias, scalar_t* to, scalar_t* workspace, int64_t item) {
  contract<true>(p, from, weight, bias, to, workspace, item);
}

// Partial sums [items, taps, C] (whole vectors) of an item's rows of grad_y, which is `to`'s place.
KERNEL depthwise_pixels_backward_weight(const Params* p, const scalar_t* from, const scalar_t* grad, scalar_t* partial,
                                        scalar_t* workspace, int64_t item) {
  Room room(p, workspace);
  index_t count = p->kernel_d * p->kernel_h * p->kernel_w * round_up(p->c, LANES), summed = 0;
  scalar_t* total = partial + item * count;
  memset(total, 0, count * sizeof(scalar_t));
  memset(room.sums, 0, count * sizeof(scalar_t));
  Run run = run_of<false>(p, 0);
  Range part = part_of(p->n * p->target_d * p->target_h, item, p->items);
  for (index_t row = part.begin; row < part.end; row++) {
    index_t h = row % p->target_h, d = row / p->target_h % p->target_d, n = row / p->target_h / p->target_d;
    find_rows<false>(p, from + n * p->from_n, d, h, room.rows);
    const scalar_t* line = grad + n * p->to_n + d * p->to_d + h * p->to_h;
    specialised(run, [&]<int TAPS, int STEP>() __attribute__((always_inline)) {
      for (index_t j = 0; j < p->target_w; j += BLOCK) {
        index_t count = std::min<index_t>(BLOCK, p->target_w - j);
        bool dense = TAPS > 0 && count == BLOCK;  // zeros past the last target would meet pixels that are infinite
        pixel_t grads[BLOCK];
        for (int b = 0; b < BLOCK; b++) grads[b] = b < count ? line + (j + b) * p->to_w : room.zeros;
        find_pixels(p, room.rows, run, j, count, dense, room.zeros, room.pixels);
        if (dense)
          add_products<TAPS, STEP>(p, room.rows, run, room.pixels, grads, room.sums);
        else
          add_products<0, 1>(p, room.rows, run, room.pixels, grads, room.sums);
      }
    });
    summed += p->target_w;
    if (summed < p->pixels && row + 1 < part.end) continue;
    for (index_t i = 0; i < count; i += LANES) {
      store(total + i, load(total + i) + load(room.sums + i));
      store(room.sums + i, vector_t{});
    }
    summed = 0;
  }
}

// weight [taps, C] of w [C, KD, KH, KW].
KERNEL depthwise_pixels_weight(const Params* p, const scalar_t* w, scalar_t* weight, scalar_t* workspace, int64_t item) {
  for (index_t d = 0; d < p->kernel_d; d++)
    for (index_t h = 0; h < p->kernel_h; h++)
      for (index_t k = 0; k < p->kernel_w; k++, weight += p->c)
        for (index_t c = 0; c < p->c; c++) weight[c] = w[c * p->w_c + d * p->w_d + h * p->w_h + k * p->w_w];
}

// grad_w [C, KD, KH, KW], in `w`'s place, of the partial sums of all items, in their order.
KERNEL depthwise_pixels_total(const Params* p, const scalar_t* partial, scalar_t* w, scalar_t* workspace, int64_t item) {
  index_t width = round_up(p->c, LANES), count = p->kernel_d * p->kernel_h * p->kernel_w * width;
  for (index_t d = 0; d < p->kernel_d; d++)
    for (index_t h = 0; h < p->kernel_h; h++)
      for (index_t k = 0; k < p->kernel_w; k++, partial += width)
        for (index_t v = 0; v < p->c; v += LANES) {
          vector_t sum = {};
          for (index_t i = 0; i < p->items; i++) sum += load(partial + i * count + v);
          index_t c = std::min(v, p->c - LANES);
          for (int lane = 0; lane < LANES; lane++)
            w[(c + lane) * p->w_c + d * p->w_d + h * p->w_h + k * p->w_w] = sum[lane];
        }
}
