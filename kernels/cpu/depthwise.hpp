// Depthwise convolution and that of small groups where channels are innermost: lanes run along the channels of a pixel.
//
// A block is up to BLOCK targets along the width. A table holds where each row of taps finds its pixels, a pixel of zeros
// where that is padding; then a pass over channels sums all taps in registers. Work goes by tiles of channels and columns
// whose rows of pixels, as many as a window has, stay in the first-level cache from one row of targets to the next.
//
// With groups of GROUP channels, each tap has GROUP rows of weights: the k-th multiplies each group's k-th channel.
#pragma once

#include <utility>

#include "epilogue.hpp"
#include "transpose.hpp"

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

// Targets first, first + hop, ... along the width: the j-th reads pixel base + (j * step + t * spacing) * pitch through
// kernel column tap + t * tap_step, t in [0, taps). A strided dgrad has a run for each residue of its targets. So has a
// dilated window at stride 1, whose taps then lie side by side: a third of the time.
struct Run {
  index_t first, hop, tap, tap_step, taps, base, step, spacing, pitch;
  index_t together = 1;  // residues that a block computes: target j stands for j * hop + r, r in [0, together)
};

// Whether even and odd targets of a dgrad are computed together, for the usual window of 3 at stride 2: took a third off
// the time, most of which goes to wait for stores.
template <bool dgrad>
INLINE bool in_pairs(const Params* p, index_t group) {
  return dgrad && group == 1 && p->kernel_w == 3 && p->stride_w == 2 && p->dilation_w == 1 && p->low_w % 2 == 1;
}

template <bool dgrad>
INLINE index_t hop_of(const Params* p) {
  return p->stride_w == 1 ? p->dilation_w : dgrad ? p->stride_w : 1;
}

