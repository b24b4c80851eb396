// Taps of a window and their elements, along one axis: output o and tap k read input o * stride + k * dilation - low.

struct Range {  // [first, last)
  index_t first, last;
};

// The taps k of [0, kernel) whose input start + k * dilation lies in [0, size).
__device__ __forceinline__ Range taps_inside(index_t start, index_t kernel, index_t dilation, index_t size) {
  const index_t first = start < 0 ? ceil_div(-start, dilation) : 0;
  const index_t last = start < size ? least(kernel, (size - 1 - start) / dilation + 1) : 0;
  return {first, last};
}

// Whether an index is one of `size`.
__device__ __forceinline__ bool is_inside(index_t i, index_t size) { return i >= 0 && i < size; }

// An index outside of every axis, whatever tap, or this once more, is added to it.
constexpr index_t NOWHERE = index_t(1) << (sizeof(index_t) * 8 - 3);

// The pairs (tap, output) that may read one input: (k + j * tap_step, o - j * output_step) for j = 0, 1, …, as far as
// tap and output exist.
struct Readers {
  index_t k, o;
};

// The pairs that read input i, where shift = i + low: k * dilation + o * stride = shift.
//
// All inputs of one residue i mod stride share their taps, with spacing tap_step = stride / gcd(stride, dilation), and
// spacing output_step = dilation / gcd of their outputs. A residue without taps has none that exists, and gradient 0.
__device__ __forceinline__ Readers readers(index_t shift, index_t kernel, index_t stride, index_t dilation,
                                           index_t tap_step) {
  index_t k = 0;
  while (k < tap_step && (shift - k * dilation) % stride != 0) ++k;
  return k < tap_step ? Readers{k, (shift - k * dilation) / stride} : Readers{kernel, 0};
}

// The input [N, C, D, H, W] of this thread in a launch over residues modulo the stride, [residues_d, residues_h,
// residues_w] times [N, C, run_d, run_h, run_w]; false for a thread without one.
template <typename Params>
__device__ __forceinline__ bool residue_position(index_t i, const Params& p, Position* at) {
  const index_t residue_size = p.n * p.c * p.run_d * p.run_h * p.run_w;
  index_t residue = i / residue_size;
  i -= residue * residue_size;
  if (residue >= p.residues_d * p.residues_h * p.residues_w) return false;
  *at = position(i, p.c, p.run_d, p.run_h, p.run_w, p.channels_last);
  at->w = at->w * p.stride_w + residue % p.residues_w;
  residue /= p.residues_w;
  at->h = at->h * p.stride_h + residue % p.residues_h;
  at->d = at->d * p.stride_d + residue / p.residues_h;
  return at->d < p.d && at->h < p.h && at->w < p.w;  // some residues are one shorter than the longest
}
