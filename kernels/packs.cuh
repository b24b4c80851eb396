// Contiguous runs as packs, and skewed shared memory to transpose them.

// Padded offset of element `at` in shared memory: a word is skipped after each 32, so that power-of-two strides map to
// different banks.
template <typename T>
__device__ __forceinline__ index_t skewed(index_t at) {
  constexpr int LINE = 128 / sizeof(T), GAP = sizeof(T) < 4 ? 4 / sizeof(T) : 1;
  return at + at / LINE * GAP;
}

// A run of `length` contiguous elements: packs of N from the first sector boundary to the last, and the single elements
// before and after them.
template <int N, typename T = scalar_t>
struct Packed {
  static constexpr index_t BORDER = 32 / sizeof(T);
  index_t first, end;  // of the packs: [first, end)
  index_t singles;     // k-th of them: k where that is before `first`, else k - first + end

  __device__ __forceinline__ Packed(index_t offset, index_t length) {
    first = N == 1 ? 0 : least(length, -offset & (BORDER - 1));  // the lower bits, for negative values too
    end = N == 1 ? length : first + (length - first) / BORDER * BORDER;
    singles = length - end + first;
  }

  __device__ __forceinline__ index_t single(index_t k) const { return k < first ? k : k - first + end; }
};