template <bool dgrad>
INLINE Run run_of(const Params* p, index_t group, index_t residue) {
  index_t taps = p->kernel_w, dilation = p->dilation_w, first = dgrad ? p->low_w - (taps - 1) * dilation : -p->low_w;
  if (p->stride_w == 1)
    return {residue, dilation, dgrad ? taps - 1 : 0, dgrad ? -1 : 1, taps, residue + first, 1, 1, dilation};
  if (!dgrad) return {0, 1, 0, 1, taps, first, p->stride_w, dilation, 1};
  if (in_pairs<dgrad>(p, group)) return {0, 2, 0, 1, 2, p->low_w / 2, 1, 1, 1, 2};
  Run run = {residue, p->stride_w, 0, -1, 0, 0, 1, 1, 1};
  index_t last = -1;
  for (index_t k = 0; k < p->kernel_w; k++) {
    index_t at = residue + p->low_w - k * dilation;
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
    if (!count) return nullptr;
    return start[p->dgrad ? 0 : count - 1] + p->from_h + (run.base + j * run.step * run.pitch) * p->from_w;
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

// A pass down the rows computes a tile: columns and channels whose pixels stay in the second-level cache from one row of
// targets to the next. Long runs of memory are read sooner: tiles for the first-level cache took up to a fifth more time.
constexpr index_t TILE_BYTES = 256 << 10, TILE_COLUMNS = 16 * BLOCK;

INLINE index_t channels_of_tile(const Params* p, index_t step, index_t group) {
  index_t columns = min(round_up(p->target_w, BLOCK), TILE_COLUMNS);
  index_t pixels = p->kernel_d * p->kernel_h * ((columns - 1) * step + p->kernel_w);
  index_t weights = p->kernel_d * p->kernel_h * p->kernel_w * (group - 1);  // few where group is 1
  index_t channels = TILE_BYTES / index_t(sizeof(scalar_t)) / (pixels + weights) / LANES * LANES;
  return max<index_t>((group > 1 ? 2 : 4) * LANES, channels);
}

// The pixels of a block of `count` targets from the j-th on: [rows][columns], or [rows][taps][BLOCK] if not `dense`.
INLINE void find_pixels(const Params* p, const Rows& rows, const Run& run, index_t j, index_t count, bool dense,
                        pixel_t zeros, pixel_t* pixels) {
  index_t columns = (BLOCK - 1) * run.step + run.taps, column = run.base + j * run.step * run.pitch;
  bool inside = dense && column >= 0 && column + (columns - 1) * run.pitch < p->source_w;
  for (index_t row = 0; row < rows.count; row++) {
    if (inside) {
      pixel_t at = rows.start[row] + column * p->from_w;
      for (index_t i = 0; i < columns; i++) *pixels++ = at + i * run.pitch * p->from_w;
    } else if (dense) {
      for (index_t i = 0; i < columns; i++) *pixels++ = pixel(p, rows.start[row], column + i * run.pitch, zeros);
    } else {
      for (index_t t = 0; t < run.taps; t++)
        for (index_t b = 0; b < BLOCK; b++) {
          index_t at = column + (b * run.step + t * run.spacing) * run.pitch;
          *pixels++ = b < count ? pixel(p, rows.start[row], at, zeros) : zeros;
        }
    }
  }
}

// Asks for the vectors of memory that the same block of the next row of targets reads first, of channels c on: whole
// rows are too far apart for the processor to guess. Took a fifth off the time of layers larger than the cache; those that
// fit take up to a tenth more, so the host decides.
// Not for what is written: with the next row of targets fetched as well, layers took up to a tenth more.
template <int STEP>
INLINE void prefetch(const Params* p, pixel_t ahead, const Run& run, index_t c) {
  for (int row = 0; row < STEP; row++)
    for (int i = 0; i < BLOCK * STEP; i++) __builtin_prefetch(ahead + row * p->from_h + i * run.pitch * p->from_w + c);
}

// Lane i is channel (i / GROUP) * GROUP + k of the pixel's channels [c, c + LANES): what the lane's group has in place k.
template <int GROUP, int K, int... I>
INLINE vector_t spread(pixel_t pixel, index_t c, std::integer_sequence<int, I...>) {
  vector_t x = load(pixel + c);
  if constexpr (GROUP == 1) return x;
#if defined(__clang__)
  return __builtin_shufflevector(x, x, (I / GROUP * GROUP + K)...);
#else
  using lane_t = std::conditional_t<sizeof(scalar_t) == 4, int32_t, int64_t>;
  typedef lane_t lanes_t __attribute__((vector_size(VECTOR_BYTES)));
  return __builtin_shuffle(x, lanes_t{(I / GROUP * GROUP + K)...});
#endif
}

// Calls `body(k, x)` for k in [0, GROUP), where `x(pixel, c)` is `spread` of k.
template <int GROUP, class Body, int... K>
INLINE void for_group(Body body, std::integer_sequence<int, K...>) {
  if constexpr (GROUP >= LANES && GROUP > 1) {
    for (index_t k = 0; k < GROUP; k++)
      body(k, [k](pixel_t pixel, index_t c) { return broadcast(pixel[c / GROUP * GROUP + k]); });
  } else {
    auto x = [](auto k) {
      return [](pixel_t pixel, index_t c) __attribute__((always_inline)) {
        return spread<GROUP, decltype(k)::value>(pixel, c, std::make_integer_sequence<int, LANES>());
      };
    };
    (body(K, x(std::integral_constant<int, K>())), ...);
  }
}

// The targets of a block: sums over rows of taps. TAPS = 0 stands for any taps, each with BLOCK pixels of its own.
template <int TAPS, int STEP, int GROUP>
static void sum_block(const Params* p, const Rows& rows, const Run& run, const pixel_t* pixels, pixel_t ahead,
                      const scalar_t* weight, scalar_t* to, index_t count, Range channels) {
  constexpr int COLUMNS = (BLOCK - 1) * STEP + TAPS;
  Epilogue epilogue(p);
  const scalar_t* bias = weight + p->kernel_d * p->kernel_h * p->kernel_w * GROUP * p->width;
  for (index_t v = channels.begin; v < channels.end; v += LANES) {
    index_t c = min(v, p->c - LANES);  // the last lanes may be computed twice
    vector_t sums[BLOCK];
    for (int b = 0; b < BLOCK; b++) sums[b] = load(bias + c);
    const pixel_t* next = pixels;
    for (index_t row = 0; row < rows.count; row++) {
      auto add = [&](index_t k, auto spread) __attribute__((always_inline)) {
        const scalar_t* taps = weight + ((rows.tap[row] + run.tap) * GROUP + k) * p->width + c;
        index_t step = run.tap_step * GROUP * p->width;
        if constexpr (TAPS > 0) {
          vector_t w[TAPS];
          for (int t = 0; t < TAPS; t++) w[t] = load(taps + t * step);
#pragma GCC unroll 32
          for (int i = 0; i < COLUMNS; i++) {
            vector_t x = spread(next[i], c);
#pragma GCC unroll 8
            for (int t = 0; t < TAPS; t++)
              if (i >= t && (i - t) % STEP == 0 && (i - t) / STEP < BLOCK) sums[(i - t) / STEP] += w[t] * x;
          }
        } else {
          for (index_t t = 0; t < run.taps; t++) {
            vector_t w = load(taps + t * step);
            for (int b = 0; b < BLOCK; b++) sums[b] += w * spread(next[t * BLOCK + b], c);
          }
        }
      };
      for_group<GROUP>(add, std::make_integer_sequence<int, GROUP>());
      next += TAPS > 0 ? COLUMNS : run.taps * BLOCK;
    }
    if (p->prefetches) prefetch<STEP>(p, ahead, run, c);
    for (int b = 0; b < BLOCK && epilogue.acts; b++) sums[b] = activated(epilogue, sums[b]);
    for (int b = 0; b < BLOCK; b++)
      if (b < count) store(to + b * run.hop * p->to_w + c, sums[b]);
  }
}

// As sum_block, of a dgrad's targets `in_pairs`: even ones have tap 1 of a pixel, odd ones tap 2 and tap 0 of the next.
template <int GROUP>
static void sum_pairs(const Params* p, const Rows& rows, const Run& run, const pixel_t* pixels, pixel_t ahead,
                      const scalar_t* weight, scalar_t* to, index_t count, Range channels) {
  const scalar_t* bias = weight + p->kernel_d * p->kernel_h * 3 * p->width;
  for (index_t v = channels.begin; v < channels.end; v += LANES) {
    index_t c = min(v, p->c - LANES);
    vector_t sums[2 * BLOCK];
    for (int b = 0; b < 2 * BLOCK; b++) sums[b] = load(bias + c);
    const pixel_t* next = pixels;
    for (index_t row = 0; row < rows.count; row++, next += BLOCK + 1) {
      const scalar_t* taps = weight + rows.tap[row] * p->width + c;
      vector_t w[3] = {load(taps), load(taps + p->width), load(taps + 2 * p->width)};
#pragma GCC unroll 8
      for (int b = 0; b <= BLOCK; b++) {
        vector_t x = load(next[b] + c);
        if (b > 0) sums[2 * b - 1] += w[0] * x;
        if (b < BLOCK) sums[2 * b] += w[1] * x;
        if (b < BLOCK) sums[2 * b + 1] += w[2] * x;
      }
    }
    if (p->prefetches) prefetch<1>(p, ahead, run, c);
    for (int b = 0; b < 2 * BLOCK; b++)
      if (b < count) store(to + b * p->to_w + c, sums[b]);
  }
}

// The gradients of the taps of a block's rows: sums [taps, v], v counting whole vectors, grow by the block's products.
template <int TAPS, int STEP, int GROUP>
static void add_products(const Params* p, const Rows& rows, const Run& run, const pixel_t* pixels, pixel_t ahead,
                         const pixel_t* grads, scalar_t* sums, Range channels) {
  constexpr int COLUMNS = (BLOCK - 1) * STEP + TAPS;
  for (index_t v = channels.begin; v < channels.end; v += LANES) {
    index_t c = min(v, p->c - LANES);
    vector_t g[BLOCK];
    for (int b = 0; b < BLOCK; b++) g[b] = load(grads[b] + c);
    if (p->prefetches) {
      prefetch<STEP>(p, ahead, run, c);
      for (int b = 0; b < BLOCK; b++) __builtin_prefetch(grads[b] + p->to_h + c);
    }
    const pixel_t* next = pixels;
    for (index_t row = 0; row < rows.count; row++) {
      auto add = [&](index_t k, auto spread) __attribute__((always_inline)) {
        scalar_t* taps = sums + (rows.tap[row] * GROUP + k) * p->width + v;
        index_t step = GROUP * p->width;
        if constexpr (TAPS > 0) {
          vector_t s[TAPS];
          for (int t = 0; t < TAPS; t++) s[t] = load(taps + t * step);
#pragma GCC unroll 32
          for (int i = 0; i < COLUMNS; i++) {
            vector_t x = spread(next[i], c);
#pragma GCC unroll 8
            for (int t = 0; t < TAPS; t++)
              if (i >= t && (i - t) % STEP == 0 && (i - t) / STEP < BLOCK) s[t] += g[(i - t) / STEP] * x;
          }
          for (int t = 0; t < TAPS; t++) store(taps + t * step, s[t]);
        } else {
          for (index_t t = 0; t < run.taps; t++) {
            vector_t s = load(taps + t * step);
            for (int b = 0; b < BLOCK; b++) s += g[b] * spread(next[t * BLOCK + b], c);
            store(taps + t * step, s);
          }
        }
      };
      for_group<GROUP>(add, std::make_integer_sequence<int, GROUP>());
      next += TAPS > 0 ? COLUMNS : run.taps * BLOCK;
    }
  }
}

// The functions for the blocks of a run: with TAPS and STEP as constants for the windows of networks, else for any. By
// pointers, so that the loops over blocks are compiled once: with loops for each, files took twice as long to compile.
struct Blocks {
  decltype(&sum_block<0, 1, 1>) sum;
  decltype(&add_products<0, 1, 1>) add, add_any;
  bool dense;  // whether `sum` and `add` take the pixels of whole rows
};

template <int TAPS, int STEP, int GROUP>
INLINE Blocks blocks() {
  return {sum_block<TAPS, STEP, GROUP>, add_products<TAPS, STEP, GROUP>, add_products<0, 1, GROUP>, TAPS > 0};
}

template <int GROUP>
static Blocks blocks_of(const Run& run) {
  auto is = [&](index_t taps, index_t step) {
    return run.taps == taps && run.step == step && (taps == 1 || run.spacing == 1);
  };
  if constexpr (GROUP == 1)
    if (run.together == 2) return {sum_pairs<GROUP>, nullptr, nullptr, true};  // a wgrad has none
  if (is(3, 1)) return blocks<3, 1, GROUP>();
  if (is(3, 2)) return blocks<3, 2, GROUP>();
  if constexpr (GROUP == 1) {
    if (is(5, 1)) return blocks<5, 1, GROUP>();
    if (is(7, 1)) return blocks<7, 1, GROUP>();
    if (is(5, 2)) return blocks<5, 2, GROUP>();
    if (is(1, 1)) return blocks<1, 1, GROUP>();
    if (is(2, 1)) return blocks<2, 1, GROUP>();
  }
  return blocks<0, 1, GROUP>();
}

// Groups of some channels.
struct Group {
  index_t channels;
  Blocks (*blocks_of)(const Run& run);
};

template <int GROUP>
constexpr Group GROUP_OF = {GROUP, blocks_of<GROUP>};

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
    index_t most = max((BLOCK - 1) * p->stride_w + p->kernel_w, BLOCK * p->kernel_w);
    rest = tables + round_up((2 + most) * taps * sizeof(pixel_t) / sizeof(scalar_t), 64);
  }
};

