// Vectors of L scalars, as many labels, and shuffles that take two vectors apart or put them together.
#pragma once

#include <type_traits>
#include <utility>

#include "vectors.hpp"

// Labels are positions in a plane, in lanes as wide as the scalars': the host sees to it that they suffice.
using label_t = std::conditional_t<sizeof(scalar_t) == 4, int32_t, int64_t>;

template <int L>
struct Lanes {
  typedef scalar_t values __attribute__((vector_size(L * sizeof(scalar_t))));
  typedef label_t labels __attribute__((vector_size(L * sizeof(label_t))));
};

template <>
struct Lanes<1> {
  using values = scalar_t;
  using labels = label_t;
};

template <int L>
using Values = typename Lanes<L>::values;
template <int L>
using Labels = typename Lanes<L>::labels;

template <class V, class T>
INLINE V read(const T* from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class V, class T>
INLINE void write(T* to, const V& v) {
  memcpy(to, &v, sizeof v);
}

template <int L, int... I>
INLINE Values<L> picked(Values<L> a, Values<L> b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, Labels<L>{I...});
#endif
}

template <int L, int FIRST, int... I>
INLINE Values<L> every_second(Values<L> a, Values<L> b, std::integer_sequence<int, I...>) {
  return picked<L>(a, b, std::integer_sequence<int, (2 * I + FIRST)...>());
}

template <int L, int FIRST, int... I>
INLINE Values<L> in_turn(Values<L> a, Values<L> b, std::integer_sequence<int, I...>) {
  return picked<L>(a, b, std::integer_sequence<int, (I % 2 * L + (FIRST + I) / 2)...>());
}

// from[0], from[2], ...: reads 2 L scalars. With FIRST = 1, from[1], from[3], ...
template <int L, int FIRST>
INLINE Values<L> every_second(const scalar_t* from) {
  if constexpr (L == 1)
    return from[FIRST];
  else
    return every_second<L, FIRST>(read<Values<L>>(from), read<Values<L>>(from + L), std::make_integer_sequence<int, L>());
}

// to = a[0], b[0], a[1], b[1], ...
template <int L>
INLINE void interleave(scalar_t* to, Values<L> a, Values<L> b) {
  if constexpr (L == 1) {
    write(to, a), write(to + 1, b);
  } else {
    write(to, in_turn<L, 0>(a, b, std::make_integer_sequence<int, L>()));
    write(to + L, in_turn<L, L>(a, b, std::make_integer_sequence<int, L>()));
  }
}
