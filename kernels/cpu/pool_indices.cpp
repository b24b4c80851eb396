// By the indices of maxima: gradients of max pooling (sums), unpooling (the last value stays), and the gather of both.
//
// windows, indices [N, windows, C] <-> planes [N, positions, C] with channels last, and in C order C = 1 and N counts
// all planes. An index is a position in its plane, or -1. Windows are taken in their order, so sums are too. A work item
// is a range of planes, or of the channels of an image.
#include "pooling.hpp"

struct Params {
  index_t n, c, windows, positions;
  index_t part;  // channels that are not divided between items
  index_t items;
  index_t h, w, od, oh, ow;  // of add_by_taps
  index_t d_step, h_step, w_step;
};

constexpr int PLANES = 4;

// Of one image, or plane: its windows, its positions, and its channels, which lie next to each other; 1 in C order.
struct Extents {
  index_t windows, positions, channels;
};

constexpr index_t CLEARED = 2048;  // scalars that are cleared at a time, just before the first of them is written

template <bool ADD>
INLINE void put(scalar_t* to, scalar_t value) {
  *to = ADD ? *to + value : value;
}

// `count` channels of an image, from its first on.
template <bool ADD>
static void scatter_channels(const scalar_t* values, const int64_t* indices, scalar_t* planes, Extents of,
                             index_t count) {
  index_t cleared = 0;
  auto clear = [&](index_t end) {
    for (end = min(end, of.positions); cleared < end; cleared++)
      fill(planes + cleared * of.channels, planes + cleared * of.channels + count, scalar_t(0));
  };
  for (index_t i = 0; i < of.windows; i++)
    for (index_t c = 0; c < count; c++) {
      index_t at = indices[i * of.channels + c];
      if (uint64_t(at) >= uint64_t(cleared)) {
        if (at < 0) continue;
        clear(at + 1 + CLEARED / count);
      }
      put<ADD>(planes + at * of.channels + c, values[i * of.channels + c]);
    }
  clear(of.positions);
}

// PLANES planes in C order at a time, so that sums of one do not wait for each other.
template <bool ADD, int PLANES>
static void scatter_planes(const scalar_t* values, const int64_t* indices, scalar_t* planes, Extents of) {
  index_t cleared = 0;
  auto clear = [&](index_t end) {
    end = min(end, of.positions);
    for (index_t k = 0; k < PLANES * of.positions; k += of.positions)
      fill(planes + k + cleared, planes + k + end, scalar_t(0));
    cleared = end;
  };
  for (index_t i = 0; i < of.windows; i++)
    for (index_t k = 0; k < PLANES; k++) {
      index_t at = indices[k * of.windows + i];
      if (uint64_t(at) >= uint64_t(cleared)) {
        if (at < 0) continue;
        clear(at + CLEARED);
      }
      put<ADD>(planes + k * of.positions + at, values[k * of.windows + i]);
    }
  clear(of.positions);
}

// Calls body(n, c, count) for the item's planes: `count` channels of image n from c on.
template <class Body>
INLINE void each_part(const Params* p, int64_t item, const Body& body) {
  index_t parts = ceil_div(p->c, p->part);
  Range range = part_of(p->n * parts, item, p->items);
  while (range.begin < range.end) {
    index_t n = range.begin / parts, first = range.begin % parts;
    index_t last = min(parts, first + range.end - range.begin);
    body(n, first * p->part, min(p->c, last * p->part) - first * p->part);
    range.begin += last - first;
  }
}

template <bool ADD>
static void scatter(const Params* p, const scalar_t* values, const int64_t* indices, scalar_t* planes, int64_t item) {
  Extents of = {p->windows, p->positions, p->c};
  if (p->c > 1) {
    each_part(p, item, [&](index_t n, index_t c, index_t count) {
      index_t from = n * p->windows * p->c + c;
      scatter_channels<ADD>(values + from, indices + from, planes + n * p->positions * p->c + c, of, count);
    });
    return;
  }
  Range range = part_of(p->n, item, p->items);
  while (range.begin < range.end) {
    index_t n = range.begin, from = n * p->windows, to = n * p->positions;
    if (n + PLANES <= range.end) {
      scatter_planes<ADD, PLANES>(values + from, indices + from, planes + to, of);
      range.begin += PLANES;
    } else {
      scatter_planes<ADD, 1>(values + from, indices + from, planes + to, of);
      range.begin++;
    }
  }
}

KERNEL scatter_add(const Params* p, const scalar_t* values, const int64_t* indices, scalar_t* planes, scalar_t*,
                   int64_t item) {
  scatter<true>(p, values, indices, planes, item);
}

KERNEL scatter_last(const Params* p, const scalar_t* values, const int64_t* indices, scalar_t* planes, scalar_t*,
                    int64_t item) {
  scatter<false>(p, values, indices, planes, item);
}

// values = the planes' elements at the indices, 0 where an index is -1.
KERNEL gather(const Params* p, const scalar_t* planes, const int64_t* indices, scalar_t* values, scalar_t*,
              int64_t item) {
  each_part(p, item, [&](index_t n, index_t first, index_t count) {
    const scalar_t* image = planes + n * p->positions * p->c + first;
    index_t from = n * p->windows * p->c + first;
    for (index_t i = 0; i < p->windows; i++, from += p->c)
      for (index_t c = 0; c < count; c++) {
        index_t at = indices[from + c];
        values[from + c] = at < 0 ? scalar_t(0) : image[at * p->c + c];
      }
  });
}

