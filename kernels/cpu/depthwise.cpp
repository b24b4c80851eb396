// Depthwise convolution in three directions: lanes run along the channels of a pixel.
//
// A block is up to BLOCK targets along the width. A table holds where each row of taps finds its pixels, a pixel of zeros
// where that is padding; then a pass over channels sums all taps in registers. Work goes by tiles of channels and columns
// whose rows of pixels, as many as a window has, stay in the first-level cache from one row of targets to the next.
//
// Where channels are not innermost in memory, some of them are transposed to the workspace for a box of targets, and the
// results back. Weights are packed to [taps, channels], with the bias as one more row.
#include "transpose.hpp"

struct Params {
  index_t n, c, width;  // width: channels of a row of packed weights or partial sums, in whole vectors
  index_t target_d, target_h, target_w;  // sizes: of y, or of grad_x in dgrad
  index_t source_d, source_h, source_w;  // of x, or of grad_y in dgrad
  index_t kernel_d, kernel_h, kernel_w;
  index_t stride_d, stride_h, stride_w;
  index_t dilation_d, dilation_h, dilation_w;
  index_t low_d, low_h, low_w;
  index_t to_n, to_c, to_d, to_h, to_w;
  index_t from_n, from_c, from_d, from_h, from_w;
  index_t w_c, w_d, w_h, w_w;
  index_t bias_c;
  index_t dgrad;             // whether targets are grad_x
  index_t items;
  index_t parts;             // of the batch, each with its partial sums, in wgrad
  index_t pixels;            // positions whose products are summed before they join the others, in wgrad
  index_t chunks;            // of channels that are transposed together
  index_t box_d, box_h, box_w;  // targets of a box
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

  // The first pixel of block j in the row after the last; past the image where that ends.
  pixel_t ahead(const Params* p, const Run& run, index_t j) const {
    return count ? start[count - 1] + p->from_h + (j * run.step + run.base) * p->from_w : nullptr;
  }
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

// Channels [begin, end) and targets along the width that a pass down the rows computes.
struct Tile {
  index_t channels, columns;

  Tile(const Params* p, index_t step) {
    constexpr index_t CACHE = 24 << 10;  // bytes; more than 28 columns have few at their borders that two tiles read
    columns = std::min(round_up(p->target_w, BLOCK), index_t(4) * BLOCK);
    index_t pixels = p->kernel_d * p->kernel_h * ((columns - 1) * step + p->kernel_w);
    channels = std::max<index_t>(4 * LANES, CACHE / index_t(sizeof(scalar_t)) / pixels / LANES * LANES);
  }
};

// The pixels of a block of `count` targets from the j-th on: [rows][columns], or [rows][taps][BLOCK] if not `dense`.
INLINE void find_pixels(const Params* p, const Rows& rows, const Run& run, index_t j, index_t count, bool dense,
                        pixel_t zeros, pixel_t* pixels) {
  index_t columns = (BLOCK - 1) * run.step + run.taps;
  for (index_t row = 0; row < rows.count; row++) {
    index_t column = j * run.step + run.base;
    if (dense && column >= 0 && column + columns <= p->source_w) {
      pixel_t at = rows.start[row] + column * p->from_w;
      for (index_t i = 0; i < columns; i++) pixels[i] = at + i * p->from_w;
      pixels += columns;
      continue;
    }
    if (dense) {
      for (index_t i = 0; i < columns; i++) *pixels++ = pixel(p, rows.start[row], column + i, zeros);
      continue;
    }
    for (index_t t = 0; t < run.taps; t++)
      for (index_t b = 0; b < BLOCK; b++)
        *pixels++ = b < count ? pixel(p, rows.start[row], (j + b) * run.step + run.base + t * run.spacing, zeros) : zeros;
  }
}

// Asks for the vectors of memory that the same block of the next row of targets reads first, of channels c on: whole
// rows are too far apart for the processor to guess. Took a fifth off the time of layers larger than the cache.
template <int STEP>
INLINE void prefetch(const Params* p, pixel_t ahead, index_t c) {
  for (int row = 0; row < STEP; row++)
    for (int i = 0; i < BLOCK * STEP; i++) __builtin_prefetch(ahead + row * p->from_h + i * p->from_w + c);
}

// The targets of a block: sums over rows of taps. TAPS = 0 stands for any taps, each with BLOCK pixels of its own.
template <int TAPS, int STEP>
INLINE void sum_block(const Params* p, const Rows& rows, const Run& run, const pixel_t* pixels, pixel_t ahead,
                      const scalar_t* weight, scalar_t* to, index_t count, Range channels) {
  constexpr int COLUMNS = (BLOCK - 1) * STEP + TAPS;
  const scalar_t* bias = weight + p->kernel_d * p->kernel_h * p->kernel_w * p->width;
  for (index_t v = channels.begin; v < channels.end; v += LANES) {
    index_t c = std::min(v, p->c - LANES);  // the last lanes may be computed twice
    vector_t sums[BLOCK];
    for (int b = 0; b < BLOCK; b++) sums[b] = load(bias + c);
    const pixel_t* next = pixels;
    for (index_t row = 0; row < rows.count; row++) {
      const scalar_t* taps = weight + (rows.tap[row] + run.tap) * p->width + c;
      if constexpr (TAPS > 0) {
        vector_t w[TAPS];
        for (int t = 0; t < TAPS; t++) w[t] = load(taps + t * run.tap_step * p->width);
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
          vector_t w = load(taps + t * run.tap_step * p->width);
          for (int b = 0; b < BLOCK; b++) sums[b] += w * load(next[b] + c);
        }
      }
    }
    prefetch<STEP>(p, ahead, c);
    for (int b = 0; b < BLOCK; b++) __builtin_prefetch(to + p->to_h + b * run.hop * p->to_w + c, 1);
    for (int b = 0; b < BLOCK; b++)
      if (b < count) store(to + b * run.hop * p->to_w + c, sums[b]);
  }
}

