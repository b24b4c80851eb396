"""Products of matrices."""

from __future__ import annotations

import numpy as np

from gpucnn.backends.dtypes import accumulator
from gpucnn.onnx.operators.arrays import namespace, written
from gpucnn.onnx.operators.registry import Array, operator, refuse


@operator("MatMul")
def matmul(a: Array, b: Array, *, out: Array = None) -> Array:
    """The product of matrices, or of stacks of them."""
    if a.dtype.itemsize > 2 or a.dtype.kind in "iu":
        return namespace(a).matmul(a, b, out=out)
    wide = accumulator(a.dtype)  # sums of 16 bits are kept in float32 and rounded once
    return written(namespace(a).matmul(a.astype(wide), b.astype(wide)).astype(a.dtype), out)


@operator("Gemm", 7)
def gemm(
    a: Array,
    b: Array,
    c: Array = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    out: Array = None,
) -> Array:
    """``alpha * a @ b + beta * c``."""
    y = matmul(a.T if transA else a, b.T if transB else b, out=out)
    if alpha != 1:
        y *= y.dtype.type(alpha)
    if c is not None and beta:
        y += c if beta == 1 else c * c.dtype.type(beta)
    return y


@operator("Gemm", 1)
def gemm_of_old(
    a: Array,
    b: Array,
    c: Array,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    broadcast: int = 0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    """As `gemm`, whose `broadcast` NumPy's rules imply."""
    return gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)


@operator("MatMulInteger")
def matmul_integer(a: Array, b: Array, a_zero_point: Array = None, b_zero_point: Array = None) -> Array:
    """The product of integers less their zero points, in int32."""
    a, b = a.astype(np.int32), b.astype(np.int32)
    if a_zero_point is not None:
        zero = a_zero_point.astype(np.int32)
        a = a - (zero.reshape(-1, 1) if zero.ndim == 1 and zero.size > 1 else zero)
    if b_zero_point is not None:
        b = b - b_zero_point.astype(np.int32)
    return namespace(a).matmul(a, b)


@operator("Einsum")
def einsum(*arrays: Array, equation: str) -> Array:
    """The sum of products that the equation writes."""
    dtype = arrays[0].dtype
    wide = (array.astype(accumulator(dtype), copy=False) for array in arrays)
    return namespace(arrays[0]).einsum(equation.replace(" ", ""), *wide).astype(dtype, copy=False)


@operator("Det")
def determinant(x: Array) -> Array:
    """The determinants of square matrices."""
    xp = namespace(x)
    if not hasattr(xp, "linalg"):  # the simulator's arrays
        raise refuse("this library of arrays has no determinants")
    return xp.linalg.det(x).astype(x.dtype, copy=False)
