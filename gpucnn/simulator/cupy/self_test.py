"""A short test of an environment, run in it: arithmetic, a product, a kernel, and a caught out-of-bounds write."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

SOURCE = r"""
extern "C" __global__ void shift(const float* x, float* y, int n, int by) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n)
    y[i + by] = x[i];
}
"""


def caught_overrun(cupy: Any) -> str:
    """The message of a write beyond an array; a RuntimeError if nothing was said."""
    cupy.cuda.set_allocator(None)  # exact sizes: CuPy's pool rounds them up
    kernel = cupy.RawKernel(SOURCE, "shift")
    x, y = cupy.arange(64, dtype="f4"), cupy.zeros(64, "f4")
    kernel((1,), (64,), (x, y, cupy.int32(64), cupy.int32(0)))
    if not (y == x).all():
        raise RuntimeError("a kernel gave a wrong result")
    try:
        kernel((1,), (64,), (x, y, cupy.int32(64), cupy.int32(1)))
        cupy.cuda.Device().synchronize()
    except cupy.cuda.driver.CUDADriverError as error:
        return str(error)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return str(error)
    raise RuntimeError("a write beyond an array was not caught")


def main() -> int:
    """Run the test and report what was computed; the exit status."""
    cupy: Any = import_module("cupy")
    x = cupy.arange(6, dtype="f4").reshape(2, 3)
    total, product = float((x * 2).sum()), (x @ x.T).tolist()
    if (total, product) != (30.0, [[5.0, 14.0], [14.0, 50.0]]):
        raise RuntimeError(f"CuPy computes wrongly: a sum of {total} and a product of {product}")
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    print(f"CuPy {cupy.__version__} on {name}: sums, products and kernels are right")
    print(f"a write beyond an array was caught: {caught_overrun(cupy)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
