// Epilogue of a convolution's sums on their way to memory: y = activation(sum + residual), with the bits of
// bias_activation.cpp. Activations are numbers, not templates: a kernel is built once for all of them.
#pragma once

#include "smooth.hpp"

// Sums outside [least, most] become that bound, and what is not positive is multiplied by the slope; or a smooth
// activation follows, as a pass over what is still in the first cache.
struct Epilogue {
  bool acts;  // else sums stay as they are
  index_t smooth;
  scalar_t least, most, slope;

  template <class Params>
  explicit Epilogue(const Params* p)
      : acts(p->acts), smooth(p->smooth), least(p->least), most(p->most), slope(p->slope) {}
};

// All but a smooth activation; NaN propagates.
INLINE vector_t activated(const Epilogue& epilogue, vector_t sum) {
  sum = sum <= broadcast(epilogue.least) ? broadcast(epilogue.least) : sum;
  sum = sum >= broadcast(epilogue.most) ? broadcast(epilogue.most) : sum;
  return sum > vector_t{} ? sum : sum * broadcast(epilogue.slope);
}

// Copies a row of sums, to itself too, after the epilogue. `residual` is null, or as long as the row.
[[maybe_unused]] static void finish_row(const Epilogue& epilogue, const scalar_t* sums, const scalar_t* residual,
                                        index_t count, scalar_t* to) {
  index_t i = 0;
  if (epilogue.smooth && !residual && to == sums) i = count;
  for (; i + LANES <= count; i += LANES)
    store(to + i, activated(epilogue, residual ? load(sums + i) + load(residual + i) : load(sums + i)));
  if (i < count) {
    vector_t sum = load_first(sums + i, count - i);
    if (residual) sum += load_first(residual + i, count - i);
    store_first(to + i, activated(epilogue, sum), count - i);
  }
  if (epilogue.smooth) smooth_row(epilogue.smooth, to, count);
}
