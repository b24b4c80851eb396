// wgrad: grad_w[g, m, c, tap] = sum over n, o of grad_y[n, (g, m), o] * x[n, (g, c), where o reads at tap].
//
// A work item is a group, a part of its filters and a range of tiles of outputs. For each tile, x and grad_y are copied
// channels-last (blocks.hpp); then, for each run of a block and each tile of filters and vectors, a register tile passes
// over the positions. The sums of a range are [m][run], and `sum_ranges` adds ranges in their order.
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
  index_t tiles, ranges, parts;             // of outputs in all; of tiles; of the filters
  index_t block, positions;                 // scalars of the largest block, and positions of a tile
  index_t items;                            // of sum_ranges
  index_t part, row;                        // filters of a part, and scalars of all runs, rounded up
};

constexpr index_t MAX_ROWS = 8;
constexpr index_t SOME = 128;  // positions at a time: what they read of a panel stays in the first-level cache
constexpr index_t FILTERS = 48;  // whose gradients are copied at a time
constexpr int VECTORS = MAX_VECTORS - 1, ROWS_AT_ONCE = MAX_VECTORS == 4 ? 8 : 6;  // of a register tile

struct Problem : Axes<Params> {
  Runs runs;
  explicit Problem(const Params* p) : Axes(p), runs(d, h, w, p->channels) {}
};

// sums[m][lane] of one panel of a run, for all filters.
template <int V>
static void correlate(const scalar_t* block, const index_t* at, index_t positions, const scalar_t* grads,
                      index_t filters, scalar_t* sums, index_t row) {
  index_t some = ceil_div(positions, ceil_div(positions, SOME));
  for (index_t p = 0; p < positions; p += some)
    for (index_t m = 0; m < filters; m += ROWS_AT_ONCE)
      correlate_tile<ROWS_AT_ONCE, V>(block, at + p, std::min(some, positions - p), grads + p * filters + m, filters,
                                      sums + m * row, row);
}

static void correlate_runs(const Params* p, const Problem& at, const Block& block, const Tile& tile,
                           const scalar_t* pixels, const index_t* offsets, const scalar_t* grads, index_t filters,
                           scalar_t* sums) {
  for (index_t run = 0; run < at.runs.count(); run++) {
    if (!at.runs.reaches(run, at.d, at.h, tile)) continue;
    const scalar_t* from = pixels + at.runs.offset(run, at.d, at.h, at.w, block);
    scalar_t* to = sums + run * round_up(at.runs.length, LANES);
    index_t vectors = ceil_div(at.runs.length, LANES), panels = ceil_div(vectors, VECTORS);
    for (index_t panel = 0; panel < panels; panel++) {
      Range part = part_of(vectors, panel, panels);
      with_vectors<VECTORS>(part.end - part.begin, [&](auto v) {
        correlate<v()>(from + part.begin * LANES, offsets, tile.positions(), grads, filters, to + part.begin * LANES,
                       p->row);
      });
    }
  }
}

// sums[range][g][part][m][run]: each item's sums have room for MAX_ROWS more rows.
KERNEL convolution_backward_weight(const Params* p, const scalar_t* x, const scalar_t* grad_y, scalar_t* sums,
                                   scalar_t* workspace, int64_t item) {
  Problem at(p);
  sums += item * (p->part + MAX_ROWS) * p->row;
  index_t part = item % p->parts, g = item / p->parts % p->groups;
  Range tiles = part_of(p->tiles, item / p->parts / p->groups, p->ranges);
  index_t m = part * p->part, filters = std::min(p->part, p->filters - m);
  scalar_t* grads = workspace + round_up(p->block + LANES * VECTORS, LANES);
  index_t* offsets = reinterpret_cast<index_t*>(grads + round_up(p->positions * p->part + MAX_ROWS, LANES));

  memset(sums, 0, (p->part + MAX_ROWS) * p->row * sizeof(scalar_t));
  for (index_t i = tiles.begin; i < tiles.end; i++) {
    index_t number = i;
    Tile tile = tile_of(p, number);
    Block block(at.d, at.h, at.w, tile, p->channels);
    block.fill(x + g * p->channels * p->x_c, {p->x_n, p->x_c, p->x_d, p->x_h, p->x_w}, at.d, at.h, at.w, tile, workspace);
    block.positions(at.d, at.h, at.w, tile, offsets);
    for (index_t some = 0; some < filters; some += FILTERS) {
      index_t count = std::min(FILTERS, filters - some);
      const scalar_t* from = grad_y + (g * p->filters + m + some) * p->y_c;
      Axis d{p->od, p->od, 1, 1, 0, 1, 0}, h{p->oh, p->oh, 1, 1, 0, 1, 0}, w{p->ow, p->ow, 1, 1, 0, 1, 0};
      Block(d, h, w, tile, count).fill(from, {p->y_n, p->y_c, p->y_d, p->y_h, p->y_w}, d, h, w, tile, grads);
      correlate_runs(p, at, block, tile, workspace, offsets, grads, count, sums + some * p->row);
    }
  }
}

// grad_w of one item's filters: the ranges' sums, added in order.
KERNEL sum_ranges(const Params* p, const scalar_t* sums, scalar_t* grad_w, scalar_t* workspace, int64_t item) {
  Problem at(p);
  Range rows = part_of(p->groups * p->filters, item, p->items);
  for (index_t i = rows.begin; i < rows.end; i++) {
    index_t g = i / p->filters, m = i % p->filters, part = m / p->part;
    const scalar_t* first = sums + ((g * p->parts + part) * (p->part + MAX_ROWS) + m % p->part) * p->row;
    index_t range = p->groups * p->parts * (p->part + MAX_ROWS) * p->row;
    for (index_t k = 0; k < p->row; k += LANES) {
      vector_t total = load(first + k);
      for (index_t r = 1; r < p->ranges; r++) total += load(first + r * range + k);
      store(workspace + k, total);
    }
    for (index_t run = 0; run < at.runs.count(); run++) {
      const scalar_t* from = workspace + run * round_up(at.runs.length, LANES);
      scalar_t* to = grad_w + g * p->w_g + m * p->w_m + run / (p->kh * at.runs.kw) * p->w_d +
                     run / at.runs.kw % p->kh * p->w_h + run % at.runs.kw * p->w_w;
      for (index_t tap = 0; tap < at.runs.length / p->channels; tap++)
        for (index_t c = 0; c < p->channels; c++) to[tap * p->w_w + c * p->w_c] = *from++;
    }
  }
}