// Calls `body(run, some, channels, line)` for rows of targets of a box, of which channels are innermost: some targets of
// a run, whose rows of taps are in the room. `line` is where their row begins.
template <bool dgrad, class Body>
INLINE void for_lines(const Params* p, Room& room, index_t group, const scalar_t* from, const Box& box, Body body) {
  index_t hop = hop_of<dgrad>(p), tile = channels_of_tile(p, dgrad ? 1 : p->stride_w, group);
  index_t begin = box.w.begin / hop, end = ceil_div(box.w.end, hop);  // boxes begin at multiples of it
  for (index_t c = 0; c < p->c; c += tile)
    for (index_t first = begin; first < end; first += TILE_COLUMNS)
      for (index_t d = box.d.begin; d < box.d.end; d++)
        for (index_t h = box.h.begin; h < box.h.end; h++) {
          find_rows<dgrad>(p, from, d, h, room.rows);
          for (index_t residue = 0, together; residue < min(hop, p->target_w); residue += together) {
            Run run = run_of<dgrad>(p, group, residue);
            together = run.together;
            index_t last = min(min(end, first + TILE_COLUMNS), ceil_div(p->target_w - residue, hop));
            body(run, Range{first, last}, Range{c, min(c + tile, p->c)}, d * p->to_d + h * p->to_h);
          }
        }
}

