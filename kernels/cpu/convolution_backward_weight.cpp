// wgrad: grad_w[g, m, c, tap] = sum over n, o of grad_y[n, (g, m), o] * x[n, (g, c), where o reads at tap].
//
// A work item is a part of the channels and a part of the filters of a group, and a range of tiles of outputs. Its sums
// [m][lane], a lane for each tap and channel, stay in the second-level cache. For each tile it goes through panels of a
// few vectors of lanes: gathers what they read at each position, and multiplies that with the gradients of its filters,
// which are packed once a tile.
//
// Images with channels innermost are read in place, at the positions where a tap reads the image. Others are copied for
// each tile (blocks.hpp) with zeros for padding; there the runs of all taps follow each other in a panel, so that few
// channels fill vectors too. The sums of several ranges are added by `sum_ranges` in their order.
#include "blocks.hpp"
#include "gemm.hpp"

struct Params {
  index_t groups, channels, filters;        // of one group
  index_t d, h, w;                          // sources
  index_t od, oh, ow;                       // outputs
  index_t kd, kh, kw;                       // taps
  index_t step_d, step_h, step_w;
  index_t least_d, least_h, least_w;
  index_t gap_d, gap_h, gap_w;
  index_t x_n, x_c, x_d, x_h, x_w;
  index_t y_n, y_c, y_d, y_h, y_w;          // of grad_y
  index_t w_g, w_m, w_c, w_d, w_h, w_w;     // of grad_w
  index_t n, tile_n, tile_d, tile_h, tile_w;
  index_t tiles, ranges;                    // of outputs in all; of tiles
  index_t part_m, part_c, parts_m, parts_c; // filters and channels of a part, and parts
  index_t block, positions;                 // scalars of the largest block, and positions of a tile
  index_t row;                              // lanes of a part, rounded up
  index_t in_place;                         // whether x is not copied
  index_t items;                            // of sum_ranges
};

constexpr index_t GATHERED = 128;  // positions at a time: their panel stays in the first-level cache
constexpr index_t FEW = 32;        // filters, which read x where it is: to gather it takes longer than it saves
constexpr index_t PACKED = max(LANES, SUM_ROWS);  // filters whose gradients are packed together
constexpr int WIDTH = SUM_VECTORS * LANES;

// The channels [c, c + channels) and filters [m, m + filters) of a group.
struct Part {
  index_t g, m, filters, c, channels;

  Part(const Params* p, index_t g, index_t part_m, index_t part_c)
      : g(g), m(part_m * p->part_m), filters(min(p->part_m, p->filters - m)), c(part_c * p->part_c),
        channels(min(p->part_c, p->channels - c)) {}
};

// Where positions and taps find their channels, innermost in memory: in an array, or in a copy of what a tile reads.
struct Pixels {
  const scalar_t* data;
  index_t first;    // that of the tile's first position and tap; in an array it can be padding
  Steps hop, tap;   // from position to position, and from tap to tap
  index_t ahead;    // from here to the next tile, which is fetched meanwhile; 0 for what is read again
};

// Of a panel: lanes that are consecutive in memory.
struct Segment {
  index_t offset, lane, vectors;
};

// Targets [begin, end) of a tile that read a source, and not only padding, through one of the taps [first, last].
static Range inside(const Axis& axis, index_t target, index_t targets, index_t first, index_t last) {
  index_t at = target * axis.step + axis.least, lowest = at + first * axis.gap, highest = at + last * axis.gap;
  index_t begin = highest < 0 ? ceil_div(-highest, axis.step) : 0;
  index_t end = lowest < axis.sources ? ceil_div(axis.sources - lowest, axis.step) : 0;
  return {min(begin, targets), min(end, targets)};
}

struct Item : Axes<Params> {
  const Params* p;
  Part part;
  Runs runs;
  scalar_t *sums, *block, *packed, *panel;
  index_t *panel_at, *at, *grads_at;  // of positions: where they are in the panel, their pixels, and their gradients

