// Convolution as an implicit GEMM:
//
//   y[n, (g, m), o] = bias[g, m] + sum over c, taps of w[g, m, c, tap] * x[n, (g, c), at]
//
// A work item is a tile of outputs of one group, and a part of its filters. For one slice of channels after another,
// the input of the tile is copied to a block (blocks.hpp); then, for each panel of up to MAX_VECTORS vectors of filters
// and each chunk of multiply-adds, a register tile passes over all positions. Sums are kept in the workspace, and
// transposed to y's memory order at the end.
//
// dgrad is the same with the roles of channels exchanged. Its targets fall into stride residues, each with taps of its
// own, which read the same block and the same filters; a forward has one residue.
#include "blocks.hpp"
#include "gemm.hpp"

struct Params {
  index_t groups, channels, filters;        // of one group
  index_t slice;                            // channels of a block
  index_t residues, taps;                   // and the taps of all of them
  index_t d, h, w;                          // sources
  index_t od, oh, ow;                       // most targets of a residue
  index_t kd, kh, kw;                       // sources from the first to the last tap of all residues
  index_t step_d, step_h, step_w;
  index_t least_d, least_h, least_w;        // of all residues
  index_t gap_d, gap_h, gap_w;              // 1
  index_t x_n, x_c, x_d, x_h, x_w;
  index_t y_n, y_c, y_d, y_h, y_w;
  index_t w_g, w_m, w_c, w_d, w_h, w_w;
  index_t wd, wh, ww;                       // taps of the filters
  index_t bias_g, bias_m;
  index_t n, tile_n, tile_d, tile_h, tile_w;
  index_t parts;                            // of the filters
  index_t block, room;                      // scalars of the largest block; and of its positions, rounded up
  index_t pieces;                           // most pieces of the runs of a residue
  index_t lists, splits_w;                  // most lists of positions of a residue; and whether runs are of one tap
  index_t acts, smooth;                     // the epilogue
  double least, most, slope;
};

// A stride residue: targets at y + (d, h, w) * steps of y, and their taps in ascending order.
struct Residue {
  index_t od, oh, ow;                       // targets
  index_t kd, kh, kw;                       // taps
  index_t least_d, least_h, least_w;
  index_t gap_d, gap_h, gap_w;
  index_t tap, tap_d, tap_h, tap_w;         // the first one's number in the filters, and from one to the next
  index_t y;

  index_t taps() const { return kd * kh * kw; }
  Tile within(const Tile& tile) const {
    return {tile.n, tile.ns, tile.d, clamp<index_t>(od - tile.d, 0, tile.ds), tile.h,
            clamp<index_t>(oh - tile.h, 0, tile.hs), tile.w, clamp<index_t>(ow - tile.w, 0, tile.ws)};
  }
};

// --- Weights --------------------------------------------------------------------------------------------------------

// to[residue][tap][channel][lane] of up to LANES filters, `lanes` from one channel to the next.
static void pack(const Params* p, const Residue* residues, const scalar_t* w, index_t count, index_t channels,
                 scalar_t* to, index_t lanes, scalar_t* workspace) {
  Filters filters(p->w_m, p->w_c, p->w_d, p->w_h, p->w_w, p->wd, p->wh, p->ww);
  index_t taps = p->wd * p->wh * p->ww, some = filters.channels_at_once();
  for (index_t c = 0; c < channels; c += some) {
    index_t here = min(some, channels - c);
    filters.turn(w + c * p->w_c, count, here, workspace);
    scalar_t* target = to + c * lanes;
    for (const Residue* r = residues; r < residues + p->residues; r++)
      for (index_t i = 0; i < r->taps(); i++, target += channels * lanes) {
        index_t tap = r->tap + i / (r->kh * r->kw) * r->tap_d + i / r->kw % r->kh * r->tap_h + i % r->kw * r->tap_w;
        for (index_t a = 0; a < here; a++) store(target + a * lanes, load(workspace + (a * taps + tap) * LANES));
      }
  }
}

// packed[g][panel][slice][residue][tap][channel][lane of the panel]: of one item's group and vector of filters.
KERNEL pack_weights(const Params* p, const scalar_t* w, const int64_t* residues, scalar_t* packed, scalar_t* workspace,
                    int64_t item) {
  Panels panels(p->filters);
  index_t g = item / panels.vectors, vector = item % panels.vectors, m = vector * LANES;
  index_t panel = panels.of(vector), first = panels.first(panel), lanes = (panels.first(panel + 1) - first) * LANES;
  index_t count = min<index_t>(LANES, p->filters - m);
  packed += (g * panels.vectors + first) * LANES * p->channels * p->taps + (vector - first) * LANES;
  for (index_t c = 0; c < p->channels; c += p->slice)
    pack(p, reinterpret_cast<const Residue*>(residues), w + g * p->w_g + m * p->w_m + c * p->w_c, count,
         min(p->slice, p->channels - c), packed + c * p->taps * lanes, lanes, workspace);
}

