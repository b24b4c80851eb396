// Fused epilogue of a convolution, in one pass: y = activation(x + bias[c] + residual)
//
// Source       the definition
// Reads        x and residual or null, dense and of one memory order; bias [C] of BIAS or null
// Writes       y, of that order
// Mapping      one block per p.chunk contiguous elements, whose biases it keeps in shared memory; a thread takes PACK
//              per access, adjacent threads adjacent packs
// Bytes        x, residual and y once, PACK of each per access; a block's biases once
// Determinism  elements are independent; ((x + bias) + residual) is rounded once to 16 bits
// Limits       none
#include "common.cuh"
#include "params.cuh"
#include "packs.cuh"
#include "bias_activation.cuh"
#include "smooth.cuh"

// Bias and activation of arrays of one memory order: `count` elements that cycle through the channels, with `run`
// contiguous elements of each, P or 1.
struct BiasParams {
  RUN_TIME index_t count;
  index_t c, run;
  index_t bias_c;
  index_t chunk;                                // elements of one block
  index_t slots;                                // channels whose bias it keeps
  index_t activation;                           // one of those of bias_activation.cuh, or 0 before a smooth one
  double negative_slope;
};

extern "C" __global__ void __launch_bounds__(256, 1)
bias_activation(const scalar_t* __restrict__ x,         // [N, C, P]
                const BIAS* __restrict__ bias,          // [C] or null
                const scalar_t* __restrict__ residual,  // [N, C, P] or null
                scalar_t* __restrict__ y,               // [N, C, P]
                const BiasParams p) {
  extern __shared__ acc_t biases[];  // [slots], skewed
  const index_t thread = static_cast<index_t>(threadIdx.x), threads = static_cast<index_t>(blockDim.x);
  const index_t begin = static_cast<index_t>(blockIdx.x) * p.chunk, end = least(begin + p.chunk, p.count);
  const index_t first = begin / p.run;  // of the channel runs that the block covers
  if (bias) {
    for (index_t i = thread; i < p.slots; i += threads) {
      biases[skewed<acc_t>(i)] = widen(bias[(first + i) % p.c * p.bias_c]);
    }
    __syncthreads();
  }

#pragma unroll 4
  for (index_t k = begin + thread * PACK; k + PACK <= end; k += threads * PACK) {
    Pack<scalar_t, PACK> value = load_pack<PACK>(x + k), other = {};
    if (residual) other = load_pack<PACK>(residual + k);
    const index_t row = k / p.run;
    index_t place = k - row * p.run, slot = (row - first) % p.slots;
#pragma unroll
    for (int j = 0; j < PACK; ++j) {
      acc_t sum = widen(value.at[j]);
      if (bias) sum = sum + biases[skewed<acc_t>(slot)];
      if (residual) sum = sum + widen(other.at[j]);
      value.at[j] = narrow(smooth(activated(sum, p.activation, p.negative_slope)));
      if (++place < p.run) continue;
      place = 0;
      if (++slot == p.slots) slot = 0;
    }
    store_pack(y + k, value);
  }
  for (index_t k = end - (end - begin) % PACK + thread; k < end; k += threads) {
    acc_t sum = widen(x[k]);
    if (bias) sum = sum + biases[skewed<acc_t>((k / p.run - first) % p.slots)];
    if (residual) sum = sum + widen(residual[k]);
    y[k] = narrow(smooth(activated(sum, p.activation, p.negative_slope)));
  }
}
