// The last sums of the gradients of a norm's weights and biases, of grad_y and of grad_y * h: over the parts in which a
// kernel has added them up, one after the other, and over the lanes that share a weight. A few values, as one item.
#include "vectors.hpp"

struct Params {
  index_t parts;
  index_t affine;      // sums of a part
  index_t per_affine;  // those that share a weight
};

// Adds the sums [parts, 2, affine] up in the first part and, unless they are null, writes the gradients.
KERNEL norm_totals(const Params* p, double* sums, scalar_t* grad_weight, scalar_t* grad_bias, scalar_t* workspace,
                   int64_t item) {
  index_t row = 2 * p->affine;
  for (index_t part = 1; part < p->parts; part++) {
    const double* added = sums + part * row;
    for (index_t i = 0; i < row; i++) sums[i] += added[i];
  }
  for (index_t i = 0; grad_weight && i < p->affine; i += p->per_affine) {
    double g = sums[i], gh = sums[p->affine + i];
    for (index_t lane = i + 1; lane < i + p->per_affine; lane++) g += sums[lane], gh += sums[p->affine + lane];
    grad_bias[i / p->per_affine] = scalar_t(g), grad_weight[i / p->per_affine] = scalar_t(gh);
  }
}