// --- What is multiplied ---------------------------------------------------------------------------------------------

// Whether each output reads the pixel at its place, of rows of one pixel after another with its channels innermost.
static bool reads_in_place(const Params* p) {
  bool is_row = p->d == 1 && p->od == 1 && p->least_d == 0 && p->h == 1 && p->oh == 1 && p->least_h == 0;
  return is_row && p->kd * p->kh * p->kw == 1 && p->x_c == 1 && p->step_w == 1 && p->least_w == 0 && p->w == p->ow;
}

// The sources that a tile reads, as the axes and the tile of a block: without those in the padding where it is skipped.
struct Sources : Axes<Params> {
  Tile tile;
  index_t first_d, first_h, first_w;  // at the block's begin

  Sources(const Params* p, const Tile& whole) : Axes(p), tile(whole) {
    first_d = crop(d, tile.d, tile.ds, p->lists > 1);
    first_h = crop(h, tile.h, tile.hs, p->lists > 1);
    first_w = crop(w, tile.w, tile.ws, p->lists > 1 && p->splits_w);
  }

 private:
  static index_t crop(Axis& axis, index_t& first, index_t& count, bool skips) {
    index_t begin = axis.source(first, 0), end = begin + axis.extent(count);
    if (axis.taps == 1) return begin;
    if (skips) begin = clamp<index_t>(begin, 0, axis.sources - 1), end = clamp(end, begin + 1, axis.sources);
    axis = {axis.sources, 1, end - begin, 1, begin, 1, 1};
    first = 0, count = 1;
    return begin;
  }
};

// A product: some runs of the block, at the positions that read the image there.
struct Step {
  const index_t *at, *number, *y;  // of the positions: offsets in the block, numbers in the tile, and offsets in y
  index_t positions;
  const Piece* pieces;
  index_t count;
  index_t depth;                   // in the packed weights
};

// Targets of a tile, counted from its first.
struct Box {
  Range d, h, w;

  bool is_empty() const { return d.begin >= d.end || h.begin >= h.end || w.begin >= w.end; }
  bool operator==(const Box& other) const { return memcmp(this, &other, sizeof other) == 0; }
};

// What the targets of a tile of one residue read of a block. With one list of positions, all of them pass over all
// runs, zeros in the padding included; with more, each run is multiplied where it reads the image. That saves a fifth
// of the products of 3 x 3 taps on 7 x 7 pixels and nearly half with a dilation of a third of the image, but visits
// sums more often, which takes runs of many channels.
struct Reads {
  const Params* p;
  const Residue* r;
  const Sources* from;
  Tile tile;
  Step* steps;
  index_t count;

  static index_t room(const Params* p) { return 9 * p->pieces + 3 * p->lists * p->room; }

  Reads(const Params* p, const Residue* r, const Tile& whole, const Sources* from, const Block& block, index_t* memory)
      : p(p), r(r), from(from), tile(r->within(whole)), steps(reinterpret_cast<Step*>(memory)), count(0) {
    Piece* pieces = reinterpret_cast<Piece*>(memory + 7 * p->pieces);
    index_t* list = memory + 9 * p->pieces;
    Axis d{p->d, r->od, r->kd, p->step_d, r->least_d, r->gap_d, 1};
    Axis h{p->h, r->oh, r->kh, p->step_h, r->least_h, r->gap_h, 1};
    Axis w{p->w, r->ow, r->kw, p->step_w, r->least_w, r->gap_w, 1};
    index_t kw = p->splits_w ? w.taps : 1, length = w.taps / kw * block.channels;
    index_t made = 0, filled = 0, expected = 0;
    Box box{}, all{{0, tile.ds}, {0, tile.hs}, {0, tile.ws}};
    for (index_t run = 0; run < d.taps * h.taps * kw; run++) {
      index_t i = run / (h.taps * kw), j = run / kw % h.taps, k = run % kw;
      Box reached{reach(d, i, tile.d, tile.ds), reach(h, j, tile.h, tile.hs), all.w};
      if (p->splits_w) reached.w = reach(w, k, tile.w, tile.ws);
      if (reached.is_empty()) continue;
      if (p->lists == 1) reached = all;
      for (index_t at = 0, most = piece_of(length); at < length; at += most) {
        index_t here = min(most, length - at), depth = run * length + at;
        if (count == 0 || !(reached == box) || filled + here > CHUNK || depth != expected) {
          steps[count] = count && reached == box ? steps[count - 1] : positions(d, h, w, block, reached, list);
          steps[count].pieces = pieces + made, steps[count].count = 0, steps[count++].depth = depth;
          box = reached, filled = 0;
        }
        pieces[made++] = {block.offset(0, i * d.gap, j * h.gap, k * w.gap) + at, here};
        steps[count - 1].count++, filled += here, expected = depth + here;
      }
    }
    for (index_t i = 1; i < count && !begins_whole(); i++)
      if (steps[i].positions == tile.positions()) std::swap(steps[0], steps[i]);
  }

