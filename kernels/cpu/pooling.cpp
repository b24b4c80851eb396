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
  index_t way;          // along W in C order, see Way
  index_t taps;         // SHIFTED, HALVED: target o reads the sources o + k * w_step - low, or 2 o + k * w_step - low
  index_t low;          // scalars before the row
  index_t even, odd;    // DOUBLED: targets 2 j and 2 j + 1 read the sources j + k * w_step + even, and + odd,
  index_t even_taps, odd_taps;
  index_t margin;       // scalars of the row with what windows read beside it; 0 if they read nothing there
  index_t slots_d, slots_h;  // reduced rows that are kept: row (d, h) at (d % slots_d, h % slots_h); 0 if none is reused
  index_t pitch;        // scalars of a reduced row
  index_t divides;      // 0 nothing, 1 the rows of x, 2 the rows of y
  index_t items;
};

enum Way { BY_TABLE, SHIFTED, HALVED, DOUBLED, REPEATED };

struct Reads {
  const int64_t *first, *count;
};

struct Divisors {
  const scalar_t *d, *h, *w;
};

template <class Op>
struct Pooling {
  const Params* p;
  const scalar_t* x;
  scalar_t* y;
  int64_t* indices;
  Reads d_reads, h_reads, w_reads;
  Divisors divisors;
  scalar_t* margins;  // [margin]: a row with what windows read beside it
  Row kept;           // [slots][pitch]
  int64_t* tags;      // [slots]: which row each slot holds
  label_t* labels;    // [pitch]: of a row of y
  label_t* starts;    // [ow]: the first source that each target reads along W

  index_t slots() const { return p->slots_d ? p->slots_d * p->slots_h : MAX_ROWS; }

  void lay_out(scalar_t* workspace) {
    index_t rows = slots() * p->pitch;
    tags = reinterpret_cast<int64_t*>(workspace);
    workspace += round_up(slots() * sizeof(int64_t), 64) / sizeof(scalar_t);
    margins = workspace, workspace += round_up(p->margin, LANES);
    kept.values = workspace, workspace += rows;
    kept.labels = reinterpret_cast<label_t*>(workspace), workspace += Op::LABELLED ? rows : 0;
    labels = reinterpret_cast<label_t*>(workspace), workspace += Op::LABELLED ? p->pitch : 0;
    starts = reinterpret_cast<label_t*>(workspace);
    std::fill(tags, tags + slots(), -1);
    std::fill(margins, margins + p->margin, Op::NOTHING);
    if (Op::LABELLED)
      for (index_t o = 0; o < p->ow; o++) starts[o] = label_t(w_reads.first[o]);
  }

  // --- Rows of x, reduced along W ---------------------------------------------------------------------------------

  index_t lanes() const { return p->channels_last ? p->c : 1; }

  // The row with its margins, divided where that is asked for.
  const scalar_t* prepared(const scalar_t* row, index_t d, index_t h) const {
    if (!p->margin) return row;
    scalar_t* to = margins + p->low * lanes();
    if (p->divides != 1) {
      over(p->w, [&](auto width, index_t i) { write(to + i, read<Values<width>>(row + i)); });
      return margins;
    }
    scalar_t outer = divisors.d[d] * divisors.h[h];
    if (!p->channels_last) {
      over(p->w, [&](auto width, index_t i) {
        using V = Values<width>;
        write(to + i, read<V>(row + i) / (outer * read<V>(divisors.w + i)));
      });
      return margins;
    }
    for (index_t w = 0; w < p->w; w++) {
      scalar_t divisor = outer * divisors.w[w];
      over(p->c, [&](auto width, index_t i) {
        write(to + w * p->c + i, read<Values<width>>(row + w * p->x_w + i) / divisor);
      });
    }
    return margins;
  }

  // Labels count from the window's first tap: make them positions in the plane, none before the first that is read.
  template <int L>
  MEMBER void put(Row to, index_t o, Reduced<Op, L> reduced, label_t stride, label_t label) const {
    if constexpr (Op::LABELLED) {
      auto at = reduced.label + label_t(o * stride - p->low) + lane_numbers<L>() * stride;
      auto start = read<Labels<L>>(starts + o);
      reduced.label = (at > start ? at : start) + label;
    }
    to.put(o, reduced);
  }

