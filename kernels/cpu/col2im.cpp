// x [N, C, D, H, W], C order: each input's sum over the entries of columns [N, C, KD, KH, KW, OD, OH, OW] that im2col
// copies it to. It is gathered: for a block of rows, first along D and H into `sums` [KW, SH, rows, OW], where rows of
// one residue modulo SH follow each other as those of the columns do, in long runs; then along W.
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
};

INLINE void add(const scalar_t* __restrict__ from, scalar_t* __restrict__ to, index_t count) {
  for (index_t i = 0; i < count; i++) to[i] += from[i];
}

INLINE void zero_columns(scalar_t* plane, index_t rows, index_t width, Range columns) {
  for (index_t column = columns.begin; column < columns.end; column++) {
    for (index_t row = 0; row < rows; row++) plane[row * width + column] = 0;
  }
}

// offset = quotient * stride + residue, with the residue in [0, stride).
struct Shift {
  index_t quotient, residue;

  Shift(index_t offset, index_t stride)
      : quotient(offset >= 0 ? offset / stride : -ceil_div(-offset, stride)), residue(offset - quotient * stride) {}
};

// sums [KW, SH, rows, OW] of the rows [first, first + count) of each residue, of depth d.
static void sum_down(const Params* p, const scalar_t* columns, index_t d, index_t first, index_t count,
                     scalar_t* sums) {
  index_t plane = p->oh * p->ow, of_residue = p->rows * p->ow, of_tap = p->sh * of_residue;
  fill_zero(sums, p->kw * of_tap);
  for (index_t kd = 0; kd < p->kd; kd++) {
    Shift depth(d + p->pd - kd * p->dd, p->sd);
    index_t od = depth.quotient;
    if (depth.residue || od < 0 || od >= p->od) continue;
    for (index_t kh = 0; kh < p->kh; kh++) {
      Shift shift(kh * p->dh - p->ph, p->sh);
      index_t begin = max(index_t(0), first - shift.quotient);
      index_t end = min(p->oh, first + count - shift.quotient);
      if (begin >= end) continue;
      const scalar_t* from = columns + ((kd * p->kh + kh) * p->kw * p->od + od) * plane + begin * p->ow;
      scalar_t* to = sums + shift.residue * of_residue + (begin + shift.quotient - first) * p->ow;
      for (index_t kw = 0; kw < p->kw; kw++) {
        add(from + kw * p->od * plane, to + kw * of_tap, (end - begin) * p->ow);
      }
    }
  }
}

// lanes [SW, count, width] of rows of the image: lane s holds elements s, s + SW, ... It overwrites what `sums` has
// beyond the ends of rows.
static void sum_across(const Params* p, scalar_t* sums, index_t count, scalar_t* lanes, index_t width) {
  index_t of_tap = p->sh * p->rows * p->ow;
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

template <int STRIDE>
INLINE void interleave(const scalar_t* __restrict__ lanes, index_t stride, index_t lane, scalar_t* __restrict__ x,
                       index_t count) {
  if (STRIDE) stride = STRIDE;
  index_t whole = count / stride;
  for (index_t i = 0; i < whole; i++) {
    for (index_t s = 0; s < stride; s++) x[i * stride + s] = lanes[s * lane + i];
  }
  for (index_t s = 0; s < count - whole * stride; s++) x[whole * stride + s] = lanes[s * lane + whole];
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
      const scalar_t* from = lanes + i * width;
      if (p->sw == 2) interleave<2>(from, 2, count * width, x + i * step, p->w);
      if (p->sw != 2) interleave<0>(from, p->sw, count * width, x + i * step, p->w);
    }
  }
}

static void fold_channel(const Params* p, const scalar_t* columns, scalar_t* x, scalar_t* workspace) {
  scalar_t *sums = workspace, *lanes = workspace + p->kw * p->sh * p->rows * p->ow;
  index_t all_rows = ceil_div(p->h, p->sh);
  for (index_t d = 0; d < p->d; d++, x += p->h * p->w) {
    for (index_t first = 0; first < all_rows; first += p->rows) {
      sum_down(p, columns, d, first, min(p->rows, all_rows - first), sums);
      for (index_t residue = 0; residue < p->sh; residue++) {
        index_t row = first * p->sh + residue;  // the last block may have one row less of some residues
        index_t count = min(p->rows, ceil_div(max(index_t(0), p->h - row), p->sh));
        if (count > 0) store_rows(p, sums + residue * p->rows * p->ow, count, x + row * p->w, lanes);
      }
    }
  }
}

KERNEL col2im(const Params* p, const scalar_t* columns, scalar_t* x, scalar_t* workspace, int64_t item) {
  index_t blocks = ceil_div(p->c, p->c_block), n = item / blocks, c = item % blocks * p->c_block;
  index_t channels = min(p->c_block, p->c - c), plane = p->d * p->h * p->w;
  columns += n * p->columns_n + c * p->columns_c;
  x += (n * p->c + c) * plane;
  for (index_t i = 0; i < channels; i++) {
    fold_channel(p, columns + i * p->columns_c, x + i * plane, workspace);
  }
}
