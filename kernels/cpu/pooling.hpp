// Reductions of windows, and what they need: labels as wide as indices, and loops over rows of any length.
#pragma once

#include <limits>

#include "shuffles.hpp"

#define MEMBER inline __attribute__((always_inline))

// Indices as wide as they are in arrays.
template <int L>
struct Wide {
  typedef int64_t vector __attribute__((vector_size(L * sizeof(int64_t))));
};

template <int L>
using Width = std::integral_constant<int, L>;

template <int L, int... I>
INLINE Labels<L> counted(std::integer_sequence<int, I...>) {
  return Labels<L>{I...};
}

// 0, 1, ..., L - 1.
template <int L>
INLINE Labels<L> lane_numbers() {
  return counted<L>(std::make_integer_sequence<int, L>());
}

// --- Loops over rows: body(Width<L>(), i) for lanes [i, i + L) of [0, count) ------------------------------------------

// The last vector may overlap the one before, so a body must not read what it writes.
template <int L = LANES, class Body>
INLINE void over(index_t count, const Body& body) {
  if constexpr (L == 1) {
    for (index_t i = 0; i < count; i++) body(Width<1>(), i);
  } else if (count >= L) {
    for (index_t i = 0; i <= count - L; i += L) body(Width<L>(), i);
    if (count % L) body(Width<L>(), count - L);
  } else {
    over<(L > 4 ? L / 2 : 1)>(count, body);
  }
}

// Each index once.
template <int L = LANES, class Body>
INLINE void over_once(index_t count, const Body& body, index_t i = 0) {
  for (; i + L <= count; i += L) body(Width<L>(), i);
  if constexpr (L > 1) over_once<(L > 4 ? L / 2 : 1)>(count, body, i);
}

// --- Reductions -------------------------------------------------------------------------------------------------------

struct Sum {
  static constexpr bool IS_SUM = true;
  static constexpr bool LABELLED = false;
  static constexpr scalar_t NOTHING = 0;

  template <class V, class P>
  static MEMBER void update(V& total, P&, V value, P) {
    total += value;
  }
};

struct Maximum {
  static constexpr bool IS_SUM = false;
  static constexpr bool LABELLED = false;
  static constexpr scalar_t NOTHING = -std::numeric_limits<scalar_t>::infinity();

  template <class V, class P>
  static MEMBER void update(V& best, P&, V value, P) {
    best = ((value <= best) | (best != best)) ? best : value;
  }
};

// The label of the first of equal maxima, and of the last NaN.
struct LabelledMaximum {
  static constexpr bool IS_SUM = false;
  static constexpr bool LABELLED = true;
  static constexpr scalar_t NOTHING = Maximum::NOTHING;

  template <class V, class P>
  static MEMBER void update(V& best, P& label, V value, P other) {
    P better = (value > best) | (value != value);
    best = better ? value : best;
    label = better ? other : label;
  }
};

template <class Op, int L>
struct Reduced {
  Values<L> value;
  Labels<L> label;

  MEMBER void update(const Reduced& other) { Op::update(value, label, other.value, other.label); }
  MEMBER void update(Values<L> v, label_t l) { Op::update(value, label, v, l - Labels<L>{}); }
};

// A row of values, with labels where the reduction has them.
struct Row {
  scalar_t* values;
  label_t* labels;

  template <class Op, int L>
  MEMBER Reduced<Op, L> at(index_t i) const {
    Reduced<Op, L> found = {read<Values<L>>(values + i), {}};
    if constexpr (Op::LABELLED) found.label = read<Labels<L>>(labels + i);
    return found;
  }

  template <class Op, int L>
  MEMBER void put(index_t i, Reduced<Op, L> reduced) const {
    write(values + i, reduced.value);
    if constexpr (Op::LABELLED) write(labels + i, reduced.label);
  }

  Row from(index_t i) const { return {values + i, labels + i}; }
};

// Rows that lie `pitch` apart.
struct Rows {
  Row first;
  index_t pitch;

  Row operator[](index_t k) const { return first.from(k * pitch); }
  Rows after(index_t k) const { return {(*this)[k], pitch}; }
};

// A row of values with one label.
struct Tap {
  const scalar_t* values;
  label_t label;

  template <class Op, int L>
  MEMBER Reduced<Op, L> at(index_t i) const {
    return {read<Values<L>>(values + i), label - Labels<L>{}};
  }
};

// Taps that lie `pitch` apart, whose labels count in steps.
struct Taps {
  Tap first;
  index_t pitch, step;

  Tap operator[](index_t k) const { return {first.values + k * pitch, label_t(first.label + k * step)}; }
  Taps after(index_t k) const { return {(*this)[k], pitch, step}; }
};