  template <int TAPS>
  void shifted(const scalar_t* row, Row to, label_t label) const {
    index_t taps = TAPS ? TAPS : p->taps, step = p->w_step;
    over(p->ow, [&](auto width, index_t o) {
      Reduced<Op, width> reduced = {read<Values<width>>(row + o), {}};
      for (index_t k = 1; k < taps; k++) reduced.update(read<Values<width>>(row + o + k * step), label_t(k * step));
      put(to, o, reduced, 1, label);
    });
  }

  // At stride 2. Both taps of a pair are in the same 2 L scalars, and no others are read: the last one of an odd number
  // is an odd element of those before it.
  template <int TAPS>
  void halved(const scalar_t* row, Row to, label_t label) const {
    index_t taps = TAPS ? TAPS : p->taps, step = p->w_step;
    over(p->ow, [&](auto width, index_t o) {
      const scalar_t* from = row + 2 * o;
      Reduced<Op, width> reduced = {every_second<width, 0>(from), {}};
      for (index_t k = 1; k < taps; k++) {
        bool leads = step == 1 && k % 2 == 0 && k + 1 < taps;
        auto value = leads ? every_second<width, 0>(from + k) : every_second<width, 1>(from + k * step - 1);
        reduced.update(value, label_t(k * step));
      }
      put(to, o, reduced, 2, label);
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
    over(p->ow / 2, [&](auto width, index_t j) {
      auto a = phase<width>(even + j, p->even_taps), b = phase<width>(odd + j, p->odd_taps);
      interleave<width>(to.values + 2 * j, a.value, b.value);
    });
    if (p->ow % 2) to.values[p->ow - 1] = phase<1>(even + p->ow / 2, p->even_taps).value[0];
  }

  void by_table(const scalar_t* row, Row to, label_t label) const {
    for (index_t o = 0; o < p->ow; o++) {
      index_t first = w_reads.first[o], count = w_reads.count[o], step = p->w_step;
      Reduced<Op, 1> reduced = {Values<1>{Op::NOTHING}, Labels<1>{}};
      if (count >= LANES && step == 1) {
        reduced = along<Op>(row + p->low + first, count, label_t(label + first));
      } else if (count) {
        const scalar_t* from = row + p->low + first;
        reduced = {Values<1>{*from}, Labels<1>{label_t(label + first)}};
        for (index_t k = 1; k < count; k++)
          reduced.update(Values<1>{from[k * step]}, label_t(label + first + k * step));
      }
      to.put(o, reduced);
    }
  }

  void channels_last(const scalar_t* row, Row to, label_t label) const {
    index_t pitch = p->divides == 1 ? p->c : p->x_w;
    for (index_t o = 0; o < p->ow; o++) {
      index_t first = w_reads.first[o], count = w_reads.count[o];
      Row target = {to.values + o * p->c, to.labels + o * p->c};
      if (!count) std::fill(target.values, target.values + p->c, Op::NOTHING);
      for (index_t begin = 0; begin < count; begin += MAX_ROWS) {
        Tap taps[MAX_ROWS];
        int here = std::min<index_t>(count - begin, MAX_ROWS);
        for (int k = 0; k < here; k++) {
          index_t w = first + (begin + k) * p->w_step;
          taps[k] = {row + w * pitch, label_t(label + w)};
        }
        reduce_rows<Op>(taps, here, begin == 0, target, p->c);
      }
    }
  }

  template <int TAPS>
  void regular(const scalar_t* row, Row to, label_t label) const {
    p->way == SHIFTED ? shifted<TAPS>(row, to, label) : halved<TAPS>(row, to, label);
  }

  // The row of x at (d, h) of a plane, reduced along W, at its slot.
  Row reduced_row(const scalar_t* plane, index_t plane_number, index_t d, index_t h, index_t ordinal) const {
    index_t slot = p->slots_d ? d % p->slots_d * p->slots_h + h % p->slots_h : ordinal;
    Row to = {kept.values + slot * p->pitch, kept.labels + slot * p->pitch};
    int64_t tag = (plane_number * p->d + d) * p->h + h;
    if (tags[slot] == tag) return to;
    tags[slot] = tag;
    label_t label = label_t((d * p->h + h) * p->w);
    const scalar_t* row = prepared(plane + d * p->x_d + h * p->x_h, d, h);
    if (p->channels_last)
      channels_last(row, to, label);
    else if (p->way == BY_TABLE)
      by_table(row, to, label);
    else if (p->way == DOUBLED)
      doubled(row, to);
    else if (p->way == REPEATED)
      over(p->ow, [&](auto width, index_t o) { write(to.values + o, *row + Values<width>{}); });
    else if (p->taps == 2)
      regular<2>(row, to, label);
    else if (p->taps == 3)
      regular<3>(row, to, label);
    else
      regular<0>(row, to, label);
    return to;
  }

  // --- Rows of y --------------------------------------------------------------------------------------------------

  void row(index_t n, index_t c, index_t od, index_t oh) const {
    const scalar_t* plane = x + n * p->x_n + c * p->x_c;
    index_t offset = n * p->y_n + c * p->y_c + od * p->y_d + oh * p->y_h, length = p->ow * lanes();
    index_t plane_number = p->channels_last ? n : n * p->c + c;
    index_t depth = d_reads.count[od], height = h_reads.count[oh], taps = depth * height;
    Row target = {y + offset, labels};
    if (!taps) std::fill(target.values, target.values + length, Op::NOTHING);
    for (index_t begin = 0; begin < taps; begin += MAX_ROWS) {
      Row rows[MAX_ROWS];
      int here = std::min<index_t>(taps - begin, MAX_ROWS);
      for (int k = 0; k < here; k++) {
        index_t d = d_reads.first[od] + (begin + k) / height * p->d_step;
        index_t h = h_reads.first[oh] + (begin + k) % height * p->h_step;
        rows[k] = reduced_row(plane, plane_number, d, h, k);
      }
      reduce_rows<Op>(rows, here, begin == 0, target, length);
    }
    if (p->divides == 2) divide(target.values, divisors.d[od] * divisors.h[oh]);
    if (Op::LABELLED) put_indices(indices + offset, taps);
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

  void put_indices(int64_t* to, index_t taps) const {
    index_t length = p->ow * lanes();
    for (index_t i = 0; i < length; i++) to[i] = taps ? labels[i] : -1;
    for (index_t o = 0; o < p->ow; o++)
      if (!w_reads.count[o]) std::fill(to + o * lanes(), to + (o + 1) * lanes(), -1);
  }

  void compute(int64_t item) const {
    index_t planes = p->channels_last ? 1 : p->c, rows = p->od * p->oh;
    Range range = part_of(p->n * planes * rows, item, p->items);
    index_t oh = range.begin % p->oh, od = range.begin / p->oh % p->od;
    index_t c = range.begin / rows % planes, n = range.begin / rows / planes;
    for (index_t i = range.begin; i < range.end; i++) {
      row(n, c, od, oh);
      if (++oh < p->oh) continue;
      oh = 0;
      if (++od < p->od) continue;
      od = 0;
      if (++c < planes) continue;
      c = 0, n++;
    }
  }
};

template <class Op>
static void pool(const Params* p, const scalar_t* x, scalar_t* y, int64_t* indices, Reads d, Reads h, Reads w,
                 Divisors divisors, scalar_t* workspace, int64_t item) {
  Pooling<Op> pooling = {p, x, y, indices, d, h, w, divisors, {}, {}, {}, {}, {}};
  pooling.lay_out(workspace);
  pooling.compute(item);
}

KERNEL max_pool(const Params* p, const scalar_t* x, scalar_t* y, int64_t* indices, const int64_t* d_first,
                const int64_t* d_count, const int64_t* h_first, const int64_t* h_count, const int64_t* w_first,
                const int64_t* w_count, scalar_t* workspace, int64_t item) {
  Reads d = {d_first, d_count}, h = {h_first, h_count}, w = {w_first, w_count};
  if (indices)
    pool<LabelledMaximum>(p, x, y, indices, d, h, w, {}, workspace, item);
  else
    pool<Maximum>(p, x, y, nullptr, d, h, w, {}, workspace, item);
}

KERNEL window_sums(const Params* p, const scalar_t* x, scalar_t* y, const int64_t* d_first, const int64_t* d_count,
                   const int64_t* h_first, const int64_t* h_count, const int64_t* w_first, const int64_t* w_count,
                   const scalar_t* d_divisor, const scalar_t* h_divisor, const scalar_t* w_divisor, scalar_t* workspace,
                   int64_t item) {
  Reads d = {d_first, d_count}, h = {h_first, h_count}, w = {w_first, w_count};
  pool<Sum>(p, x, y, nullptr, d, h, w, {d_divisor, h_divisor, w_divisor}, workspace, item);
}
