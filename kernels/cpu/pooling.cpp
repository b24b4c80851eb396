// Reductions of windows: maxima, with or without their positions, and sums, which are average pooling and its gradient.
//
// x [N, C, D, H, W] -> y [N, C, OD, OH, OW], in C order or channels-last. Along each axis target o reads the sources
// first[o] + k * step for k in [0, count[o]): those of a window that lie in the image, or, for the gradient, those of
// the windows that hold an input. Each row of x is reduced along W once and kept for as long as windows of other rows
// need it; a row of y is the reduction of its windows' reduced rows. Lanes lie along W, or along C where channels are
// last. Sums are in the order of the taps. A work item is a range of rows of y.
#include "pooling.hpp"

struct Params {
  index_t n, c, d, h, w, od, oh, ow;
  index_t x_n, x_c, x_d, x_h, x_w;
  index_t y_n, y_c, y_d, y_h, y_w;
  index_t channels_last;
  index_t d_step, h_step, w_step;
  index_t way;          // see Way
  index_t taps;         // SHIFTED, HALVED: target o reads the sources o + k * w_step - low, or 2 o + k * w_step - low
  index_t low;          // scalars before the row
  index_t even, odd;    // DOUBLED: targets 2 j and 2 j + 1 read the sources j + k * w_step + even, and + odd,
  index_t even_taps, odd_taps;
  index_t margin;       // scalars of a row with what windows read beside it; 0 if rows are read in place
  index_t block;        // rows that are reduced at once: 1, or all of a plane, `margin` or `w` apart, as one
  index_t slots_d, slots_h;  // powers of 2: row (d, h) is kept at (d % slots_d, h % slots_h); 0 if none is needed again
  index_t pitch;        // scalars of a reduced row
  index_t doubled_w;    // SHIFTED: whether windows are doubled along W, see doubled_taps
  index_t doubled_h;    // most rows of a window if windows are doubled along H, see doubled_rows_of_plane; else 0
  index_t holes;        // whether some window reads nothing along W
  index_t divides;      // 0 nothing, 1 the rows of x, 2 the rows of y
  index_t items;
};

constexpr int MAX_ROWS = 8;  // of one pass: each reads and writes the row of results

// DOUBLED, REPEATED and COPIED are of sums alone: of the gradient of average pooling.
enum Way { BY_TABLE, SHIFTED, HALVED, DOUBLED, REPEATED, SINGLE, DIRECT, COPIED };

struct Reads {
  const int64_t *first, *count;
};

struct Divisors {
  const scalar_t *d, *h, *w;
};

// Channels last, windows of so few taps are reduced at once: reduced rows would have to be written and read.
constexpr int MAX_DIRECT = 16;

template <int L>
INLINE void write_indices(int64_t* to, Labels<L> labels) {
  if constexpr (L == 1)
    *to = labels;
  else
    write(to, __builtin_convertvector(labels, typename Wide<L>::vector));
}

template <class Op>
struct Pooling {
  const Params* p;
  const scalar_t* x;
  scalar_t* y;
  int64_t* indices;
  Reads d_reads, h_reads, w_reads;
  Divisors divisors;
  scalar_t* margins;  // [block][margin]: rows with what windows read beside them
  Row kept;           // [slots][pitch], and [block][pitch] for windows that are doubled
  int64_t* tags;      // [slots]: which row each slot holds, or which block of rows begins there
  label_t* labels;    // [pitch]: of a row of y
  label_t* corners;   // [block][pitch]: positions of the first taps in the block, which may be in the padding
  label_t* starts;    // [block][pitch]: positions of the first taps that are not

  index_t slots() const { return p->slots_d ? p->slots_d * p->slots_h : MAX_ROWS; }