// The smooth activation of the targets of a block, a step apart.
static void smooth_block(const Params* p, scalar_t* first, index_t step, index_t count, Range channels) {
  index_t begin = min(channels.begin, p->c - LANES), length = channels.end - begin;  // the last lanes are computed anew
  if (length == step) length *= count, count = 1;
  for (index_t b = 0; b < count; b++) smooth_row(p->smooth, first + b * step + begin, length);
}

// The targets of a box of an image.
template <bool dgrad>
static void contract_box(const Params* p, Room& room, Group group, const scalar_t* from, const scalar_t* weight,
                         scalar_t* to, const Box& box) {
  for_lines<dgrad>(p, room, group.channels, from, box, [&](const Run& run, Range some, Range channels, index_t line) {
    Blocks blocks = group.blocks_of(run);
    for (index_t j = some.begin; j < some.end; j += BLOCK) {
      index_t count = min<index_t>(BLOCK, some.end - j);
      find_pixels(p, room.rows, run, j, count, blocks.dense, room.zeros, room.pixels);
      if (run.together > 1) count = min(count * run.together, p->target_w - j * run.hop);
      scalar_t* first = to + line + (run.first + j * run.hop) * p->to_w;
      pixel_t ahead = room.rows.ahead(p, run, j);
      blocks.sum(p, room.rows, run, room.pixels, ahead, weight, first, count, channels);
      if (p->smooth) smooth_block(p, first, run.hop * p->to_w, count, channels);
    }
  });
}