  Item(const Params* p, const Part& part, scalar_t* sums, scalar_t* workspace)
      : Axes(p), p(p), part(part), runs(d, h, w, part.channels, !p->in_place), sums(sums), block(workspace),
        packed(block + round_up(p->block + WIDTH, LANES)),
        panel(packed + round_up(p->positions * p->part_m + MAX_SUM_ROWS, LANES)),
        panel_at(reinterpret_cast<index_t*>(panel + (GATHERED + 1) * WIDTH)), at(panel_at + GATHERED),
        grads_at(at + p->positions) {}

  void add(const Tile& tile, const scalar_t* x, const scalar_t* grad_y) const {
    Pixels pixels = pixels_of(tile, x + (part.g * p->channels + part.c) * p->x_c);
    // Where padding is not copied as zeros, a panel has the lanes of one run.
    index_t stretches = p->in_place ? runs.count() : 1, lanes = runs.count() * runs.length / stretches;
    index_t vectors = ceil_div(lanes, LANES), panels = ceil_div(vectors, SUM_VECTORS), count = 0;
    Pixels grads = grads_of(tile, grad_y + (part.g * p->filters + part.m) * p->y_c, stretches * panels == 1);
    Range reached{0, 0};
    for (index_t i = 0; i < stretches * panels; i++) {
      Range here = part_of(vectors, i % panels, panels);
      index_t before = i / panels * lanes;
      Range some{before + here.begin * LANES, before + min(here.end * LANES, lanes)};
      Range needed{some.begin / runs.length, ceil_div(some.end, runs.length)};
      if (needed.begin != reached.begin || needed.end != reached.end) count = positions(pixels, grads, tile, needed);
      reached = needed;
      with_number<SUM_VECTORS>(here.end - here.begin, [&](auto v) { add_panel<v()>(pixels, grads, count, some); });
    }
  }

 private:
  Pixels pixels_of(const Tile& tile, const scalar_t* x) const {
    if (p->in_place) {
      Steps hop{p->x_n, 1, d.step * p->x_d, h.step * p->x_h, w.step * p->x_w};
      Steps tap{0, 1, d.gap * p->x_d, h.gap * p->x_h, w.gap * p->x_w};
      return {x, first(hop, tile) + d.least * p->x_d + h.least * p->x_h + w.least * p->x_w, hop, tap, 0};
    }
    Block read(d, h, w, tile, part.channels);
    read.fill(x, {p->x_n, p->x_c, p->x_d, p->x_h, p->x_w}, d, h, w, tile, block);
    Steps hop{read.offset(1, 0, 0, 0), 1, read.offset(0, d.at(1), 0, 0), read.offset(0, 0, h.at(1), 0),
              read.offset(0, 0, 0, w.at(1))};
    Steps tap{0, 1, read.offset(0, d.gap, 0, 0), read.offset(0, 0, h.gap, 0), read.offset(0, 0, 0, w.gap)};
    return {block, 0, hop, tap, 0};
  }

  // The gradients of a tile: in place, where they are read once, in whole register tiles; else as
  // packed[m / PACKED][position][m % PACKED], as images have them so far apart that they displace each other from the
  // first-level cache.
  Pixels grads_of(const Tile& tile, const scalar_t* y, bool is_read_once) const {
    Steps by{p->y_n, p->y_c, p->y_d, p->y_h, p->y_w};
    if (is_read_once && by.c == 1 && part.filters % SUM_ROWS == 0)
      return {y, first(by, tile), by, {}, ahead(by, tile)};
    Steps number{tile.ds * tile.hs * tile.ws, 0, tile.hs * tile.ws, tile.ws, 1};  // of positions
    Axis od{p->od, p->od, 1, 1, 0, 1, 0}, oh{p->oh, p->oh, 1, 1, 0, 1, 0}, ow{p->ow, p->ow, 1, 1, 0, 1, 0};
    for (index_t m = 0; m < part.filters; m += PACKED)
      Block(od, oh, ow, tile, width(m)).fill(y + m * by.c, by, od, oh, ow, tile, packed + m * p->positions);
    return {packed, 0, number, {}, 0};
  }

