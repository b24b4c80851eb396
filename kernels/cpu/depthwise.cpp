// Depthwise convolution in three directions: lanes run along the channels of a pixel, as depthwise.hpp says.
//
// Where channels are not innermost in memory, some of them are transposed to the workspace for a box of targets, and the
// results back. Weights are packed to [taps, channels], with the bias as one more row.
#include "vectors.hpp"

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
  index_t prefetches;        // whether the source's next rows are asked for
  index_t pieces, piece;     // of a row of targets that items share, and the targets of one, in whole blocks
  index_t parts;             // of the batch, each with its partial sums, in wgrad
  index_t pixels;            // positions whose products are summed before they join the others, in wgrad
  index_t chunks;            // of channels that are transposed together, or of an item of wgrad
  index_t box_d, box_h, box_w;  // targets of a box
  index_t acts, smooth;      // the epilogue
  double least, most, slope;
};

#include "depthwise.hpp"

// --- Channels innermost in memory -------------------------------------------------------------------------------------

// y, or grad_x, of [N, D, H, W, C] and packed weights.
KERNEL depthwise_pixels(const Params* p, const scalar_t* from, const scalar_t* weight, scalar_t* to, scalar_t* workspace,
                        int64_t item) {
  Room room(p, workspace);
  for_rows(p, item, [&](index_t n, Box box) {
    contract(p, room, GROUP_OF<1>, from + n * p->from_n, weight, to + n * p->to_n, box);
  });
}

// The channels of a chunk: whole vectors, and in the last one what is left.
INLINE Range channels_of(const Params* p, index_t chunk) {
  Range vectors = part_of(max<index_t>(1, p->c / LANES), chunk, p->chunks);
  return {vectors.begin * LANES, chunk + 1 == p->chunks ? p->c : vectors.end * LANES};
}

// Partial sums [taps, width] of grad_w, one for each part of the rows; an item computes a chunk of one of them.
KERNEL depthwise_pixels_gradient(const Params* p, const scalar_t* from, const scalar_t* to, scalar_t* partial,
                                 scalar_t* workspace, int64_t item) {
  Room room(p, workspace);
  Range channels = channels_of(p, item % p->chunks);
  Params some = *p;
  some.c = channels.end - channels.begin, some.items = p->parts;
  index_t c = channels.begin;
  add_rows(&some, room, GROUP_OF<1>, from + c, to + c, partial + c, item / p->chunks);
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
    first = max<index_t>(0, ceil_div(max<index_t>(0, targets.begin + low - far), stride));
    last = targets.end - 1 + low < 0 ? -1 : (targets.end - 1 + low) / stride;
  }
  index_t begin = clamp<index_t>(first, 0, sources);
  return {begin, clamp<index_t>(last + 1, begin, sources)};
}

// One chunk of channels and the copies of a box: of what is read, and of the targets.
struct Chunk {
  Params params;  // of the copies
  Range channels;
  Copy from, to;

  Chunk(const Params* p, index_t chunk, const Box& box, scalar_t* start) : params(*p) {
    channels = channels_of(p, chunk);
    index_t width = max<index_t>(LANES, channels.end - channels.begin);
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
  return {index * step, min((index + 1) * step, size)};
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
    contract(&here.params, room, GROUP_OF<1>, here.from.origin(), weight + c, here.to.origin(), here.to.box);
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
  index_t c = any.channels.begin;
  Stages stages = {partial + part * taps * p->width + c, room.rest + c, 0};
  clear(&any.params, 1, stages);
  Range images = part_of(p->n, part, p->parts);
  for (index_t n = images.begin; n < images.end; n++)
    for (index_t index = 0; index < boxes(p); index++) {
      Chunk here(p, chunk, box_of(p, index), room.rest + round_up(taps * p->width, 64));
      pack(from + n * p->from_n + c * p->from_c, by_from, here.count(), here.from);
      pack(to + n * p->to_n + c * p->to_c, by_to, here.count(), here.to);
      add_box(&here.params, room, GROUP_OF<1>, here.from.origin(), here.to.origin(), stages, here.to.box);
      stages.pixels += here.to.size() / here.to.channels;
      join(&here.params, 1, stages, p->pixels);
    }
  join(&any.params, 1, stages, 0);
}

// --- Weights ----------------------------------------------------------------------------------------------------------

// weight [taps + 1, width] of w [C, KD, KH, KW] and bias [C].
KERNEL depthwise_weight(const Params* p, const scalar_t* w, const scalar_t* bias, scalar_t* weight, scalar_t* workspace,
                        int64_t item) {
  index_t taps = p->kernel_d * p->kernel_h * p->kernel_w;
  memset(weight, 0, (taps + 1) * p->width * sizeof(scalar_t));
  Copy copy = {{{0, p->kernel_d}, {0, p->kernel_h}, {0, p->kernel_w}}, p->width, weight};
  pack(w, {p->w_c, p->w_d, p->w_h, p->w_w}, p->c, copy);
  for (index_t c = 0; c < p->c && bias; c++) weight[taps * p->width + c] = bias[c * p->bias_c];
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
          index_t c = clamp<index_t>(p->c - LANES, 0, v);  // the last lanes may be of channels before
          for (index_t lane = 0; lane < LANES && c + lane < p->c; lane++)
            w[(c + lane) * p->w_c + d * p->w_d + h * p->w_h + k * p->w_w] = sum[lane];
        }
}
