// The functions that cupy.random.Generator calls, on the host. CuPy declares them in cupy_distributions.cuh; its wheel
// has them as kernels in NVIDIA's machine code.
//
// The numbers are not NVIDIA's. A bit generator's memory has a state for each of some thousand threads; here the first
// one holds the seed and the index of the next number, and the others are not used. So one seed gives one sequence,
// whatever the sizes of the calls.
#include <Python.h>
#include <cuda.h>

#include <string>
#include <utility>
#include <vector>

#include "cupy_distributions.cuh"
#include "distributions.h"
#include "driver/services.h"

namespace cudasim::random {

// In the first state. All of CuPy's types of states have room for it.
struct Sequence {
  uint64_t seed;
  uint64_t kind;
  uint64_t next;  // index of the next number
};

struct Call {
  std::string name;
  intptr_t state;
  intptr_t out;
  ssize_t size;
  CUstream stream;
};

// ---- Work in stream order ------------------------------------------------------------------------------------------

// CuPy does not look at errors here: its functions return nothing. An exception is set, which is raised when they
// return to Python.
static void raise(const Call& call, CUresult status) {
  const char* text = nullptr;
  if (cuGetErrorString(status, &text) || !text) text = "failed";
  const PyGILState_STATE held = PyGILState_Ensure();
  PyErr_Format(PyExc_RuntimeError, "%s: %s", call.name.c_str(), text);
  PyGILState_Release(held);
}

template <class Work>
static void enqueue(const Call& call, Work work) {
  const auto run = [](void* data) { return (*static_cast<Work*>(data))(); };
  const auto destroy = [](void* data) { delete static_cast<Work*>(data); };
  CUresult status = cudasim_begin_call(call.name.c_str());
  if (!status) status = cudasim_enqueue(call.stream, call.name.c_str(), run, new Work(std::move(work)), destroy);
  if (status) raise(call, status);
}

static CUresult check(const Call& call, const char* what, const void* pointer, size_t bytes, bool writes) {
  return cudasim_check_range((call.name + ": " + what).c_str(), pointer, bytes, writes);
}

// Draws draw(bits, i) for each i, into an array on the device.
template <class T, class Draw>
static CUresult fill(const Call& call, Draw draw) {
  auto* sequence = reinterpret_cast<Sequence*>(call.state);
  if (CUresult status = check(call, "the generator's state", sequence, sizeof *sequence, false)) return status;
  auto* out = reinterpret_cast<T*>(call.out);
  if (CUresult status = check(call, "the result", out, static_cast<size_t>(call.size) * sizeof(T), true)) return status;
  for (ssize_t i = 0; i < call.size; i++) {
    Bits bits(sequence->seed, static_cast<uint32_t>(sequence->kind), sequence->next++);
    out[i] = static_cast<T>(draw(bits, i));
  }
  return CUDA_SUCCESS;
}

template <class T, class Draw>
static void enqueue_fill(const Call& call, Draw draw) {
  enqueue(call, [call, draw] { return fill<T>(call, [draw](Bits& bits, ssize_t) { return draw(bits); }); });
}

// ---- Parameters ----------------------------------------------------------------------------------------------------

// An array of parameters, one for each number. CuPy describes it by integers on the device: its address, the number of
// dimensions, the shape and the strides in bytes.
template <class T>
class Parameter {
 public:
  explicit Parameter(intptr_t description) : description_(reinterpret_cast<const int64_t*>(description)) {}

  // Reads the description, and checks what the first `size` numbers need.
  CUresult open(const Call& call, const char* what) {
    const std::string of_it = std::string("the description of ") + what;
    if (CUresult status = check(call, of_it.c_str(), description_, 2 * sizeof(int64_t), false)) return status;
    low_ = reinterpret_cast<const char*>(description_[0]);
    const auto rank = static_cast<size_t>(description_[1]);
    const size_t bytes = (2 + 2 * rank) * sizeof(int64_t);
    if (CUresult status = check(call, of_it.c_str(), description_, bytes, false)) return status;
    shape_.assign(description_ + 2, description_ + 2 + rank);
    strides_.assign(description_ + 2 + rank, description_ + 2 + 2 * rank);
    return check_elements(call, what);
  }

  T operator[](ssize_t i) const { return *reinterpret_cast<const T*>(at(i)); }

 private:
  const char* at(int64_t i) const {
    int64_t offset = 0;
    for (size_t dimension = shape_.size(); dimension-- > 0;) {
      offset += strides_[dimension] * (i % shape_[dimension]);
      i /= shape_[dimension];
    }
    return low_ + offset;
  }

  // One element after the other: what lies between those of a strided array may never have been written.
  CUresult check_elements(const Call& call, const char* what) const {
    const char* last = nullptr;
    for (ssize_t i = 0; i < call.size; i++) {
      const char* element = at(i);
      if (element == last) continue;
      if (CUresult status = check(call, what, element, sizeof(T), false)) return status;
      last = element;
    }
    return CUDA_SUCCESS;
  }

  const int64_t* description_;
  const char* low_ = nullptr;
  std::vector<int64_t> shape_;
  std::vector<int64_t> strides_;
};

// Draws draw(bits, parameter of this number) for each number.
template <class T, class P, class Draw>
static void enqueue_fill(const Call& call, const char* name, intptr_t description, Draw draw) {
  enqueue(call, [call, name, parameter = Parameter<P>(description), draw]() mutable {
    if (CUresult status = parameter.open(call, name)) return status;
    return fill<T>(call, [&](Bits& bits, ssize_t i) { return draw(bits, parameter[i]); });
  });
}

}  // namespace cudasim::random

using namespace cudasim::random;