// target = the reduction of `count` rows; of the target and that reduction, unless it is the FIRST. COUNT is `count`,
// or 0.
template <class Op, bool FIRST, int COUNT, class Sources>
static void reduce_rows(const Sources& sources, int count, Row target, index_t length) {
  if (COUNT) count = COUNT;
  auto body = [&](auto width, index_t i) {
    constexpr int L = decltype(width)::value;
    auto reduced = sources[0].template at<Op, L>(i);
    for (int k = 1; k < count; k++) reduced.update(sources[k].template at<Op, L>(i));
    if constexpr (FIRST) {
      target.put(i, reduced);
    } else {
      auto before = target.at<Op, L>(i);
      before.update(reduced);
      target.put(i, before);
    }
  };
  if constexpr (FIRST)
    over(length, body);
  else
    over_once(length, body);
}

template <class Op, class Sources>
INLINE void reduce_rows(const Sources& sources, int count, bool first, Row target, index_t length) {
  if (!first) return reduce_rows<Op, false, 0>(sources, count, target, length);
  if (count == 1) return reduce_rows<Op, true, 1>(sources, count, target, length);
  if (count == 2) return reduce_rows<Op, true, 2>(sources, count, target, length);
  if (count == 3) return reduce_rows<Op, true, 3>(sources, count, target, length);
  reduce_rows<Op, true, 0>(sources, count, target, length);
}

// In passes over few rows, which are read side by side: 8, or more if there were more passes than rows in one. A sum of
// many rounds like one of as many as there are passes.
template <class Op, class Sources>
static void reduce_in_passes(Sources sources, index_t count, bool first, Row target, index_t length) {
  index_t most = 8;
  while (most * most < count) most *= 2;
  for (; count > 0; count -= most, sources = sources.after(most), first = false) {
    int taps = int(min(count, most));
    if (first)
      reduce_rows<Op, true, 0>(sources, taps, target, length);
    else
      reduce_rows<Op, false, 0>(sources, taps, target, length);
  }
}

// to[i] = the reduction of a[i] and a[i + ahead], whose labels count from `further` on. `to` may be `a`: a vector is read
// before it is written, and none overlap.
template <class Op>
static void reduce_pairs(Row a, index_t ahead, label_t further, Row to, index_t length) {
  over_once(length, [&](auto width, index_t i) {
    constexpr int L = decltype(width)::value;
    auto reduced = a.at<Op, L>(i), other = a.at<Op, L>(i + ahead);
    other.label += further;
    reduced.update(other);
    to.put(i, reduced);
  });
}

// --- Long runs --------------------------------------------------------------------------------------------------------

template <int H, class V, int... I>
INLINE V upper_half(V v, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(v, v, ((I + H) % LANES)...);
#else
  return __builtin_shuffle(v, Labels<LANES>{((I + H) % LANES)...});
#endif
}

// Lanes i + H of all lanes i.
template <int H, class V>
INLINE V upper_half(V v) {
  return upper_half<H>(v, std::make_integer_sequence<int, LANES>());
}

template <int H = LANES / 2>
INLINE scalar_t sum_of_lanes(Values<LANES> v) {
  v += upper_half<H>(v);
  if constexpr (H > 1)
    return sum_of_lanes<H / 2>(v);
  else
    return v[0];
}

// Of equal lanes the first label, of NaN the last one.
template <class Op, int H = LANES / 2>
INLINE Reduced<Op, 1> best_of_lanes(Reduced<Op, LANES> a) {
  Reduced<Op, LANES> b = {upper_half<H>(a.value), upper_half<H>(a.label)};
  auto is_nan = b.value != b.value, was_nan = a.value != a.value;
  auto tied = (b.value == a.value) & (b.label < a.label), later = is_nan & was_nan & (b.label > a.label);
  auto better = (b.value > a.value) | tied | (is_nan & ~was_nan) | later;
  a.value = better ? b.value : a.value, a.label = better ? b.label : a.label;
  if constexpr (H > 1)
    return best_of_lanes<Op, H / 2>(a);
  else
    return {a.value[0], a.label[0]};
}

// Sums of blocks of 8 vectors, added up in double precision.
static inline scalar_t long_sum(const scalar_t* from, index_t count) {
  double total = 0;
  while (count >= LANES) {
    index_t vectors = min<index_t>(count / LANES, 8);
    vector_t sums = load(from);
    for (index_t i = 1; i < vectors; i++) sums += load(from + i * LANES);
    total += sum_of_lanes(sums);
    from += vectors * LANES, count -= vectors * LANES;
  }
  for (; count; count--) total += *from++;
  return scalar_t(total);
}

// The reduction of from[0, count), count >= LANES, whose labels begin with `label`.
template <class Op>
static Reduced<Op, 1> along(const scalar_t* from, index_t count, label_t label) {
  if constexpr (std::is_same_v<Op, Sum>) {
    return {long_sum(from, count), 0};
  } else {
    Reduced<Op, LANES> lanes = {load(from), label + lane_numbers<LANES>()};
    index_t i = LANES;
    for (; i + LANES <= count; i += LANES)
      lanes.update(Reduced<Op, LANES>{load(from + i), label_t(label + i) + lane_numbers<LANES>()});
    Reduced<Op, 1> best = best_of_lanes(lanes);
    for (; i < count; i++) best.update(from[i], label_t(label + i));
    return best;
  }
}
