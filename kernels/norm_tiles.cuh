// Work partition of the norms' general kernels among blocks and threads: a tile of sums and of their terms.
//
// A program defines two macros. PACK is the vector width. ALONG is 1 where the elements of a pack belong to adjacent
// sums (channels last), 0 where they belong to one (channels first).

constexpr int EACH = ALONG ? PACK : 1;  // sums per thread
constexpr int MAX_THREADS = 512;       // of a block
constexpr int MAX_SUMS = 64;           // per block
constexpr int SCRATCH = 2 * (ALONG ? EACH * 256 : MAX_THREADS);  // two values of each thread's sums

// A block takes one part of `sums` adjacent sums. Its threads are `rows` rows of `columns`: a row reads contiguous
// memory, `side` packs of each sum, and the following rows read further terms of the same sums.
struct Tile {
  index_t tile, part;         // of the sums; of their terms, [0, splits)
  index_t row, column;        // of the thread
  index_t local, sum;         // its first sum: in the block, and of all, [0, kept)
  index_t count;              // elements of this part of a sum
  index_t first, last, step;  // offsets of the thread's packs in [0, reduced); empty if idle
  bool leads;                 // whether it writes its sums' results
};

__device__ __forceinline__ index_t tiles_of(const NormParams& p) { return (p.kept + p.sums - 1) / p.sums; }

__device__ __forceinline__ index_t part_size(index_t part, const NormParams& p) {
  return least(p.run, p.reduced - part * p.run);
}

__device__ __forceinline__ Tile tile(const NormParams& p) {
  const index_t thread = static_cast<index_t>(threadIdx.x), block = static_cast<index_t>(blockIdx.x);
  const index_t tiles = tiles_of(p), width = ALONG ? 1 : p.side * PACK;
  Tile own;
  own.tile = block % tiles;
  own.part = block / tiles;
  own.row = thread / p.columns;
  own.column = thread % p.columns;
  const index_t within = own.column % p.side;
  own.local = ALONG ? own.column * PACK : own.column / p.side;
  own.sum = own.tile * p.sums + own.local;
  own.count = part_size(own.part, p);
  const bool works = own.row < p.rows && own.sum < p.kept;
  own.first = own.part * p.run + own.row * width + within * PACK;
  own.last = works ? own.part * p.run + own.count : 0;
  own.step = p.rows * width;
  own.leads = works && own.row == 0 && within == 0;
  return own;
}

// Call `act(local, sum)` for each sum of the block, its place in the block and among all; the threads take turns.
template <class Act>
__device__ __forceinline__ void each_sum(const Tile& own, const NormParams& p, Act act) {
  for (index_t local = threadIdx.x; local < p.sums; local += blockDim.x) {
    const index_t sum = own.tile * p.sums + local;
    if (sum < p.kept) act(local, sum);
  }
}

constexpr int COMBINED = 8;  // sums of a block that adds parts: their values fill a sector

// Values of one part of all sums, padded to whole sectors.
__device__ __forceinline__ index_t part_length(const NormParams& p) {
  return (p.kept + COMBINED - 1) / COMBINED * COMBINED;
}

// Offset of a part's values of the block's sums in an array [splits, part_length].
__device__ __forceinline__ index_t part_place(const Tile& own, const NormParams& p) {
  return own.part * part_length(p) + own.tile * p.sums;
}

// Add the terms of one pack to their sums.
template <typename T>
__device__ __forceinline__ void add_terms(T* sums, acc_t (&terms)[PACK]) {
#pragma unroll
  for (int e = 0; e < EACH; ++e) sums[e] = sums[e] + (ALONG ? terms[e] : paired(terms));
}