  void lay_out(scalar_t* workspace) {
    index_t rows = (slots() + (p->doubled_h ? p->block : 0)) * p->pitch;
    tags = reinterpret_cast<int64_t*>(workspace);
    workspace += round_up(slots() * sizeof(int64_t), 64) / sizeof(scalar_t);
    margins = workspace, workspace += round_up(p->block * p->margin, LANES);
    kept.values = workspace, workspace += rows;
    fill(tags, tags + slots(), -1);
    fill(margins, margins + p->block * p->margin, Op::NOTHING);
    if (!Op::LABELLED) return;
    kept.labels = reinterpret_cast<label_t*>(workspace);
    labels = kept.labels + rows, corners = labels + p->pitch, starts = corners + p->block * p->pitch;
    label_t stride = p->way == HALVED ? 2 : 1;
    for (index_t h = 0; h < p->block; h++)
      for (index_t o = 0; o < p->ow; o++) {
        corners[h * p->pitch + o] = label_t(h * p->w + o * stride - p->low);
        starts[h * p->pitch + o] = label_t(h * p->w + w_reads.first[o]);
      }
  }

  // --- Rows of x, reduced along W ---------------------------------------------------------------------------------

  index_t lanes() const { return p->channels_last ? p->c : 1; }

  // What is divided, as in Params: nothing of maxima, for which no division is compiled.
  index_t divides() const { return Op::IS_SUM ? p->divides : 0; }

  // Rows with their margins, divided where that is asked for: `block` of them, from row (d, h) of a plane on.
  const scalar_t* prepared(const scalar_t* plane, index_t d, index_t h) const {
    plane += d * p->x_d + h * p->x_h;
    if (!p->margin) return plane;
    for (index_t i = 0; i < p->block; i++, plane += p->x_h) {
      scalar_t* to = margins + i * p->margin + p->low * lanes();
      if (divides() == 1)
        divided(plane, divisors.d[d] * divisors.h[h + i], to);
      else
        over(p->w, [&](auto width, index_t w) { write(to + w, read<Values<width>>(plane + w)); });
    }
    return margins;
  }

  void divided(const scalar_t* row, scalar_t outer, scalar_t* to) const {
    if (!p->channels_last) {
      over(p->w, [&](auto width, index_t w) {
        using V = Values<width>;
        write(to + w, read<V>(row + w) / (outer * read<V>(divisors.w + w)));
      });
      return;
    }
    for (index_t w = 0; w < p->w; w++, row += p->x_w, to += p->c) {
      scalar_t divisor = outer * divisors.w[w];
      over(p->c, [&](auto width, index_t c) { write(to + c, read<Values<width>>(row + c) / divisor); });
    }
  }

  // Targets of a block along W. Between its rows are some that nobody reads.
  index_t targets() const { return (p->block - 1) * p->pitch + p->ow; }

  // Labels count from the window's first tap: make them positions in the plane, none before the first that is read.
  template <int L>
  MEMBER void put(Row to, index_t o, Reduced<Op, L> reduced, label_t label) const {
    if constexpr (Op::LABELLED) {
      auto at = reduced.label + read<Labels<L>>(corners + o), start = read<Labels<L>>(starts + o);
      reduced.label = (at > start ? at : start) + label;
    }
    to.put(o, reduced);
  }

  template <int TAPS>
  void shifted(const scalar_t* row, Row to, label_t label) const {
    index_t taps = TAPS ? TAPS : p->taps, step = p->w_step;
    over(targets(), [&](auto width, index_t o) {
      Reduced<Op, width> reduced = {read<Values<width>>(row + o), {}};
      for (index_t k = 1; k < taps; k++) reduced.update(read<Values<width>>(row + o + k * step), label_t(k * step));
      put(to, o, reduced, label);
    });
  }

  // Windows of 2, 4, 8, ... taps, of which two, that may overlap, are the next. Maxima are the same so: the first of
  // equal ones, or the last NaN, of two windows is that of both.
  void doubled_taps(const scalar_t* row, Row to, label_t label) const {
    index_t taps = p->taps, step = p->w_step, done = 2;
    over(targets() + (taps - 2) * step, [&](auto width, index_t o) {
      Reduced<Op, width> reduced = {read<Values<width>>(row + o), {}};
      reduced.update(read<Values<width>>(row + o + step), label_t(step));
      to.put(o, reduced);
    });
    for (; 2 * done < taps; done *= 2)
      reduce_pairs<Op>(to, done * step, label_t(done * step), to, targets() + (taps - 2 * done) * step);
    index_t ahead = (taps - done) * step;
    over_once(targets(), [&](auto width, index_t o) {
      constexpr int L = decltype(width)::value;
      auto reduced = to.at<Op, L>(o), other = to.at<Op, L>(o + ahead);
      other.label += label_t(ahead);
      reduced.update(other);
      put(to, o, reduced, label);
    });
  }