  // Of the packed gradients that hold those of filter m: the filters of a position, and the first position's of m.
  index_t width(index_t m) const { return min(PACKED, part.filters - m / PACKED * PACKED); }
  const scalar_t* row(index_t m) const { return packed + m / PACKED * PACKED * p->positions + m % PACKED; }

  static index_t first(const Steps& hop, const Tile& tile) {
    return tile.n * hop.n + tile.d * hop.d + tile.h * hop.h + tile.w * hop.w;
  }

  index_t ahead(const Steps& hop, const Tile& tile) const {
    if (tile.ws < p->ow) return tile.ws * hop.w;
    if (tile.hs < p->oh) return tile.hs * hop.h;
    return tile.ds < p->od ? tile.ds * hop.d : tile.ns * hop.n;
  }

  template <int V>
  void add_panel(const Pixels& pixels, const Pixels& grads, index_t count, const Range& lanes) const {
    Segment segments[WIDTH];
    index_t number = 0;
    for (index_t lane = lanes.begin; lane < lanes.end; number++) {
      index_t run = lane / runs.length, next = min(lanes.end, (run + 1) * runs.length);
      const Steps& tap = pixels.tap;
      index_t offset = run / (runs.kh * runs.kw) * tap.d + run / runs.kw % runs.kh * tap.h + run % runs.kw * tap.w;
      segments[number] = {offset + lane % runs.length, lane - lanes.begin, ceil_div(next - lane, LANES)};
      lane = next;
    }
    index_t some = ceil_div(count, max<index_t>(1, ceil_div(count, GATHERED)));
    for (index_t i = 0; i < count; i += some) {
      index_t here = min(some, count - i);
      const scalar_t* from = pixels.data + segments[0].offset;
      const index_t* from_at = at + i;
      if (number > 1 || part.filters > FEW) {
        gather<V>(pixels, at + i, here, segments, number);
        from = panel, from_at = panel_at;
      }
      for (index_t m = 0; m < part.filters; m += SUM_ROWS) {
        scalar_t* to = sums + m * p->row + lanes.begin;
        const scalar_t* in_place = grads.data + m;
        if (grads.data != packed)
          correlate_tile<SUM_ROWS, V, true>(from, from_at, here, in_place, 1, grads_at + i, grads.ahead, to, p->row);
        else if (part.filters - m > SUM_ROWS / 2)
          correlate_tile<SUM_ROWS, V, false>(from, from_at, here, row(m), width(m), grads_at + i, 0, to, p->row);
        else
          correlate_tile<SUM_ROWS / 2, V, false>(from, from_at, here, row(m), width(m), grads_at + i, 0, to, p->row);
      }
    }
  }

  // The positions of a tile at which one of some runs reads the image: their number.
  index_t positions(const Pixels& pixels, const Pixels& grads, const Tile& tile, const Range& some) const {
    index_t count = 0;
    for (index_t n = 0; n < tile.ns; n++)
      for (index_t a = 0; a < tile.ds; a++)
        for (index_t b = 0; b < tile.hs; b++) {
          Range columns{tile.ws, 0};
          for (index_t run = some.begin; run < some.end; run++) {
            Range reached = columns_of(run, tile, a, b);
            columns = {min(columns.begin, reached.begin), max(columns.end, reached.end)};
          }
          for (index_t c = columns.begin; c < columns.end; c++, count++) {
            at[count] = pixels.first + n * pixels.hop.n + a * pixels.hop.d + b * pixels.hop.h + c * pixels.hop.w;
            grads_at[count] = grads.first + n * grads.hop.n + a * grads.hop.d + b * grads.hop.h + c * grads.hop.w;
          }
        }
    return count;
  }

  // Of a row of a tile.
  Range columns_of(index_t run, const Tile& tile, index_t a, index_t b) const {
    index_t kd = run / (runs.kh * runs.kw), kh = run / runs.kw % runs.kh, kw = run % runs.kw;
    Range depth = inside(d, tile.d + a, 1, kd, kd), height = inside(h, tile.h + b, 1, kh, kh);
    if (depth.begin >= depth.end || height.begin >= height.end) return {tile.ws, 0};
    return inside(w, tile.w, tile.ws, kw, runs.kw == 1 ? w.taps - 1 : kw);
  }

