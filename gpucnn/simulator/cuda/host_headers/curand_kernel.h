// The states of cupy.random's bit generators, of which CuPy needs the sizes only: it allocates arrays of them, and
// what lies in them is between the functions that read and write them (../curand/generator_api.cpp).
#pragma once
#include <stdint.h>
#include <sys/types.h>

struct curandState {
  uint64_t words[6];
};

struct curandStateMRG32k3a {
  uint64_t words[6];
};

struct curandStatePhilox4_32_10_t {
  uint64_t words[8];
};
