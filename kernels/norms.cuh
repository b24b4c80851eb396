// Reductions of the norms: which elements a thread sums, and sums that do not lose what rounding drops.

// --- Places in x -----------------------------------------------------------------------------------------------------

struct Place {  // along axes 0 to 3, see params.cuh
  index_t i0, i1, i2, i3;
};

// The i-th place, axis 3 fastest. What is left for axis 0 needs no size.
__device__ __forceinline__ Place place(index_t i, index_t size_1, index_t size_2, index_t size_3) {
  Place at;
  at.i3 = i % size_3;
  i /= size_3;
  at.i2 = i % size_2;
  i /= size_2;
  at.i1 = i % size_1;
  at.i0 = i / size_1;
  return at;
}

__device__ __forceinline__ index_t offset(Place at, index_t step_0, index_t step_1, index_t step_2, index_t step_3) {
  return at.i0 * step_0 + at.i1 * step_1 + at.i2 * step_2 + at.i3 * step_3;
}

// --- Who sums what ---------------------------------------------------------------------------------------------------

// A block takes one part of `lanes` neighbouring sums: thread t works at sum t % lanes with all others of that lane.
// Lanes are several where kept axes are innermost in memory, so that neighbouring threads read neighbouring elements
// there too; else there is one, and the threads walk its elements side by side.
struct Share {
  index_t sum;                // [0, kept): which sum; beyond it, a lane without work
  index_t part;               // [0, splits)
  index_t count;              // elements of this part of the sum
  index_t first, last, step;  // this thread's elements, within [0, reduced)
  bool writes;                // whether it is the thread that writes the lane's result
};

__device__ __forceinline__ index_t part_size(index_t part, index_t run, index_t reduced) {
  return least(run, reduced - part * run);
}

__device__ __forceinline__ Share share(const NormSumParams& p) {
  const index_t thread = static_cast<index_t>(threadIdx.x), block = static_cast<index_t>(blockIdx.x);
  const index_t tiles = (p.kept + p.lanes - 1) / p.lanes;
  Share own;
  own.sum = block % tiles * p.lanes + thread % p.lanes;
  own.part = block / tiles;
  own.count = part_size(own.part, p.run, p.reduced);
  const bool works = own.sum < p.kept;
  own.first = own.part * p.run + thread / p.lanes;
  own.last = works ? own.part * p.run + own.count : 0;
  own.step = static_cast<index_t>(blockDim.x) / p.lanes;
  own.writes = works && thread < p.lanes;
  return own;
}

// --- Compensated sums ------------------------------------------------------------------------------------------------

// A sum as it was rounded, and all that its roundings dropped (Knuth's two-sum, The Art of Computer Programming 2,
// 4.2.2): nearly twice the precision of acc_t, for some additions where memory sets the pace. A plain float32 sum is
// off by 4e-5 after four thousand times 0.1, and by a hundredth after a million.
struct Sum {
  acc_t value, lost;
};

__device__ __forceinline__ Sum operator+(Sum a, Sum b) {
  const acc_t value = a.value + b.value;
  const acc_t from_b = value - a.value;
  const acc_t lost = (a.value - (value - from_b)) + (b.value - from_b);
  return {value, a.lost + b.lost + lost};
}

__device__ __forceinline__ Sum operator+(Sum a, acc_t b) { return a + Sum{b, 0}; }

// The sum in acc_t. Where it is infinite, what was lost is NaN and counts for nothing.
__device__ __forceinline__ acc_t rounded(Sum sum) { return sum.lost == sum.lost ? sum.value + sum.lost : sum.value; }

constexpr int MOST_THREADS = 256;  // of a block that sums

// The sum over the threads of each lane, in each of them, over always the same pairs. All threads of the block call it;
// their number is a power of two and a multiple of `lanes`. `scratch` [blockDim.x] is free again afterwards.
__device__ __forceinline__ acc_t lane_sum(Sum sum, Sum* scratch, index_t lanes) {
  const int thread = static_cast<int>(threadIdx.x);
  scratch[thread] = sum;
  __syncthreads();
  for (int half = static_cast<int>(blockDim.x) / 2; half >= lanes; half /= 2) {
    if (thread < half) scratch[thread] = scratch[thread] + scratch[thread + half];
    __syncthreads();
  }
  const acc_t result = rounded(scratch[thread % lanes]);
  __syncthreads();  // nobody may write scratch again before all have read their sum
  return result;
}