// Reduce sums over the threads that share them, with the result in each of them and a fixed pairing. All threads of the
// block call it; `scratch` [SCRATCH] may be reused afterwards.
template <int N, typename T>
__device__ __forceinline__ void add_threads(T (&sums)[N], T* scratch, const Tile& own, const NormParams& p) {
  const int thread = static_cast<int>(threadIdx.x);
  if (p.apart > 0) {  // lanes of stride p.apart share their sums
    const int apart = static_cast<int>(p.apart), warps = static_cast<int>(blockDim.x) / 32;
    const int lane = thread % 32, warp = thread / 32;
    const int pitch = (warps + (apart < 32 ? 1 : 0)) * apart;  // of a sum's values: a gap, for the banks
    add_lanes(sums, 32, apart);
    if (lane < apart) {
#pragma unroll
      for (int k = 0; k < N; ++k) scratch[k * pitch + warp * apart + lane] = sums[k];
    }
    __syncthreads();
    // one thread adds a sum's warps, for all
    for (int of = thread; of < N * apart; of += static_cast<int>(blockDim.x)) {
      T* const at = scratch + of / apart * pitch + of % apart;
      for (int other = 1; other < warps; ++other) *at = *at + at[other * apart];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < N; ++k) sums[k] = scratch[k * pitch + lane % apart];
  } else {  // first over the rows of threads, then over those of a sum in a row
    const int columns = static_cast<int>(p.columns), rows = static_cast<int>(p.rows), side = static_cast<int>(p.side);
    const int row = static_cast<int>(own.row), within = static_cast<int>(own.column) % side;
    for (int k = 0; k < N && row < rows; ++k) scratch[k * rows * columns + thread] = sums[k];
    __syncthreads();
    for (int size = rows; size > 1; size = (size + 1) / 2) {
      const int half = (size + 1) / 2;
      for (int k = 0; k < N && row + half < size; ++k) {
        T* const at = scratch + k * rows * columns + thread;
        *at = *at + at[half * columns];
      }
      __syncthreads();
    }
    for (int size = side; size > 1; size = (size + 1) / 2) {
      const int half = (size + 1) / 2;
      for (int k = 0; k < N && row == 0 && within + half < size; ++k) {
        T* const at = scratch + k * rows * columns + thread;
        *at = *at + at[half];
      }
      __syncthreads();
    }
#pragma unroll
    for (int k = 0; k < N; ++k) sums[k] = scratch[k * rows * columns + static_cast<int>(own.column) - within];
  }
  __syncthreads();  // no thread may rewrite scratch before all have read their sums
}

// --- Sums of parts ---------------------------------------------------------------------------------------------------

constexpr int COMBINERS = 256;  // threads of a block that adds the parts of sums

// Parts are stored as [tiles, splits, sums]: adjacent are sums of one part or, for tiles of one sum, parts of one sum.
// The threads have the same order, so that a warp reads whole sectors; `side` of them share a sum in the latter case.
// The parts written by this file's tiles are one tile here, with `sums` of part_length.
struct Combiner {
  index_t local, sum;    // in the block, and of all
  index_t member, step;  // the thread's parts: from member on, with stride step; none if idle
  index_t first;         // offset of the sum's part 0
  index_t last;          // the number of parts
  int apart;             // thread stride within one sum
};

__device__ __forceinline__ Combiner combiner(const NormParams& p) {
  const index_t thread = static_cast<index_t>(threadIdx.x);
  const bool beside = p.sums > 1;
  Combiner own;
  own.step = beside ? COMBINERS / COMBINED : p.side;  // a power of two
  own.local = beside ? thread % COMBINED : thread / own.step;
  own.member = beside ? thread / COMBINED : thread % own.step;
  own.apart = beside ? COMBINED : 1;
  own.sum = static_cast<index_t>(blockIdx.x) * COMBINED + own.local;
  own.first = own.sum / p.sums * p.splits * p.sums + own.sum % p.sums;
  own.last = own.local < COMBINED && own.sum < p.kept ? p.splits : 0;
  return own;
}

// Reduce each sum over its threads, with the result in each of them; as add_threads, with scratch [N * COMBINERS].
template <int N>
__device__ __forceinline__ void add_combiners(Sum (&sums)[N], Sum* scratch, const Combiner& own) {
  const int thread = static_cast<int>(threadIdx.x), member = static_cast<int>(own.member);
  for (int k = 0; k < N; ++k) scratch[k * COMBINERS + thread] = sums[k];
  __syncthreads();
  for (int half = static_cast<int>(own.step) / 2; half > 0; half /= 2) {
    for (int k = 0; k < N; ++k) {
      Sum* const at = scratch + k * COMBINERS + thread;
      if (member < half) *at = *at + at[half * own.apart];
    }
    __syncthreads();
  }
#pragma unroll
  for (int k = 0; k < N; ++k) sums[k] = scratch[k * COMBINERS + thread - member * own.apart];
  __syncthreads();  // nobody may write scratch again before all have read their sums
}
