// x [N, C, D, H, W], C order: each input's sum over the entries of columns [N, C, KD, KH, KW, OD, OH, OW] that im2col
// copies it to. It is gathered: for the rows of a block that have one residue modulo SH, first along D and H into `sums`
// [KW, rows, OW], where they follow each other as those of the columns do, in long runs; then along W.
#include "shuffles.hpp"
#include "windows.hpp"

struct Params {
  index_t n, c, d, h, w;
  index_t kd, kh, kw;
  index_t od, oh, ow;
  index_t sd, sh, sw;
  index_t dd, dh, dw;
  index_t pd, ph, pw;
  index_t columns_n, columns_c;
  index_t rows;  // of a residue in a block
  index_t c_block;
  index_t parts;  // of a channel's blocks of rows, each of a work item
};

// What is added to the results [begin, end): `start` + i to result i.
struct Source {
  const scalar_t* start;
  index_t begin, end;
};

constexpr int MAX_SOURCES = 16;  // of one pass

// to[i] = the sum of from[k][i] over k, or that plus to[i] if not FIRST.
template <bool FIRST, int COUNT>
INLINE void sum_of(const scalar_t* const* from, int count, scalar_t* __restrict__ to, index_t length) {
  if (COUNT) count = COUNT;
  index_t i = 0;
  auto vector_at = [&](index_t at) __attribute__((always_inline)) {
    vector_t total = FIRST ? vector_t{} : load(to + at);
    for (int k = 0; k < count; k++) total += load(from[k] + at);
    store(to + at, total);
  };
  for (; i + LANES <= length; i += LANES) vector_at(i);
  if (FIRST && length >= LANES) {
    if (i < length) vector_at(length - LANES);
    return;
  }
  for (; i < length; i++) {
    scalar_t total = FIRST ? scalar_t(0) : to[i];
    for (int k = 0; k < count; k++) total += from[k][i];
    to[i] = total;
  }
}

template <bool FIRST>
static void sum_of(const scalar_t* const* from, int count, scalar_t* to, index_t length) {
  if (count == 1) return sum_of<FIRST, 1>(from, count, to, length);
  if (count == 2) return sum_of<FIRST, 2>(from, count, to, length);
  if (count == 3) return sum_of<FIRST, 3>(from, count, to, length);
  sum_of<FIRST, 0>(from, count, to, length);
}

// to[0, length), the sums of sources in their order, `ahead` of their starts: run by run of those that have the same ones.
static void sum_sources(const Source* sources, int count, index_t ahead, bool is_first, scalar_t* to, index_t length) {
  for (index_t at = 0; at < length;) {
    const scalar_t* from[MAX_SOURCES];
    int found = 0;
    index_t end = length;
    for (int i = 0; i < count; i++) {
      const Source& source = sources[i];
      if (source.begin > at) end = min(end, source.begin);
      if (source.begin > at || source.end <= at) continue;
      from[found++] = source.start + ahead + at;
      end = min(end, source.end);
    }
    if (is_first)
      sum_of<true>(from, found, to + at, end - at);
    else if (found)
      sum_of<false>(from, found, to + at, end - at);
    at = end;
  }
}

INLINE void add(const scalar_t* __restrict__ from, scalar_t* __restrict__ to, index_t count) {
  for (index_t i = 0; i < count; i++) to[i] += from[i];
}

INLINE void zero_columns(scalar_t* plane, index_t rows, index_t width, Range columns) {
  for (index_t column = columns.begin; column < columns.end; column++) {
    for (index_t row = 0; row < rows; row++) plane[row * width + column] = 0;
  }
}

// sums [KW, rows, OW] of the image's rows first * SH + residue, + SH, ..., `count` of them, of depth d.
static void sum_down(const Params* p, const scalar_t* columns, index_t d, index_t first, index_t residue, index_t count,
                     scalar_t* sums) {
  index_t plane = p->oh * p->ow, of_tap = p->rows * p->ow;
  Source sources[MAX_SOURCES];
  int found = 0;
  bool is_first = true;
  auto sum = [&] {
    for (index_t kw = 0; kw < p->kw; kw++)
      sum_sources(sources, found, kw * p->od * plane, is_first, sums + kw * of_tap, count * p->ow);
    found = 0, is_first = false;
  };
  for (index_t kd = 0; kd < p->kd; kd++) {
    Shift depth(d + p->pd - kd * p->dd, p->sd);
    index_t od = depth.quotient;
    if (depth.residue || od < 0 || od >= p->od) continue;
    for (index_t kh = 0; kh < p->kh; kh++) {
      index_t offset = kh * p->dh - p->ph - residue, row = first - offset / p->sh;  // of outputs, for the first of sums
      if (offset % p->sh || row >= p->oh || row + count <= 0) continue;
      const scalar_t* from = columns + ((kd * p->kh + kh) * p->kw * p->od + od) * plane;
      if (found == MAX_SOURCES) sum();
      sources[found++] = {from + row * p->ow, max(index_t(0), -row) * p->ow, min(count, p->oh - row) * p->ow};
    }
  }
  if (found || is_first) sum();
}

