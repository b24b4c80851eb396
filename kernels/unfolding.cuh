// Tiles of x for im2col and col2im, and the entries of the columns that belong to a tile.
//
// Entry (kd, kh, kw, od, oh, ow) belongs to the one input d = od * stride_d + kd * dilation_d, h and w alike, counted
// from the first padding. A block has tile_c channels of one d, tile_h rows and tile_w columns of inputs in shared
// memory, and the matching run of contiguous positions of each tap: both arrays are moved once, without halos.
// A tile has whole rows, or else only one.
//
// The program defines PACK, the vector width of accesses to the columns.

constexpr int WIDE = 16 / sizeof(scalar_t);    // elements of one access to x
struct Tile {
  index_t n, c, d, h, w;               // its first input, counted from the first padding
  index_t channels, rows, columns;  // how many it has
};

__device__ __forceinline__ Tile tile_of_block(const UnfoldParams& p) {
  Tile tile;
  index_t i = static_cast<index_t>(blockIdx.x);  // [0, N * tiles_c * span_d * tiles_h * tiles_w)
  const index_t w = i % p.tiles_w * p.tile_w;
  i /= p.tiles_w;
  const index_t h = i % p.tiles_h * p.tile_h;
  i /= p.tiles_h;
  tile.d = p.first_d + i % p.span_d;
  i /= p.span_d;
  tile.c = i % p.tiles_c * p.tile_c;
  tile.n = i / p.tiles_c;
  tile.h = p.first_h + h;
  tile.w = p.first_w + w;
  tile.channels = least(p.tile_c, p.c - tile.c);
  tile.rows = least(p.tile_h, p.span_h - h);
  tile.columns = least(p.tile_w, p.span_w - w);
  return tile;
}

// Offset in a tile, before skewing, of input (c, h, w), relative to the first padding.
__device__ __forceinline__ index_t place_in(const UnfoldParams& p, const Tile& tile, index_t c, index_t h, index_t w) {
  return c * p.plane + (h - tile.h) * p.pitch + w - tile.w;
}

// --- Runs of the columns ---------------------------------------------------------------------------------------------

struct Run {
  index_t slice, first, length;  // positions slice + [first, first + length): `slice` of them precede this od
  index_t place;                 // of the od's first position in the tile; may be outside
};

// The positions of tap (kd, kh, kw) that belong to a tile.
__device__ __forceinline__ Run run_of_tap(const UnfoldParams& p, const Tile& tile, index_t c, index_t kd, index_t kh,
                                          index_t kw) {
  const index_t d = tile.d - kd * p.dilation_d, h = tile.h - kh * p.dilation_h, w = tile.w - kw * p.dilation_w;
  const index_t od = d / p.stride_d;
  const index_t oh = most(0, ceil_div(h, p.stride_h)), oh_end = least(p.oh, ceil_div(h + tile.rows, p.stride_h));
  const index_t ow = most(0, ceil_div(w, p.stride_w)), ow_end = least(p.ow, ceil_div(w + tile.columns, p.stride_w));
  if (d < 0 || od * p.stride_d != d || od >= p.od || oh >= oh_end || ow >= ow_end) return {0, 0, 0, 0};
  const index_t length = (oh_end - 1 - oh) * p.ow + ow_end - ow;
  return {od * p.oh * p.ow, oh * p.ow + ow, length, c * p.plane - h * p.pitch - w};
}

// Offset in the tile of a position's input, from the k-th position of a run on.
struct Walk {
  index_t place, ow;

  __device__ __forceinline__ Walk(const UnfoldParams& p, const Run& run, index_t k) {
    const index_t position = run.first + k;
    const index_t oh = position / p.ow;
    ow = position - oh * p.ow;
    place = run.place + oh * p.stride_h * p.pitch + ow * p.stride_w;
  }

  __device__ __forceinline__ void next(const UnfoldParams& p) {
    place += p.stride_w;
    if (++ow < p.ow) return;
    ow = 0;
    place += p.stride_h * p.pitch - p.ow * p.stride_w;
  }
};

// --- Runs of x -------------------------------------------------------------------------------------------------------

struct Rows {
  index_t offset, length;  // contiguous elements of x [offset, offset + length)
  index_t h, w;            // the first of them, counted from the first padding
};

// The position of such an element, from the k-th on, relative to the first padding.
struct RowWalk {
  index_t h, w;

  __device__ __forceinline__ RowWalk(const UnfoldParams& p, const Rows& rows, index_t k) {
    k += rows.w - p.low_w;
    h = rows.h + k / p.w;
    w = k % p.w + p.low_w;
  }

  __device__ __forceinline__ void next(const UnfoldParams& p) {
    if (++w < p.w + p.low_w) return;
    w = p.low_w;
    ++h;
  }
};

// The inputs of a tile's channel c where rows of x are contiguous: from its first to its last.
__device__ __forceinline__ Rows rows_of_channel(const UnfoldParams& p, const Tile& tile, index_t c) {
  const index_t h = most(tile.h, p.low_h), h_end = least(tile.h + tile.rows, p.low_h + p.h);
  const index_t w = most(tile.w, p.low_w), w_end = least(tile.w + tile.columns, p.low_w + p.w);
  if (h >= h_end || w >= w_end) return {0, 0, 0, 0};
  const index_t plane = tile.n * p.x_n + (tile.c + c) * p.x_c + (tile.d - p.low_d) * p.x_d;
  return {plane + (h - p.low_h) * p.w + w - p.low_w, (h_end - 1 - h) * p.w + w_end - w, h, w};
}
