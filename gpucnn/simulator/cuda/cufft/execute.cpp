// The transforms of a plan: a box is read, its dimensions are transformed one by one, and it is written.
#include <string.h>

#include "include/half_bits.h"
#include "plan.h"
#include "transform.h"

namespace cudasim::cufft {

using Box = std::vector<Number>;

// ---- Elements ------------------------------------------------------------------------------------------------------

bool is_complex(cudaDataType type) {
  return type == CUDA_C_16F || type == CUDA_C_16BF || type == CUDA_C_32F || type == CUDA_C_64F;
}

static size_t bytes_of_real(cudaDataType type) {
  switch (type) {
    case CUDA_R_64F:
    case CUDA_C_64F:
      return 8;
    case CUDA_R_32F:
    case CUDA_C_32F:
      return 4;
    default:
      return 2;
  }
}

size_t bytes_of(cudaDataType type) { return bytes_of_real(type) * (is_complex(type) ? 2 : 1); }

static bool is_bfloat(cudaDataType type) { return type == CUDA_R_16BF || type == CUDA_C_16BF; }

template <class T>
static T read_as(const char* at) {
  T value;
  memcpy(&value, at, sizeof value);
  return value;
}

static double load_real(cudaDataType type, const char* at) {
  switch (bytes_of_real(type)) {
    case 8:
      return read_as<double>(at);
    case 4:
      return read_as<float>(at);
    default:
      const auto bits = read_as<uint16_t>(at);
      return is_bfloat(type) ? gpucnn::bfloat_to_float(bits) : gpucnn::half_to_float(bits);
  }
}

static void store_real(cudaDataType type, char* at, double value) {
  const float single = static_cast<float>(value);
  switch (bytes_of_real(type)) {
    case 8:
      memcpy(at, &value, sizeof value);
      return;
    case 4:
      memcpy(at, &single, sizeof single);
      return;
    default:
      const uint16_t bits = is_bfloat(type) ? gpucnn::float_to_bfloat(single) : gpucnn::float_to_half(single);
      memcpy(at, &bits, sizeof bits);
  }
}

static Number load(cudaDataType type, const char* at) {
  return {load_real(type, at), is_complex(type) ? load_real(type, at + bytes_of_real(type)) : 0};
}

static void store(cudaDataType type, char* at, Number value) {
  store_real(type, at, value.re);
  if (is_complex(type)) store_real(type, at + bytes_of_real(type), value.im);
}

// ---- Plans ---------------------------------------------------------------------------------------------------------

Kind Plan::kind() const {
  if (!is_complex(input.type)) return Kind::kRealToComplex;
  return is_complex(output.type) ? Kind::kComplex : Kind::kComplexToReal;
}

// A size that cuFFT might ask for.
size_t Plan::work_bytes() const {
  const Layout& complex = is_complex(input.type) ? input : output;
  return batch * rows() * sizes.back() * bytes_of(complex.type);
}

size_t Plan::rows() const {
  size_t rows = 1;
  for (size_t d = 0; d + 1 < sizes.size(); d++) rows *= sizes[d];
  return rows;
}

size_t Plan::stored(const Layout& layout) const {
  const bool is_half = kind() != Kind::kComplex && is_complex(layout.type);
  return is_half ? sizes.back() / 2 + 1 : sizes.back();
}

// The byte at which a row of the innermost dimension begins.
static size_t row_start(const Plan& plan, const Layout& layout, size_t batch, size_t row) {
  size_t element = 0, scale = layout.embed.back();
  for (size_t d = plan.sizes.size() - 1; d-- > 0;) {
    element += row % plan.sizes[d] * scale;
    row /= plan.sizes[d];
    scale *= layout.embed[d];
  }
  return (batch * layout.distance + element * layout.stride) * bytes_of(layout.type);
}

// Checks the elements of a row; those between them may be somebody else's.
static CUresult check_row(const std::string& what, const Layout& layout, const char* start, size_t count, bool writes) {
  const size_t bytes = bytes_of(layout.type);
  if (layout.stride == 1) return cudasim_check_range(what.c_str(), start, count * bytes, writes);
  for (size_t i = 0; i < count; i++) {
    if (CUresult error = cudasim_check_range(what.c_str(), start + i * layout.stride * bytes, bytes, writes)) {
      return error;
    }
  }
  return CUDA_SUCCESS;
}

static CUresult read(const Plan& plan, const std::string& what, const char* data, size_t batch, Box& box) {
  const Layout& layout = plan.input;
  const size_t count = plan.stored(layout), step = layout.stride * bytes_of(layout.type);
  for (size_t row = 0; row < plan.rows(); row++) {
    const char* start = data + row_start(plan, layout, batch, row);
    if (CUresult error = check_row(what, layout, start, count, false)) return error;
    for (size_t i = 0; i < count; i++) box[row * plan.sizes.back() + i] = load(layout.type, start + i * step);
  }
  return CUDA_SUCCESS;
}

static CUresult write(const Plan& plan, const std::string& what, char* data, size_t batch, const Box& box) {
  const Layout& layout = plan.output;
  const size_t count = plan.stored(layout), step = layout.stride * bytes_of(layout.type);
  for (size_t row = 0; row < plan.rows(); row++) {
    char* start = data + row_start(plan, layout, batch, row);
    if (CUresult error = check_row(what, layout, start, count, true)) return error;
    for (size_t i = 0; i < count; i++) store(layout.type, start + i * step, box[row * plan.sizes.back() + i]);
  }
  return CUDA_SUCCESS;
}

// ---- Transforms of a box -------------------------------------------------------------------------------------------

static void transform_dimension(const Plan& plan, size_t dimension, int sign, Box& box) {
  const size_t length = plan.sizes[dimension];
  size_t stride = 1;
  for (size_t d = dimension + 1; d < plan.sizes.size(); d++) stride *= plan.sizes[d];
  Transform transform(length, sign);
  std::vector<Number> row(length);
  for (size_t first = 0; first < box.size(); first += length * stride) {
    for (size_t start = first; start < first + stride; start++) {
      for (size_t i = 0; i < length; i++) row[i] = box[start + i * stride];
      transform(row);
      for (size_t i = 0; i < length; i++) box[start + i * stride] = row[i];
    }
  }
}

// Fills the half of a row's spectrum that is not stored. It was transformed in the other dimensions already, so the row
// is that of real data. The imaginary parts of its own mirror images count as 0, as in cuFFT.
static void complete_rows(const Plan& plan, Box& box) {
  const size_t length = plan.sizes.back();
  for (size_t first = 0; first < box.size(); first += length) {
    box[first].im = 0;
    if (length % 2 == 0) box[first + length / 2].im = 0;
    for (size_t i = length / 2 + 1; i < length; i++) box[first + i] = conjugate(box[first + length - i]);
  }
}

static void transform_box(const Plan& plan, int sign, Box& box) {
  const size_t innermost = plan.sizes.size() - 1;
  if (plan.kind() != Kind::kComplexToReal) transform_dimension(plan, innermost, sign, box);
  for (size_t d = 0; d < innermost; d++) transform_dimension(plan, d, sign, box);
  if (plan.kind() == Kind::kComplexToReal) {
    complete_rows(plan, box);
    transform_dimension(plan, innermost, sign, box);
  }
}

// Real data in place in the default layout have room for the spectrum: rows of 2 (n / 2 + 1).
static Plan padded_in_place(Plan plan) {
  Layout& real = plan.kind() == Kind::kRealToComplex ? plan.input : plan.output;
  real.embed.back() = 2 * (plan.sizes.back() / 2 + 1);
  real.distance = plan.rows() * real.embed.back();
  return plan;
}

CUresult execute(const Plan& given, const std::string& name, const void* input, void* output, int sign) {
  const bool is_padded = given.is_default_layout && given.kind() != Kind::kComplex && input == output;
  const Plan plan = is_padded ? padded_in_place(given) : given;
  Box box(plan.rows() * plan.sizes.back());
  for (size_t batch = 0; batch < plan.batch; batch++) {
    const auto* from = static_cast<const char*>(input);
    if (CUresult error = read(plan, name + ": input", from, batch, box)) return error;
    transform_box(plan, sign, box);
    if (CUresult error = write(plan, name + ": output", static_cast<char*>(output), batch, box)) return error;
  }
  return CUDA_SUCCESS;
}

}  // namespace cudasim::cufft
