// Convolution of small groups, and depthwise with multipliers, in three directions: lanes run along the positions of a plane.
//
// The planes of a group that a box of targets reads are copied to the workspace with zeros for padding, one copy for each
// residue of the stride that a tap reads. There a tap is an offset, whatever the target: target (d, h, w) is the position
// (d * rows + h) * pitch + w of a flat plane, in which vectors run on from row to row. What they compute between rows is
// dropped. A strided dgrad has a part for each residue of the targets.
#include <cmath>

#include "epilogue.hpp"
#include "transpose.hpp"

struct Params {
  index_t n, groups, channels, filters;  // channels and filters: of a group; in dgrad filters are channels of x
  index_t block;                         // groups that are copied together
  index_t width;                         // filters that are computed together, in [1, 4]
  index_t source_d, source_h, source_w;
  index_t target_d, target_h, target_w;
  index_t from_n, from_c, from_d, from_h, from_w;
  index_t to_n, to_c, to_d, to_h, to_w;
  index_t step_d, step_h, step_w;        // between sources of one residue
  index_t phases_d, phases_h, phases_w;  // residues that are copied
  index_t least_d, least_h, least_w;     // the first position of one residue that target 0 reads
  index_t planes, rows, pitch;           // sizes of a copy
  index_t hop_d, hop_h, hop_w;           // between targets of one part
  index_t box_d, box_h, box_w;           // targets of one part in a box
  index_t kernel_d, kernel_h, kernel_w;
  index_t w_g, w_m, w_c, w_d, w_h, w_w;
  index_t bias_c;
  index_t taps;                          // of all parts together
  index_t parts;                         // of the batch, each with its partial sums, in wgrad
  index_t items;
  index_t acts, smooth;                  // the epilogue
  double least, most, slope;
};

constexpr bool MANY_REGISTERS = VECTOR_BYTES == 64;

// The host's table: residues of the copies along D, H and W, where each part's taps begin, and for each of them its number
// in the kernel and its offset in the copies.
struct Table {
  const index_t *phases_d, *phases_h, *phases_w, *starts, *taps;

  Table(const Params* p, const index_t* table) {
    phases_d = table, phases_h = phases_d + p->phases_d, phases_w = phases_h + p->phases_h;
    starts = phases_w + p->phases_w;
    taps = starts + p->hop_d * p->hop_h * p->hop_w + 1;
  }
  index_t offset(index_t tap) const { return taps[2 * tap + 1]; }
  index_t number(index_t tap) const { return taps[2 * tap]; }
};

// Positions of a plane: of targets of one part, by their numbers in it, or of a part of an image.
struct Box {
  index_t d, h, w, ds, hs, ws;

  index_t size() const { return ds * hs * ws; }
};

struct Steps {
  index_t c, d, h, w;
};

// Planes in C order that hold a box of an image: steps, and where position 0 of the image would be.
INLINE Steps dense(const Box& box) { return {box.size(), box.hs * box.ws, box.ws, 1}; }

template <class Scalar>
INLINE Scalar* origin(Scalar* start, const Box& box) {
  return start - (box.d * box.hs + box.h) * box.ws - box.w;
}

INLINE index_t boxes(const Params* p) {
  return ceil_div(p->target_d, p->box_d * p->hop_d) * ceil_div(p->target_h, p->box_h * p->hop_h) *
         ceil_div(p->target_w, p->box_w * p->hop_w);
}

INLINE Box box_of(const Params* p, index_t index) {
  index_t counts[3] = {ceil_div(p->target_d, p->hop_d), ceil_div(p->target_h, p->hop_h), ceil_div(p->target_w, p->hop_w)};
  index_t hs = ceil_div(counts[1], p->box_h), ws = ceil_div(counts[2], p->box_w);
  index_t d = index / ws / hs * p->box_d, h = index / ws % hs * p->box_h, w = index % ws * p->box_w;
  return {d, h, w, min(p->box_d, counts[0] - d), min(p->box_h, counts[1] - h), min(p->box_w, counts[2] - w)};
}