  // At stride 2. Both taps of a pair are in the same 2 L scalars, and no others are read: the last one of an odd number
  // is an odd element of those before it.
  template <int TAPS>
  void halved(const scalar_t* row, Row to, label_t label) const {
    index_t taps = TAPS ? TAPS : p->taps, step = p->w_step;
    over(targets(), [&](auto width, index_t o) {
      const scalar_t* from = row + 2 * o;
      Reduced<Op, width> reduced = {every_second<width, 0>(from), {}};
      for (index_t k = 1; k < taps; k++) {
        bool leads = step == 1 && k % 2 == 0 && k + 1 < taps;
        auto value = leads ? every_second<width, 0>(from + k) : every_second<width, 1>(from + k * step - 1);
        reduced.update(value, label_t(k * step));
      }
      put(to, o, reduced, label);
    });
  }

  template <int L>
  MEMBER Reduced<Op, L> phase(const scalar_t* from, index_t taps) const {
    Reduced<Op, L> reduced = {Op::NOTHING - Values<L>{}, {}};
    if (taps) reduced.value = read<Values<L>>(from);
    for (index_t k = 1; k < taps; k++) reduced.update(read<Values<L>>(from + k * p->w_step), 0);
    return reduced;
  }

  void doubled(const scalar_t* row, Row to) const {
    const scalar_t *even = row + p->low + p->even, *odd = row + p->low + p->odd;
    index_t count = targets();
    over(count / 2, [&](auto width, index_t j) {
      auto a = phase<width>(even + j, p->even_taps), b = phase<width>(odd + j, p->odd_taps);
      interleave<width>(to.values + 2 * j, a.value, b.value);
    });
    if (count % 2) to.values[count - 1] = phase<1>(even + count / 2, p->even_taps).value;
  }

  void by_table(const scalar_t* row, Row to, label_t label) const {
    for (index_t i = 0; i < p->block; i++) {
      row_by_table(row, to, label);
      row += p->margin ? p->margin : p->x_h;
      to.values += p->pitch, to.labels += p->pitch, label += label_t(p->w);
    }
  }

  void row_by_table(const scalar_t* row, Row to, label_t label) const {
    for (index_t o = 0; o < p->ow; o++) {
      index_t first = w_reads.first[o], count = w_reads.count[o], step = p->w_step;
      Reduced<Op, 1> reduced = {Op::NOTHING, 0};
      if (count >= LANES && step == 1) {
        reduced = along<Op>(row + p->low + first, count, label_t(label + first));
      } else if (count) {
        const scalar_t* from = row + p->low + first;
        reduced = {*from, label_t(label + first)};
        for (index_t k = 1; k < count; k++)
          reduced.update(from[k * step], label_t(label + first + k * step));
      }
      to.put(o, reduced);
    }
  }

  void channels_last(const scalar_t* row, Row to, label_t label) const {
    index_t pitch = divides() == 1 ? p->c : p->x_w;
    for (index_t o = 0; o < p->ow; o++) {
      index_t first = w_reads.first[o], count = w_reads.count[o];
      Row target = {to.values + o * p->c, to.labels + o * p->c};
      if (!count) fill(target.values, target.values + p->c, Op::NOTHING);
      Taps taps = {{row + first * pitch, label_t(label + first)}, p->w_step * pitch, p->w_step};
      reduce_in_passes<Op>(taps, count, true, target, p->c);
    }
  }

  template <int TAPS>
  void regular(const scalar_t* row, Row to, label_t label) const {
    p->way == SHIFTED ? shifted<TAPS>(row, to, label) : halved<TAPS>(row, to, label);
  }

