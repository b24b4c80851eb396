// Roundings of a product's inputs and sums.
#include "multiply.h"

namespace cudasim::cublas {

float rounded(float value, Rounding rounding) {
  switch (rounding) {
    case Rounding::kTf32:
      return gpucnn::tf32_to_float(gpucnn::float_to_tf32(value));
    case Rounding::kHalf:
      return static_cast<float>(Half(value));
    case Rounding::kBFloat16:
      return static_cast<float>(BFloat16(value));
    default:
      return value;
  }
}

void round_inputs(float* values, size_t count, Rounding rounding) {
  if (rounding == Rounding::kNone) return;
  for (size_t i = 0; i < count; i++) values[i] = rounded(values[i], rounding);
}

}  // namespace cudasim::cublas
