// Winograd's minimal filtering F(2x2, 3x3): outputs in tiles of 2 x 2 by 16 products instead of 36 (Lavin and Gray,
// "Fast Algorithms for Convolutional Neural Networks", 2015). float32 only: the transforms cost some bits of accuracy.
//
//   Y = A^T [(G g G^T) . (B^T d B)] A,  summed over channels within the brackets
//
// A work item is a region of tiles and a part of the filters. Its input is copied to a block, transformed to
// [frequency][tile][c], and multiplied for each panel of filters at each of the 16 frequencies.
//
// With a dilation, taps reach every gap-th pixel: pixels of one residue are an image, whose convolution has none.
#include "blocks.hpp"
#include "gemm.hpp"

struct Params {
  index_t groups, channels, filters;        // of one group
  index_t h, w, oh, ow;                     // sources and targets
  index_t least_h, least_w;
  index_t gap_h, gap_w;                     // from tap to tap
  index_t x_n, x_c, x_h, x_w;
  index_t y_n, y_c, y_h, y_w;
  index_t w_g, w_m, w_c, w_h, w_w;          // of ascending taps
  index_t bias_g, bias_m;
  index_t n, tile_n, tile_h, tile_w;        // images of all residues, and tiles of a region
  index_t parts;                            // of the filters
  index_t slice;                            // channels of filters that are transformed together
  index_t acts, smooth;                     // the epilogue
  double least, most, slope;
};

constexpr int FREQUENCIES = 16;

// Scalars from one frequency to the next, of `count`: not a multiple of 4096 bytes, or all 16 fall into one cache set.
INLINE index_t spaced(index_t count) { return count + LANES; }

// --- Transforms -----------------------------------------------------------------------------------------------------

// G g: taps 0..2 `step` apart, to frequencies 0..3.
INLINE void of_taps(const vector_t* g, int step, vector_t* to, int to_step) {
  vector_t half = broadcast(scalar_t(0.5)), outer = (g[0] + g[2 * step]) * half, middle = g[step] * half;
  to[0] = g[0], to[to_step] = outer + middle, to[2 * to_step] = outer - middle, to[3 * to_step] = g[2 * step];
}

// B^T d: pixels 0..3.
INLINE void of_pixels(const vector_t* d, int step, vector_t* to, int to_step) {
  to[0] = d[0] - d[2 * step], to[to_step] = d[step] + d[2 * step];
  to[2 * to_step] = d[2 * step] - d[step], to[3 * to_step] = d[step] - d[3 * step];
}

// A^T m: frequencies 0..3 to outputs 0..1.
INLINE void to_outputs(const vector_t* m, int step, vector_t* to, int to_step) {
  to[0] = m[0] + m[step] + m[2 * step], to[to_step] = m[step] - m[2 * step] - m[3 * step];
}

// to[frequency][c][lane] of up to LANES filters: from one c to the next `lanes`, from one frequency to the next `step`.
static void transform_filters(const Params* p, const scalar_t* w, index_t count, index_t channels, scalar_t* to,
                              index_t lanes, index_t step, scalar_t* workspace) {
  Filters filters(p->w_m, p->w_c, 0, p->w_h, p->w_w, 1, 3, 3);
  index_t some = filters.channels_at_once();
  for (index_t c = 0; c < channels; c += some) {
    index_t here = min(some, channels - c);
    filters.turn(w + c * p->w_c, count, here, workspace);
    for (index_t i = 0; i < here; i++) {
      vector_t taps[9], rows[12], all[16];
      for (int tap = 0; tap < 9; tap++) taps[tap] = load(workspace + (i * 9 + tap) * LANES);
      for (int row = 0; row < 3; row++) of_taps(taps + row * 3, 1, rows + row * 4, 1);
      for (int column = 0; column < 4; column++) of_taps(rows + column, 4, all + column, 4);
      for (int f = 0; f < FREQUENCIES; f++) store(to + f * step + (c + i) * lanes, all[f]);
    }
  }
}

// packed[g][panel][frequency][c][lane of the panel], with c in [0, channels]: of one item's group and vector of
// filters. The last c is not used, but spaces the frequencies.
KERNEL transform_weights(const Params* p, const scalar_t* w, scalar_t* packed, scalar_t* workspace, int64_t item) {
  Panels panels(p->filters);
  index_t g = item / panels.vectors, vector = item % panels.vectors, m = vector * LANES;
  index_t panel = panels.of(vector), first = panels.first(panel), lanes = (panels.first(panel + 1) - first) * LANES;
  packed += (g * panels.vectors + first) * LANES * (p->channels + 1) * FREQUENCIES + (vector - first) * LANES;
  transform_filters(p, w + g * p->w_g + m * p->w_m, min<index_t>(LANES, p->filters - m), p->channels, packed,
                    lanes, (p->channels + 1) * lanes, workspace);
}

