// CUDA's keywords, vector types, indices, barriers and fences.
#pragma once

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __grid_constant__

// The copy of a vector is one access, as it is on a GPU: compilers would copy its members one by one.
#define GPUCNN_ONE_ACCESS(NAME, BYTES)                                         \
  NAME() = default;                                                            \
  NAME(const NAME& other) { *this = other; }                                   \
  NAME& operator=(const NAME& other) {                                         \
    typedef char Whole __attribute__((vector_size(BYTES), may_alias));         \
    *reinterpret_cast<Whole*>(this) = *reinterpret_cast<const Whole*>(&other); \
    return *this;                                                              \
  }

// T2, T3, T4 and make_T2 ... for one element type of `SIZE` bytes, with CUDA's alignments.
#define GPUCNN_VECTOR_TYPES(T, NAME, SIZE)                                             \
  struct alignas(2 * SIZE) NAME##2 {                                                   \
    T x, y;                                                                            \
    GPUCNN_ONE_ACCESS(NAME##2, 2 * SIZE)                                               \
    NAME##2(T x, T y) : x(x), y(y) {}                                                  \
  };                                                                                   \
  struct NAME##3 { T x, y, z; };                                                       \
  struct alignas(4 * SIZE < 16 ? 4 * SIZE : 16) NAME##4 {                              \
    T x, y, z, w;                                                                      \
    GPUCNN_ONE_ACCESS(NAME##4, 4 * SIZE)                                               \
    NAME##4(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}                            \
  };                                                                                   \
  inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }                   \
  GPUCNN_VECTOR_MAKERS(T, NAME)
#define GPUCNN_VECTOR_MAKERS(T, NAME)                                                  \
  inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                           \
  inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
GPUCNN_VECTOR_TYPES(signed char, char, 1)
GPUCNN_VECTOR_TYPES(unsigned char, uchar, 1)
GPUCNN_VECTOR_TYPES(short, short, 2)
GPUCNN_VECTOR_TYPES(unsigned short, ushort, 2)
GPUCNN_VECTOR_TYPES(int, int, 4)
GPUCNN_VECTOR_TYPES(float, float, 4)

// uint3 is the runtime's.
struct alignas(8) uint2 {
  unsigned x, y;
  GPUCNN_ONE_ACCESS(uint2, 8)
  uint2(unsigned x, unsigned y) : x(x), y(y) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
  GPUCNN_ONE_ACCESS(uint4, 16)
  uint4(unsigned x, unsigned y, unsigned z, unsigned w) : x(x), y(y), z(z), w(w) {}
};
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
GPUCNN_VECTOR_MAKERS(unsigned, uint)

// Those of 32 bytes are two accesses on a GPU too.
#define GPUCNN_WIDE_VECTOR_TYPES(T, NAME)                  \
  struct alignas(16) NAME##2 {                             \
    T x, y;                                                \
    GPUCNN_ONE_ACCESS(NAME##2, 16)                         \
    NAME##2(T x, T y) : x(x), y(y) {}                      \
  };                                                       \
  struct NAME##3 { T x, y, z; };                           \
  struct alignas(16) NAME##4 { T x, y, z, w; };            \
  inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; } \
  GPUCNN_VECTOR_MAKERS(T, NAME)
GPUCNN_WIDE_VECTOR_TYPES(double, double)
GPUCNN_WIDE_VECTOR_TYPES(long long, longlong)
GPUCNN_WIDE_VECTOR_TYPES(unsigned long long, ulonglong)
GPUCNN_WIDE_VECTOR_TYPES(long, long)
GPUCNN_WIDE_VECTOR_TYPES(unsigned long, ulong)
// Of one element.
#define GPUCNN_SINGLE(T, NAME)             \
  struct NAME##1 { T x; };                 \
  inline NAME##1 make_##NAME##1(T x) { return {x}; }
GPUCNN_SINGLE(signed char, char)
GPUCNN_SINGLE(unsigned char, uchar)
GPUCNN_SINGLE(short, short)
GPUCNN_SINGLE(unsigned short, ushort)
GPUCNN_SINGLE(int, int)
GPUCNN_SINGLE(unsigned, uint)
GPUCNN_SINGLE(long, long)
GPUCNN_SINGLE(unsigned long, ulong)
GPUCNN_SINGLE(long long, longlong)
GPUCNN_SINGLE(unsigned long long, ulonglong)
GPUCNN_SINGLE(float, float)
GPUCNN_SINGLE(double, double)
#undef GPUCNN_SINGLE
#undef GPUCNN_VECTOR_TYPES
#undef GPUCNN_WIDE_VECTOR_TYPES
#undef GPUCNN_VECTOR_MAKERS
#undef GPUCNN_ONE_ACCESS

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
inline void __threadfence_system(gpucnn::Site site = gpucnn::Site::here()) { gpucnn::threadfence(site); }
inline void __threadfence_block() {}  // orders one thread's own accesses: barriers alone order threads here

inline size_t __cvta_generic_to_shared(const void* pointer, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::shared_address(pointer, site);
}
inline void* __cvta_shared_to_generic(size_t address, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::generic_address(static_cast<uint32_t>(address), site);
}

[[noreturn]] inline void __trap(gpucnn::Site site = gpucnn::Site::here()) {
  gpucnn::trap("__trap() was executed", site);
}

#undef assert
#define assert(condition) \
  ((condition) ? (void)0 : ::gpucnn::trap("assert(" #condition ") failed", ::gpucnn::Site::here()))
