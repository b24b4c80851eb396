// CUDA's keywords, vector types, indices, barriers and fences.
#pragma once

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __grid_constant__

// T2, T3, T4 and make_T2 ... for one element type, with CUDA's alignments.
#define GPUCNN_VECTOR_TYPES(T, NAME, ALIGN2, ALIGN4)                                   \
  struct alignas(ALIGN2) NAME##2 { T x, y; };                                          \
  struct NAME##3 { T x, y, z; };                                                       \
  struct alignas(ALIGN4) NAME##4 { T x, y, z, w; };                                    \
  inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                           \
  inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }                   \
  inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
GPUCNN_VECTOR_TYPES(signed char, char, 2, 4)
GPUCNN_VECTOR_TYPES(unsigned char, uchar, 2, 4)
GPUCNN_VECTOR_TYPES(short, short, 4, 8)
GPUCNN_VECTOR_TYPES(unsigned short, ushort, 4, 8)
GPUCNN_VECTOR_TYPES(int, int, 8, 16)
GPUCNN_VECTOR_TYPES(float, float, 8, 16)
GPUCNN_VECTOR_TYPES(double, double, 16, 16)
GPUCNN_VECTOR_TYPES(long long, longlong, 16, 16)
#undef GPUCNN_VECTOR_TYPES

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// The scheduler sets them for each thread. They are const here, so that reading them is not checked as an access.
extern const uint3 threadIdx, blockIdx;
extern const dim3 blockDim, gridDim;
constexpr int warpSize = 32;

inline void __syncthreads(gpucnn::Site site = gpucnn::Site::here()) { gpucnn::barrier(false, site); }
inline int __syncthreads_count(int predicate, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::barrier(predicate != 0, site);
}
inline int __syncthreads_or(int predicate, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::barrier(predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::barrier(predicate == 0, site) == 0;
}
inline void __threadfence(gpucnn::Site site = gpucnn::Site::here()) { gpucnn::threadfence(site); }
inline void __threadfence_block() {}  // orders one thread's own accesses: barriers alone order threads here

inline size_t __cvta_generic_to_shared(const void* pointer, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::shared_address(pointer, site);
}

[[noreturn]] inline void __trap(gpucnn::Site site = gpucnn::Site::here()) {
  gpucnn::trap("__trap() was executed", site);
}

#undef assert
#define assert(condition) \
  ((condition) ? (void)0 : ::gpucnn::trap("assert(" #condition ") failed", ::gpucnn::Site::here()))