  // Whether the first step writes to all positions, so that sums begin there.
  bool begins_whole() const { return count > 0 && steps[0].positions == tile.positions(); }

 private:
  // The targets [first, first + count) that read the image through a tap.
  static Range reach(const Axis& axis, index_t tap, index_t first, index_t count) {
    index_t source = first * axis.step + axis.least + tap * axis.gap;
    index_t begin = source < 0 ? ceil_div(-source, axis.step) : 0;
    index_t end = source < axis.sources ? (axis.sources - 1 - source) / axis.step + 1 : 0;
    return {begin, min(end, count)};
  }

  // The index in a block of the source that a target's first tap reads.
  static index_t place(const Axis& axis, index_t reach, index_t first, index_t target, index_t first_source) {
    return reach == 1 ? target : (first + target) * axis.step + axis.least - first_source;
  }

  // A step at the positions of a box, whose lists are made at `list`.
  Step positions(const Axis& d, const Axis& h, const Axis& w, const Block& block, const Box& box,
                 index_t*& list) const {
    index_t *at = list, *number = at + p->room, *y = number + p->room, i = 0;
    bool is_in_place = reads_in_place(p);
    list += 3 * p->room;
    index_t at_w = is_in_place ? p->x_w : (p->kw == 1 ? 1 : w.step) * block.channels;
    for (index_t n = 0; n < tile.ns; n++)
      for (index_t a = box.d.begin; a < box.d.end; a++)
        for (index_t b = box.h.begin; b < box.h.end; b++) {
          index_t first_number = ((n * tile.ds + a) * tile.hs + b) * tile.ws;
          index_t first_y = n * p->y_n + a * p->y_d + b * p->y_h, first_at = n * p->x_n;
          if (!is_in_place)
            first_at = block.offset(n, place(d, p->kd, tile.d, a, from->first_d),
                                    place(h, p->kh, tile.h, b, from->first_h),
                                    place(w, p->kw, tile.w, 0, from->first_w));
          for (index_t c = box.w.begin; c < box.w.end; c++, i++)
            at[i] = first_at + c * at_w, number[i] = first_number + c, y[i] = first_y + c * p->y_w;
        }
    for (index_t k = i; k < p->room; k++) at[k] = at[0];  // computed, never written
    return {at, number, y, i, nullptr, 0, 0};
  }
};

// --- The product ----------------------------------------------------------------------------------------------------

// `first` is null where sums are continued.
template <int V>
static void multiply_panel(Product product, const Reads& reads, bool is_in_place, const vector_t* first) {
  if (first && !reads.begins_whole()) {
    for (index_t i = 0; i < reads.tile.positions() * V; i++) store(product.sums + i * LANES, first[i % V]);
    first = nullptr;
  }
  const scalar_t* columns = product.columns;
  const Epilogue* epilogue = product.epilogue;
  if (reads.count > 1) product.epilogue = nullptr;
  for (const Step* step = reads.steps; step < reads.steps + reads.count; step++, first = nullptr) {
    product.at = step->at, product.to = is_in_place ? step->y : step->number;
    product.pieces = step->pieces, product.count = step->count;
    product.columns = columns + step->depth * V * LANES;
    multiply<V>(product, step->positions, first);
  }
  if (!epilogue || reads.count == 1) return;
  product.epilogue = epilogue, product.to = reads.steps[0].y;
  finish(product, 0, reads.tile.positions(), V * LANES);
}

