// Epilogue activations of convolutions and norms, as in gpucnn.functional, including NaN.

constexpr int RELU = 1, LEAKY_RELU = 2, RELU6 = 3;  // 0 is none

__device__ __forceinline__ acc_t activated(acc_t value, index_t activation, double slope) {
  if (activation == LEAKY_RELU) return value > acc_t(0) ? value : value * static_cast<acc_t>(slope);
  if (activation == RELU6 && value >= acc_t(6)) return acc_t(6);
  return activation != 0 && value <= acc_t(0) ? acc_t(0) : value;
}

// The gradient with respect to the activation's input, whose sign is that of `sign`; for relu6 its output as well.
__device__ __forceinline__ acc_t activated_backward(acc_t grad, acc_t sign, index_t activation, double slope) {
  if (activation == RELU) return sign <= acc_t(0) ? acc_t(0) : grad;
  if (activation == LEAKY_RELU) return sign > acc_t(0) ? grad : grad * static_cast<acc_t>(slope);
  if (activation == RELU6) return sign <= acc_t(0) || sign >= acc_t(6) ? acc_t(0) : grad;
  return grad;
}