  // The row of x at (d, h) of a plane, reduced along W, at its slot.
  Row reduced_row(const scalar_t* plane, index_t plane_number, index_t d, index_t h, index_t ordinal) const {
    index_t first = p->block > 1 ? 0 : h, slot = ordinal;
    if (p->slots_d) slot = (d & (p->slots_d - 1)) * p->slots_h + (first & (p->slots_h - 1));
    Row to = {kept.values + slot * p->pitch, kept.labels + slot * p->pitch};
    int64_t tag = (plane_number * p->d + d) * p->h + first;
    if (tags[slot] != tag) {
      tags[slot] = tag;
      reduce_block(prepared(plane, d, first), to, label_t((d * p->h + first) * p->w));
    }
    index_t offset = (h - first) * p->pitch;
    return {to.values + offset, to.labels + offset};
  }

  void reduce_block(const scalar_t* row, Row to, label_t label) const {
    if (p->channels_last)
      channels_last(row, to, label);
    else if (p->way == BY_TABLE)
      by_table(row, to, label);
    else if (Op::IS_SUM && p->way == DOUBLED)
      doubled(row, to);
    else if (Op::IS_SUM && p->way == REPEATED)
      over(p->ow, [&](auto width, index_t o) { write(to.values + o, *row + Values<width>{}); });
    else if (!Op::IS_SUM && p->doubled_w)
      doubled_taps(row, to, label);
    else if (p->taps == 2)
      regular<2>(row, to, label);
    else if (p->taps == 3)
      regular<3>(row, to, label);
    else
      regular<0>(row, to, label);
  }

  // --- Rows of y --------------------------------------------------------------------------------------------------

  // Row `oh` of y at the offset, by the windows of `od`. Planes are numbered for the tags.
  void row(const scalar_t* plane, index_t plane_number, index_t offset, index_t od, index_t oh) const {
    index_t length = p->ow * lanes();
    index_t depth = d_reads.count[od], height = h_reads.count[oh], taps = depth * height;
    Row target = {y + offset, labels};
    if (!taps) fill(target.values, target.values + length, Op::NOTHING);
    Row rows[MAX_ROWS];
    int count = 0;
    bool first = true;
    for (index_t i = 0, d = d_reads.first[od]; i < depth; i++, d += p->d_step)
      for (index_t j = 0, h = h_reads.first[oh]; j < height; j++, h += p->h_step) {
        rows[count] = reduced_row(plane, plane_number, d, h, count);
        taps--;
        if (++count < MAX_ROWS && taps) continue;
        reduce_rows<Op>(rows, count, first, target, length);
        count = 0, first = false;
      }
    finish(target, offset, od, oh, depth && height);
  }

  // Rows [begin, end) of y, `y_h` apart, where each plane of x is one block.
  void rows_of_plane(const scalar_t* plane, index_t plane_number, index_t offset, index_t od, index_t begin,
                     index_t end) const {
    Row planes[MAX_ROWS];
    index_t depth = d_reads.count[od];
    for (index_t i = 0; i < depth; i++)
      planes[i] = reduced_row(plane, plane_number, d_reads.first[od] + i * p->d_step, 0, 0);
    for (index_t oh = begin; oh < end; oh++, offset += p->y_h) {
      Row target = {y + offset, labels};
      index_t height = h_reads.count[oh], from = h_reads.first[oh] * p->pitch;
      if (!depth || !height) fill(target.values, target.values + p->ow, Op::NOTHING);
      for (index_t i = 0; height && i < depth; i++) {
        Rows rows = {{planes[i].values + from, planes[i].labels + from}, p->h_step * p->pitch};
        Row few[] = {rows[0], rows[1], rows[2]};
        if (height <= 3)
          reduce_rows<Op>(few, int(height), i == 0, target, p->ow);
        else
          reduce_in_passes<Op>(rows, height, i == 0, target, p->ow);
      }
      finish(target, offset, od, oh, depth && height);
    }
  }

