// A running statistic of a norm, moved towards the mean of those of a batch's images: found [N, C] is contiguous, average
// [C] has any stride. Each operation is rounded, in NumPy's order.
#include "uncontracted.hpp"
#include "vectors.hpp"

struct Params {
  index_t n, c;
  index_t average_c;  // the stride
  double factor;
  double momentum;
};

// average = (1 - momentum) * average + momentum * mean over n of found * factor, with C scalars of workspace.
KERNEL moving_average(const Params* p, const scalar_t* found, scalar_t* average, scalar_t* workspace, int64_t item) {
  scalar_t factor = scalar_t(p->factor), count = scalar_t(p->n);
  scalar_t kept = scalar_t(1 - p->momentum), momentum = scalar_t(p->momentum);
  for (index_t c = 0; c < p->c; c++) workspace[c] = found[c] * factor;
  for (index_t n = 1; n < p->n; n++) {
    for (index_t c = 0; c < p->c; c++) workspace[c] += found[n * p->c + c] * factor;
  }
  for (index_t c = 0; c < p->c; c++) {
    scalar_t& moved = average[c * p->average_c];
    moved = kept * moved + momentum * (workspace[c] / count);
  }
}