INLINE index_t copy_size(const Params* p) {
  return p->phases_d * p->phases_h * p->phases_w * p->planes * p->rows * p->pitch;
}

// Scalars that vectors read of one plane: a whole number of pairs of vectors.
INLINE index_t flat_size(const Params* p, const Box& box) {
  return round_up(((box.ds - 1) * p->rows + box.hs - 1) * p->pitch + box.ws, 2 * LANES);
}

template <int STEP>
INLINE void copy_strided(const scalar_t* from, index_t step, index_t count, scalar_t* to) {
  if (STEP) step = STEP;
  for (index_t i = 0; i < count; i++) to[i] = from[i * step];
}

INLINE void copy_row(const scalar_t* from, index_t step, index_t count, scalar_t* to) {
  if (step == 1) return copy_run(from, to, count);
  step == 2 ? copy_strided<2>(from, step, count, to) : copy_strided<0>(from, step, count, to);
}

// Of the positions [first, first + count) of one residue, those on the image, counted from the first.
INLINE Range inside(index_t first, index_t count, index_t step, index_t phase, index_t sources) {
  index_t at = first * step + phase;
  index_t begin = clamp<index_t>(at < 0 ? ceil_div(-at, step) : 0, 0, count);
  return {begin, clamp<index_t>(at < sources ? (sources - 1 - at) / step + 1 : 0, begin, count)};
}

// The copies of `channels` planes: [channels][phases D, H, W][planes][rows][pitch].
static void pack(const Params* p, const Table& table, const scalar_t* image, const Steps& by, index_t channels,
                 const Box& box, scalar_t* to) {
  index_t first_d = box.d + p->least_d, first_h = box.h + p->least_h, first_w = box.w + p->least_w;
  index_t phases = p->phases_d * p->phases_h * p->phases_w, size = p->planes * p->rows * p->pitch;
  memset(to, 0, channels * phases * size * sizeof(scalar_t));
  for (index_t i = 0; i < phases; i++) {
    index_t phase_d = table.phases_d[i / p->phases_w / p->phases_h], phase_w = table.phases_w[i % p->phases_w];
    index_t phase_h = table.phases_h[i / p->phases_w % p->phases_h];
    Range ds = inside(first_d, p->planes, p->step_d, phase_d, p->source_d);
    Range hs = inside(first_h, p->rows, p->step_h, phase_h, p->source_h);
    Range ws = inside(first_w, p->pitch, p->step_w, phase_w, p->source_w);
    const scalar_t* start = image + (first_d * p->step_d + phase_d) * by.d + (first_h * p->step_h + phase_h) * by.h +
                            ((first_w + ws.begin) * p->step_w + phase_w) * by.w;
    for (index_t c = 0; c < channels; c++)
      for (index_t d = ds.begin; d < ds.end; d++)
        for (index_t h = hs.begin; h < hs.end; h++)
          copy_row(start + c * by.c + d * p->step_d * by.d + h * p->step_h * by.h, p->step_w * by.w, ws.end - ws.begin,
                   to + (c * phases + i) * size + (d * p->rows + h) * p->pitch + ws.begin);
  }
}

// Calls `body(offset, at, count)` for runs of pixels of a box of an image, `by.w` apart, that planes in C order hold from
// `at` on.
template <class Body>
INLINE void for_runs(const Box& box, const Steps& by, Body body) {
  index_t rows = box.hs, count = box.ws;
  if (by.h == count * by.w) count *= rows, rows = 1;
  for (index_t d = 0; d < box.ds; d++)
    for (index_t h = 0; h < rows; h++)
      body((box.d + d) * by.d + (box.h + h) * by.h + box.w * by.w, (d * box.hs + h) * box.ws, count);
}

INLINE bool innermost(const Steps& by) { return by.c == 1 && by.w != 1; }

// The positions [begin, begin + count) of an axis that the copies of a box hold.
INLINE void clip(index_t first, index_t copied, index_t step, index_t sources, index_t& begin, index_t& count) {
  begin = clamp<index_t>(first * step, 0, sources);
  count = clamp<index_t>((first + copied) * step, begin, sources) - begin;
}