// --- Channels last, by the windows' taps -------------------------------------------------------------------------------

constexpr int MAX_WINDOW = 32;  // taps

// A window: its taps' positions, in their order, of which [begin, end) are in the rows of a work item, and where those
// are in an image.
struct Window {
  label_t positions[MAX_WINDOW];
  index_t offsets[MAX_WINDOW];
  int taps, begin, end;

  void move(index_t columns, index_t channels) {
    for (int t = 0; t < taps; t++) positions[t] += label_t(columns), offsets[t] += columns * channels;
  }
};

// `reads` are the tables of the axes D, H and W: first[out], then count[out] of each; `part` are positions.
INLINE Window window_of(const Params* p, const int64_t* reads, index_t od, index_t oh, index_t ow, Range part) {
  const int64_t *d = reads + od, *h = reads + 2 * p->od + oh, *w = reads + 2 * (p->od + p->oh) + ow;
  Window window;
  window.taps = window.begin = window.end = 0;
  for (index_t i = 0; i < d[p->od]; i++)
    for (index_t j = 0; j < h[p->oh]; j++)
      for (index_t k = 0; k < w[p->ow]; k++) {
        index_t at = ((d[0] + i * p->d_step) * p->h + h[0] + j * p->h_step) * p->w + w[0] + k * p->w_step;
        window.positions[window.taps] = label_t(at), window.offsets[window.taps++] = at * p->c;
        window.begin += at < part.begin;
        window.end += at < part.end;
      }
  return window;
}

// Adds the gradients of LANES channels to the taps that their indices name; the lanes whose index is none of these.
INLINE Labels<LANES> add_lanes(const scalar_t* grads, const int64_t* indices, scalar_t* planes, const Window& window) {
  Wide<LANES>::vector wide;  // of two registers, which no function may return
  memcpy(&wide, indices, sizeof wide);
  auto label = __builtin_convertvector(wide, Labels<LANES>);
  auto grad = load(grads);
  auto found = label < 0;
  for (int t = 0; t < window.begin; t++) found |= label == window.positions[t];
  for (int t = window.begin; t < window.end; t++) {
    auto hit = label == window.positions[t];
    found |= hit;
    scalar_t* to = planes + window.offsets[t];
    store(to, load(to) + (hit ? grad : vector_t{}));
  }
  for (int t = window.end; t < window.taps; t++) found |= label == window.positions[t];
  return ~found;
}

// The gradients of one window; nonzero lanes of `strays` tell that the index of some channel is none of its positions.
INLINE void add_window(const Params* p, const scalar_t* grads, const int64_t* indices, scalar_t* planes,
                       const Window& window, Labels<LANES>& strays) {
  index_t c = 0;
  for (; c + LANES <= p->c; c += LANES) strays |= add_lanes(grads + c, indices + c, planes + c, window);
  for (; c < p->c; c++) {
    int tap = 0;
    while (tap < window.taps && window.positions[tap] != label_t(indices[c])) tap++;
    strays[0] |= tap == window.taps && indices[c] >= 0;
    if (tap >= window.begin && tap < window.end) planes[window.offsets[tap] + c] += grads[c];
  }
}

// As scatter_add, where windows have few taps: an item adds the gradients of all windows to its rows of the planes. Sets
// strays[item] if the index of some window is none of its positions: then the result is wrong.
KERNEL add_by_taps(const Params* p, const scalar_t* values, const int64_t* indices, scalar_t* planes,
                   const int64_t* reads, int64_t* strays, scalar_t*, int64_t item) {
  index_t rows = p->positions / p->w, of_image = p->windows * p->c;
  const int64_t *first = reads + 2 * (p->od + p->oh), *count = first + p->ow;
  Labels<LANES> found_none = {};
  Range range = part_of(p->n * rows, item, p->items);
  while (range.begin < range.end) {
    index_t n = range.begin / rows, top = range.begin % rows, bottom = min(rows, top + range.end - range.begin);
    Range part = {top * p->w, bottom * p->w};
    scalar_t* image = planes + n * p->positions * p->c;
    index_t cleared = part.begin;
    auto clear = [&](index_t end) {
      if (end > cleared) fill(image + cleared * p->c, image + end * p->c, scalar_t(0)), cleared = end;
    };
    for (index_t row = 0; row < p->od * p->oh; row++) {
      index_t from = n * of_image + row * p->ow * p->c;
      Window window;
      for (index_t ow = 0; ow < p->ow; ow++, from += p->c) {
        if (ow > 0 && count[ow] == count[ow - 1])
          window.move(first[ow] - first[ow - 1], p->c);
        else
          window = window_of(p, reads, row / p->oh, row % p->oh, ow, part);
        if (window.begin == window.end) break;  // nor has any other of these windows a row here
        clear(window.positions[window.end - 1] + 1);
        add_window(p, values + from, indices + from, image, window, found_none);
      }
    }
    clear(part.end);
    range.begin += bottom - top;
  }
  for (int lane = 0; lane < LANES; lane++) strays[item] |= found_none[lane];
}