// The gradients of the taps of a block's rows: sums [taps, v], v counting whole vectors, grow by the block's products.
template <int TAPS, int STEP>
INLINE void add_products(const Params* p, const Rows& rows, const Run& run, const pixel_t* pixels, pixel_t ahead,
                         const pixel_t* grads, scalar_t* sums, Range channels) {
  constexpr int COLUMNS = (BLOCK - 1) * STEP + TAPS;
  for (index_t v = channels.begin; v < channels.end; v += LANES) {
    index_t c = std::min(v, p->c - LANES);
    vector_t g[BLOCK];
    for (int b = 0; b < BLOCK; b++) g[b] = load(grads[b] + c);
    prefetch<STEP>(p, ahead, c);
    for (int b = 0; b < BLOCK; b++) __builtin_prefetch(grads[b] + p->to_h + c);
    const pixel_t* next = pixels;
    for (index_t row = 0; row < rows.count; row++) {
      scalar_t* taps = sums + rows.tap[row] * p->width + v;
      if constexpr (TAPS > 0) {
        vector_t s[TAPS];
        for (int t = 0; t < TAPS; t++) s[t] = load(taps + t * p->width);
#pragma GCC unroll 32
        for (int i = 0; i < COLUMNS; i++) {
          vector_t x = load(next[i] + c);
#pragma GCC unroll 8
          for (int t = 0; t < TAPS; t++)
            if (i >= t && (i - t) % STEP == 0 && (i - t) / STEP < BLOCK) s[t] += g[(i - t) / STEP] * x;
        }
        for (int t = 0; t < TAPS; t++) store(taps + t * p->width, s[t]);
        next += COLUMNS;
      } else {
        for (index_t t = 0; t < run.taps; t++, next += BLOCK) {
          vector_t s = load(taps + t * p->width);
          for (int b = 0; b < BLOCK; b++) s += g[b] * load(next[b] + c);
          store(taps + t * p->width, s);
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

// A box of positions of one image.
struct Box {
  Range d, h, w;
};

// A call's workspace: a pixel of zeros, tables, and the rest.
struct Room {
  scalar_t* zeros;
  Rows rows;
  pixel_t* pixels;
  scalar_t* rest;

  Room(const Params* p, scalar_t* workspace) {
    index_t taps = p->kernel_d * p->kernel_h;
    zeros = workspace;
    memset(zeros, 0, p->width * sizeof(scalar_t));
    scalar_t* tables = workspace + round_up(p->width, 64);
    rows = {0, reinterpret_cast<pixel_t*>(tables), reinterpret_cast<index_t*>(tables) + taps};
    pixels = reinterpret_cast<pixel_t*>(tables) + 2 * taps;
    index_t most = std::max((BLOCK - 1) * p->stride_w + p->kernel_w, BLOCK * p->kernel_w);
    rest = tables + round_up((2 + most) * taps * sizeof(pixel_t) / sizeof(scalar_t), 64);
  }
};

// Calls `body(channels, columns)` for each tile of targets along the width.
template <class Body>
INLINE void for_tiles(const Params* p, index_t step, Range targets, Body body) {
  Tile tile(p, step);
  for (index_t c = 0; c < p->c; c += tile.channels)
    for (index_t j = targets.begin; j < targets.end; j += tile.columns)
      body(Range{c, std::min(c + tile.channels, p->c)}, Range{j, std::min(j + tile.columns, targets.end)});
}

// The targets of a box of an image; channels are innermost in both images.
template <bool dgrad>
static void contract_box(const Params* p, Room& room, const scalar_t* from, const scalar_t* weight, scalar_t* to,
                         const Box& box) {
  index_t hop = dgrad ? p->stride_w : 1;
  Range runs = {box.w.begin / hop, ceil_div(box.w.end, hop)};  // boxes begin at multiples of the stride
  for_tiles(p, dgrad ? 1 : p->stride_w, runs, [&](Range channels, Range columns) {
    for (index_t d = box.d.begin; d < box.d.end; d++)
      for (index_t h = box.h.begin; h < box.h.end; h++) {
        find_rows<dgrad>(p, from, d, h, room.rows);
        scalar_t* line = to + d * p->to_d + h * p->to_h;
        for (index_t residue = 0; residue < std::min(hop, p->target_w); residue++) {
          Run run = run_of<dgrad>(p, residue);
          index_t end = std::min(columns.end, ceil_div(p->target_w - residue, hop));
          specialised(run, [&]<int TAPS, int STEP>() __attribute__((always_inline)) {
            for (index_t j = columns.begin; j < end; j += BLOCK) {
              index_t count = std::min<index_t>(BLOCK, end - j);
              find_pixels(p, room.rows, run, j, count, TAPS > 0, room.zeros, room.pixels);
              scalar_t* first = line + (run.first + j * run.hop) * p->to_w;
              sum_block<TAPS, STEP>(p, room.rows, run, room.pixels, room.rows.ahead(p, run, j), weight, first, count,
                                    channels);
            }
          });
        }
      }
  });
}

INLINE void contract(const Params* p, Room& room, const scalar_t* from, const scalar_t* weight, scalar_t* to,
                     const Box& box) {
  p->dgrad ? contract_box<true>(p, room, from, weight, to, box) : contract_box<false>(p, room, from, weight, to, box);
}

// Partial sums [taps, channels] of which `sums` is one stage, `total` the other: short sums are more exact.
struct Stages {
  scalar_t* total;
  scalar_t* sums;
  index_t pixels;  // whose products are in `sums`
};

// Adds the products of a box of rows of an image to the sums.
static void add_box(const Params* p, Room& room, const scalar_t* from, const scalar_t* grad, Stages& stages,
                    const Box& box) {
  Run run = run_of<false>(p, 0);
  for_tiles(p, p->stride_w, box.w, [&](Range channels, Range columns) {
    for (index_t d = box.d.begin; d < box.d.end; d++)
      for (index_t h = box.h.begin; h < box.h.end; h++) {
        find_rows<false>(p, from, d, h, room.rows);
        const scalar_t* line = grad + d * p->to_d + h * p->to_h;
        specialised(run, [&]<int TAPS, int STEP>() __attribute__((always_inline)) {
          for (index_t j = columns.begin; j < columns.end; j += BLOCK) {
            index_t count = std::min<index_t>(BLOCK, columns.end - j);
            bool dense = TAPS > 0 && count == BLOCK;  // zeros past the last target could meet pixels that are infinite
            pixel_t grads[BLOCK], ahead = room.rows.ahead(p, run, j);
            for (int b = 0; b < BLOCK; b++) grads[b] = b < count ? line + (j + b) * p->to_w : room.zeros;
            find_pixels(p, room.rows, run, j, count, dense, room.zeros, room.pixels);
            if (dense)
              add_products<TAPS, STEP>(p, room.rows, run, room.pixels, ahead, grads, stages.sums, channels);
            else
              add_products<0, 1>(p, room.rows, run, room.pixels, ahead, grads, stages.sums, channels);
          }
        });
      }
  });
}

// Adds the sums of one stage to the other, if they are of so many positions.
INLINE void join(const Params* p, Stages& stages, index_t least) {
  if (stages.pixels < least) return;
  stages.pixels = 0;
  for (index_t t = 0; t < p->kernel_d * p->kernel_h * p->kernel_w; t++)
    for (index_t v = t * p->width; v < t * p->width + p->c; v += LANES) {
      store(stages.total + v, load(stages.total + v) + load(stages.sums + v));
      store(stages.sums + v, vector_t{});
    }
}

// --- Channels innermost in memory -------------------------------------------------------------------------------------

// Calls `body(n, box)` for each row of targets of a work item.
template <class Body>
INLINE void for_rows(const Params* p, index_t item, Body body) {
  Range part = part_of(p->n * p->target_d * p->target_h, item, p->items);
  for (index_t row = part.begin; row < part.end;) {
    index_t n = row / p->target_h / p->target_d, d = row / p->target_h % p->target_d, h = row % p->target_h;
    index_t end = std::min(p->target_h, h + part.end - row);
    body(n, Box{{d, d + 1}, {h, end}, {0, p->target_w}});
    row += end - h;
  }
}

// y, or grad_x, of [N, D, H, W, C] and packed weights.
KERNEL depthwise_pixels(const Params* p, const scalar_t* from, const scalar_t* weight, scalar_t* to, scalar_t* workspace,
                        int64_t item) {
  Room room(p, workspace);
  for_rows(p, item, [&](index_t n, Box box) { contract(p, room, from + n * p->from_n, weight, to + n * p->to_n, box); });
}

// Partial sums [taps, width] of grad_w, one for each item.
KERNEL depthwise_pixels_gradient(const Params* p, const scalar_t* from, const scalar_t* to, scalar_t* partial,
                                 scalar_t* workspace, int64_t item) {
  Room room(p, workspace);
  index_t count = p->kernel_d * p->kernel_h * p->kernel_w * p->width;
  Stages stages = {partial + item * count, room.rest, 0};
  memset(stages.total, 0, count * sizeof(scalar_t));
  memset(stages.sums, 0, count * sizeof(scalar_t));
  for_rows(p, item, [&](index_t n, Box box) {
    index_t step = std::max<index_t>(1, p->pixels / p->target_w);
    for (index_t h = box.h.begin; h < box.h.end; h += step) {
      Range rows = {h, std::min(h + step, box.h.end)};
      add_box(p, room, from + n * p->from_n, to + n * p->to_n, stages, {box.d, rows, box.w});
      stages.pixels += (rows.end - rows.begin) * p->target_w;
      join(p, stages, p->pixels);
    }
  });
  join(p, stages, 0);
}

// --- Any memory order -------------------------------------------------------------------------------------------------

// A box of an image [D, H, W, channels] in the workspace.
struct Copy {
  Box box;
  index_t channels;
  scalar_t* start;

  index_t row() const { return (box.w.end - box.w.begin) * channels; }
  index_t plane() const { return (box.h.end - box.h.begin) * row(); }
  index_t size() const { return (box.d.end - box.d.begin) * plane(); }
  index_t offset(index_t d, index_t h, index_t w) const { return d * plane() + h * row() + w * channels; }
  scalar_t* origin() const { return start - offset(box.d.begin, box.h.begin, box.w.begin); }
};

struct Steps {
  index_t c, d, h, w;
};

// Calls `body(offset, copy, count)` for each run of `count` pixels that are a stride of `by.w` apart in memory.
template <class Body>
INLINE void for_runs(const Copy& copy, const Steps& by, Body body) {
  auto [d, h, w] = copy.box;
  index_t rows = h.end - h.begin, count = w.end - w.begin;
  if (rows == 0 || by.h == count * by.w) count *= rows, rows = 1;
  for (index_t i = d.begin; i < d.end; i++)
    for (index_t row = 0; row < rows; row++) {
      index_t j = h.begin + row;
      body(i * by.d + j * by.h + w.begin * by.w, copy.origin() + copy.offset(i, j, w.begin), count);
    }
}

// The first `channels` channels of an image, zeros in the others of a copy.
static void pack(const scalar_t* image, const Steps& by, index_t channels, const Copy& copy) {
  if (channels < copy.channels) memset(copy.start, 0, copy.size() * sizeof(scalar_t));
  for_runs(copy, by, [&](index_t offset, scalar_t* to, index_t count) {
    const scalar_t* from = image + offset;
    if (by.w == 1) return copy_transposed(from, by.c, to, copy.channels, channels, count);
    for (index_t i = 0; i < count; i++)
      for (index_t c = 0; c < channels; c++) to[i * copy.channels + c] = from[i * by.w + c * by.c];
  });
}

static void unpack(const Copy& copy, index_t channels, const Steps& by, scalar_t* image) {
  for_runs(copy, by, [&](index_t offset, const scalar_t* from, index_t count) {
    scalar_t* to = image + offset;
    if (by.w == 1) return copy_transposed(from, copy.channels, to, by.c, count, channels);
    for (index_t i = 0; i < count; i++)
      for (index_t c = 0; c < channels; c++) to[i * by.w + c * by.c] = from[i * copy.channels + c];
  });
}

// The sources in [0, sources) along one axis that targets [begin, end) may read.
INLINE Range reach(Range targets, bool dgrad, index_t kernel, index_t stride, index_t dilation, index_t low,
                   index_t sources) {
  index_t far = (kernel - 1) * dilation, first = targets.begin * stride - low, last = (targets.end - 1) * stride + far - low;
  if (dgrad) {
    first = std::max<index_t>(0, ceil_div(std::max<index_t>(0, targets.begin + low - far), stride));
    last = targets.end - 1 + low < 0 ? -1 : (targets.end - 1 + low) / stride;
  }
  index_t begin = std::clamp<index_t>(first, 0, sources);
  return {begin, std::clamp<index_t>(last + 1, begin, sources)};
}

// One chunk of channels and the copies of a box: of what is read, and of the targets.
struct Chunk {
  Params params;  // of the copies
  Range channels;
  Copy from, to;

  Chunk(const Params* p, index_t chunk, const Box& box, scalar_t* start) : params(*p) {
    Range vectors = part_of(std::max<index_t>(1, p->c / LANES), chunk, p->chunks);
    channels = {vectors.begin * LANES, chunk + 1 == p->chunks ? p->c : vectors.end * LANES};
    index_t width = std::max<index_t>(LANES, channels.end - channels.begin);
    Range d = reach(box.d, p->dgrad, p->kernel_d, p->stride_d, p->dilation_d, p->low_d, p->source_d);
    Range h = reach(box.h, p->dgrad, p->kernel_h, p->stride_h, p->dilation_h, p->low_h, p->source_h);
    Range w = reach(box.w, p->dgrad, p->kernel_w, p->stride_w, p->dilation_w, p->low_w, p->source_w);
    from = {{d, h, w}, width, start};
    to = {box, width, start + round_up(from.size(), 64)};
    params.c = width;
    params.from_d = from.plane(), params.from_h = from.row(), params.from_w = width;
    params.to_d = to.plane(), params.to_h = to.row(), params.to_w = width;
  }
  index_t count() const { return channels.end - channels.begin; }
};

INLINE index_t boxes(const Params* p) {
  return ceil_div(p->target_d, p->box_d) * ceil_div(p->target_h, p->box_h) * ceil_div(p->target_w, p->box_w);
}

INLINE Range step_of(index_t index, index_t step, index_t size) {
  return {index * step, std::min((index + 1) * step, size)};
}

INLINE Box box_of(const Params* p, index_t index) {
  index_t hs = ceil_div(p->target_h, p->box_h), ws = ceil_div(p->target_w, p->box_w);
  return {step_of(index / ws / hs, p->box_d, p->target_d), step_of(index / ws % hs, p->box_h, p->target_h),
          step_of(index % ws, p->box_w, p->target_w)};
}

KERNEL depthwise_planes(const Params* p, const scalar_t* from, const scalar_t* weight, scalar_t* to, scalar_t* workspace,
                        int64_t item) {
  Room room(p, workspace);
  Steps by_from = {p->from_c, p->from_d, p->from_h, p->from_w}, by_to = {p->to_c, p->to_d, p->to_h, p->to_w};
  Range units = part_of(p->n * p->chunks * boxes(p), item, p->items);
  for (index_t unit = units.begin; unit < units.end; unit++) {
    index_t n = unit / boxes(p) / p->chunks, chunk = unit / boxes(p) % p->chunks;
    Chunk here(p, chunk, box_of(p, unit % boxes(p)), room.rest);
    index_t c = here.channels.begin;
    pack(from + n * p->from_n + c * p->from_c, by_from, here.count(), here.from);
    contract(&here.params, room, here.from.origin(), weight + c, here.to.origin(), here.to.box);
    unpack(here.to, here.count(), by_to, to + n * p->to_n + c * p->to_c);
  }
}

// Partial sums [taps, width] of grad_w, one for each part of the batch; an item computes a chunk of one of them.
KERNEL depthwise_planes_gradient(const Params* p, const scalar_t* from, const scalar_t* to, scalar_t* partial,
                                 scalar_t* workspace, int64_t item) {
  Room room(p, workspace);
  Steps by_from = {p->from_c, p->from_d, p->from_h, p->from_w}, by_to = {p->to_c, p->to_d, p->to_h, p->to_w};
  index_t chunk = item % p->chunks, part = item / p->chunks, taps = p->kernel_d * p->kernel_h * p->kernel_w;
  Chunk any(p, chunk, box_of(p, 0), room.rest);
  index_t c = any.channels.begin, vectors_bytes = round_up(any.params.c, LANES) * sizeof(scalar_t);
  Stages stages = {partial + part * taps * p->width + c, room.rest + c, 0};
  for (index_t t = 0; t < taps; t++) {
    memset(stages.total + t * p->width, 0, vectors_bytes);
    memset(stages.sums + t * p->width, 0, vectors_bytes);
  }
  Range images = part_of(p->n, part, p->parts);
  for (index_t n = images.begin; n < images.end; n++)
    for (index_t index = 0; index < boxes(p); index++) {
      Chunk here(p, chunk, box_of(p, index), room.rest + round_up(taps * p->width, 64));
      pack(from + n * p->from_n + c * p->from_c, by_from, here.count(), here.from);
      pack(to + n * p->to_n + c * p->to_c, by_to, here.count(), here.to);
      add_box(&here.params, room, here.from.origin(), here.to.origin(), stages, here.to.box);
      stages.pixels += here.to.size() / here.to.channels;
      join(&here.params, stages, p->pixels);
    }
  join(&any.params, stages, 0);
}

// --- Weights ----------------------------------------------------------------------------------------------------------

// weight [taps + 1, width] of w [C, KD, KH, KW] and bias [C].
KERNEL depthwise_weight(const Params* p, const scalar_t* w, const scalar_t* bias, scalar_t* weight, scalar_t* workspace,
                        int64_t item) {
  index_t taps = p->kernel_d * p->kernel_h * p->kernel_w;
  memset(weight, 0, (taps + 1) * p->width * sizeof(scalar_t));
  for (index_t d = 0; d < p->kernel_d; d++)
    for (index_t h = 0; h < p->kernel_h; h++)
      for (index_t k = 0; k < p->kernel_w; k++, weight += p->width)
        for (index_t c = 0; c < p->c; c++) weight[c] = w[c * p->w_c + d * p->w_d + h * p->w_h + k * p->w_w];
  for (index_t c = 0; c < p->c && bias; c++) weight[c] = bias[c * p->bias_c];
}

// grad_w [C, KD, KH, KW], in the place of `w`, of the partial sums in their order.
KERNEL depthwise_gradient(const Params* p, const scalar_t* partial, scalar_t* w, scalar_t* workspace, int64_t item) {
  index_t count = p->kernel_d * p->kernel_h * p->kernel_w * p->width;
  for (index_t d = 0; d < p->kernel_d; d++)
    for (index_t h = 0; h < p->kernel_h; h++)
      for (index_t k = 0; k < p->kernel_w; k++, partial += p->width)
        for (index_t v = 0; v < p->c; v += LANES) {
          vector_t sum = {};
          for (index_t i = 0; i < p->parts; i++) sum += load(partial + i * count + v);
          index_t c = std::clamp<index_t>(p->c - LANES, 0, v);  // the last lanes may be of channels before
          for (index_t lane = 0; lane < LANES && c + lane < p->c; lane++)
            w[(c + lane) * p->w_c + d * p->w_d + h * p->w_h + k * p->w_w] = sum[lane];
        }
}