// The part of the source that the copies of a box hold.
INLINE Box read_by(const Params* p, const Box& box) {
  Box part;
  clip(box.d + p->least_d, p->planes, p->step_d, p->source_d, part.d, part.ds);
  clip(box.h + p->least_h, p->rows, p->step_h, p->source_h, part.h, part.hs);
  clip(box.w + p->least_w, p->pitch, p->step_w, p->source_w, part.w, part.ws);
  return part;
}

// Planes of several groups: those of an image, or where channels are innermost transposed ones of a part of it.
struct Planes {
  const scalar_t* image;
  Steps by;

  Planes(const scalar_t* given, const Steps& steps, index_t channels, const Box& part, scalar_t* start)
      : image(given), by(steps) {
    if (!innermost(by)) return;
    for_runs(part, by, [&](index_t offset, index_t at, index_t count) {
      copy_transposed(given + offset, by.w, start + at, part.size(), count, channels);
    });
    image = origin(start, part), by = dense(part);
  }
};

// --- Forward and dgrad ------------------------------------------------------------------------------------------------

// sums[m * size + v], m in [0, WIDTH): VECTORS vectors of a flat plane, over the taps of a part and all channels.
template <int WIDTH, int VECTORS>
INLINE void sum_vectors(const scalar_t* copies, index_t copy, index_t channels, const index_t* offsets, index_t taps,
                        const scalar_t* weight, const scalar_t* bias, scalar_t* sums, index_t size) {
  vector_t acc[WIDTH][VECTORS];
  for (int m = 0; m < WIDTH; m++)
    for (int v = 0; v < VECTORS; v++) acc[m][v] = broadcast(bias[m]);
  for (index_t c = 0; c < channels; c++, copies += copy)
    for (index_t t = 0; t < taps; t++, weight += WIDTH) {
      const scalar_t* x = copies + offsets[2 * t + 1];
      vector_t w[WIDTH];
      for (int m = 0; m < WIDTH; m++) w[m] = broadcast(weight[m]);
      for (int v = 0; v < VECTORS; v++) {
        vector_t value = load(x + v * LANES);
        for (int m = 0; m < WIDTH; m++) acc[m][v] += w[m] * value;
      }
    }
  for (int m = 0; m < WIDTH; m++)
    for (int v = 0; v < VECTORS; v++) store(sums + m * size + v * LANES, acc[m][v]);
}

template <int WIDTH>
static void sum_part(const scalar_t* copies, index_t copy, index_t channels, const index_t* offsets, index_t taps,
                     const scalar_t* weight, const scalar_t* bias, scalar_t* sums, index_t size) {
  constexpr int MOST = MANY_REGISTERS ? (WIDTH > 2 ? 6 : 8) : (WIDTH > 2 ? 2 : 4);
  index_t v = 0;
  for (; v + MOST * LANES <= size; v += MOST * LANES)
    sum_vectors<WIDTH, MOST>(copies + v, copy, channels, offsets, taps, weight, bias, sums + v, size);
  if constexpr (MOST > 4)
    for (; v + 4 * LANES <= size; v += 4 * LANES)
      sum_vectors<WIDTH, 4>(copies + v, copy, channels, offsets, taps, weight, bias, sums + v, size);
  for (; v < size; v += 2 * LANES)
    sum_vectors<WIDTH, 2>(copies + v, copy, channels, offsets, taps, weight, bias, sums + v, size);
}

constexpr decltype(&sum_part<1>) SUM_PART[] = {nullptr, sum_part<1>, sum_part<2>, sum_part<3>, sum_part<4>};

// A row of targets, of which part r has those at i * p->hop_w + r: sums are `part` apart.
INLINE void interleave(const Params* p, const scalar_t* sums, index_t part, index_t count, scalar_t* to, index_t by) {
  if (p->hop_w == 1 && by == 1) {
    copy_run(sums, to, count);
  } else if (p->hop_w == 2 && by == 1) {
    const scalar_t* odd = sums + part;
    for (index_t i = 0; i < count / 2; i++) to[2 * i] = sums[i], to[2 * i + 1] = odd[i];
    if (count % 2) to[count - 1] = sums[count / 2];
  } else {
    for (index_t r = 0; r < p->hop_w; r++)
      for (index_t i = 0; i * p->hop_w + r < count; i++) to[(i * p->hop_w + r) * by] = sums[r * part + i];
  }
}

