// Convolution as an implicit GEMM: y[n, (g, m), o] = bias[g, m] + sum over c, taps of w[g, m, c, tap] * x[n, (g, c), at].
//
// A work item is a tile of outputs of one group, and a part of its filters. Its input is copied to a block (blocks.hpp);
// then, for each panel of up to MAX_VECTORS vectors of filters and each chunk of multiply-adds, a register tile passes
// over all positions. Sums of a panel are kept in the workspace, and transposed to y's memory order at the end.
//
// dgrad is the same with the roles of channels exchanged, once per stride residue: the host describes the samplings.
#include "blocks.hpp"
#include "gemm.hpp"

struct Params {
  index_t groups, channels, filters;        // of one group
  index_t d, h, w;                          // sources
  index_t od, oh, ow;                       // targets
  index_t kd, kh, kw;                       // taps
  index_t step_d, step_h, step_w;
  index_t least_d, least_h, least_w;
  index_t gap_d, gap_h, gap_w;
  index_t x_n, x_c, x_d, x_h, x_w;
  index_t y_n, y_c, y_d, y_h, y_w;
  index_t w_g, w_m, w_c, w_d, w_h, w_w;     // of ascending taps
  index_t bias_g, bias_m;
  index_t n, tile_n, tile_d, tile_h, tile_w;
  index_t parts;                            // of the filters
  index_t block, room;                      // scalars of the largest block; and of its positions, rounded up
};

// --- Weights --------------------------------------------------------------------------------------------------------

// packed[g][panel][k][lane of the panel], k in the order of the runs: of one item's group and vector of filters.
KERNEL pack_weights(const Params* p, const scalar_t* w, scalar_t* packed, scalar_t* workspace, int64_t item) {
  Panels panels(p->filters);
  index_t g = item / panels.vectors, vector = item % panels.vectors, taps = p->kd * p->kh * p->kw;
  index_t panel = panels.of(vector), first = panels.first(panel), lanes = (panels.first(panel + 1) - first) * LANES;
  scalar_t* to = packed + (g * panels.vectors + first) * LANES * p->channels * taps + (vector - first) * LANES;
  Filters filters(p->w_m, p->w_c, p->w_d, p->w_h, p->w_w, p->kd, p->kh, p->kw);
  index_t m = vector * LANES, count = std::min<index_t>(LANES, p->filters - m), some = filters.channels_at_once();
  for (index_t c = 0; c < p->channels; c += some) {
    index_t channels = std::min(some, p->channels - c);
    filters.turn(w + g * p->w_g + m * p->w_m + c * p->w_c, count, channels, workspace);
    for (index_t i = 0; i < channels; i++)
      for (index_t tap = 0; tap < taps; tap++)
        store(to + (tap * p->channels + c + i) * lanes, load(workspace + (i * taps + tap) * LANES));
  }
}

// --- The product ----------------------------------------------------------------------------------------------------

struct Chunks {
  Piece* pieces;
  index_t* starts;  // of each chunk in the pieces, and in the packed weights
  index_t* depths;
  index_t count;

  // Runs that reach the image, in pieces of at most CHUNK, gathered in chunks of at most CHUNK.
  Chunks(const Axes<Params>& at, const Runs& runs, const Block& block, const Tile& tile, Piece* pieces, index_t* starts,
         index_t* depths)
      : pieces(pieces), starts(starts), depths(depths), count(0) {
    index_t made = 0, filled = CHUNK, depth = 0, expected = -1;
    for (index_t run = 0; run < runs.count(); run++, depth += runs.length) {
      if (!runs.reaches(run, at.d, at.h, tile)) continue;
      index_t offset = runs.offset(run, at.d, at.h, at.w, block);
      for (index_t k = 0, most = piece_of(runs.length); k < runs.length; k += most) {
        index_t length = std::min(most, runs.length - k);
        if (filled + length > CHUNK || depth + k != expected) {
          starts[count] = made, depths[count++] = depth + k, filled = 0;
        }
        pieces[made++] = {offset + k, length};
        filled += length, expected = depth + k + length;
      }
    }
    starts[count] = made;
  }
};

