// y = values where the mask is not 0, and 0 elsewhere, for contiguous arrays.
#include "vectors.hpp"

struct Params {
  index_t count;
  index_t items;
};

KERNEL masked(const Params* p, const scalar_t* __restrict__ values, const uint8_t* __restrict__ mask,
              scalar_t* __restrict__ y, scalar_t* workspace, int64_t item) {
  Range range = part_of(p->count, item, p->items);
  for (index_t i = range.begin; i < range.end; i++) y[i] = mask[i] ? values[i] : scalar_t(0);
}