INLINE void contract(const Params* p, Room& room, Group group, const scalar_t* from, const scalar_t* weight,
                     scalar_t* to, const Box& box) {
  p->dgrad ? contract_box<true>(p, room, group, from, weight, to, box)
           : contract_box<false>(p, room, group, from, weight, to, box);
}

// Partial sums [taps, channels] of which `sums` is one stage, `total` the other: short sums are more exact.
struct Stages {
  scalar_t* total;
  scalar_t* sums;
  index_t pixels;  // whose products are in `sums`
};

// Adds the products of a box of rows of an image to the sums.
static void add_box(const Params* p, Room& room, Group group, const scalar_t* from, const scalar_t* grad,
                    Stages& stages, const Box& box) {
  for_lines<false>(p, room, group.channels, from, box, [&](const Run& run, Range some, Range channels, index_t line) {
    Blocks blocks = group.blocks_of(run);
    for (index_t j = some.begin; j < some.end; j += BLOCK) {
      index_t count = min<index_t>(BLOCK, some.end - j);
      bool dense = blocks.dense && count == BLOCK;  // zeros past the last target could meet pixels that are infinite
      pixel_t grads[BLOCK], ahead = room.rows.ahead(p, run, j);
      for (int b = 0; b < BLOCK; b++)
        grads[b] = b < count ? grad + line + (run.first + (j + b) * run.hop) * p->to_w : room.zeros;
      find_pixels(p, room.rows, run, j, count, dense, room.zeros, room.pixels);
      auto add = dense ? blocks.add : blocks.add_any;
      add(p, room.rows, run, room.pixels, ahead, grads, stages.sums, channels);
    }
  });
}

