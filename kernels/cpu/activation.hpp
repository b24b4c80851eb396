// Activations, their derivatives, and a walk through rows of elements.
#pragma once

#include "vectors.hpp"

enum { NO_ACTIVATION, RELU, LEAKY_RELU, RELU6 };  // as ACTIVATIONS in elementwise.py

// NaN propagates.
template <int ACTIVATION>
INLINE scalar_t activated(scalar_t value, scalar_t negative_slope) {
  if (ACTIVATION == RELU) return value <= 0 ? scalar_t(0) : value;
  if (ACTIVATION == LEAKY_RELU) return value > 0 ? value : value * negative_slope;
  if (ACTIVATION == RELU6) return value <= 0 ? scalar_t(0) : value >= 6 ? scalar_t(6) : value;
  return value;
}

// The gradient behind an activation whose input, or output, has the sign of `value`.
template <int ACTIVATION>
INLINE scalar_t activation_gradient(scalar_t gradient, scalar_t value, scalar_t negative_slope) {
  if (ACTIVATION == RELU) return value <= 0 ? scalar_t(0) : gradient;
  if (ACTIVATION == LEAKY_RELU) return value > 0 ? gradient : gradient * negative_slope;
  if (ACTIVATION == RELU6) return value <= 0 || value >= 6 ? scalar_t(0) : gradient;
  return gradient;
}

// A position in [N, R, I].
struct Place {
  index_t n, r, i;

  Place(index_t element, index_t rows, index_t length)
      : n(element / length / rows), r(element / length % rows), i(element % length) {}

  void advance(index_t count, index_t rows, index_t length) {
    i += count;
    if (i < length) return;
    i = 0;
    if (++r < rows) return;
    r = 0;
    n++;
  }
};
