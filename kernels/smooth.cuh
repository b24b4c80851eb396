// Smooth activations of convolutions, as in gpucnn/backends/smooth.py: the one of number SMOOTH, 0 for none. Each build
// knows it, since an exponential that might be needed would take registers of all.

constexpr int SIGMOID = 1, HARD_SIGMOID = 2, HARD_SWISH = 4, GELU = 5, GELU_TANH = 6;  // 3 is silu

// A share of 1, or that share of x.
__device__ __forceinline__ acc_t smooth(acc_t x) {
  if (SMOOTH == 0) return x;
  acc_t share;
  if (SMOOTH == HARD_SIGMOID || SMOOTH == HARD_SWISH) {
    const acc_t above = x + acc_t(3);
    share = (above <= acc_t(0) ? acc_t(0) : above >= acc_t(6) ? acc_t(6) : above) * (acc_t(1) / acc_t(6));
  } else if (SMOOTH == GELU) {
    share = erfc(x * acc_t(-0.70710678118654752)) * acc_t(0.5);
  } else {
    acc_t angle = x;
    if (SMOOTH == GELU_TANH) angle = (x * x * acc_t(0.071354816272600249) + acc_t(1.5957691216057308)) * x;
    share = acc_t(1) / (acc_t(1) + exp(-angle));  // (1 + tanh(u)) / 2 is the sigmoid of 2 u
  }
  return SMOOTH == SIGMOID || SMOOTH == HARD_SIGMOID ? share : share * x;
}
