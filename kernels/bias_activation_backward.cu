// The adjoint of bias_activation: grad_x[i] = grad_y[i] * activation'(i), and parts[s, c], sums of its channels
//
// Source       the chain rule; a second kernel, sum_splits, adds the parts
// Reads        grad_y, and y with the signs of the activation's input, both dense and of one memory order; no y
//              without an activation
// Writes       grad_x of that order, if requested, parts [splits, C] of acc_t
// Mapping      channels first: one block per group of pieces of one channel's rows, p.lanes threads a piece, PACK
//              elements each; channels last, or runs so short that several channels fill whole sectors: one block per
//              group of rows of p.lanes * PACK elements, with fixed columns per thread
// Bytes        grad_y, y and grad_x once, by accesses of 16 bytes where rows or channels allow; 1 of 64 rows for parts
// Determinism  each sum is a thread's over its elements in order, then over the block's threads in a fixed order; the
//              terms are grad_x before it is rounded to 16 bits
// Limits       none
#include "common.cuh"
#include "params.cuh"
#include "packs.cuh"
#include "bias_activation.cuh"

// grad_x and the sums of its channels, over arrays of one memory order as those of bias_activation.cu.
struct BiasSumParams {
  index_t c, run;
  RUN_TIME index_t rows;                        // of a channel: N of P neighbours, or N * P of 1
  index_t piece, pieces;                        // a row is summed in pieces, the last one shorter; 0: in whole lines
  RUN_TIME index_t segments;                    // pieces of all rows that one block sums
  RUN_TIME index_t splits;                      // blocks of a channel, or of some adjacent ones
  index_t lanes, teams;                         // threads along a piece, or along channels; and number of such teams
  index_t activation;
  double negative_slope;
};

// The sum over the pieces [begin, end) of a channel's rows that are the thread's, whose grad_x it writes.
__device__ __forceinline__ acc_t sum_of_pieces(const scalar_t* __restrict__ grad_y, const scalar_t* __restrict__ y,
                                               scalar_t* __restrict__ grad_x, index_t begin, index_t end,
                                               index_t channel, int lane, int team, const BiasSumParams& p) {
  const int lanes = static_cast<int>(p.lanes), teams = static_cast<int>(p.teams);
  acc_t sum = {};
  for (index_t segment = begin + team; segment < end; segment += teams) {
    const index_t row = segment / p.pieces, place = (segment - row * p.pieces) * p.piece;
    const index_t offset = (row * p.c + channel) * p.run + place, length = least(p.piece, p.run - place);
    const Packed<PACK> packed(offset, length);
#pragma unroll 4
    for (index_t k = packed.first + lane * PACK; k < packed.end; k += lanes * PACK) {
      Pack<scalar_t, PACK> grad = load_pack<PACK>(grad_y + offset + k);
      Pack<scalar_t, PACK> sign = {};
      if (y) sign = load_pack<PACK>(y + offset + k);
#pragma unroll
      for (int j = 0; j < PACK; ++j) {
        const acc_t value =
            activated_backward(widen(grad.at[j]), widen(sign.at[j]), p.activation, p.negative_slope);
        sum = sum + value;
        grad.at[j] = narrow(value);
      }
      if (grad_x) store_pack(grad_x + offset + k, grad);
    }
    for (index_t k = lane; k < packed.singles; k += lanes) {
      const index_t i = offset + packed.single(k);
      const acc_t sign = y ? widen(y[i]) : acc_t(0);
      const acc_t value = activated_backward(widen(grad_y[i]), sign, p.activation, p.negative_slope);
      sum = sum + value;
      if (grad_x) grad_x[i] = narrow(value);
    }
  }
  return sum;
}

extern "C" __global__ void __launch_bounds__(256, 1)
bias_activation_backward(const scalar_t* __restrict__ grad_y,  // [N, C, P]
                         const scalar_t* __restrict__ y,       // [N, C, P] or null
                         scalar_t* __restrict__ grad_x,        // [N, C, P] or null
                         acc_t* __restrict__ parts,            // [splits, C]
                         const BiasSumParams p) {
  constexpr int PITCH = 256 + 32 / PACK;  // so that adjacent channels are in different banks
  __shared__ acc_t scratch[PACK * PITCH];
  const int thread = static_cast<int>(threadIdx.x), lanes = static_cast<int>(p.lanes);
  const int lane = thread % lanes, team = thread / lanes, teams = static_cast<int>(p.teams);
  const index_t block = static_cast<index_t>(blockIdx.x);
  const index_t split = block % p.splits, group = block / p.splits;  // of channels
  const index_t begin = split * p.segments, end = least(begin + p.segments, p.rows * p.pieces);
  acc_t sums[PACK] = {};

  if (p.piece) {
    sums[0] = sum_of_pieces(grad_y, y, grad_x, begin, end, group, lane, team, p);
    const acc_t sum = block_sum(sums[0], scratch);
    if (thread == 0) parts[split * p.c + group] = sum;
    return;
  }

  const index_t place = (group * lanes + lane) * PACK, width = p.c * p.run;
  if (team < teams && place < width) {
#pragma unroll 4
    for (index_t row = begin + team; row < end; row += teams) {
      Pack<scalar_t, PACK> grad = load_pack<PACK>(grad_y + row * width + place);
      Pack<scalar_t, PACK> sign = {};
      if (y) sign = load_pack<PACK>(y + row * width + place);
#pragma unroll
      for (int j = 0; j < PACK; ++j) {
        const acc_t value = activated_backward(widen(grad.at[j]), widen(sign.at[j]), p.activation, p.negative_slope);
        sums[j] = sums[j] + value;
        grad.at[j] = narrow(value);
      }
      if (grad_x) store_pack(grad_x + row * width + place, grad);
    }
  }
#pragma unroll
  for (int j = 0; j < PACK; ++j) scratch[j * PITCH + thread] = sums[j];
  __syncthreads();
  const int run = static_cast<int>(p.run), channels = lanes * PACK / run;
  for (int i = thread; i < channels; i += static_cast<int>(blockDim.x)) {
    const index_t channel = group * channels + i;
    if (channel >= p.c) continue;
    acc_t sum = {};
    for (int e = i * run; e < (i + 1) * run; ++e) {
      for (int t = 0; t < teams; ++t) sum = sum + scratch[e % PACK * PITCH + t * lanes + e / PACK];
    }
    parts[split * p.c + channel] = sum;
  }
}
