// By the indices of maxima: gradients of max pooling (sums), unpooling (the last value stays), and the gather of both.
//
// windows, indices [N, windows, C] <-> planes [N, positions, C] with channels last, and in C order C = 1 and N counts
// all planes. An index is a position in its plane, or -1. Windows are taken in their order, so sums are too. A work item
// is a range of planes, or of the channels of an image.
#include "vectors.hpp"

struct Params {
  index_t n, c, windows, positions;
  index_t part;  // channels that are not divided between items
  index_t items;
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
    for (end = std::min(end, of.positions); cleared < end; cleared++)
      std::fill(planes + cleared * of.channels, planes + cleared * of.channels + count, scalar_t(0));
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
    end = std::min(end, of.positions);
    for (index_t k = 0; k < PLANES * of.positions; k += of.positions)
      std::fill(planes + k + cleared, planes + k + end, scalar_t(0));
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
    index_t last = std::min(parts, first + range.end - range.begin);
    body(n, first * p->part, std::min(p->c, last * p->part) - first * p->part);
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
