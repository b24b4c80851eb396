// The interface between a compiled kernel and the runtime. Both sides include this file and nothing else in common.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 sizes) : x(sizes.x), y(sizes.y), z(sizes.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

namespace gpucnn {

// A place in the source. As a default argument, `Site::here()` is the place of the call.
struct Site {
  const char* file;
  int line;

  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// ---- Kernels, as a module lists them for the launcher ------------------------------------------------------------

struct Parameter {
  int bytes;
  char kind;  // p: pointer, c: pointer to const, i, u, f, b: integers, float and bool, s: struct
  unsigned char align;
};

constexpr int kMaxParameters = 64;

struct Entry {
  const char* name;
  void (*call)(void** arguments);
  int max_threads;  // of __launch_bounds__, or 0
  int parameter_count;
  Parameter parameters[kMaxParameters];
};

// A __device__ or __constant__ variable of a module, by its symbol. The table of them ends with a row of zeros.
struct Variable {
  const char* name;
  void* address;
  size_t bytes;
};

// ---- Shared memory -----------------------------------------------------------------------------------------------

// A static __shared__ variable. The first thread of a block that comes by allocates it for the block.
struct SharedVariable {
  size_t bytes;
  size_t align;
  const char* name;
  Site site;
  uint64_t block = 0;  // the block that `address` belongs to
  char* address = nullptr;

  constexpr SharedVariable(size_t bytes, size_t align, const char* name, Site site)
      : bytes(bytes), align(align), name(name), site(site) {}
  void* get();
};

void* dynamic_shared();
uint32_t shared_address(const void* pointer, Site site);
void* generic_address(uint32_t shared, Site site);

// ---- Synchronisation ---------------------------------------------------------------------------------------------

// Waits for all threads of the block; the number of them whose predicate holds.
int barrier(bool predicate, Site site);
void threadfence(Site site);

enum class Operation : int {
  kShuffleIndex,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kReduceAdd,
  kReduceMin,
  kReduceMax,
  kSyncWarp,
  kLoadMatrix,
  kMmaF16,
  kMmaF16Short,  // of 8 values
  kMmaBf16,
  kMmaTf32,
};

// One lane's part in an operation of its warp.
struct WarpCall {
  Operation operation;
  unsigned mask;
  const void* input;
  void* output;
  int bytes;     // of a shuffled value
  int argument;  // source lane, delta or lane mask of a shuffle; number of matrices of a matrix load
  int width;     // of a shuffle's segments; 1 for a transposed matrix load
  Site site;
};

void warp_operation(const WarpCall& call);
unsigned active_lanes();

// The registers that one lane hands to mma.sync.
struct MmaOperands {
  uint32_t a[4];
  uint32_t b[2];
  float c[4];
};

// ---- Memory accesses that the compiler does not report by itself ---------------------------------------------------

void atomic_access(const void* pointer, int bytes, Site site);
void plain_access(const void* pointer, int bytes, bool write, Site site);

// cp.async: `source_bytes` of `bytes` are copied, the others become zero; nothing lands before the wait.
void async_copy(uint32_t destination, const void* source, int bytes, int source_bytes, Site site);
void async_commit();
void async_wait(int groups_left, Site site);

[[noreturn]] void trap(const char* message, Site site);

}  // namespace gpucnn
