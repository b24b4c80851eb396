// Calls a kernel with arguments taken from a table of pointers, and describes its parameters to the launcher.
#pragma once
#include <type_traits>
#include <utility>

#include "interface.h"

#define GPUCNN_C_LINKAGE extern "C"  // what the lowering adds; programs have none
#ifdef __clang__
#define GPUCNN_EXPORTED extern "C" __attribute__((visibility("default")))
#else
#define GPUCNN_EXPORTED extern "C" __attribute__((visibility("default"), externally_visible))
#endif
// Kept though nothing in the program may need it; a variable is never taken for a constant, as the host may write to it.
#define GPUCNN_KEPT __attribute__((used))
// A constant whose value in the assembly code is the symbol of a kernel or of a variable.
#define GPUCNN_SYMBOL __attribute__((used)) void*

GPUCNN_EXPORTED const int gpucnn_checked;
const int gpucnn_checked = GPUCNN_CHECKED;  // whether its memory accesses are reported

namespace gpucnn {

template <class Argument>
constexpr Parameter describe_parameter() {
  using T = std::remove_cv_t<Argument>;
  constexpr int bytes = sizeof(T);
  constexpr unsigned char align = alignof(T);
  if constexpr (std::is_pointer_v<T>) return {bytes, std::is_const_v<std::remove_pointer_t<T>> ? 'c' : 'p', align};
  if constexpr (std::is_same_v<T, bool>) return {bytes, 'b', align};
  if constexpr (std::is_floating_point_v<T>) return {bytes, 'f', align};
  if constexpr (std::is_integral_v<T>) return {bytes, std::is_signed_v<T> ? 'i' : 'u', align};
  return {bytes, 's', align};
}

// The first argument of __launch_bounds__, 0 without one.
constexpr int launch_bound(int threads = 0, int = 0, int = 0) { return threads; }

// An argument with a copy constructor of the program's own, which is checked as the kernel is: it may read the thread's
// stack, where a copy of the bytes lies, but not the launcher's memory.
template <class T>
struct CopiedArgument {
  alignas(T) unsigned char bytes[sizeof(T)];
  GPUCNN_UNCHECKED explicit CopiedArgument(const void* from) { __builtin_memcpy(bytes, from, sizeof(T)); }
  GPUCNN_UNCHECKED T& value() { return *reinterpret_cast<T*>(bytes); }
};
template <class T>
struct DirectArgument {
  T* from;
  GPUCNN_UNCHECKED explicit DirectArgument(void* pointer) : from(static_cast<T*>(pointer)) {}
  GPUCNN_UNCHECKED T& value() { return *from; }
};
template <class T>
using Argument = std::conditional_t<std::is_trivially_copy_constructible_v<T>, DirectArgument<T>, CopiedArgument<T>>;

template <auto kKernel>
struct KernelEntry;

template <class... Arguments, void (*kKernel)(Arguments...)>
struct KernelEntry<kKernel> {
  static_assert(sizeof...(Arguments) <= kMaxParameters, "the simulator takes at most 64 kernel parameters");

  template <size_t... kIndex>
  GPUCNN_UNCHECKED static void call_with(void** arguments, std::index_sequence<kIndex...>) {
    kKernel(Argument<std::remove_cv_t<Arguments>>(arguments[kIndex]).value()...);
  }

  GPUCNN_UNCHECKED static void call(void** arguments) {
    call_with(arguments, std::index_sequence_for<Arguments...>{});
  }

  static constexpr Entry describe(const char* name, int max_threads) {
    return {name, call, max_threads, sizeof...(Arguments), {describe_parameter<Arguments>()...}};
  }
};

// What a name expression of NVRTC names: a kernel, with or without &, or the address of a variable.
template <class T>
constexpr T* named(T* address) {
  return address;
}

template <auto kAddress>
struct NamedEntry {
  // Fills `entry` for a kernel; false for a variable, which has none.
  GPUCNN_UNCHECKED static bool describe(const char* name, Entry& entry, int max_threads) {
    constexpr bool is_kernel = std::is_function_v<std::remove_pointer_t<decltype(kAddress)>>;
    if constexpr (is_kernel) entry = KernelEntry<kAddress>::describe(name, max_threads);
    return is_kernel;
  }
};

}  // namespace gpucnn
