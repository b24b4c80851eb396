// Rows held whole in a block's registers: partition of their elements among threads, and sums over a row.

constexpr int MAX_THREADS = 256;  // of a block
constexpr int LEADERS = 32;        // of it at most: 8 lanes or more have one

// A row is `segments` contiguous runs of `length`; `lanes` threads take one, and a block `at_once` rows in parallel.
struct RowThread {
  int lane, lanes;  // [0, lanes) within the segment
  int segment;      // [0, segments)
  int local;        // [0, at_once) among the block's rows
  bool works;       // false for padding of the last warp, which counts as part of the block's last row
};

__device__ __forceinline__ RowThread row_thread(const NormRowParams& p) {
  const int thread = static_cast<int>(threadIdx.x), segments = static_cast<int>(p.segments);
  RowThread own;
  own.lanes = static_cast<int>(p.lanes);
  own.lane = thread % own.lanes;
  own.segment = thread / own.lanes % segments;
  own.local = thread / own.lanes / segments;
  own.works = own.local < p.at_once;
  if (!own.works) own.local = static_cast<int>(p.at_once) - 1;
  return own;
}

__device__ __forceinline__ int lanes_of_leader(const RowThread& own) { return own.lanes < 32 ? own.lanes : 32; }

// Whether any row is `marked` among those that synchronise: the rows of a warp, or of the block.
__device__ __forceinline__ bool any_row(bool marked, const RowThread& own, const NormRowParams& p) {
  const bool is_in_warp = p.segments == 1 && own.lanes <= 32;
  return is_in_warp ? __any_sync(0xffffffffu, marked) : __syncthreads_or(marked);
}

// The sums over a row's threads, each segment's times its factor, in each of the threads. All threads of the block call
// it. `by_segment`, if given, gets the segment's unscaled sums, for the thread of lane 0.
template <int N, typename T>
__device__ __forceinline__ void add_row(T (&sums)[N], acc_t factor, T* scratch, acc_t* factors, const RowThread& own,
                                        const NormRowParams& p, T* by_segment = nullptr) {
  const int lanes = lanes_of_leader(own), leader = static_cast<int>(threadIdx.x) / lanes;
  const int of_segment = own.lanes / lanes, of_row = of_segment * static_cast<int>(p.segments);
  add_lanes(sums, lanes, 1);
  if (of_row > 1) {
    if (static_cast<int>(threadIdx.x) % lanes == 0) {
#pragma unroll
      for (int k = 0; k < N; ++k) scratch[k * LEADERS + leader] = sums[k];
      factors[leader] = factor;
    }
    __syncthreads();
  }
  if (by_segment) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      by_segment[k] = sums[k];
      for (int other = 1; own.lane == 0 && other < of_segment; ++other) {
        by_segment[k] = by_segment[k] + scratch[k * LEADERS + leader + other];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (of_row == 1) {
      sums[k] = sums[k] * factor;
      continue;
    }
    sums[k] = T{};
    for (int other = own.local * of_row; other < (own.local + 1) * of_row; ++other) {
      sums[k] = sums[k] + scratch[k * LEADERS + other] * factors[other];
    }
  }
  if (of_row > 1) __syncthreads();  // no thread may rewrite scratch before all have read their sums
}
