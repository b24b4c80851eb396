// Operations of a warp: shuffles, votes, reductions, __syncwarp.
#pragma once

namespace gpucnn {

template <class T>
GPUCNN_UNCHECKED T shuffle(Operation operation, unsigned mask, T value, int argument, int width, Site site) {
  T result = value;
  warp_operation({operation, mask, &value, &result, sizeof(T), argument, width, site});
  return result;
}

GPUCNN_UNCHECKED inline unsigned ballot(unsigned mask, bool predicate, Site site) {
  unsigned input = predicate;
  unsigned result = 0;
  warp_operation({Operation::kBallot, mask, &input, &result, sizeof(unsigned), 0, 32, site});
  return result;
}

// Sums are the same for signed and unsigned values: all go through int64.
template <class T>
GPUCNN_UNCHECKED T reduce(Operation operation, unsigned mask, T value, Site site) {
  int64_t input = value;
  int64_t result = 0;
  warp_operation({operation, mask, &input, &result, sizeof(int64_t), 0, 32, site});
  return static_cast<T>(result);
}

}  // namespace gpucnn

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::shuffle(gpucnn::Operation::kShuffleIndex, mask, value, lane, width, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::shuffle(gpucnn::Operation::kShuffleUp, mask, value, static_cast<int>(delta), width, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::shuffle(gpucnn::Operation::kShuffleDown, mask, value, static_cast<int>(delta), width, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::shuffle(gpucnn::Operation::kShuffleXor, mask, value, lane_mask, width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::ballot(mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::ballot(mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::ballot(mask, predicate == 0, site) == 0;
}
inline unsigned __activemask() { return gpucnn::active_lanes(); }

inline void __syncwarp(unsigned mask = 0xffffffffu, gpucnn::Site site = gpucnn::Site::here()) {
  gpucnn::warp_operation({gpucnn::Operation::kSyncWarp, mask, nullptr, nullptr, 0, 0, 32, site});
}

inline int __reduce_add_sync(unsigned mask, int value, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::reduce(gpucnn::Operation::kReduceAdd, mask, value, site);
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::reduce(gpucnn::Operation::kReduceAdd, mask, value, site);
}
inline int __reduce_min_sync(unsigned mask, int value, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::reduce(gpucnn::Operation::kReduceMin, mask, value, site);
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::reduce(gpucnn::Operation::kReduceMin, mask, value, site);
}
inline int __reduce_max_sync(unsigned mask, int value, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::reduce(gpucnn::Operation::kReduceMax, mask, value, site);
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::reduce(gpucnn::Operation::kReduceMax, mask, value, site);
}

// Bitwise reductions, from the bits that any lane has: and(x) is not(or(not x)).
namespace gpucnn {

template <class Combine>
GPUCNN_UNCHECKED unsigned combine_lanes(unsigned mask, unsigned value, unsigned initial, Combine combine, Site site) {
  unsigned result = initial;
  for (unsigned lane = 0; lane < 32; lane++) {
    if (mask >> lane & 1) {
      const unsigned other = shuffle(Operation::kShuffleIndex, mask, value, static_cast<int>(lane), 32, site);
      result = combine(result, other);
    }
  }
  return result;
}

// The lanes of the mask whose value has the same bits.
template <class T>
GPUCNN_UNCHECKED unsigned matching_lanes(unsigned mask, T value, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "__match_any_sync() takes values of 4 or 8 bytes");
  unsigned result = 0;
  for (unsigned lane = 0; lane < 32; lane++) {
    if (mask >> lane & 1) {
      const T other = shuffle(Operation::kShuffleIndex, mask, value, static_cast<int>(lane), 32, site);
      if (__builtin_memcmp(&other, &value, sizeof(T)) == 0) result |= 1u << lane;
    }
  }
  return result;
}

}  // namespace gpucnn

inline unsigned __reduce_and_sync(unsigned mask, unsigned value, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::combine_lanes(mask, value, ~0u, [](unsigned a, unsigned b) { return a & b; }, site);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::combine_lanes(mask, value, 0u, [](unsigned a, unsigned b) { return a | b; }, site);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::combine_lanes(mask, value, 0u, [](unsigned a, unsigned b) { return a ^ b; }, site);
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, gpucnn::Site site = gpucnn::Site::here()) {
  return gpucnn::matching_lanes(mask, value, site);
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* predicate, gpucnn::Site site = gpucnn::Site::here()) {
  *predicate = gpucnn::matching_lanes(mask, value, site) == mask;
  return *predicate ? mask : 0;
}