// to[frequency][c] of a tile, `step` apart, from its 4 x 4 pixels: LANES channels, the last ones overlapping.
static void transform_tile(const scalar_t* from, index_t row, index_t channels, scalar_t* to, index_t step) {
  for (index_t at = 0; at < channels; at += LANES) {
    index_t c = min(at, channels - LANES);
    vector_t pixels[16], rows[16], all[16];
    for (int i = 0; i < 4; i++)
      for (int j = 0; j < 4; j++) pixels[i * 4 + j] = load(from + i * row + j * channels + c);
    for (int i = 0; i < 4; i++) of_pixels(pixels + i * 4, 1, rows + i * 4, 1);
    for (int j = 0; j < 4; j++) of_pixels(rows + j, 4, all + j, 4);
    for (int f = 0; f < FREQUENCIES; f++) store(to + f * step + c, all[f]);
  }
}

// --- The product ----------------------------------------------------------------------------------------------------

// Products of one panel and the channels [first, first + count) at all frequencies, [frequency][tile][lane]: added to
// those of the channels before. From one frequency of the weights to the next are `step` scalars.
template <int V>
static void multiply_panel(const scalar_t* transformed, const index_t* at, const index_t* to, index_t tiles,
                           index_t channels, index_t first, index_t count, const scalar_t* weights, index_t step,
                           scalar_t* products) {
  vector_t zero[V] = {};
  for (int f = 0; f < FREQUENCIES; f++)
    for (index_t k = 0, most = piece_of(count); k < count; k += most) {
      Piece piece{first + k, min(most, count - k)};
      Product product{transformed + f * spaced(tiles * channels), at, &piece, 1, weights + f * step + k * V * LANES,
                      V * LANES, products + f * spaced(tiles * V * LANES), to, V * LANES};
      multiply<V>(product, tiles, first + k ? nullptr : zero);
    }
}

// The pixels of one residue along an axis: every `gap`-th from `first` on for the targets from `target` on.
struct Strided : Axis {
  index_t first, target;

  Strided(index_t all_sources, index_t all_targets, index_t all_least, index_t gap, index_t residue)
      : Axis{0, ceil_div(all_targets - residue, gap), 3, 1, 0, 1, 0}, target(residue) {
    index_t reached = residue + all_least;
    first = (reached % gap + gap) % gap;
    sources = max<index_t>(0, ceil_div(all_sources - first, gap));
    least = (reached - first) / gap;
  }
};

// One image of a residue.
struct Image {
  index_t n;
  Strided h, w;

  Image(const Params* p, index_t number)
      : n(number / (p->gap_h * p->gap_w)), h(p->h, p->oh, p->least_h, p->gap_h, number / p->gap_w % p->gap_h),
        w(p->w, p->ow, p->least_w, p->gap_w, number % p->gap_w) {}

  // Those of a region that it has.
  Tile within(const Tile& region) const {
    return {0, 1, 0, 1, region.h, clamp<index_t>(h.targets - region.h, 0, region.hs),
            region.w, clamp<index_t>(w.targets - region.w, 0, region.ws)};
  }
};

// Sums [position][lane] of an image's tile from its products, which are `step` apart and of `wide` tiles a row; returns
// whether all of them are finite.
static bool to_sums(const scalar_t* products, index_t step, index_t wide, index_t lanes, const Tile& tile,
                    const scalar_t* bias, index_t filters, index_t bias_step, scalar_t* sums) {
  vector_t strange = {};
  for (index_t lane = 0; lane < lanes; lane += LANES) {
    vector_t shift = {};
    for (index_t i = lane; i < min(filters, lane + LANES) && bias; i++) shift[i - lane] = bias[i * bias_step];
    for (index_t h = 0; h < tile.hs; h += 2)
      for (index_t w = 0; w < tile.ws; w += 2) {
        const scalar_t* from = products + (h / 2 * wide + w / 2) * lanes + lane;
        vector_t all[16], rows[8], outputs[4];
        for (int f = 0; f < FREQUENCIES; f++) all[f] = load(from + f * step);
        for (int i = 0; i < 4; i++) to_outputs(all + i * 4, 1, rows + i * 2, 1);
        for (int j = 0; j < 2; j++) to_outputs(rows + j, 2, outputs + j, 2);
        for (int i = 0; i < 4; i++) {
          if (h + i / 2 >= tile.hs || w + i % 2 >= tile.ws) continue;
          vector_t sum = outputs[i] + shift;
          strange += sum - sum;  // 0, or NaN
          store(sums + ((h + i / 2) * tile.ws + w + i % 2) * lanes + lane, sum);
        }
      }
  }
  scalar_t any = 0;
  for (int i = 0; i < LANES; i++) any += strange[i];
  return any == 0;
}