// lanes [SW, count, width] of rows of the image: lane s holds elements s, s + SW, ... It overwrites what `sums` has
// beyond the ends of rows.
static void sum_across(const Params* p, scalar_t* sums, index_t count, scalar_t* lanes, index_t width) {
  index_t of_tap = p->rows * p->ow;
  fill_zero(lanes, p->sw * count * width);
  for (index_t kw = 0; kw < p->kw; kw++, sums += of_tap) {
    Shift shift(kw * p->dw - p->pw, p->sw);
    scalar_t* lane = lanes + shift.residue * count * width;
    index_t begin = min(p->ow, max(index_t(0), -shift.quotient));
    index_t end = max(begin, min(p->ow, width - shift.quotient));
    if (begin == end) continue;
    if (width != p->ow) {
      for (index_t i = 0; i < count; i++) {
        add(sums + i * p->ow + begin, lane + i * width + begin + shift.quotient, end - begin);
      }
      continue;
    }
    zero_columns(sums, count, width, {0, begin});  // one run, once its elements beyond the ends of rows are zero
    zero_columns(sums, count, width, {end, width});
    add(sums + begin, lane + begin + shift.quotient, (count - 1) * width + end - begin);
  }
}

// x[i * STRIDE + s] = lanes[s * lane + i] for i in [0, L) and s in [0, STRIDE), which is 2 or 4.
template <int L, int STRIDE>
INLINE void join_vectors(const scalar_t* lanes, index_t lane, scalar_t* x) {
  auto at = [&](int s) __attribute__((always_inline)) { return read<Values<L>>(lanes + s * lane); };
  if constexpr (STRIDE == 2) {
    interleave<L>(x, at(0), at(1));
  } else {
    scalar_t even[2 * L], odd[2 * L];
    interleave<L>(even, at(0), at(2)), interleave<L>(odd, at(1), at(3));
    for (int i = 0; i < 2; i++)
      interleave<L>(x + 2 * i * L, read<Values<L>>(even + i * L), read<Values<L>>(odd + i * L));
  }
}

// A row of its residues, of which those of each are `lane` apart. The last vectors overlap those before.
template <int STRIDE>
INLINE void join_row(const scalar_t* lanes, index_t lane, scalar_t* x, index_t count) {
  index_t whole = count / STRIDE, i = 0;
  for (; i + LANES <= whole; i += LANES) join_vectors<LANES, STRIDE>(lanes + i, lane, x + i * STRIDE);
  if (i < whole && whole >= LANES) {
    join_vectors<LANES, STRIDE>(lanes + whole - LANES, lane, x + (whole - LANES) * STRIDE);
    i = whole;
  }
  for (i *= STRIDE; i < count; i++) x[i] = lanes[i % STRIDE * lane + i / STRIDE];
}

static void join_row(const scalar_t* lanes, index_t stride, index_t lane, scalar_t* x, index_t count) {
  if (stride == 2) return join_row<2>(lanes, lane, x, count);
  if (stride == 4) return join_row<4>(lanes, lane, x, count);
  for (index_t s = 0; s < stride; s++)
    for (index_t i = 0; i * stride + s < count; i++) x[i * stride + s] = lanes[s * lane + i];
}

// The image's rows first * SH + residue, + SH, ..., of which there are `count`.
static void store_rows(const Params* p, scalar_t* sums, index_t count, scalar_t* x, scalar_t* lanes) {
  index_t width = ceil_div(p->w, p->sw), step = p->sh * p->w;
  if (p->sw == 1 && p->sh == 1) {
    sum_across(p, sums, count, x, width);
  } else if (p->sw == 1) {
    for (index_t i = 0; i < count; i++) sum_across(p, sums + i * p->ow, 1, x + i * step, width);
  } else {
    sum_across(p, sums, count, lanes, width);
    for (index_t i = 0; i < count; i++) {
      join_row(lanes + i * width, p->sw, count * width, x + i * step, p->w);
    }
  }
}

// A part of the blocks of rows of a channel, those of all depths.
static void fold_channel(const Params* p, const scalar_t* columns, Range blocks, scalar_t* x, scalar_t* workspace) {
  index_t of_depth = ceil_div(ceil_div(p->h, p->sh), p->rows);
  scalar_t *sums = workspace, *lanes = workspace + p->kw * p->rows * p->ow;
  for (index_t block = blocks.begin; block < blocks.end; block++) {
    index_t d = block / of_depth, first = block % of_depth * p->rows;
    for (index_t residue = 0; residue < p->sh; residue++) {
      index_t row = first * p->sh + residue;  // the last block may have one row less of some residues
      index_t count = min(p->rows, ceil_div(max(index_t(0), p->h - row), p->sh));
      if (count == 0) continue;
      sum_down(p, columns, d, first, residue, count, sums);
      store_rows(p, sums, count, x + (d * p->h + row) * p->w, lanes);
    }
  }
}

KERNEL col2im(const Params* p, const scalar_t* columns, scalar_t* x, scalar_t* workspace, int64_t item) {
  index_t blocks = ceil_div(p->c, p->c_block), n = item / p->parts / blocks, c = item / p->parts % blocks * p->c_block;
  index_t channels = min(p->c_block, p->c - c), plane = p->d * p->h * p->w;
  Range part = part_of(p->d * ceil_div(ceil_div(p->h, p->sh), p->rows), item % p->parts, p->parts);
  columns += n * p->columns_n + c * p->columns_c;
  x += (n * p->c + c) * plane;
  for (index_t i = 0; i < channels; i++)
    fold_channel(p, columns + i * p->columns_c, part, x + i * plane, workspace);
}
