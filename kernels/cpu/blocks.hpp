// Blocks of a convolution's input: the part that a tile of outputs reads, copied channels-last into the workspace with
// zeros for padding, so that in all memory orders a multiply-add's operands are found at fixed offsets from an output.
//
// A contraction is described along each axis as in gpucnn.geometry.Sampling: tap j of target i reads source
// i * step + least + j * gap. Taps ascend; the packed weights are in their order.
#pragma once

#include "epilogue.hpp"
#include "transpose.hpp"

struct Axis {
  index_t sources, targets, taps, step, least, gap;
  index_t tile;  // targets of a tile

  // Positions of a block along this axis. With one tap only those that are read, else all that lie between as well.
  index_t extent(index_t targets_here) const {
    return taps == 1 ? targets_here : (targets_here - 1) * step + (taps - 1) * gap + 1;
  }
  index_t source(index_t first_target, index_t at) const {
    return taps == 1 ? (first_target + at) * step + least : first_target * step + least + at;
  }
  index_t at(index_t target) const { return taps == 1 ? target : target * step; }
};

// Images and targets [n, n + ns) x [d, d + ds) x ... of one tile.
struct Tile {
  index_t n, ns, d, ds, h, hs, w, ws;
  index_t positions() const { return ns * ds * hs * ws; }
};

struct Steps {
  index_t n, c, d, h, w;
};

// The axes of a kernel's Params.
template <class Params>
struct Axes {
  Axis d, h, w;
  explicit Axes(const Params* p)
      : d{p->d, p->od, p->kd, p->step_d, p->least_d, p->gap_d, p->tile_d},
        h{p->h, p->oh, p->kh, p->step_h, p->least_h, p->gap_h, p->tile_h},
        w{p->w, p->ow, p->kw, p->step_w, p->least_w, p->gap_w, p->tile_w} {}
};

// Cuts `count` in runs of `each`: the range of run `number` modulo their count, by which `number` is divided.
INLINE Range next_run(index_t& number, index_t count, index_t each) {
  index_t runs = ceil_div(count, each), first = number % runs * each;
  number /= runs;
  return {first, min(each, count - first)};
}

// The tile of that number, by which it is divided: W runs fastest, then H, D and the images.
template <class Params>
static Tile tile_of(const Params* p, index_t& number) {
  Range w = next_run(number, p->ow, p->tile_w), h = next_run(number, p->oh, p->tile_h);
  Range d = next_run(number, p->od, p->tile_d), n = next_run(number, p->n, p->tile_n);
  return {n.begin, n.end, d.begin, d.end, h.begin, h.end, w.begin, w.end};
}

// to[w][c] for c in [0, channels): a row of `count` sources from index `first` on, `step` apart; zeros outside.
static void copy_row(const scalar_t* from, const Steps& by, index_t channels, const Axis& axis, index_t first,
                     index_t step, index_t count, scalar_t* to) {
  index_t begin = clamp<index_t>(first < 0 ? ceil_div(-first, step) : 0, 0, count);
  index_t end = clamp<index_t>(first < axis.sources ? (axis.sources - 1 - first) / step + 1 : 0, begin, count);
  memset(to, 0, begin * channels * sizeof(scalar_t));
  memset(to + end * channels, 0, (count - end) * channels * sizeof(scalar_t));
  const scalar_t* inner = from + (first + begin * step) * by.w;
  to += begin * channels, count = end - begin;
  if (by.c == 1 && step * by.w == channels) {
    memcpy(to, inner, count * channels * sizeof(scalar_t));
  } else if (by.c == 1) {
    for (index_t w = 0; w < count; w++) copy_run(inner + w * step * by.w, to + w * channels, channels);
  } else if (step * by.w == 1) {
    copy_transposed(inner, by.c, to, channels, channels, count);
  } else {
    for (index_t w = 0; w < count; w++)
      for (index_t c = 0; c < channels; c++) to[w * channels + c] = inner[w * step * by.w + c * by.c];
  }
}

// The block of a tile: [n][d][h][w][c].
struct Block {
  index_t ds, hs, ws, channels;

  Block(const Axis& d, const Axis& h, const Axis& w, const Tile& tile, index_t channels)
      : ds(d.extent(tile.ds)), hs(h.extent(tile.hs)), ws(w.extent(tile.ws)), channels(channels) {}

  index_t offset(index_t n, index_t d, index_t h, index_t w) const {
    return (((n * ds + d) * hs + h) * ws + w) * channels;
  }

