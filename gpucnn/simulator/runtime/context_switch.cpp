#include "context_switch.h"

#include <string.h>

#ifdef GPUCNN_SIMULATOR_UCONTEXT

namespace gpucnn {

void prepare_context(Context& context, char* low, size_t bytes, void (*function)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = low;
  context.state.uc_stack.ss_size = bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, function, 0);
}

void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

}  // namespace gpucnn

#else

// gpucnn_switch(void** save, void* to): pushes what the calling convention says a callee must keep, stores the stack
// pointer in *save, and undoes it with the stack `to`.
extern "C" void gpucnn_switch(void** save, void* to);

#if defined(__x86_64__)

constexpr int kSavedWords = 6;

asm(R"(
.text
.globl gpucnn_switch
.hidden gpucnn_switch
.type gpucnn_switch, @function
gpucnn_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size gpucnn_switch, .-gpucnn_switch
)");

#else  // aarch64

constexpr int kSavedWords = 20;
constexpr int kReturnWord = 11;  // x30

asm(R"(
.text
.globl gpucnn_switch
.hidden gpucnn_switch
.type gpucnn_switch, %function
gpucnn_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size gpucnn_switch, .-gpucnn_switch
)");

#endif

namespace gpucnn {

void prepare_context(Context& context, char* low, size_t bytes, void (*function)()) {
  void** top = reinterpret_cast<void**>(low + bytes - 64);
#if defined(__x86_64__)
  *--top = nullptr;  // where `function` would return to; also aligns its frame
  *--top = reinterpret_cast<void*>(function);
  top -= kSavedWords;
  memset(top, 0, kSavedWords * sizeof *top);
#else
  top -= kSavedWords;
  memset(top, 0, kSavedWords * sizeof *top);
  top[kReturnWord] = reinterpret_cast<void*>(function);
#endif
  context.stack_pointer = top;
}

void switch_context(Context& from, Context& to) { gpucnn_switch(&from.stack_pointer, to.stack_pointer); }

}  // namespace gpucnn

#endif
