"""A CUDA kernel with a mistake, for CuPy on a machine without a GPU: it writes one element too far.

Run it in an environment that ``python -m gpucnn.simulator.cupy`` made.
"""

import cupy

SOURCE = r"""
extern "C" __global__ void shift(const float* x, float* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n)
    y[i + 1] = x[i];
}
"""

cupy.cuda.set_allocator(None)  # arrays of exact size; CuPy's pool would round them up to 512 bytes
shift = cupy.RawKernel(SOURCE, "shift")
x = cupy.arange(100, dtype="f4")
y = cupy.zeros(100, "f4")
shift((1,), (128,), (x, y, cupy.int32(99)))  # right
print(y[:5], (x @ y).get())
try:
    shift((1,), (128,), (x, y, cupy.int32(100)))  # y[100] is one too far
except cupy.cuda.driver.CUDADriverError as error:
    print(error)
