// Words in NVIDIA's runtime headers that a host compiler is to pass over or has its own for. The runtime's package
// leaves this file to the one of the compiler nvcc, which nothing here needs.
#pragma once
#define CUDARTAPI
#define __host__
#define __device__
#define __global__
#define __shared__
#define __constant__
#define __managed__
#define __forceinline__ inline
#define __cudart_builtin__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __location__(place)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __builtin_align__(bytes) __attribute__((aligned(bytes)))