  // As rows_of_plane, of planes without depth, by windows of 1, 2, 4, ... rows: two of those, that may overlap, are each
  // window of at most twice as many.
  void doubled_rows_of_plane(const scalar_t* plane, index_t plane_number, index_t offset, index_t od, index_t begin,
                             index_t end) const {
    Row held = reduced_row(plane, plane_number, d_reads.first[od], 0, 0), scratch = kept.from(slots() * p->pitch);
    for (index_t done = 1; done <= p->doubled_h; done *= 2) {
      for (index_t oh = begin; oh < end; oh++) {
        index_t height = h_reads.count[oh];
        if (height < done || height >= 2 * done) continue;
        Row target = {y + offset + (oh - begin) * p->y_h, labels}, first = held.from(h_reads.first[oh] * p->pitch);
        Row pair[] = {first, first.from((height - done) * p->h_step * p->pitch)};
        reduce_rows<Op>(pair, height > done ? 2 : 1, true, target, p->ow);
        finish(target, offset + (oh - begin) * p->y_h, od, oh, true);
      }
      index_t rows = p->h - (2 * done - 1) * p->h_step;
      if (2 * done <= p->doubled_h)
        reduce_pairs<Op>(held, done * p->h_step * p->pitch, 0, scratch, (rows - 1) * p->pitch + p->ow);
      held = scratch;
    }
  }

  // --- Without reduced rows ---------------------------------------------------------------------------------------

  template <int COUNT>
  void reduce_taps(const Tap* taps, int count, index_t offset, scalar_t divisor) const {
    if (COUNT) count = COUNT;
    over(p->c, [&](auto width, index_t i) {
      constexpr int L = decltype(width)::value;
      auto reduced = taps[0].template at<Op, L>(i);
      for (int k = 1; k < count; k++) reduced.update(taps[k].template at<Op, L>(i));
      if (divides()) reduced.value /= divisor;
      write(y + offset + i, reduced.value);
      if constexpr (Op::LABELLED) write_indices<L>(indices + offset + i, reduced.label);
    });
  }

  // Puts the maxima of at least LANES channels if no value is NaN. A lane of `has_nan` is set where one is, or infinities
  // of both signs: then the values' sum is NaN. Comparisons that see to NaN took up to half as much time again.
  template <int COUNT>
  void put_numbers(const Tap* taps, int count, index_t offset, Labels<LANES>& has_nan) const {
    if (COUNT) count = COUNT;
    Labels<LANES> found = has_nan;
    for (index_t i = 0; i < p->c; i += LANES) {
      index_t c = min(i, p->c - LANES);
      vector_t best = load(taps[0].values + c), sum = best;
      for (int k = 1; k < count; k++) {
        vector_t value = load(taps[k].values + c);
        best = value > best ? value : best;
        sum += value;
      }
      store(y + offset + c, best);
      found |= sum != sum;
    }
    has_nan = found;
  }

  // Calls `body(taps, count, o)` for the pixels of a row of y, channels last.
  template <class Body>
  MEMBER void for_pixels(const scalar_t* plane, index_t od, index_t oh, const Body& body) const {
    Tap taps[MAX_DIRECT];
    int count = 0;
    for (index_t o = 0; o < p->ow; o++) {
      index_t first = w_reads.first[o];
      if (o > 0 && w_reads.count[o] == w_reads.count[o - 1]) {
        index_t columns = first - w_reads.first[o - 1];
        for (int k = 0; k < count; k++) taps[k].values += columns * p->x_w, taps[k].label += label_t(columns);
      } else {
        count = 0;
        for (index_t i = 0, d = d_reads.first[od]; i < d_reads.count[od]; i++, d += p->d_step)
          for (index_t j = 0, h = h_reads.first[oh]; j < h_reads.count[oh]; j++, h += p->h_step)
            for (index_t k = 0, w = first; k < w_reads.count[o]; k++, w += p->w_step)
              taps[count++] = {plane + d * p->x_d + h * p->x_h + w * p->x_w, label_t((d * p->h + h) * p->w + w)};
      }
      body(taps, count, o);
    }
  }

  // As direct_row, of maxima, if no window is empty; false if there may be a NaN: then it has to be computed otherwise.
  bool direct_row_of_numbers(const scalar_t* plane, index_t offset, index_t od, index_t oh) const {
    if (p->c < LANES || p->holes || !d_reads.count[od] || !h_reads.count[oh]) return false;
    Labels<LANES> has_nan = {};
    for_pixels(plane, od, oh, [&](const Tap* taps, int count, index_t o) {
      if (count == 4)
        put_numbers<4>(taps, count, offset + o * p->c, has_nan);
      else if (count == 8)
        put_numbers<8>(taps, count, offset + o * p->c, has_nan);
      else if (count == 9)
        put_numbers<9>(taps, count, offset + o * p->c, has_nan);
      else
        put_numbers<0>(taps, count, offset + o * p->c, has_nan);
    });
    label_t lanes[LANES], any = 0;
    memcpy(lanes, &has_nan, sizeof lanes);
    for (int i = 0; i < LANES; i++) any |= lanes[i];
    return !any;
  }