// Sets both to zero: of p->c channels, to whole vectors.
INLINE void clear(const Params* p, index_t group, const Stages& stages) {
  index_t bytes = round_up(p->c, LANES) * sizeof(scalar_t);
  for (index_t t = 0; t < p->kernel_d * p->kernel_h * p->kernel_w * group; t++) {
    memset(stages.total + t * p->width, 0, bytes);
    memset(stages.sums + t * p->width, 0, bytes);
  }
}

// Adds the sums of one stage to the other, if they are of so many positions.
INLINE void join(const Params* p, index_t group, Stages& stages, index_t least) {
  if (stages.pixels < least) return;
  stages.pixels = 0;
  for (index_t t = 0; t < p->kernel_d * p->kernel_h * p->kernel_w * group; t++)
    for (index_t v = t * p->width; v < t * p->width + p->c; v += LANES) {
      store(stages.total + v, load(stages.total + v) + load(stages.sums + v));
      store(stages.sums + v, vector_t{});
    }
}

// Adds the products of a box in pieces of about `pixels` positions: of rows, or of columns in whole blocks.
INLINE void add_pieces(const Params* p, Room& room, Group group, const scalar_t* from, const scalar_t* grad,
                       Stages& stages, const Box& box) {
  index_t width = box.w.end - box.w.begin, block = BLOCK * hop_of<false>(p);
  index_t rows = max<index_t>(1, p->pixels / width), columns = max(block, p->pixels / block * block);
  if (rows > 1) columns = width;
  for (index_t d = box.d.begin; d < box.d.end; d++)
    for (index_t h = box.h.begin; h < box.h.end; h += rows)
      for (index_t w = box.w.begin; w < box.w.end; w += columns) {
        Range some = {h, min(h + rows, box.h.end)}, part = {w, min(w + columns, box.w.end)};
        add_box(p, room, group, from, grad, stages, {{d, d + 1}, some, part});
        stages.pixels += (some.end - some.begin) * (part.end - part.begin);
        join(p, group.channels, stages, p->pixels);
      }
}

// Calls `body(n, box)` for the targets of a work item: whole rows, or pieces of rows where these are few.
template <class Body>
INLINE void for_rows(const Params* p, index_t item, Body body) {
  Range part = part_of(p->n * p->target_d * p->target_h * p->pieces, item, p->items);
  for (index_t unit = part.begin; unit < part.end;) {
    index_t row = unit / p->pieces, first = unit % p->pieces, left = part.end - unit;
    index_t n = row / p->target_h / p->target_d, d = row / p->target_h % p->target_d, h = row % p->target_h;
    index_t rows = p->pieces > 1 ? 1 : min(p->target_h - h, left), pieces = min(p->pieces - first, left);
    Range w = {first * p->piece, min((first + pieces) * p->piece, p->target_w)};
    body(n, Box{{d, d + 1}, {h, h + rows}, w});
    unit += p->pieces > 1 ? pieces : rows;
  }
}

// The partial sums [taps, group, width] of a work item, of [N, D, H, W, C].
static void add_rows(const Params* p, Room& room, Group group, const scalar_t* from, const scalar_t* to,
                     scalar_t* partial, index_t item) {
  index_t count = p->kernel_d * p->kernel_h * p->kernel_w * group.channels * p->width;
  Stages stages = {partial + item * count, room.rest, 0};
  clear(p, group.channels, stages);
  for_rows(p, item, [&](index_t n, Box box) {
    add_pieces(p, room, group, from + n * p->from_n, to + n * p->to_n, stages, box);
  });
  join(p, group.channels, stages, 0);
}
