// Effects of a launch on memory, counted by the rules of the hardware: sectors, banks, branches, barriers.
#pragma once
#include "machine.h"

namespace gpucnn {

// The structures that profiling.py reads.

struct ProfiledAccess {  // one instruction, as it reads or writes one array
  uint64_t address;      // within the module's image, 0: not known
  char file[256];        // where the address is not known
  int32_t line;
  int32_t bytes;     // of one lane
  int32_t argument;  // of the kernel; -1: shared memory
  int32_t kind;      // 0: read, 1: write, 2: atomic
  uint64_t requests;
  uint64_t lanes;          // that took part, over all requests
  uint64_t sectors;        // global memory: 32 bytes that a request touches some of
  uint64_t ideal_sectors;  // that the bytes of the request would fill
  uint64_t wavefronts;     // shared memory: rounds that the banks need
  uint64_t ideal_wavefronts;
  int32_t worst_conflict;  // words of one bank in one round, at most
  int32_t unused;
};

struct ProfiledBranch {  // where the lanes of a warp went on at several places
  uint64_t address;
  uint64_t executions;  // by warps
  uint64_t divergent;
};

struct ProfiledCollective {  // barriers and operations of warps
  char name[64];
  char file[256];
  int32_t line;
  int32_t unused;
  uint64_t executions;  // by warps
};

struct ProfiledArray {  // an argument, or several that overlap
  int32_t argument;
  int32_t unused;
  uint64_t bytes;
  uint64_t sectors_read;  // different ones
  uint64_t sectors_written;
};

void begin_launch_profile();

// Lanes are matched by how often each has come to an instruction since the last barrier, or operation of the whole warp:
// what they did is counted there.
void flush_profile();
void flush_warp_profile(unsigned warp);

void profile_access(const void* pointer, size_t bytes, Access access, Where where, int argument, size_t region);
void profile_block_entry(uintptr_t address);
void profile_collective(const char* name, Site site);

// The arrays of a launch are numbered as its regions are; low and high are their addresses.
void add_profiled_array(size_t region, int argument, const char* low, const char* high);

}  // namespace gpucnn
