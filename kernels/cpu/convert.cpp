// Conversion of 16-bit floats to float32, which is exact, and back, rounding to nearest even. Arrays are dense.
//
// A product in 16 bits is computed in float32 and rounded once: its arrays are converted whole, before and after.
#include <bit>

#include "vectors.hpp"

struct Params {
  index_t count, items;
};

constexpr uint32_t SIGN = 0x80000000u, INFINITE = 0x7f800000u, QUIET = 0x00400000u;  // of a float's bits

INLINE uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }
INLINE float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }

// float16 has 5 bits of exponent with a bias of 15, float32 8 with 127: 2^112 between them, also for subnormals.
INLINE float from_float16(uint16_t half) {
  uint32_t magnitude = uint32_t(half & 0x7fff) << 13, sign = uint32_t(half & 0x8000) << 16;
  uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f), special = magnitude | INFINITE;
  return float_of(sign | ((half & 0x7c00) == 0x7c00 ? special : finite));
}

INLINE uint16_t to_float16(float value) {
  uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & ~SIGN;
  uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);  // the sum's last bit counts for 2^-24
  uint32_t finite = magnitude < 113u << 23 ? subnormal : normal < 0x7c00 ? normal : 0x7c00;
  uint32_t result = magnitude < 143u << 23 ? finite : 0x7c00;  // from 65536 on
  return sign | (magnitude > INFINITE ? 0x7e00 | (magnitude >> 13 & 0x1ff) : result);
}

INLINE float from_bfloat16(uint16_t half) { return float_of(uint32_t(half) << 16); }

INLINE uint16_t to_bfloat16(float value) {
  uint32_t bits = bits_of(value), rounded = bits + 0x7fff + (bits >> 16 & 1);
  return ((bits & ~SIGN) > INFINITE ? bits | QUIET : rounded) >> 16;
}

template <class To, class From, class Function>
INLINE void convert(const Params* p, const From* x, To* y, int64_t item, Function function) {
  Range range = part_of(p->count, item, p->items);
  for (index_t i = range.begin; i < range.end; i++) y[i] = function(x[i]);
}

KERNEL widen_float16(const Params* p, const uint16_t* x, float* y, float* workspace, int64_t item) {
  convert(p, x, y, item, [](uint16_t half) { return from_float16(half); });
}

KERNEL widen_bfloat16(const Params* p, const uint16_t* x, float* y, float* workspace, int64_t item) {
  convert(p, x, y, item, [](uint16_t half) { return from_bfloat16(half); });
}

KERNEL narrow_float16(const Params* p, const float* x, uint16_t* y, float* workspace, int64_t item) {
  convert(p, x, y, item, [](float value) { return to_float16(value); });
}

KERNEL narrow_bfloat16(const Params* p, const float* x, uint16_t* y, float* workspace, int64_t item) {
  convert(p, x, y, item, [](float value) { return to_bfloat16(value); });
}