// The targets of all parts in a box.
INLINE Box written_by(const Params* p, const Box& box) {
  index_t d = box.d * p->hop_d, h = box.h * p->hop_h, w = box.w * p->hop_w;
  return {d, h, w, min(p->target_d - d, box.ds * p->hop_d), min(p->target_h - h, box.hs * p->hop_h),
          min(p->target_w - w, box.ws * p->hop_w)};
}

// The targets of a box, of one filter, to its place in an image: sums are flat planes, `part` apart.
INLINE void unpack(const Params* p, const scalar_t* sums, index_t part, const Box& written, const Steps& by,
                   scalar_t* to) {
  to += written.d * by.d + written.h * by.h + written.w * by.w;
  for (index_t residue_d = 0; residue_d < p->hop_d; residue_d++)
    for (index_t residue_h = 0; residue_h < p->hop_h; residue_h++) {
      const scalar_t* from = sums + (residue_d * p->hop_h + residue_h) * p->hop_w * part;
      for (index_t d = residue_d, i = 0; d < written.ds; d += p->hop_d, i++)
        for (index_t h = residue_h, j = 0; h < written.hs; h += p->hop_h, j++)
          interleave(p, from + (i * p->rows + j) * p->pitch, part, written.ws, to + d * by.d + h * by.h, by.w);
    }
}

// Asks for a box of planes in C order, of which the memory is used next.
template <bool written>
INLINE void prefetch(const scalar_t* planes, index_t step, index_t count, const Box& box, const Steps& by) {
  if (by.w != 1 || by.h != box.ws) return;
  for (index_t c = 0; c < count; c++) {
    const scalar_t* rows = planes + c * step + box.d * by.d + box.h * by.h;
    for (index_t i = 0; i < box.hs * box.ws; i += 64 / sizeof(scalar_t)) __builtin_prefetch(rows + i, written);
  }
}

INLINE index_t packed_filters(const Params* p) { return round_up(p->filters, p->width); }

// y, or grad_x, of packed weights [groups][filters / width][parts][channels][taps][width] and bias [groups][filters].
KERNEL depthwise_groups(const Params* p, const scalar_t* from, const scalar_t* weight, const index_t* table, scalar_t* to,
                        scalar_t* workspace, int64_t item) {
  Epilogue epilogue(p);
  Table tables(p, table);
  index_t copy = copy_size(p), filters = packed_filters(p), parts = p->hop_d * p->hop_h * p->hop_w;
  index_t of_group = filters * p->channels * p->taps, count = boxes(p), blocks = ceil_div(p->groups, p->block);
  const scalar_t* bias = weight + p->groups * of_group;
  scalar_t* copies = workspace;
  scalar_t* sums = copies + round_up(p->channels * copy, 64) + 2 * LANES;
  Steps by_from = {p->from_c, p->from_d, p->from_h, p->from_w}, by_to = {p->to_c, p->to_d, p->to_h, p->to_w};
  Range units = part_of(p->n * blocks * count, item, p->items);
  for (index_t unit = units.begin; unit < units.end; unit++) {
    index_t n = unit / count / blocks, first = unit / count % blocks * p->block;
    index_t groups = min(p->block, p->groups - first);
    Box box = box_of(p, unit % count), written = written_by(p, box), read = read_by(p, box);
    index_t size = flat_size(p, box);
    scalar_t* result = sums + round_up(parts * p->width * size, 64);
    scalar_t* planes = result + (innermost(by_to) ? round_up(groups * p->filters * written.size(), 64) : 0);
    const scalar_t* from_image = from + n * p->from_n + first * p->channels * p->from_c;
    scalar_t* to_image = to + n * p->to_n + first * p->filters * p->to_c;
    Planes source(from_image, by_from, groups * p->channels, read, planes);
    Steps by = innermost(by_to) ? dense(written) : by_to;
    scalar_t* image = innermost(by_to) ? origin(result, written) : to_image;
    for (index_t g = 0; g < groups; g++) {
      pack(p, tables, source.image + g * p->channels * source.by.c, source.by, p->channels, box, copies);
      memset(copies + p->channels * copy, 0, 2 * LANES * sizeof(scalar_t));
      const scalar_t* w = weight + (first + g) * of_group;
      for (index_t m = 0; m < filters; m += p->width) {
        const scalar_t* shift = bias + (first + g) * filters + m;
        index_t width = min(p->width, p->filters - m), next = p->channels * m / filters;
        prefetch<true>(image + (g * p->filters + m) * by.c, by.c, width, written, by);
        prefetch<false>(from_image + ((g + 1) * p->channels + next) * p->from_c, p->from_c,
                        p->channels * (m + p->width) / filters - next, read, by_from);
        for (index_t part = 0; part < parts; part++) {
          index_t start = tables.starts[part], taps = tables.starts[part + 1] - start;
          SUM_PART[p->width](copies, copy, p->channels, tables.taps + 2 * start, taps, w, shift,
                             sums + part * p->width * size, size);
          w += p->channels * taps * p->width;
        }
        if (epilogue.acts) finish_row(epilogue, sums, nullptr, parts * p->width * size, sums);
        for (index_t i = 0; i < width; i++)
          unpack(p, sums + i * size, p->width * size, written, by, image + (g * p->filters + m + i) * by.c);
      }
    }
    if (innermost(by_to))
      for_runs(written, by_to, [&](index_t offset, index_t at, index_t run) {
        copy_transposed(result + at, written.size(), to_image + offset, p->to_w, groups * p->filters, run);
      });
  }
}