// Without `packed`, each item packs the filters that it multiplies with: where there is one tile, no other does.
KERNEL convolution(const Params* p, const scalar_t* x, const scalar_t* w, const scalar_t* packed, const scalar_t* bias,
                   const scalar_t* residual, const int64_t* residues, scalar_t* y, scalar_t* workspace, int64_t item) {
  Epilogue epilogue(p);
  Panels panels(p->filters);
  Range part = part_of(panels.count, item % p->parts, p->parts);
  item /= p->parts;
  Tile tile = tile_of(p, item);
  index_t g = item;
  Steps x_steps{p->x_n, p->x_c, p->x_d, p->x_h, p->x_w}, y_steps{p->y_n, p->y_c, p->y_d, p->y_h, p->y_w};
  const Residue* all = reinterpret_cast<const Residue*>(residues);
  Sources from(p, tile);
  bool is_whole = p->slice >= p->channels, is_copied = !reads_in_place(p);

  index_t room = p->room * MAX_VECTORS * LANES;
  scalar_t* sums = workspace + round_up(p->block, LANES);
  scalar_t* turned = sums + room * (is_whole ? 1 : (part.end - part.begin) * p->residues);
  scalar_t* packed_here = turned + room;
  scalar_t* scratch = packed_here + (packed ? 0 : p->slice * p->taps * MAX_VECTORS * LANES);
  index_t scratch_room = packed ? 0 : max<index_t>(256, p->wd * p->wh * p->ww) * LANES;
  index_t* memory = reinterpret_cast<index_t*>(scratch + scratch_room);
  Reads* reads = reinterpret_cast<Reads*>(memory + p->residues * Reads::room(p));

  for (index_t c = 0; c < p->channels; c += p->slice) {
    index_t channels = min(p->slice, p->channels - c);
    const scalar_t* rows = x + (g * p->channels + c) * p->x_c + (is_copied ? 0 : tile.n * p->x_n + tile.w * p->x_w);
    Block block(from.d, from.h, from.w, from.tile, channels);
    if (is_copied) block.fill(rows, x_steps, from.d, from.h, from.w, from.tile, workspace), rows = workspace;
    for (index_t r = 0; r < p->residues; r++)
      reads[r] = Reads(p, all + r, tile, &from, block, memory + r * Reads::room(p));

    for (index_t panel = part.begin; panel < part.end; panel++) {
      index_t first = panels.first(panel), vectors = panels.first(panel + 1) - first, lanes = vectors * LANES;
      index_t m = first * LANES, filters = min(lanes, p->filters - m);
      const scalar_t* weights = packed_here;
      if (packed) {
        weights = packed + (g * panels.vectors + first) * LANES * p->channels * p->taps + c * p->taps * lanes;
      } else {
        for (index_t i = 0; i < vectors; i++)
          pack(p, all, w + g * p->w_g + (m + i * LANES) * p->w_m + c * p->w_c,
               min<index_t>(LANES, filters - i * LANES), channels, packed_here + i * LANES, lanes, scratch);
      }
      vector_t shift[MAX_VECTORS] = {};
      for (index_t i = 0; i < filters && bias; i++)
        shift[i / LANES][i % LANES] = bias[g * p->bias_g + (m + i) * p->bias_m];
      for (index_t r = 0; r < p->residues; weights += all[r].taps() * channels * lanes, r++) {
        const Tile& here = reads[r].tile;
        bool is_last = c + channels == p->channels;
        index_t begin = all[r].y + (g * p->filters + m) * p->y_c;
        scalar_t* to = y + begin;
        const scalar_t* beside = residual ? residual + begin : nullptr;
        scalar_t* kept = sums + room * (is_whole ? 0 : (panel - part.begin) * p->residues + r);
        bool is_in_place = p->y_c == 1 && filters == lanes && reads[r].begins_whole();
        Product product{rows, nullptr, nullptr, 0, weights, lanes, kept, nullptr, lanes};
        product.is_ahead = !is_copied && panel == part.begin;
        if (is_in_place) {
          index_t corner = here.n * p->y_n + here.d * p->y_d + here.h * p->y_h + here.w * p->y_w;
          product.sums = to + corner, product.sums_step = 1;
          product.epilogue = is_last && epilogue.acts ? &epilogue : nullptr;
          product.residual = beside ? beside + corner : nullptr;
        }
        with_number<MAX_VECTORS>(vectors, [&](auto v) {
          multiply_panel<v()>(product, reads[r], is_in_place, c ? nullptr : shift);
        });
        if (!is_in_place && is_last) write(kept, lanes, filters, here, y_steps, to, beside, epilogue, turned);
      }
    }
  }
}

extern "C" __attribute__((visibility("default"))) int64_t vector_bytes() { return VECTOR_BYTES; }
