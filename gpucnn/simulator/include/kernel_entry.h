// Calls a kernel with arguments taken from a table of pointers, and describes its parameters to the launcher.
#pragma once
#include <type_traits>
#include <utility>

#include "interface.h"

namespace gpucnn {

template <class Argument>
constexpr Parameter describe_parameter() {
  using T = std::remove_cv_t<Argument>;
  constexpr int bytes = sizeof(T);
  if constexpr (std::is_pointer_v<T>) return {bytes, std::is_const_v<std::remove_pointer_t<T>> ? 'c' : 'p'};
  if constexpr (std::is_same_v<T, bool>) return {bytes, 'b'};
  if constexpr (std::is_floating_point_v<T>) return {bytes, 'f'};
  if constexpr (std::is_integral_v<T>) return {bytes, std::is_signed_v<T> ? 'i' : 'u'};
  return {bytes, 's'};
}

// The first argument of __launch_bounds__, 0 without one.
constexpr int launch_bound(int threads = 0, int = 0, int = 0) { return threads; }

template <auto kKernel>
struct KernelEntry;

template <class... Arguments, void (*kKernel)(Arguments...)>
struct KernelEntry<kKernel> {
  static_assert(sizeof...(Arguments) <= kMaxParameters, "the simulator takes at most 64 kernel parameters");

  template <size_t... kIndex>
  GPUCNN_UNCHECKED static void call_with(void** arguments, std::index_sequence<kIndex...>) {
    kKernel(*static_cast<std::remove_cv_t<Arguments>*>(arguments[kIndex])...);
  }

  GPUCNN_UNCHECKED static void call(void** arguments) {
    call_with(arguments, std::index_sequence_for<Arguments...>{});
  }

  static constexpr Entry describe(const char* name, int max_threads) {
    return {name, call, max_threads, sizeof...(Arguments), {describe_parameter<Arguments>()...}};
  }
};

}  // namespace gpucnn
