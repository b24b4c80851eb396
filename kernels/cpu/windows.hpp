// Windows that slide over an image: tap k of output o reads input o * stride + k * dilation - low, along each axis.
#pragma once

#include "vectors.hpp"

// The outputs [begin, end) of `out` whose tap at `offset` = k * dilation - low is within [0, size).
INLINE Range inside(index_t offset, index_t stride, index_t size, index_t out) {
  index_t begin = offset < 0 ? ceil_div(-offset, stride) : 0;
  index_t end = offset < size ? (size - 1 - offset) / stride + 1 : 0;
  begin = min(begin, out);
  return {begin, max(begin, min(end, out))};
}

// offset = quotient * stride + residue, with the residue in [0, stride).
struct Shift {
  index_t quotient, residue;

  Shift(index_t offset, index_t stride)
      : quotient(offset >= 0 ? offset / stride : -ceil_div(-offset, stride)), residue(offset - quotient * stride) {}
};

INLINE void fill_zero(scalar_t* to, index_t count) {
  for (index_t i = 0; i < count; i++) to[i] = 0;
}