static Call call_of(const char* name, intptr_t state, intptr_t out, ssize_t size, intptr_t stream) {
  return {std::string("cupy.random: ") + name, state, out, size, reinterpret_cast<CUstream>(stream)};
}

void init_curand_generator(int generator, intptr_t state, uint64_t seed, ssize_t /*states*/, intptr_t stream) {
  const Call call = call_of("the start of a bit generator", state, 0, 0, stream);
  enqueue(call, [call, generator, seed] {
    auto* sequence = reinterpret_cast<Sequence*>(call.state);
    if (CUresult status = check(call, "the state", sequence, sizeof *sequence, true)) return status;
    *sequence = {seed, static_cast<uint64_t>(generator), 0};
    return CUDA_SUCCESS;
  });
}

// ---- Distributions without parameters ------------------------------------------------------------------------------

// `generator` is in the state too, and the number of states does not matter.
#define DRAWS int /*generator*/, intptr_t state, ssize_t /*states*/, intptr_t out, ssize_t size, intptr_t stream

void raw(DRAWS) {
  enqueue_fill<uint32_t>(call_of("raw", state, out, size, stream), [](Bits& bits) { return bits.next32(); });
}

void random_uniform(DRAWS) { enqueue_fill<double>(call_of("uniform", state, out, size, stream), uniform); }
void random_uniform_float(DRAWS) { enqueue_fill<float>(call_of("uniform", state, out, size, stream), uniform_float); }

void exponential(DRAWS) {
  enqueue_fill<double>(call_of("exponential", state, out, size, stream), cudasim::random::exponential);
}

void standard_normal(DRAWS) { enqueue_fill<double>(call_of("standard_normal", state, out, size, stream), normal); }
void standard_normal_float(DRAWS) { enqueue_fill<float>(call_of("standard_normal", state, out, size, stream), normal); }

void interval_32(DRAWS, uint32_t largest, uint32_t mask) {
  const auto draw = [largest, mask](Bits& bits) { return interval(bits, largest, mask); };
  enqueue_fill<uint32_t>(call_of("integers", state, out, size, stream), draw);
}

void interval_64(DRAWS, uint64_t largest, uint64_t mask) {
  const auto draw = [largest, mask](Bits& bits) { return interval(bits, largest, mask); };
  enqueue_fill<uint64_t>(call_of("integers", state, out, size, stream), draw);
}

// CuPy 13 declares these two with signed numbers.
void interval_32(int generator, intptr_t state, ssize_t states, intptr_t out, ssize_t size, intptr_t stream,
                 int32_t largest, int32_t mask) {
  const auto limit = static_cast<uint32_t>(largest);
  interval_32(generator, state, states, out, size, stream, limit, static_cast<uint32_t>(mask));
}

void interval_64(int generator, intptr_t state, ssize_t states, intptr_t out, ssize_t size, intptr_t stream,
                 int64_t largest, int64_t mask) {
  const auto limit = static_cast<uint64_t>(largest);
  interval_64(generator, state, states, out, size, stream, limit, static_cast<uint64_t>(mask));
}

// ---- Distributions with parameters ---------------------------------------------------------------------------------

void geometric(DRAWS, intptr_t p) {
  const Call call = call_of("geometric", state, out, size, stream);
  enqueue_fill<int64_t, double>(call, "p", p, cudasim::random::geometric);
}

void logseries(DRAWS, intptr_t p) {
  const Call call = call_of("logseries", state, out, size, stream);
  enqueue_fill<int64_t, double>(call, "p", p, cudasim::random::logseries);
}

void poisson(DRAWS, intptr_t lam) {
  const Call call = call_of("poisson", state, out, size, stream);
  enqueue_fill<int64_t, double>(call, "lam", lam, cudasim::random::poisson);
}

void standard_gamma(DRAWS, intptr_t shape) {
  const Call call = call_of("standard_gamma", state, out, size, stream);
  enqueue_fill<double, double>(call, "shape", shape, cudasim::random::standard_gamma);
}

void beta(DRAWS, intptr_t a, intptr_t b) {
  const Call call = call_of("beta", state, out, size, stream);
  enqueue(call, [call, first = Parameter<double>(a), second = Parameter<double>(b)]() mutable {
    if (CUresult status = first.open(call, "a")) return status;
    if (CUresult status = second.open(call, "b")) return status;
    const auto draw = [&](Bits& bits, ssize_t i) { return cudasim::random::beta(bits, first[i], second[i]); };
    return fill<double>(call, draw);
  });
}

void binomial(DRAWS, intptr_t n, intptr_t p, intptr_t /*scratch*/) {
  const Call call = call_of("binomial", state, out, size, stream);
  enqueue(call, [call, trials = Parameter<int64_t>(n), chance = Parameter<double>(p)]() mutable {
    if (CUresult status = trials.open(call, "n")) return status;
    if (CUresult status = chance.open(call, "p")) return status;
    const auto draw = [&](Bits& bits, ssize_t i) { return cudasim::random::binomial(bits, trials[i], chance[i]); };
    return fill<int64_t>(call, draw);
  });
}

void hypergeometric(DRAWS, intptr_t ngood, intptr_t nbad, intptr_t nsample) {
  const Call call = call_of("hypergeometric", state, out, size, stream);
  enqueue(call, [call, good = Parameter<int64_t>(ngood), bad = Parameter<int64_t>(nbad),
                 sample = Parameter<int64_t>(nsample)]() mutable {
    if (CUresult status = good.open(call, "ngood")) return status;
    if (CUresult status = bad.open(call, "nbad")) return status;
    if (CUresult status = sample.open(call, "nsample")) return status;
    const auto draw = [&](Bits& bits, ssize_t i) {
      return cudasim::random::hypergeometric(bits, good[i], bad[i], sample[i]);
    };
    return fill<int64_t>(call, draw);
  });
}