  void fill(const scalar_t* x, const Steps& by, const Axis& d, const Axis& h, const Axis& w, const Tile& tile,
            scalar_t* to) const {
    index_t row = ws * channels, step = w.taps == 1 ? w.step : 1;
    for (index_t n = 0; n < tile.ns; n++)
      for (index_t a = 0; a < ds; a++)
        for (index_t b = 0; b < hs; b++, to += row) {
          index_t sd = d.source(tile.d, a), sh = h.source(tile.h, b);
          if (sd < 0 || sd >= d.sources || sh < 0 || sh >= h.sources)
            memset(to, 0, row * sizeof(scalar_t));
          else
            copy_row(x + (tile.n + n) * by.n + sd * by.d + sh * by.h, by, channels, w, w.source(tile.w, 0), step, ws, to);
        }
  }

  // The offset in the block of each target of the tile, in their order.
  void positions(const Axis& d, const Axis& h, const Axis& w, const Tile& tile, index_t* at) const {
    for (index_t n = 0; n < tile.ns; n++)
      for (index_t a = 0; a < tile.ds; a++)
        for (index_t b = 0; b < tile.hs; b++)
          for (index_t c = 0; c < tile.ws; c++) *at++ = offset(n, d.at(a), h.at(b), w.at(c));
  }
};

// A run of consecutive scalars of the block that each output multiplies: of the taps along W and all channels where
// those are adjacent, else of the channels of one tap.
struct Runs {
  index_t kd, kh, kw, length;

  Runs(const Axis& d, const Axis& h, const Axis& w, index_t channels, bool join = true)
      : kd(d.taps), kh(h.taps), kw(join && w.gap == 1 ? 1 : w.taps), length(channels * w.taps / kw) {}

  index_t count() const { return kd * kh * kw; }

  index_t offset(index_t run, const Axis& d, const Axis& h, const Axis& w, const Block& block) const {
    return block.offset(0, run / (kh * kw) * d.gap, run / kw % kh * h.gap, run % kw * w.gap);
  }

  // Whether some target of the tile reads the image, and not only padding, through a run.
  bool reaches(index_t run, const Axis& d, const Axis& h, const Tile& tile) const {
    return reaches(d, run / (kh * kw), tile.d, tile.ds) && reaches(h, run / kw % kh, tile.h, tile.hs);
  }

 private:
  static bool reaches(const Axis& axis, index_t tap, index_t target, index_t targets) {
    index_t first = target * axis.step + axis.least + tap * axis.gap, last = first + (targets - 1) * axis.step;
    index_t inside = first >= 0 ? first : first + ceil_div(-first, axis.step) * axis.step;
    return inside <= last && inside < axis.sources;
  }
};

// Copies sums[position][lane] to y, whose first channel is that of lane 0, after the epilogue. `residual` is null, or
// has the steps of y.
static void write(scalar_t* sums, index_t lanes, index_t channels, const Tile& tile, const Steps& by, scalar_t* y,
                  const scalar_t* residual, const Epilogue& epilogue, scalar_t* turned) {
  index_t positions = tile.positions();
  bool is_turned = by.c != 1;
  if (is_turned) copy_transposed(sums, lanes, turned, positions, positions, lanes);
  auto rows = [&](auto body) {  // body(position, offset) for the rows of the tile
    for (index_t n = 0, position = 0; n < tile.ns; n++)
      for (index_t d = 0; d < tile.ds; d++)
        for (index_t h = 0; h < tile.hs; h++, position += tile.ws)
          body(position, (tile.n + n) * by.n + (tile.d + d) * by.d + (tile.h + h) * by.h + tile.w * by.w);
  };
  if (residual)
    rows([&](index_t position, index_t offset) {
      for (index_t w = 0; w < tile.ws && !is_turned; w++)
        for (index_t c = 0; c < channels; c++) sums[(position + w) * lanes + c] += residual[offset + w * by.w + c];
      for (index_t c = 0; c < channels && is_turned; c++)
        for (index_t w = 0; w < tile.ws; w++)
          turned[c * positions + position + w] += residual[offset + c * by.c + w * by.w];
    });
  scalar_t* all = is_turned ? turned : sums;
  if (epilogue.acts) finish_row(epilogue, all, nullptr, positions * (is_turned ? channels : lanes), all);
  rows([&](index_t position, index_t offset) {
    for (index_t w = 0; w < tile.ws && !is_turned; w++)
      memcpy(y + offset + w * by.w, sums + (position + w) * lanes, channels * sizeof(scalar_t));
    for (index_t c = 0; c < channels && is_turned; c++) {
      const scalar_t* from = turned + c * positions + position;
      scalar_t* row = y + offset + c * by.c;
      if (by.w == 1) memcpy(row, from, tile.ws * sizeof(scalar_t));
      for (index_t w = 0; w < tile.ws && by.w != 1; w++) row[w * by.w] = from[w];
    }
  });
}
