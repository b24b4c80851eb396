// A running statistic of a norm, moved towards the mean of those of a batch's images:
// average[c] = (1 - momentum) * average[c] + momentum * mean over n of (found[n, c] * factor)
//
// Source       the definition, in its order of operations, without fused multiply-adds
// Reads        found [N, C] and average [C]; any strides
// Writes       average [C]
// Mapping      one thread per channel
// Bytes        found and average once
// Determinism  in the order of n
// Limits       none
#include "common.cuh"
#include "params.cuh"

// A step of a moving average [C]. All fields are known at run time only: one program serves all layers and steps.
struct MovingAverageParams {
  RUN_TIME index_t n, c;
  RUN_TIME index_t found_n, found_c;
  RUN_TIME index_t average_c;
  RUN_TIME double factor;
  RUN_TIME double momentum;
  RUN_TIME double kept;                         // 1 - momentum
};

extern "C" __global__ void __launch_bounds__(256, 1)
moving_average(const acc_t* __restrict__ found,   // [N, C]
               scalar_t* __restrict__ average,    // [C]
               const MovingAverageParams p) {
  const index_t c = thread_index();  // [0, C)
  if (c >= p.c) return;
  const acc_t factor = static_cast<acc_t>(p.factor);
  acc_t sum = found[c * p.found_c] * factor;
  for (index_t n = 1; n < p.n; ++n) sum = sum + found[n * p.found_n + c * p.found_c] * factor;
  scalar_t& moved = average[c * p.average_c];
  const acc_t before = widen(moved), mean = sum / static_cast<acc_t>(p.n);
  moved = narrow(static_cast<acc_t>(p.kept) * before + static_cast<acc_t>(p.momentum) * mean);
}
