// A step of stochastic gradient descent in one pass over parameter, gradient and velocity, all contiguous.
#include "uncontracted.hpp"
#include "vectors.hpp"

struct Params {
  index_t count;
  double lr;
  double momentum;
  double gradient_share;  // in the velocity
  double weight_decay;
  index_t nesterov;
  index_t maximize;
  index_t is_first;       // whether the velocity is not set yet
  index_t items;
};

enum { NO_MOMENTUM, MOMENTUM, NESTEROV };

template <int KIND, bool DECAYS>
static void descend(const Params* p, scalar_t* __restrict__ data, const scalar_t* __restrict__ grad,
                    scalar_t* __restrict__ velocity, Range range) {
  scalar_t lr = p->lr, momentum = p->momentum, share = p->gradient_share, decay = p->weight_decay;
  scalar_t sign = p->maximize ? -1 : 1;
  bool is_first = p->is_first;
  for (index_t i = range.begin; i < range.end; i++) {
    scalar_t downhill = grad[i] * sign;
    if (DECAYS) downhill += data[i] * decay;
    scalar_t step = downhill;
    if (KIND != NO_MOMENTUM) {
      step = is_first ? downhill : velocity[i] * momentum + downhill * share;
      velocity[i] = step;
      if (KIND == NESTEROV) step = step * momentum + downhill;
    }
    data[i] -= step * lr;
  }
}

template <bool DECAYS>
static void descend(const Params* p, scalar_t* data, const scalar_t* grad, scalar_t* velocity, Range range) {
  if (!velocity) return descend<NO_MOMENTUM, DECAYS>(p, data, grad, velocity, range);
  if (!p->nesterov) return descend<MOMENTUM, DECAYS>(p, data, grad, velocity, range);
  descend<NESTEROV, DECAYS>(p, data, grad, velocity, range);
}

KERNEL sgd(const Params* p, scalar_t* data, const scalar_t* grad, scalar_t* velocity, scalar_t* workspace,
           int64_t item) {
  Range range = part_of(p->count, item, p->items);
  if (p->weight_decay != 0) return descend<true>(p, data, grad, velocity, range);
  descend<false>(p, data, grad, velocity, range);
}
