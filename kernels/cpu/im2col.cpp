// columns [N, C, KD, KH, KW, OD, OH, OW] of x [N, C, D, H, W]: some channels of an image at a time, tap by tap.
#include "transpose.hpp"
#include "windows.hpp"

struct Params {
  index_t n, c, d, h, w;
  index_t x_n, x_c, x_d, x_h, x_w;
  index_t kd, kh, kw;
  index_t od, oh, ow;
  index_t sd, sh, sw;
  index_t dd, dh, dw;
  index_t pd, ph, pw;
  index_t columns_n, columns_c;
  index_t is_planar;  // whether the planes of x are contiguous
  index_t c_block;
};

constexpr index_t CHANNELS = 8;  // whose columns are written tap by tap: of small planes they stay in the L1 cache

template <int STRIDE>
INLINE void copy_row(const scalar_t* __restrict__ from, index_t stride, scalar_t* __restrict__ to, index_t count) {
  if (STRIDE) stride = STRIDE;
  for (index_t i = 0; i < count; i++) to[i] = from[i * stride];
}

// One tap along H and W: the rows and columns of outputs [OH, OW] for which it reads an input, (top, left) of (0, 0).
struct Tap {
  index_t top, left;
  Range rows, columns;

  Tap(const Params* p, index_t kh, index_t kw)
      : top(kh * p->dh - p->ph),
        left(kw * p->dw - p->pw),
        rows(inside(top, p->sh, p->h, p->oh)),
        columns(inside(left, p->sw, p->w, p->ow)) {
    if (columns.begin == columns.end) rows = {0, 0};
  }
};

static void zero_columns(const Params* p, Range rows, Range columns, scalar_t* to) {
  for (index_t ow = columns.begin; ow < columns.end; ow++) {
    for (index_t oh = rows.begin; oh < rows.end; oh++) to[oh * p->ow + ow] = 0;
  }
}

// What a tap reads of a plane x [H, W], as `to` [OH, OW].
static void copy_tap(const Params* p, const Tap& tap, const scalar_t* x, scalar_t* to) {
  auto [top, left, rows, columns] = tap;
  if (rows.begin > 0) fill_zero(to, rows.begin * p->ow);
  if (rows.end < p->oh) fill_zero(to + rows.end * p->ow, (p->oh - rows.end) * p->ow);
  if (rows.begin == rows.end) return;
  if (p->sh == 1 && p->sw == 1 && p->w == p->ow) {  // one run, whose elements beyond the ends of rows become zero
    index_t first = rows.begin * p->ow + columns.begin, last = (rows.end - 1) * p->ow + columns.end;
    copy_run(x + first + top * p->w + left, to + first, last - first);
  } else {
    index_t count = columns.end - columns.begin;
    for (index_t oh = rows.begin; oh < rows.end; oh++) {
      const scalar_t* from = x + (oh * p->sh + top) * p->w + columns.begin * p->sw + left;
      scalar_t* row = to + oh * p->ow + columns.begin;
      if (p->sw == 1) copy_run(from, row, count);
      if (p->sw == 2) copy_row<2>(from, 2, row, count);
      if (p->sw > 2) copy_row<0>(from, p->sw, row, count);
    }
  }
  zero_columns(p, rows, {0, columns.begin}, to);
  zero_columns(p, rows, {columns.end, p->ow}, to);
}

// Columns of channels x [channels, D, H, W], contiguous planes that are `step` apart.
static void copy_channels(const Params* p, const scalar_t* x, index_t step, index_t channels, scalar_t* to) {
  index_t plane = p->oh * p->ow;
  for (index_t kd = 0; kd < p->kd; kd++) {
    for (index_t kh = 0; kh < p->kh; kh++) {
      for (index_t kw = 0; kw < p->kw; kw++) {
        Tap tap(p, kh, kw);
        for (index_t od = 0; od < p->od; od++, to += plane) {
          index_t d = od * p->sd + kd * p->dd - p->pd;
          for (index_t c = 0; c < channels; c++) {
            if (d < 0 || d >= p->d) fill_zero(to + c * p->columns_c, plane);
            if (d >= 0 && d < p->d) copy_tap(p, tap, x + c * step + d * p->h * p->w, to + c * p->columns_c);
          }
        }
      }
    }
  }
}

// Channels of x, of any strides, as contiguous planes.
static void copy_planes(const Params* p, const scalar_t* x, index_t channels, scalar_t* to) {
  index_t plane = p->d * p->h * p->w;
  bool are_rows_merged = p->h == 1 || p->x_h == p->w * p->x_w;
  index_t rows = are_rows_merged ? 1 : p->h, length = are_rows_merged ? p->h * p->w : p->w;
  index_t step = p->w > 1 ? p->x_w : p->x_h;
  for (index_t d = 0; d < p->d; d++) {
    for (index_t h = 0; h < rows; h++) {
      const scalar_t* from = x + d * p->x_d + h * p->x_h;
      scalar_t* row = to + (d * p->h + h) * p->w;
      if (p->x_c == 1) {
        copy_transposed(from, step, row, plane, length, channels);
        continue;
      }
      for (index_t c = 0; c < channels; c++) copy_row<0>(from + c * p->x_c, step, row + c * plane, length);
    }
  }
}

KERNEL im2col(const Params* p, const scalar_t* x, scalar_t* columns, scalar_t* workspace, int64_t item) {
  index_t blocks = ceil_div(p->c, p->c_block), n = item / blocks, c = item % blocks * p->c_block;
  index_t channels = min(p->c_block, p->c - c);
  x += n * p->x_n + c * p->x_c;
  columns += n * p->columns_n + c * p->columns_c;
  index_t step = p->x_c;
  if (!p->is_planar) {
    copy_planes(p, x, channels, workspace);
    x = workspace;
    step = p->d * p->h * p->w;
  }
  for (index_t i = 0; i < channels; i += CHANNELS) {
    copy_channels(p, x + i * step, step, min(CHANNELS, channels - i), columns + i * p->columns_c);
  }
}
