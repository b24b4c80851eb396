// A step of Adam in one pass over parameter, gradient and their running means, all contiguous.
#include <cmath>

#include "uncontracted.hpp"
#include "vectors.hpp"

struct Params {
  index_t count;
  double rate;               // lr / (1 - beta1^t)
  double gradient_share;     // 1 - beta1
  double kept_square;        // beta2
  double square_share;       // 1 - beta2
  double square_correction;  // sqrt(1 - beta2^t)
  double eps;
  double weight_decay;       // of the gradient
  double shrinkage;          // factor of the parameter
  index_t maximize;
  index_t items;
};

template <bool DECAYS, bool AMSGRAD>
static void descend(const Params* p, scalar_t* __restrict__ data, const scalar_t* __restrict__ grad,
                    scalar_t* __restrict__ mean, scalar_t* __restrict__ square, scalar_t* __restrict__ most,
                    Range range) {
  scalar_t rate = p->rate, gradient_share = p->gradient_share, kept_square = p->kept_square;
  scalar_t square_share = p->square_share, correction = p->square_correction, eps = p->eps;
  scalar_t decay = p->weight_decay, shrinkage = p->shrinkage, sign = p->maximize ? -1 : 1;
  for (index_t i = range.begin; i < range.end; i++) {
    scalar_t value = data[i] * shrinkage, downhill = grad[i] * sign;
    if (DECAYS) downhill += value * decay;
    scalar_t direction = mean[i] + (downhill - mean[i]) * gradient_share;
    scalar_t size = square[i] * kept_square + downhill * downhill * square_share;
    mean[i] = direction, square[i] = size;
    if (AMSGRAD) {
      size = most[i] >= size || most[i] != most[i] ? most[i] : size;  // NaN stays
      most[i] = size;
    }
    data[i] = value - direction / (std::sqrt(size) / correction + eps) * rate;
  }
}

template <bool DECAYS>
static void descend(const Params* p, scalar_t* data, const scalar_t* grad, scalar_t* mean, scalar_t* square,
                    scalar_t* most, Range range) {
  if (most) return descend<DECAYS, true>(p, data, grad, mean, square, most, range);
  descend<DECAYS, false>(p, data, grad, mean, square, most, range);
}

KERNEL adam(const Params* p, scalar_t* data, const scalar_t* grad, scalar_t* mean, scalar_t* square, scalar_t* most,
            scalar_t* workspace, int64_t item) {
  Range range = part_of(p->count, item, p->items);
  if (p->weight_decay != 0) return descend<true>(p, data, grad, mean, square, most, range);
  descend<false>(p, data, grad, mean, square, most, range);
}
