// Products of a block's tiles, summed in float. A factor is read as a sum of TERMS values:
//   1  16-bit floats, or floats that were rounded to TF32 before: one product on tensor cores
//   2  a float as the sum of two TF32 values: three products on tensor cores, all but that of the two small ones
//   0  a float as it is: fused multiply-adds, no tensor cores
// SM_80 is whether the device has compute capability 8.0 or later. Tensor cores before it multiply half_t only, and
// copies to shared memory wait: while they do, another block multiplies.
//
// A fragment spans 32 bytes along the inner dimension, 16 values of 16 bits or 8 floats, so all types share their
// layouts in shared memory, whose unit is a chunk of 16 bytes. A block has WARPS_M * WARPS_N warps, each of which sums
// 16 * FRAGMENTS rows by 64 columns.

constexpr int THREADS = 32 * WARPS_M * WARPS_N;
constexpr int TILE_M = 16 * FRAGMENTS * WARPS_M, TILE_N = 64 * WARPS_N;
constexpr int CHUNK = 16 / sizeof(scalar_t);  // elements
constexpr bool USES_FFMA = TERMS == 0, IS_SPLIT = TERMS == 2;

// Where a chunk of a row of N stands: turned by the row, so that TURN chunks of each of 8 / TURN rows lie in different
// banks.
template <int N, int TURN = 1>
__device__ __forceinline__ int chunk_at(int row, int chunk) {
  constexpr int TURNED = N < 8 ? N : 8;
  return row * N + (chunk ^ row * TURNED / 8 * TURN % TURNED);
}

__device__ __forceinline__ unsigned shared_address(const void* at) {
  return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

// The same pointer, which the compiler takes as it is, instead of adding up its parts at each use.
__device__ __forceinline__ const scalar_t* as_is(const scalar_t* pointer) {
  unsigned long long address = reinterpret_cast<unsigned long long>(pointer);
  asm volatile("mov.u64 %0, %1;" : "=l"(address) : "l"(address));
  return reinterpret_cast<const scalar_t*>(address);
}

// --- Copies to shared memory -----------------------------------------------------------------------------------------

// Copies of chunks of 16 bytes, or of zeros where a chunk does not exist.
template <bool ASYNCHRONOUS>
struct Copying {
  // Of a chunk that other taps read too, so L1 keeps it.
  static __device__ __forceinline__ void copy(unsigned to, const scalar_t* from, bool exists) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(to), "l"(from), "n"(16), "r"(exists ? 16 : 0)
                 : "memory");
  }

  // Of a chunk that no other copy of this block reads.
  static __device__ __forceinline__ void copy_once(unsigned to, const scalar_t* from, bool exists) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(to), "l"(from), "n"(16), "r"(exists ? 16 : 0)
                 : "memory");
  }

  static __device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" : : : "memory"); }

  // Waits for all groups of copies but the LEFT last ones.
  template <int LEFT>
  static __device__ __forceinline__ void wait() {
    asm volatile("cp.async.wait_group %0;" : : "n"(LEFT) : "memory");
  }
};

template <>
struct Copying<false> {
  static __device__ __forceinline__ void copy(unsigned to, const scalar_t* from, bool exists) {
    Pack<unsigned, 4> chunk = {};
    if (exists) chunk = load_pack<4>(reinterpret_cast<const unsigned*>(from));
    store_pack(static_cast<unsigned*>(__cvta_shared_to_generic(to)), chunk);
  }

  static __device__ __forceinline__ void copy_once(unsigned to, const scalar_t* from, bool exists) {
    copy(to, from, exists);
  }

  static __device__ __forceinline__ void commit() {}

  template <int LEFT>
  static __device__ __forceinline__ void wait() {}
};

using ChunkCopy = Copying<SM_80 != 0>;

// --- Products --------------------------------------------------------------------------------------------------------

template <typename T, bool IS_SM_80>
struct Mma;  // sums [16, 8] += a [16, 32 bytes] times b [32 bytes, 8], spread over a warp as PTX defines

template <>
struct Mma<half_t, true> {
  static __device__ __forceinline__ void add(float (&sums)[4], const unsigned (&a)[4], const unsigned* b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%10,%11,%12,%13};"
                 : "=f"(sums[0]), "=f"(sums[1]), "=f"(sums[2]), "=f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(sums[0]), "f"(sums[1]),
                   "f"(sums[2]), "f"(sums[3]));
  }
};

template <>
struct Mma<half_t, false> {  // the left half of a by the upper half of b, then the others
  static __device__ __forceinline__ void add(float (&sums)[4], const unsigned (&a)[4], const unsigned* b) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
                   "{%7,%8,%9,%10};"
                   : "=f"(sums[0]), "=f"(sums[1]), "=f"(sums[2]), "=f"(sums[3])
                   : "r"(a[half * 2]), "r"(a[half * 2 + 1]), "r"(b[half]), "f"(sums[0]), "f"(sums[1]), "f"(sums[2]),
                     "f"(sums[3]));
    }
  }
};

