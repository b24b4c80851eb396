// The calls that compilers insert for -fsanitize=thread (every memory access) and -fsanitize=bounds,... (undefined
// behaviour). This is our own back end for them; the compilers' sanitizer libraries are not used.
#include <stdio.h>
#include <string.h>

#include "profile.h"

using gpucnn::Access;
using gpucnn::check_access;
using gpucnn::ErrorKind;
using gpucnn::machine;
using gpucnn::Site;
using gpucnn::Where;

#define CALLER Where(reinterpret_cast<uintptr_t>(__builtin_return_address(0)))

extern "C" {

// ---- Accesses ------------------------------------------------------------------------------------------------------

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

#define ACCESSES_OF(BYTES)                                                                                   \
  void __tsan_read##BYTES(void* p) { check_access(p, BYTES, Access::kRead, CALLER); }                        \
  void __tsan_write##BYTES(void* p) { check_access(p, BYTES, Access::kWrite, CALLER); }                      \
  void __tsan_unaligned_read##BYTES(void* p) { check_access(p, BYTES, Access::kRead, CALLER); }              \
  void __tsan_unaligned_write##BYTES(void* p) { check_access(p, BYTES, Access::kWrite, CALLER); }            \
  void __tsan_volatile_read##BYTES(void* p) { check_access(p, BYTES, Access::kRead, CALLER); }               \
  void __tsan_volatile_write##BYTES(void* p) { check_access(p, BYTES, Access::kWrite, CALLER); }             \
  void __tsan_unaligned_volatile_read##BYTES(void* p) { check_access(p, BYTES, Access::kRead, CALLER); }     \
  void __tsan_unaligned_volatile_write##BYTES(void* p) { check_access(p, BYTES, Access::kWrite, CALLER); }   \
  void __tsan_read_write##BYTES(void* p) {                                                                   \
    check_access(p, BYTES, Access::kRead, CALLER);                                                           \
    check_access(p, BYTES, Access::kWrite, CALLER);                                                          \
  }                                                                                                          \
  void __tsan_unaligned_read_write##BYTES(void* p) {                                                         \
    check_access(p, BYTES, Access::kRead, CALLER);                                                           \
    check_access(p, BYTES, Access::kWrite, CALLER);                                                          \
  }
ACCESSES_OF(1)
ACCESSES_OF(2)
ACCESSES_OF(4)
ACCESSES_OF(8)
ACCESSES_OF(16)

void __tsan_read_range(void* p, size_t bytes) { check_access(p, bytes, Access::kRead, CALLER); }
void __tsan_write_range(void* p, size_t bytes) { check_access(p, bytes, Access::kWrite, CALLER); }

void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  check_access(from, bytes, Access::kRead, CALLER);
  check_access(to, bytes, Access::kWrite, CALLER);
  return memcpy(to, from, bytes);
}

void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  check_access(from, bytes, Access::kRead, CALLER);
  check_access(to, bytes, Access::kWrite, CALLER);
  return memmove(to, from, bytes);
}

void* __tsan_memset(void* to, int value, size_t bytes) {
  check_access(to, bytes, Access::kWrite, CALLER);
  return memset(to, value, bytes);
}

// ---- Branches: each block of code begins with this call, in builds for the profile ---------------------------------

void __sanitizer_cov_trace_pc() {
  if (!machine.profile || !machine.current) return;
  gpucnn::profile_block_entry(reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
}

// ---- Undefined behaviour: each handler gets a description whose first part is the place ---------------------------

struct SourceLocation {
  const char* file;
  uint32_t line;
  uint32_t column;
};

struct TypeDescriptor {
  uint16_t kind;
  uint16_t info;
  char name[1];
};

struct OutOfBoundsData {
  SourceLocation location;
  const TypeDescriptor* array_type;
  const TypeDescriptor* index_type;
};

struct TypeMismatchData {
  SourceLocation location;
  const TypeDescriptor* type;
  uint8_t log_alignment;
  uint8_t check_kind;
};

static void report(ErrorKind kind, const SourceLocation& location, const char* text) {
  if (!machine.current) return;  // a static initialiser of the module
  const Site site = {location.file, static_cast<int>(location.line)};
  gpucnn::fail(kind, Where(site), "%s", text);
}

void __ubsan_handle_out_of_bounds(OutOfBoundsData* data, uintptr_t index) {
  char text[256];
  snprintf(text, sizeof text, "index %td is out of bounds for type %s", static_cast<ptrdiff_t>(index),
           data->array_type->name);
  report(ErrorKind::kOutOfBounds, data->location, text);
}

void __ubsan_handle_type_mismatch_v1(TypeMismatchData* data, uintptr_t address) {
  char text[256];
  if (address == 0) {
    snprintf(text, sizeof text, "access of type %s through a null pointer", data->type->name);
    report(ErrorKind::kOutOfBounds, data->location, text);
    return;
  }
  snprintf(text, sizeof text, "access of type %s at an address that is no multiple of %d", data->type->name,
           1 << data->log_alignment);
  report(ErrorKind::kMisaligned, data->location, text);
}

#define UNDEFINED(NAME, TEXT) \
  void __ubsan_handle_##NAME(SourceLocation* location) { report(ErrorKind::kUndefinedBehaviour, *location, TEXT); }
UNDEFINED(shift_out_of_bounds, "shift by a negative number or by more bits than there are")
UNDEFINED(divrem_overflow, "integer division by zero, or its result overflows")
UNDEFINED(add_overflow, "signed integer overflow in an addition")
UNDEFINED(sub_overflow, "signed integer overflow in a subtraction")
UNDEFINED(mul_overflow, "signed integer overflow in a multiplication")
UNDEFINED(negate_overflow, "signed integer overflow in a negation")
UNDEFINED(load_invalid_value, "a bool or an enumeration with a value that it cannot have")
UNDEFINED(pointer_overflow, "pointer arithmetic overflows")
UNDEFINED(vla_bound_not_positive, "an array of no or negative size")

}  // extern "C"