template <int V>
static void multiply_panel(Product product, index_t positions, const Chunks& chunks, const scalar_t* bias,
                           index_t filters, index_t bias_step) {
  vector_t first[V] = {};
  for (index_t i = 0; i < std::min<index_t>(filters, V * LANES) && bias; i++)
    first[i / LANES][i % LANES] = bias[i * bias_step];
  for (index_t i = 0; i < positions * V && chunks.count == 0; i++)
    store(product.sums + i / V * product.sums_step + i % V * LANES, first[i % V]);
  const scalar_t* columns = product.columns;
  for (index_t chunk = 0; chunk < chunks.count; chunk++) {
    product.pieces = chunks.pieces + chunks.starts[chunk];
    product.count = chunks.starts[chunk + 1] - chunks.starts[chunk];
    product.columns = columns + chunks.depths[chunk] * V * LANES;
    multiply<V>(product, positions, chunk ? nullptr : first);
  }
}

// Whether each output reads the pixel at its place, of rows of one pixel after another with its channels innermost.
static bool reads_in_place(const Params* p) {
  bool is_row = p->d == 1 && p->od == 1 && p->least_d == 0 && p->h == 1 && p->oh == 1 && p->least_h == 0;
  return is_row && p->kd * p->kh * p->kw == 1 && p->x_c == 1 && p->step_w == 1 && p->least_w == 0 && p->w == p->ow;
}

// Whether the outputs of a tile are evenly spaced, with their channels innermost.
static bool writes_in_place(const Params* p, const Tile& tile) {
  return p->y_c == 1 && tile.ns == 1 && tile.ds == 1 && p->od == 1 &&
         (tile.hs == 1 || (tile.ws == p->ow && p->y_h == p->ow * p->y_w));
}

KERNEL convolution(const Params* p, const scalar_t* x, const scalar_t* packed, const scalar_t* bias, scalar_t* y,
                   scalar_t* workspace, int64_t item) {
  Axes<Params> at(p);
  Panels panels(p->filters);
  Range part = part_of(panels.count, item % p->parts, p->parts);
  item /= p->parts;
  Tile tile = tile_of(p, item);
  index_t g = item, depth = p->channels * p->kd * p->kh * p->kw;

  Block block(at.d, at.h, at.w, tile, p->channels);
  Runs runs(at.d, at.h, at.w, p->channels);
  scalar_t* sums = workspace + round_up(p->block, LANES);
  scalar_t* turned = sums + p->room * MAX_VECTORS * LANES;
  index_t* offsets = reinterpret_cast<index_t*>(turned + p->room * MAX_VECTORS * LANES);
  index_t pieces = runs.count() * ceil_div(runs.length, piece_of(runs.length));
  Piece* list = reinterpret_cast<Piece*>(offsets + p->room);
  index_t* starts = reinterpret_cast<index_t*>(list + pieces);

  x += g * p->channels * p->x_c;
  const scalar_t* rows = workspace;
  if (reads_in_place(p)) {
    rows = x + tile.n * p->x_n + tile.w * p->x_w;
    for (index_t n = 0, i = 0; n < tile.ns; n++)
      for (index_t w = 0; w < tile.ws; w++) offsets[i++] = n * p->x_n + w * p->x_w;
  } else {
    block.fill(x, {p->x_n, p->x_c, p->x_d, p->x_h, p->x_w}, at.d, at.h, at.w, tile, workspace);
    block.positions(at.d, at.h, at.w, tile, offsets);
  }
  for (index_t i = tile.positions(); i < p->room; i++) offsets[i] = 0;  // computed, never written
  Chunks chunks(at, runs, block, tile, list, starts, starts + pieces + 1);

  for (index_t panel = part.begin; panel < part.end; panel++) {
    index_t first = panels.first(panel), vectors = panels.first(panel + 1) - first;
    const scalar_t* weights = packed + (g * panels.vectors + first) * LANES * depth;
    index_t m = first * LANES, filters = std::min(vectors * LANES, p->filters - m);
    const scalar_t* shift = bias ? bias + g * p->bias_g + m * p->bias_m : nullptr;
    scalar_t* to = y + (g * p->filters + m) * p->y_c;
    bool is_in_place = writes_in_place(p, tile) && filters == vectors * LANES;
    Product product{rows, offsets, nullptr, 0, weights, vectors * LANES, sums, vectors * LANES};
    if (is_in_place) product.sums = to + tile.n * p->y_n + tile.h * p->y_h + tile.w * p->y_w, product.sums_step = p->y_w;
    with_vectors<MAX_VECTORS>(vectors, [&](auto v) {
      multiply_panel<v()>(product, tile.positions(), chunks, shift, filters, p->bias_m);
    });
    if (!is_in_place) write(sums, vectors * LANES, filters, tile, {p->y_n, p->y_c, p->y_d, p->y_h, p->y_w}, to, turned);
  }
}

extern "C" __attribute__((visibility("default"))) int64_t vector_bytes() { return VECTOR_BYTES; }
