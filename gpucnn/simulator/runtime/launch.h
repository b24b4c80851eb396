// Running a launch, and its results: the interface of the runtime to module.py and to the simulated CUDA driver.
#pragma once
#include <stdint.h>

#include "../include/interface.h"

namespace gpucnn {

// Memory that a kernel may access: an array argument, several that overlap, or what `Launch::find` knows of.
// module.py packs it.
struct Buffer {
  char* low;
  uint64_t bytes;
  const char* name;      // for messages; null: "argument N"
  uint8_t* initialised;  // a byte for each byte: whether it has been written; null: not tracked
  const char* refusal;   // why any access is an error, as it ends the message: "in memory that was freed"; or null
  int32_t grain;         // bytes that a thread reads or writes at least, mostly
  int32_t argument;
  int32_t read_only;
  int32_t unused;
};

enum class Use : int { kRead, kWrite, kAtomic };

// module.py packs it.
struct Launch {
  const Entry* entry;
  void** arguments;
  const Buffer* buffers;
  uint64_t dynamic_bytes;
  uint64_t image_low;
  uint64_t image_high;
  uint64_t seed;
  // The memory that an address outside `buffers` lies in, or nearest to; null: there is none. The answer need only
  // live until the next call. Null: kernels may access nothing but `buffers`.
  const Buffer* (*find)(const void* address);
  // The earlier work that an access conflicts with, as it ends the message; null if there is none. Null: not asked.
  const char* (*conflict)(const void* address, size_t bytes, Use use);
  uint32_t grid[3];
  uint32_t block[3];
  int32_t buffer_count;
  int32_t check;
  int32_t profile;
  int32_t order;  // 0 forward, 1 reverse, 2 random
  uint32_t yield_every;
  // Lets pass what is right on devices and common in CuPy's kernels, but hides mistakes: threads that return before a
  // barrier of the others; reads of padding with the struct around it; plain reads of what others change atomically.
  int32_t tolerant;
};

// errors.py has an exception for each, by number.
enum class ErrorKind : int {
  kNone,
  kOutOfBounds,
  kReadOnly,
  kRace,
  kMisaligned,
  kSynchronisation,
  kUninitialised,
  kUndefinedBehaviour,
  kSharedMemory,
  kAddressSpace,
  kTrap,
};

// module.py reads it.
struct ErrorReport {
  int32_t kind;
  int32_t line;      // 0: not known
  uint64_t address;  // within the module's image, 0: not known
  uint32_t thread[3];
  uint32_t block[3];
  char file[256];
  char message[1024];
};

}  // namespace gpucnn
