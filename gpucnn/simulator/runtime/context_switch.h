// Fibers: a context is a suspended flow of control with a stack of its own.
//
// x86-64 and aarch64 have a switch of a few instructions; anything else, or GPUCNN_SIMULATOR_UCONTEXT, uses ucontext.
#pragma once
#include <stddef.h>

#if !defined(__x86_64__) && !defined(__aarch64__)
#define GPUCNN_SIMULATOR_UCONTEXT 1
#endif

#ifdef GPUCNN_SIMULATOR_UCONTEXT
#include <ucontext.h>
#endif

namespace gpucnn {

struct Context {
#ifdef GPUCNN_SIMULATOR_UCONTEXT
  ucontext_t state;
#else
  void* stack_pointer;
#endif
};

// Makes `context` start in `function`, which must not return, on the stack [low, low + bytes).
void prepare_context(Context& context, char* low, size_t bytes, void (*function)());

// Suspends the caller in `from` and goes on with `to`.
void switch_context(Context& from, Context& to);

}  // namespace gpucnn