  // panel[position][lane]. A segment's last store writes up to LANES - 1 lanes more, which the next one overwrites.
  template <int V>
  void gather(const Pixels& pixels, const index_t* offsets, index_t count, const Segment* segments,
              index_t number) const {
    for (index_t i = 0; i < count; i++) {
      const scalar_t* pixel = pixels.data + offsets[i];
      panel_at[i] = i * V * LANES;
      for (int v = 0; v < V && number == 1; v++)
        store(panel + panel_at[i] + v * LANES, load(pixel + segments[0].offset + v * LANES));
      for (const Segment* s = segments; s < segments + number && number > 1; s++)
        for (index_t v = 0; v < s->vectors; v++)
          store(panel + panel_at[i] + s->lane + v * LANES, load(pixel + s->offset + v * LANES));
    }
  }
};

// To grad_w[g, m, c...] from the sums of its filter, [run].
static void write_filter(const Params* p, const Part& part, index_t m, const scalar_t* from, scalar_t* grad_w) {
  scalar_t* to = grad_w + part.g * p->w_g + m * p->w_m + part.c * p->w_c;
  for (index_t d = 0; d < p->kd; d++)
    for (index_t h = 0; h < p->kh; h++)
      for (index_t w = 0; w < p->kw; w++, from += part.channels) {
        scalar_t* tap = to + d * p->w_d + h * p->w_h + w * p->w_w;
        if (p->w_c == 1) copy_run(from, tap, part.channels);
        for (index_t c = 0; c < part.channels && p->w_c != 1; c++) tap[c * p->w_c] = from[c];
      }
}

static index_t size_of_sums(const Params* p) { return (p->part_m + MAX_SUM_ROWS) * p->row; }

// sums[range][g][part_m][part_c][m][run], or none if there is one range.
KERNEL convolution_backward_weight(const Params* p, const scalar_t* x, const scalar_t* grad_y, scalar_t* sums,
                                   scalar_t* grad_w, scalar_t* workspace, int64_t number) {
  scalar_t* here = p->ranges > 1 ? sums + number * size_of_sums(p) : workspace;
  Part part(p, number / (p->parts_c * p->parts_m) % p->groups, number / p->parts_c % p->parts_m, number % p->parts_c);
  Range tiles = part_of(p->tiles, number / (p->parts_c * p->parts_m * p->groups), p->ranges);
  Item item(p, part, here, workspace + (p->ranges > 1 ? 0 : size_of_sums(p)));
  memset(here, 0, size_of_sums(p) * sizeof(scalar_t));
  memset(item.panel, 0, (GATHERED + 1) * WIDTH * sizeof(scalar_t));
  for (index_t i = tiles.begin; i < tiles.end; i++) {
    index_t tile = i;
    item.add(tile_of(p, tile), x, grad_y);
  }
  for (index_t m = 0; m < part.filters && p->ranges == 1; m++)
    write_filter(p, part, part.m + m, here + m * p->row, grad_w);
}

// grad_w of some filters: the ranges' sums, added in order.
KERNEL sum_ranges(const Params* p, const scalar_t* sums, scalar_t* grad_w, scalar_t* workspace, int64_t item) {
  Range rows = part_of(p->groups * p->filters, item, p->items);
  index_t range = p->groups * p->parts_m * p->parts_c * size_of_sums(p);
  for (index_t i = rows.begin; i < rows.end; i++)
    for (index_t part_c = 0; part_c < p->parts_c; part_c++) {
      index_t m = i % p->filters, part_m = m / p->part_m;
      Part part(p, i / p->filters, part_m, part_c);
      const scalar_t* first = sums + ((part.g * p->parts_m + part_m) * p->parts_c + part_c) * size_of_sums(p) +
                              m % p->part_m * p->row;
      for (index_t k = 0; k < p->row; k += LANES) {
        vector_t total = load(first + k);
        for (index_t r = 1; r < p->ranges; r++) total += load(first + r * range + k);
        store(workspace + k, total);
      }
      write_filter(p, part, m, workspace, grad_w);
    }
}
