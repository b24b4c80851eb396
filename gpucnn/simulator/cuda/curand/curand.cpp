// libcurand: the host functions that cupy.random's RandomState calls. The numbers are not NVIDIA's: every generator is
// Philox4x32-10 here, with a sequence of its own for each type and seed. The distributions are the documented ones.
#include <math.h>
#include <stdio.h>

#include <mutex>
#include <set>
#include <string>
#include <utility>

#include "curand/generator/distributions.h"
#include "interface.h"

struct curandGenerator_st {
  curandRngType_t type;
  uint64_t seed;
  uint64_t next;  // index of the next number
  CUstream stream;
};

namespace cudasim::random {

static std::mutex generators_lock;
// Never destroyed: generators are destroyed by destructors that run at exit.
static auto& generators = *new std::set<curandGenerator_t>;

static bool is_generator(curandGenerator_t generator) {
  const std::lock_guard<std::mutex> hold(generators_lock);
  return generators.count(generator) != 0;
}

static curandStatus_t refuse(curandStatus_t status, const std::string& sentence) {
  fprintf(stderr, "simulated cuRAND: %s\n", sentence.c_str());
  cudasim_set_detail(sentence.c_str());
  return status;
}

// What each function that takes a generator begins with.
static curandStatus_t begin(const char* function, curandGenerator_t generator) {
  if (cudasim_begin_call(function)) return CURAND_STATUS_LAUNCH_FAILURE;
  if (is_generator(generator)) return CURAND_STATUS_SUCCESS;
  return refuse(CURAND_STATUS_NOT_INITIALIZED, std::string(function) + ": there is no such generator");
}

static bool is_pseudo_random(curandRngType_t type) {
  switch (type) {
    case CURAND_RNG_PSEUDO_DEFAULT:
    case CURAND_RNG_PSEUDO_XORWOW:
    case CURAND_RNG_PSEUDO_MRG32K3A:
    case CURAND_RNG_PSEUDO_MTGP32:
    case CURAND_RNG_PSEUDO_MT19937:
    case CURAND_RNG_PSEUDO_PHILOX4_32_10:
      return true;
  }
  return false;
}

// The numbers [first, first + count) of a sequence, for an array on the device.
template <class T, class Draw>
struct Fill {
  std::string function;
  uint64_t seed;
  uint32_t kind;
  uint64_t first;
  T* out;
  size_t count;
  Draw draw;

  CUresult run() const {
    const std::string what = function + ": outputPtr";
    if (CUresult status = cudasim_check_range(what.c_str(), out, count * sizeof(T), true)) return status;
    for (size_t i = 0; i < count; i++) {
      Bits bits(seed, kind, first + i);
      out[i] = static_cast<T>(draw(bits));
    }
    return CUDA_SUCCESS;
  }
};

template <class T, class Draw>
static curandStatus_t generate(const char* function, curandGenerator_t generator, T* out, size_t count, Draw draw) {
  if (curandStatus_t status = begin(function, generator)) return status;
  using Task = Fill<T, Draw>;
  const auto kind = static_cast<uint32_t>(generator->type);
  auto* task = new Task{function, generator->seed, kind, generator->next, out, count, std::move(draw)};
  generator->next += count;
  const auto run = [](void* data) { return static_cast<const Task*>(data)->run(); };
  const auto destroy = [](void* data) { delete static_cast<Task*>(data); };
  const bool failed = cudasim_enqueue(generator->stream, function, run, task, destroy) != CUDA_SUCCESS;
  return failed ? CURAND_STATUS_LAUNCH_FAILURE : CURAND_STATUS_SUCCESS;
}

// As documented, pseudo-random generators draw normal numbers in pairs.
template <class T, class Draw>
static curandStatus_t generate_pairs(const char* function, curandGenerator_t generator, T* out, size_t count,
                                     Draw draw) {
  if (count % 2 == 0) return generate(function, generator, out, count, std::move(draw));
  return refuse(CURAND_STATUS_LENGTH_NOT_MULTIPLE, std::string(function) + ": an odd number of normal numbers");
}

template <class T>
static auto normal_draw(T mean, T deviation) {
  return [mean, deviation](Bits& bits) { return mean + deviation * static_cast<T>(normal(bits)); };
}

template <class T>
static auto log_normal_draw(T mean, T deviation) {
  return [mean, deviation](Bits& bits) { return exp(mean + deviation * static_cast<T>(normal(bits))); };
}

}  // namespace cudasim::random

using namespace cudasim::random;

// ---- Generators ----------------------------------------------------------------------------------------------------

CURAND_ENTRY curandGetVersion(int* version) {
  constexpr int kVersion = 10300;
  if (cudasim_begin_call(__func__)) return CURAND_STATUS_LAUNCH_FAILURE;
  *version = kVersion;
  return CURAND_STATUS_SUCCESS;
}

