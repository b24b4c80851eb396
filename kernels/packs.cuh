// Runs of neighbours in memory as packs, and shared memory that packs are taken apart in.

// Where element `at` of an array in shared memory lies: a word is left out after each 32, so that lanes which are a
// power of two apart meet different banks.
template <typename T>
__device__ __forceinline__ index_t skewed(index_t at) {
  constexpr int LINE = 128 / sizeof(T), GAP = sizeof(T) < 4 ? 4 / sizeof(T) : 1;
  return at + at / LINE * GAP;
}

// A run of `length` neighbours in memory: packs of N from the first border of a sector to the last, and the single
// elements before and after them.
template <int N, typename T = scalar_t>
struct Packed {
  static constexpr index_t BORDER = 32 / sizeof(T);
  index_t first, end;  // of the packs: [first, end)
  index_t singles;     // k-th of them: k where that is before `first`, else k - first + end

  __device__ __forceinline__ Packed(index_t offset, index_t length) {
    first = N == 1 ? 0 : least(length, -offset & (BORDER - 1));  // the lower bits, also of what is negative
    end = N == 1 ? length : first + (length - first) / BORDER * BORDER;
    singles = length - end + first;
  }

  __device__ __forceinline__ index_t single(index_t k) const { return k < first ? k : k - first + end; }
};
