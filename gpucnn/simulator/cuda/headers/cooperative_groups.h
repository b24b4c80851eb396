// Cooperative groups: the block, its tiles of up to a warp, and the grid. The simulator runs blocks one after another,
// so they cannot wait for one another: the barrier of a grid is one of its only block.
#pragma once

namespace cooperative_groups {

namespace details {
inline unsigned thread_rank_in_block() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
inline unsigned threads_in_block() { return blockDim.x * blockDim.y * blockDim.z; }
inline unsigned lane() { return thread_rank_in_block() % 32; }
}  // namespace details

class thread_block {
 public:
  static void sync(gpucnn::Site site = gpucnn::Site::here()) { __syncthreads(site); }
  static unsigned thread_rank() { return details::thread_rank_in_block(); }
  static unsigned num_threads() { return details::threads_in_block(); }
  static unsigned size() { return num_threads(); }
  static dim3 group_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
  static dim3 thread_index() { return {threadIdx.x, threadIdx.y, threadIdx.z}; }
  static dim3 group_dim() { return blockDim; }
  static dim3 dim_threads() { return blockDim; }
};
inline thread_block this_thread_block() { return {}; }

class grid_group {
 public:
  static bool is_valid() { return num_blocks() == 1; }
  static void sync(gpucnn::Site site = gpucnn::Site::here()) {
    if (!is_valid()) {
      gpucnn::trap("a barrier of several blocks is not simulated: they run one after another", site);
    }
    __syncthreads(site);
  }
  static unsigned long long block_rank() {
    return blockIdx.x + gridDim.x * (blockIdx.y + 1ull * gridDim.y * blockIdx.z);
  }
  static unsigned long long num_blocks() { return 1ull * gridDim.x * gridDim.y * gridDim.z; }
  static unsigned long long thread_rank() {
    return block_rank() * details::threads_in_block() + details::thread_rank_in_block();
  }
  static unsigned long long num_threads() { return num_blocks() * details::threads_in_block(); }
  static unsigned long long size() { return num_threads(); }
  static dim3 group_dim() { return gridDim; }
  static dim3 dim_blocks() { return gridDim; }
  static dim3 block_index() { return {blockIdx.x, blockIdx.y, blockIdx.z}; }
};
inline grid_group this_grid() { return {}; }

// Lanes of one warp, as a mask; ranks count them from the lowest.
class lanes_of_warp {
 public:
  explicit lanes_of_warp(unsigned mask) : mask_(mask) {}
  void sync(gpucnn::Site site = gpucnn::Site::here()) const { __syncwarp(mask_, site); }
  unsigned thread_rank() const { return __popc(mask_ & ((1u << details::lane()) - 1)); }
  unsigned num_threads() const { return __popc(mask_); }
  unsigned size() const { return num_threads(); }

  template <class T>
  T shfl(T value, int rank, gpucnn::Site site = gpucnn::Site::here()) const {
    return __shfl_sync(mask_, value, lane_of(static_cast<unsigned>(rank) % num_threads()), 32, site);
  }
  template <class T>
  T shfl_down(T value, unsigned delta, gpucnn::Site site = gpucnn::Site::here()) const {
    const unsigned rank = thread_rank() + delta;
    return __shfl_sync(mask_, value, lane_of(rank < num_threads() ? rank : thread_rank()), 32, site);
  }
  template <class T>
  T shfl_up(T value, unsigned delta, gpucnn::Site site = gpucnn::Site::here()) const {
    const unsigned rank = thread_rank();
    return __shfl_sync(mask_, value, lane_of(rank >= delta ? rank - delta : rank), 32, site);
  }
  template <class T>
  T shfl_xor(T value, unsigned bits, gpucnn::Site site = gpucnn::Site::here()) const {
    return __shfl_sync(mask_, value, lane_of((thread_rank() ^ bits) % num_threads()), 32, site);
  }
  int any(int predicate, gpucnn::Site site = gpucnn::Site::here()) const { return __any_sync(mask_, predicate, site); }
  int all(int predicate, gpucnn::Site site = gpucnn::Site::here()) const { return __all_sync(mask_, predicate, site); }
  unsigned ballot(int predicate, gpucnn::Site site = gpucnn::Site::here()) const {
    const unsigned lanes = __ballot_sync(mask_, predicate, site);
    unsigned packed = 0, rank = 0;
    for (unsigned lane = 0; lane < 32; lane++) {
      if (mask_ >> lane & 1) packed |= (lanes >> lane & 1) << rank++;
    }
    return packed;
  }

 private:
  int lane_of(unsigned rank) const {
    unsigned rest = mask_;
    while (rank-- > 0) rest &= rest - 1;
    return __ffs(static_cast<int>(rest)) - 1;
  }
  unsigned mask_;
};

typedef lanes_of_warp coalesced_group;
inline coalesced_group coalesced_threads() { return coalesced_group(__activemask()); }

template <unsigned kSize, class Parent = void>
class thread_block_tile : public lanes_of_warp {
  static_assert(kSize > 0 && kSize <= 32 && (kSize & (kSize - 1)) == 0,
                "the simulator has tiles of 1, 2, 4, 8, 16 and 32 threads");

 public:
  thread_block_tile() : lanes_of_warp(mask_of_this()) {}
  static unsigned meta_group_rank() { return details::thread_rank_in_block() / kSize; }
  static unsigned meta_group_size() { return (details::threads_in_block() + kSize - 1) / kSize; }

 private:
  static unsigned mask_of_this() {
    const unsigned ones = kSize == 32 ? ~0u : (1u << kSize % 32) - 1;
    return ones << details::lane() / kSize * kSize;
  }
};

template <unsigned kSize, class Parent>
thread_block_tile<kSize, Parent> tiled_partition(const Parent&) {
  return {};
}

template <class Group>
void sync(const Group& group, gpucnn::Site site = gpucnn::Site::here()) {
  group.sync(site);
}

template <class T>
struct plus {
  T operator()(T a, T b) const { return a + b; }
};
template <class T>
struct less {
  T operator()(T a, T b) const { return b < a ? b : a; }
};
template <class T>
struct greater {
  T operator()(T a, T b) const { return a < b ? b : a; }
};

// Combines the values of all threads of a tile; each gets the result.
template <class Group, class T, class Operation>
T reduce(const Group& group, T value, Operation operation, gpucnn::Site site = gpucnn::Site::here()) {
  T result = group.shfl(value, 0, site);
  for (unsigned rank = 1; rank < group.num_threads(); rank++) {
    result = operation(result, group.shfl(value, static_cast<int>(rank), site));
  }
  return result;
}

// The copy of a block into its shared memory; it is done when it returns.
template <class Group, class T>
void memcpy_async(const Group& group, T* to, const T* from, size_t bytes) {
  for (size_t i = group.thread_rank(); i < bytes / sizeof(T); i += group.num_threads()) to[i] = from[i];
}
template <class Group>
void wait(const Group& group, gpucnn::Site site = gpucnn::Site::here()) {
  group.sync(site);
}
template <unsigned kStages, class Group>
void wait_prior(const Group& group, gpucnn::Site site = gpucnn::Site::here()) {
  group.sync(site);
}

}  // namespace cooperative_groups