INLINE index_t weight_offset(const Params* p, index_t tap) {
  if (p->w_h == p->kernel_w * p->w_w && p->kernel_d == 1) return tap * p->w_w;
  index_t row = tap / p->kernel_w;
  return row / p->kernel_h * p->w_d + row % p->kernel_h * p->w_h + tap % p->kernel_w * p->w_w;
}

KERNEL depthwise_groups_weight(const Params* p, const scalar_t* w, const scalar_t* bias, const index_t* table,
                               scalar_t* weight, scalar_t* workspace, int64_t item) {
  Table tables(p, table);
  index_t filters = packed_filters(p), parts = p->hop_d * p->hop_h * p->hop_w;
  index_t of_group = filters * p->channels * p->taps;
  Range here = part_of(p->groups, item, p->items);
  scalar_t* shift = weight + p->groups * of_group + here.begin * filters;
  weight += here.begin * of_group;
  for (index_t g = here.begin; g < here.end; g++)
    for (index_t first = 0; first < filters; first += p->width)
      for (index_t part = 0; part < parts; part++)
        for (index_t c = 0; c < p->channels; c++)
          for (index_t t = tables.starts[part]; t < tables.starts[part + 1]; t++) {
            index_t at = g * p->w_g + c * p->w_c + weight_offset(p, tables.number(t));
            for (index_t m = first; m < first + p->width; m++) *weight++ = m < p->filters ? w[at + m * p->w_m] : 0;
          }
  for (index_t g = here.begin; g < here.end; g++)
    for (index_t m = 0; m < filters; m++)
      *shift++ = bias && m < p->filters ? bias[(g * p->filters + m) * p->bias_c] : 0;
}

// --- Wgrad ------------------------------------------------------------------------------------------------------------

// The targets of a box of `filters` planes as flat planes: zeros between rows.
static void pack_grads(const Params* p, const Planes& grads, index_t first, index_t filters, const Box& box, index_t size,
                       scalar_t* to) {
  memset(to, 0, filters * size * sizeof(scalar_t));
  for (index_t m = 0; m < filters; m++, to += size)
    for (index_t d = 0; d < box.ds; d++)
      for (index_t h = 0; h < box.hs; h++) {
        index_t at = (box.d + d) * grads.by.d + (box.h + h) * grads.by.h + box.w * grads.by.w;
        const scalar_t* from = grads.image + (first + m) * grads.by.c + at;
        scalar_t* row = to + (d * p->rows + h) * p->pitch;
        copy_row(from, grads.by.w, box.ws, row);
      }
}