// not_finite[item] is 1 if a result of the item is infinite or NaN, which may come from the transforms, else 0.
// Without `packed`, each item transforms the filters that it multiplies with, of one slice of channels at a time: where
// there is one region, no other does.
KERNEL winograd(const Params* p, const scalar_t* x, const scalar_t* w, const scalar_t* packed, const scalar_t* bias,
                const scalar_t* residual, scalar_t* y, int64_t* not_finite, scalar_t* workspace, int64_t item) {
  Epilogue epilogue(p);
  index_t all = item;
  Panels panels(p->filters);
  Range part = part_of(panels.count, item % p->parts, p->parts);
  item /= p->parts;
  Range columns = next_run(item, ceil_div(p->ow, p->gap_w), 2 * p->tile_w);
  Range rows = next_run(item, ceil_div(p->oh, p->gap_h), 2 * p->tile_h);
  Range n = next_run(item, p->n, p->tile_n);
  Tile tile{n.begin, n.end, 0, 1, rows.begin, rows.end, columns.begin, columns.end};
  index_t g = item, high = ceil_div(tile.hs, 2), wide = ceil_div(tile.ws, 2), tiles = tile.ns * high * wide;

  Tile padded{0, 1, 0, 1, rows.begin, 2 * high, columns.begin, 2 * wide};
  Axis depth{1, 1, 1, 1, 0, 1, 1}, window{0, 0, 3, 1, 0, 1, 0};
  Block block(depth, window, window, padded, p->channels);
  index_t most = p->tile_n * p->tile_h * p->tile_w, row = block.ws * p->channels;
  scalar_t* transformed = workspace;
  scalar_t* products = transformed + FREQUENCIES * spaced(round_up(most * p->channels, LANES));
  scalar_t* pixels = products + FREQUENCIES * spaced(most * MAX_VECTORS * LANES);  // the block
  scalar_t* sums = pixels;                                                         // later, and those turned
  scalar_t* turned = sums + 4 * most * MAX_VECTORS * LANES;
  index_t* at = reinterpret_cast<index_t*>(
      pixels + round_up(max(8 * most * MAX_VECTORS * LANES,
                                 p->tile_n * (2 * p->tile_h + 2) * (2 * p->tile_w + 2) * p->channels), LANES));

  for (index_t i = 0, t = 0; i < tile.ns; i++) {
    Image image(p, tile.n + i);
    const scalar_t* from = x + image.n * p->x_n + image.h.first * p->x_h + image.w.first * p->x_w;
    block.fill(from + g * p->channels * p->x_c, {0, p->x_c, 0, p->x_h * p->gap_h, p->x_w * p->gap_w}, depth, image.h,
               image.w, padded, pixels + block.offset(i, 0, 0, 0));
    for (index_t j = 0; j < high; j++)
      for (index_t k = 0; k < wide; k++, t++)
        transform_tile(pixels + block.offset(i, 0, 2 * j, 2 * k), row, p->channels, transformed + t * p->channels,
                       spaced(tiles * p->channels));
  }
  index_t* to = at + tiles + ROWS[1];
  scalar_t* scratch = reinterpret_cast<scalar_t*>(at + round_up(2 * (most + ROWS[1]), LANES));
  scalar_t* transformed_here = scratch + 256 * LANES;
  for (index_t i = 0; i < tiles + ROWS[1]; i++) to[i] = min(i, tiles - 1), at[i] = to[i] * p->channels;

  bool is_finite = true;
  for (index_t panel = part.begin; panel < part.end; panel++) {
    index_t first = panels.first(panel), vectors = panels.first(panel + 1) - first, m = first * LANES;
    index_t lanes = vectors * LANES, filters = min(lanes, p->filters - m);
    for (index_t c = 0; c < p->channels; c += p->slice) {
      index_t channels = min(p->slice, p->channels - c), step = (channels + 1) * lanes;
      const scalar_t* weights = transformed_here;
      if (packed) {
        weights = packed + (g * panels.vectors + first) * LANES * (p->channels + 1) * FREQUENCIES;
      } else {
        for (index_t i = 0; i < lanes; i += LANES)
          transform_filters(p, w + g * p->w_g + (m + i) * p->w_m + c * p->w_c, min<index_t>(LANES, filters - i),
                            channels, transformed_here + i, lanes, step, scratch);
      }
      with_number<MAX_VECTORS>(vectors, [&](auto v) {
        multiply_panel<v()>(transformed, at, to, tiles, p->channels, c, channels, weights, step, products);
      });
    }
    const scalar_t* shift = bias ? bias + g * p->bias_g + m * p->bias_m : nullptr;
    for (index_t i = 0; i < tile.ns; i++) {
      Image image(p, tile.n + i);
      Tile here = image.within(tile);
      is_finite &= to_sums(products + i * high * wide * lanes, spaced(tiles * lanes), wide, lanes, here, shift, filters,
                           p->bias_m, sums);
      index_t begin = image.n * p->y_n + image.h.target * p->y_h + image.w.target * p->y_w;
      begin += (g * p->filters + m) * p->y_c;
      write(sums, lanes, filters, here, {0, p->y_c, 0, p->y_h * p->gap_h, p->y_w * p->gap_w}, y + begin,
            residual ? residual + begin : nullptr, epilogue, turned);
    }
  }
  not_finite[all] = !is_finite;
}
