// rstd = 1 / sqrt(var + eps), of the running statistics of a norm: contiguous arrays.
#include <cmath>

#include "norm.hpp"

struct Params {
  index_t count;
  double eps;
};

KERNEL norm_rstd(const Params* p, const scalar_t* __restrict__ var, scalar_t* __restrict__ rstd, scalar_t* workspace,
                 int64_t item) {
  for (index_t i = 0; i < p->count; i++) rstd[i] = reciprocal(var[i], scalar_t(p->eps));
}