CURAND_ENTRY curandCreateGenerator(curandGenerator_t* generator, curandRngType_t type) {
  if (cudasim_begin_call(__func__)) return CURAND_STATUS_INITIALIZATION_FAILED;
  if (!is_pseudo_random(type)) {
    return refuse(CURAND_STATUS_TYPE_ERROR, "curandCreateGenerator: only pseudo-random generators are simulated, not "
                                            "type " + std::to_string(type));
  }
  *generator = new curandGenerator_st{type, 0, 0, nullptr};
  const std::lock_guard<std::mutex> hold(generators_lock);
  generators.insert(*generator);
  return CURAND_STATUS_SUCCESS;
}

// Work that is still in a stream has copies of all that it needs.
CURAND_ENTRY curandDestroyGenerator(curandGenerator_t generator) {
  if (curandStatus_t status = begin(__func__, generator)) return status;
  const std::lock_guard<std::mutex> hold(generators_lock);
  generators.erase(generator);
  delete generator;
  return CURAND_STATUS_SUCCESS;
}

CURAND_ENTRY curandSetStream(curandGenerator_t generator, CUstream stream) {
  if (curandStatus_t status = begin(__func__, generator)) return status;
  generator->stream = stream;
  return CURAND_STATUS_SUCCESS;
}

CURAND_ENTRY curandSetPseudoRandomGeneratorSeed(curandGenerator_t generator, unsigned long long seed) {
  if (curandStatus_t status = begin(__func__, generator)) return status;
  generator->seed = seed;
  generator->next = 0;
  return CURAND_STATUS_SUCCESS;
}

CURAND_ENTRY curandSetGeneratorOffset(curandGenerator_t generator, unsigned long long offset) {
  if (curandStatus_t status = begin(__func__, generator)) return status;
  generator->next = offset;
  return CURAND_STATUS_SUCCESS;
}

// The orders differ in how a GPU shares out the sequence. There is one order here.
CURAND_ENTRY curandSetGeneratorOrdering(curandGenerator_t generator, curandOrdering_t order) {
  if (curandStatus_t status = begin(__func__, generator)) return status;
  if (order >= CURAND_ORDERING_PSEUDO_BEST && order <= CURAND_ORDERING_PSEUDO_DYNAMIC) return CURAND_STATUS_SUCCESS;
  return refuse(CURAND_STATUS_OUT_OF_RANGE, "curandSetGeneratorOrdering: not an order of pseudo-random generators");
}

// ---- Numbers -------------------------------------------------------------------------------------------------------

CURAND_ENTRY curandGenerate(curandGenerator_t generator, unsigned* out, size_t count) {
  return generate(__func__, generator, out, count, [](Bits& bits) { return bits.next32(); });
}

CURAND_ENTRY curandGenerateLongLong(curandGenerator_t generator, unsigned long long*, size_t) {
  if (curandStatus_t status = begin(__func__, generator)) return status;
  return refuse(CURAND_STATUS_TYPE_ERROR, "curandGenerateLongLong: for 64-bit quasi-random generators only");
}

// In (0, 1], as documented.
CURAND_ENTRY curandGenerateUniform(curandGenerator_t generator, float* out, size_t count) {
  return generate(__func__, generator, out, count, [](Bits& bits) { return 1.0f - uniform_float(bits); });
}

CURAND_ENTRY curandGenerateUniformDouble(curandGenerator_t generator, double* out, size_t count) {
  return generate(__func__, generator, out, count, positive_uniform);
}

CURAND_ENTRY curandGenerateNormal(curandGenerator_t generator, float* out, size_t count, float mean, float deviation) {
  return generate_pairs(__func__, generator, out, count, normal_draw(mean, deviation));
}

CURAND_ENTRY curandGenerateNormalDouble(curandGenerator_t generator, double* out, size_t count, double mean,
                                        double deviation) {
  return generate_pairs(__func__, generator, out, count, normal_draw(mean, deviation));
}

CURAND_ENTRY curandGenerateLogNormal(curandGenerator_t generator, float* out, size_t count, float mean,
                                     float deviation) {
  return generate_pairs(__func__, generator, out, count, log_normal_draw(mean, deviation));
}

CURAND_ENTRY curandGenerateLogNormalDouble(curandGenerator_t generator, double* out, size_t count, double mean,
                                           double deviation) {
  return generate_pairs(__func__, generator, out, count, log_normal_draw(mean, deviation));
}

CURAND_ENTRY curandGeneratePoisson(curandGenerator_t generator, unsigned* out, size_t count, double mean) {
  if (!(mean > 0.0)) return refuse(CURAND_STATUS_OUT_OF_RANGE, "curandGeneratePoisson: lambda must be positive");
  return generate(__func__, generator, out, count, [mean](Bits& bits) { return poisson(bits, mean); });
}