  // A row of y, channels last.
  void direct_row(const scalar_t* plane, index_t offset, index_t od, index_t oh) const {
    if constexpr (!Op::IS_SUM && !Op::LABELLED)
      if (direct_row_of_numbers(plane, offset, od, oh)) return;
    scalar_t outer = divides() ? divisors.d[od] * divisors.h[oh] : 1;
    for_pixels(plane, od, oh, [&](const Tap* taps, int count, index_t o) {
      scalar_t divisor = divides() ? outer * divisors.w[o] : 1;
      index_t at = offset + o * p->c;
      if (count == 4)
        reduce_taps<4>(taps, count, at, divisor);
      else if (count == 9)
        reduce_taps<9>(taps, count, at, divisor);
      else if (count)
        reduce_taps<0>(taps, count, at, divisor);
      else
        put_nothing(at, p->c);
    });
  }

  // A row of y, channels last, whose pixels read one pixel at most: that, divided, until the next pixel reads another.
  void copied_row(const scalar_t* plane, index_t offset, index_t od, index_t oh) const {
    index_t d = d_reads.first[od], h = h_reads.first[oh];
    const scalar_t* held = nullptr;
    for (index_t o = 0; o < p->ow; o++, offset += p->c) {
      if (!d_reads.count[od] || !h_reads.count[oh] || !w_reads.count[o]) {
        put_nothing(offset, p->c);
        continue;
      }
      index_t w = w_reads.first[o];
      const scalar_t* source = plane + d * p->x_d + h * p->x_h + w * p->x_w;
      if (source != held) {
        scalar_t divisor = divides() ? divisors.d[d] * divisors.h[h] * divisors.w[w] : 1;
        over(p->c, [&](auto width, index_t c) { write(margins + c, read<Values<width>>(source + c) / divisor); });
      }
      held = source;
      over(p->c, [&](auto width, index_t c) { write(y + offset + c, read<Values<width>>(margins + c)); });
    }
  }

  void put_nothing(index_t offset, index_t count) const {
    fill(y + offset, y + offset + count, Op::NOTHING);
    if (Op::LABELLED) fill(indices + offset, indices + offset + count, -1);
  }

  // The gradient of planes that are one row in C order with one window.
  void repeated_windows(Range planes) const {
    scalar_t divisor = divides() ? divisors.d[0] * divisors.h[0] * divisors.w[0] : 1;
    for (index_t i = planes.begin; i < planes.end; i++) {
      index_t n = i / p->c, c = i % p->c;
      scalar_t value = x[n * p->x_n + c * p->x_c] / divisor;
      scalar_t* to = y + n * p->y_n + c * p->y_c;
      over(p->ow, [&](auto width, index_t o) { write(to + o, value + Values<width>{}); });
    }
  }

  // Planes that are one row in C order with one window.
  void single_windows(Range planes) const {
    index_t first = w_reads.first[0], count = w_reads.count[0], n = planes.begin / p->c, c = planes.begin % p->c;
    scalar_t divisor = divides() ? divisors.d[0] * divisors.h[0] * divisors.w[0] : 1;
    for (index_t i = planes.begin; i < planes.end; i++) {
      index_t offset = n * p->y_n + c * p->y_c;
      Reduced<Op, 1> reduced = along<Op>(x + n * p->x_n + c * p->x_c + first, count, label_t(first));
      y[offset] = reduced.value / divisor;
      if (Op::LABELLED) indices[offset] = reduced.label;
      if (++c == p->c) c = 0, n++;
    }
  }

  MEMBER void finish(Row row, index_t offset, index_t od, index_t oh, bool any) const {
    if (divides() == 2) divide(row.values, divisors.d[od] * divisors.h[oh]);
    if (Op::LABELLED) put_indices(indices + offset, any);
  }