// sums[t][m][lane] += grads[m] * x[t], t in [0, TAPS), over a flat plane.
template <int WIDTH, int TAPS>
INLINE void add_taps(const scalar_t* grads, const scalar_t* copy, const index_t* offsets, scalar_t* sums, index_t size) {
  vector_t acc[TAPS][WIDTH] = {};
  const scalar_t* x[TAPS];
  for (int t = 0; t < TAPS; t++) x[t] = copy + offsets[2 * t + 1];
  for (index_t v = 0; v < size; v += LANES) {
    vector_t g[WIDTH];
    for (int m = 0; m < WIDTH; m++) g[m] = load(grads + m * size + v);
    for (int t = 0; t < TAPS; t++) {
      vector_t value = load(x[t] + v);
      for (int m = 0; m < WIDTH; m++) acc[t][m] += g[m] * value;
    }
  }
  for (int t = 0; t < TAPS; t++)
    for (int m = 0; m < WIDTH; m++, sums += LANES) store(sums, load(sums) + acc[t][m]);
}

template <int WIDTH>
static void add_plane(const scalar_t* grads, const scalar_t* copy, const index_t* offsets, index_t taps, scalar_t* sums,
                      index_t size) {
  index_t t = 0;
  for (; t + 3 <= taps; t += 3) add_taps<WIDTH, 3>(grads, copy, offsets + 2 * t, sums + t * WIDTH * LANES, size);
  for (; t < taps; t++) add_taps<WIDTH, 1>(grads, copy, offsets + 2 * t, sums + t * WIDTH * LANES, size);
}

constexpr decltype(&add_plane<1>) ADD_PLANE[] = {nullptr, add_plane<1>, add_plane<2>, add_plane<3>, add_plane<4>};

// Adds the products of a box of a block of groups to its sums [groups][filters / width][channels][taps][width][lane].
static void add_box(const Params* p, const Table& tables, const Planes& source, const Planes& grads, index_t groups,
                    const Box& box, scalar_t* room, scalar_t* sums) {
  index_t copy = copy_size(p), size = flat_size(p, box), filters = packed_filters(p);
  scalar_t* flat = room + round_up(p->channels * copy, 64) + 2 * LANES;
  memset(flat, 0, filters * size * sizeof(scalar_t));
  for (index_t g = 0; g < groups; g++) {
    pack(p, tables, source.image + g * p->channels * source.by.c, source.by, p->channels, box, room);
    memset(room + p->channels * copy, 0, 2 * LANES * sizeof(scalar_t));
    pack_grads(p, grads, g * p->filters, p->filters, box, size, flat);
    for (index_t m = 0; m < filters; m += p->width)
      for (index_t c = 0; c < p->channels; c++, sums += p->taps * p->width * LANES)
        ADD_PLANE[p->width](flat + m * size, room + c * copy, tables.taps, p->taps, sums, size);
  }
}