template <>
struct Mma<bfloat16_t, true> {
  static __device__ __forceinline__ void add(float (&sums)[4], const unsigned (&a)[4], const unsigned* b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%10,%11,%12,%13};"
                 : "=f"(sums[0]), "=f"(sums[1]), "=f"(sums[2]), "=f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(sums[0]), "f"(sums[1]),
                   "f"(sums[2]), "f"(sums[3]));
  }
};

template <>
struct Mma<float, true> {
  static __device__ __forceinline__ void add(float (&sums)[4], const unsigned (&a)[4], const unsigned* b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%10,%11,%12,%13};"
                 : "=f"(sums[0]), "=f"(sums[1]), "=f"(sums[2]), "=f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(sums[0]), "f"(sums[1]),
                   "f"(sums[2]), "f"(sums[3]));
  }
};

using TensorCores = Mma<scalar_t, SM_80 || USES_FFMA>;

// The two terms of four floats: 11 bits each, so that 2^-22 of a float is left out. The second of a NaN is NaN.
__device__ __forceinline__ void split(unsigned (&values)[4], unsigned (&low)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float value = __uint_as_float(values[i]);
    values[i] = values[i] + 0x1000u & ~0x1fffu;
    low[i] = __float_as_uint(value - __uint_as_float(values[i]));
  }
}

template <typename T, int N>
__device__ __forceinline__ Pack<T, N> load_shared(unsigned at) {
  return load_pack<N>(static_cast<const T*>(__cvta_shared_to_generic(at)));
}

// Four 8 x 16-byte matrices, whose rows' addresses each lane gives one of.
__device__ __forceinline__ void load_fragments(unsigned (&to)[4], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row));
}

// The same of matrices of 16-bit values stored with the inner dimension along rows.
__device__ __forceinline__ void load_fragments_transposed(unsigned (&to)[4], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row));
}

// --- A tile's product ------------------------------------------------------------------------------------------------

using Sums = float[FRAGMENTS][8][4];  // of a warp, of 16 * FRAGMENTS rows and 64 columns
using FragmentsA = unsigned[FRAGMENTS][4];
using FragmentsB = unsigned[4][4];

constexpr int PROMOTED_STEPS = 16;  // of 16 floats: tensor cores drop bits of longer sums

// Adds the products with 16 columns.
__device__ __forceinline__ void add_products(Sums& sums, int g, const FragmentsA& a, const unsigned (&b)[4]) {
#pragma unroll
  for (int f = 0; f < FRAGMENTS; ++f) {
#pragma unroll
    for (int side = 0; side < 2; ++side) TensorCores::add(sums[f][g * 2 + side], a[f], &b[side * 2]);
  }
}

// Adds the products of half a step, of fragments as they are in shared memory.
__device__ __forceinline__ void add_fragments(Sums& sums, FragmentsA& a, FragmentsB& b) {
  FragmentsA a_low;
#pragma unroll
  for (int f = 0; f < FRAGMENTS && IS_SPLIT; ++f) split(a[f], a_low[f]);
#pragma unroll
  for (int g = 0; g < 4; ++g) {
    if (IS_SPLIT) {
      unsigned b_low[4];
      split(b[g], b_low);
      add_products(sums, g, a_low, b[g]);
      add_products(sums, g, a, b_low);
    }
    add_products(sums, g, a, b[g]);
  }
}

// Adds a[i] * b[g] to the sums [8][4] of a fragment's rows.
__device__ __forceinline__ void add_outer_product(float (&sums)[8][4], const float (&a)[4], const float (&b)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int g = 0; g < 8; ++g) sums[g][i] = fmaf(a[i], b[g], sums[g][i]);
  }
}

// Adds the sums of the last steps, and begins them anew.
__device__ __forceinline__ void promote(Sums& sums, Sums& recent) {
#pragma unroll
  for (int f = 0; f < FRAGMENTS; ++f) {
#pragma unroll
    for (int g = 0; g < 8; ++g) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[f][g][i] += recent[f][g][i], recent[f][g][i] = 0.0f;
    }
  }
}

// Adds the products of all steps. copy(step, stage) starts the copies of a step's factors, if there is such a step, to
// one of the STAGES of shared memory: those of STAGES - 1 steps are under way while one is multiplied.
// multiply(sums, step, stage) adds the products of one step.
template <typename Copy, typename Multiply>
__device__ __forceinline__ void add_steps(Sums& sums, index_t steps, const Copy& copy, const Multiply& multiply) {
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s) copy(s, s);
  int stage = 0, free_stage = STAGES - 1;
  Sums recent = {};
  for (index_t step = 0; step < steps;) {
    const index_t end = IS_SPLIT ? least(step + PROMOTED_STEPS, steps) : steps;
    for (; step < end; ++step) {
      ChunkCopy::wait<STAGES - 2>();
      __syncthreads();
      copy(step + STAGES - 1, free_stage);
      multiply(IS_SPLIT ? recent : sums, step, stage);
      stage = stage + 1 == STAGES ? 0 : stage + 1;
      free_stage = free_stage + 1 == STAGES ? 0 : free_stage + 1;
    }
    if (IS_SPLIT) promote(sums, recent);
  }
  ChunkCopy::wait<0>();
}