  void divide(scalar_t* row, scalar_t outer) const {
    if (!p->channels_last) {
      over_once(p->ow, [&](auto width, index_t i) {
        using V = Values<width>;
        write(row + i, read<V>(row + i) / (outer * read<V>(divisors.w + i)));
      });
      return;
    }
    for (index_t o = 0; o < p->ow; o++, row += p->c) {
      scalar_t divisor = outer * divisors.w[o];
      over_once(p->c, [&](auto width, index_t i) { write(row + i, read<Values<width>>(row + i) / divisor); });
    }
  }

  void put_indices(int64_t* to, bool any) const {
    index_t length = p->ow * lanes();
    for (index_t i = 0; i < length; i++) to[i] = any ? labels[i] : -1;
    if (!p->holes) return;
    for (index_t o = 0; o < p->ow; o++)
      if (!w_reads.count[o]) fill(to + o * lanes(), to + (o + 1) * lanes(), -1);
  }

  void compute(int64_t item) const {
    index_t planes = p->channels_last ? 1 : p->c;
    Range range = part_of(p->n * planes * p->od * p->oh, item, p->items);
    if (p->way == SINGLE) return single_windows(range);
    bool is_row = p->d * p->h * p->od * p->oh == 1 && d_reads.count[0] && h_reads.count[0];
    if (Op::IS_SUM && p->way == REPEATED && is_row) return repeated_windows(range);
    for (index_t begin = range.begin; begin < range.end;) {
      index_t oh = begin % p->oh, od = begin / p->oh % p->od, plane = begin / p->oh / p->od;
      index_t n = plane / planes, c = plane % planes, rows = min(p->oh - oh, range.end - begin);
      const scalar_t* from = x + n * p->x_n + c * p->x_c;
      index_t offset = n * p->y_n + c * p->y_c + od * p->y_d + oh * p->y_h;
      if (p->way == DIRECT)
        for (index_t i = 0; i < rows; i++) direct_row(from, offset + i * p->y_h, od, oh + i);
      else if (Op::IS_SUM && p->way == COPIED)
        for (index_t i = 0; i < rows; i++) copied_row(from, offset + i * p->y_h, od, oh + i);
      else if (!Op::IS_SUM && p->doubled_h)
        doubled_rows_of_plane(from, plane, offset, od, oh, oh + rows);
      else if (p->block > 1 && d_reads.count[od] <= MAX_ROWS)
        rows_of_plane(from, plane, offset, od, oh, oh + rows);
      else
        for (index_t i = 0; i < rows; i++) row(from, plane, offset + i * p->y_h, od, oh + i);
      begin += rows;
    }
  }
};

// `reads` are the tables of the axes D, H and W: first[out], then count[out] of each; `divisors` have a number for each
// row or column of what is divided, along D, H and W.
template <class Op>
static void pool(const Params* p, const scalar_t* x, scalar_t* y, int64_t* indices, const int64_t* reads,
                 const scalar_t* divisors, scalar_t* workspace, int64_t item) {
  const int64_t *h = reads + 2 * p->od, *w = h + 2 * p->oh;
  bool of_sources = p->divides == 1;
  const scalar_t* h_divisors = p->divides ? divisors + (of_sources ? p->d : p->od) : nullptr;
  Pooling<Op> pooling = {
      p, x, y, indices, {reads, reads + p->od}, {h, h + p->oh}, {w, w + p->ow},
      {divisors, h_divisors, p->divides ? h_divisors + (of_sources ? p->h : p->oh) : nullptr}, {}, {}, {}, {}, {}, {}};
  pooling.lay_out(workspace);
  pooling.compute(item);
}

KERNEL max_pool(const Params* p, const scalar_t* x, scalar_t* y, int64_t* indices, const int64_t* reads,
                scalar_t* workspace, int64_t item) {
  if (indices)
    pool<LabelledMaximum>(p, x, y, indices, reads, nullptr, workspace, item);
  else
    pool<Maximum>(p, x, y, nullptr, reads, nullptr, workspace, item);
}

KERNEL window_sums(const Params* p, const scalar_t* x, scalar_t* y, const int64_t* reads, const scalar_t* divisors,
                   scalar_t* workspace, int64_t item) {
  pool<Sum>(p, x, y, nullptr, reads, divisors, workspace, item);
}