// Partial gradients [parts][groups][filters][channels][taps]; an item computes a block of groups of one part.
KERNEL depthwise_groups_gradient(const Params* p, const scalar_t* from, const scalar_t* to, const index_t* table,
                                 scalar_t* partial, scalar_t* workspace, int64_t item) {
  Table tables(p, table);
  index_t blocks = ceil_div(p->groups, p->block), first = item % blocks * p->block, filters = packed_filters(p);
  index_t groups = min(p->block, p->groups - first);
  Range images = part_of(p->n, item / blocks, p->parts);
  Steps by_from = {p->from_c, p->from_d, p->from_h, p->from_w}, by_to = {p->to_c, p->to_d, p->to_h, p->to_w};
  scalar_t* sums = workspace;
  index_t of_group = filters * p->channels * p->taps;
  memset(sums, 0, groups * of_group * LANES * sizeof(scalar_t));
  scalar_t* room = sums + p->block * of_group * LANES;
  scalar_t* planes = room + round_up(p->channels * copy_size(p), 64) + 2 * LANES + filters * flat_size(p, box_of(p, 0));
  for (index_t n = images.begin; n < images.end; n++)
    for (index_t i = 0; i < boxes(p); i++) {
      Box box = box_of(p, i), read = read_by(p, box);
      Planes source(from + n * p->from_n + first * p->channels * p->from_c, by_from, groups * p->channels, read, planes);
      scalar_t* after = planes + (innermost(by_from) ? groups * p->channels * read.size() : 0);
      Planes grads(to + n * p->to_n + first * p->filters * p->to_c, by_to, groups * p->filters, box, after);
      add_box(p, tables, source, grads, groups, box, room, sums);
    }
  scalar_t* result = partial + ((item / blocks) * p->groups + first) * p->filters * p->channels * p->taps;
  for (index_t g = 0; g < groups; g++)
    for (index_t m = 0; m < p->filters; m++)
      for (index_t c = 0; c < p->channels; c++)
        for (index_t t = 0; t < p->taps; t++) {
          index_t at = ((m / p->width * p->channels + c) * p->taps + t) * p->width + m % p->width;
          scalar_t lanes[LANES];
          memcpy(lanes, sums + (g * of_group + at) * LANES, sizeof lanes);
          for (int half = LANES / 2; half > 0; half /= 2)
            for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
          *result++ = lanes[0];
        }
}

// One weight's gradient without copies: the sum over the targets of a filter's plane `to` that read the plane `from` at a
// tap.
static double sum_of_tap(const Params* p, const Table& table, index_t tap, const scalar_t* from, const scalar_t* to) {
  index_t size = p->planes * p->rows * p->pitch, phase = table.offset(tap) / size, at = table.offset(tap) % size;
  index_t first_d = (at / p->pitch / p->rows + p->least_d) * p->step_d + table.phases_d[phase / p->phases_w / p->phases_h];
  index_t first_h = (at / p->pitch % p->rows + p->least_h) * p->step_h + table.phases_h[phase / p->phases_w % p->phases_h];
  index_t first_w = (at % p->pitch + p->least_w) * p->step_w + table.phases_w[phase % p->phases_w];
  double sum = 0;
  for (index_t n = 0; n < p->n; n++, from += p->from_n, to += p->to_n)
    for (index_t i = 0; i < p->target_d * p->target_h * p->target_w; i++) {
      index_t d = i / p->target_w / p->target_h, h = i / p->target_w % p->target_h, w = i % p->target_w;
      index_t from_d = first_d + d * p->step_d, from_h = first_h + h * p->step_h, from_w = first_w + w * p->step_w;
      if (from_d >= 0 && from_d < p->source_d && from_h >= 0 && from_h < p->source_h && from_w >= 0 && from_w < p->source_w)
        sum += double(from[from_d * p->from_d + from_h * p->from_h + from_w * p->from_w]) *
               double(to[d * p->to_d + h * p->to_h + w * p->to_w]);
    }
  return sum;
}

// grad_w [groups, filters, channels, KD, KH, KW], in the place of `w`, of the partial gradients in their order. A sum that
// is not finite is computed again: an infinity of x may have met the zeros between rows of grad_y.
KERNEL depthwise_groups_total(const Params* p, const scalar_t* from, const scalar_t* to, const index_t* table,
                              const scalar_t* partial, scalar_t* w, scalar_t* workspace, int64_t item) {
  Table tables(p, table);
  index_t count = p->groups * p->filters * p->channels * p->taps;
  for (index_t g = 0; g < p->groups; g++)
    for (index_t m = 0; m < p->filters; m++)
      for (index_t c = 0; c < p->channels; c++)
        for (index_t t = 0; t < p->taps; t++, partial++) {
          scalar_t sum = 0;
          for (index_t i = 0; i < p->parts; i++) sum += partial[i * count];
          if (!std::isfinite(sum))
            sum = scalar_t(sum_of_tap(p, tables, t, from + (g * p->channels + c) * p->from_c,
                                      to + (g * p->filters + m) * p->to_c));
          w[g * p->w_g + m * p->w_m + c * p->w_c + weight_offset(p, t)] = sum;
        }
}
