// A smooth activation of each element, or the gradient behind it; arrays are without gaps, in one order.
#include "runs.hpp"
#include "smooth.hpp"

struct Params {
  index_t count;
  index_t kind;
  index_t items;
};

// Without grad_y the activation, else the gradient; an item is some elements.
KERNEL smooth_activation(const Params* p, const scalar_t* grad_y, const scalar_t* x, scalar_t* y, scalar_t* workspace,
                         int64_t item) {
  Range part = part_of(p->count, item, p->items);
  with_kind(p->kind, [&](auto kind) LAMBDA {
    for_vectors(part.end - part.begin, [&]<class V>(index_t i) LAMBDA {
      index_t at = part.begin + i;
      V value = get<V>(x + at);
      put(y + at, grad_y ? smooth_derivative<kind()>(value) * get<V>(grad_y + at) : smoothed<kind()>(value));
    });
  });
}
