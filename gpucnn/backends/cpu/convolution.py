"""Convolution, dgrad and wgrad in C++.

All three are contractions of images with filters along samplings (`gpucnn.geometry.Sampling`): the forward, and dgrad
once per stride residue, by `contract`; wgrad by `convolve_backward_weight`. `select` chooses the algorithm. What a call
launches depends on shapes and strides alone, and is kept for the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from itertools import product
from typing import Any

import numpy as np

from gpucnn.backends.base import Epilogue
from gpucnn.backends.cpu import depthwise, folding, implicit_gemm, pointwise, select, winograd
from gpucnn.backends.cpu.elementwise import copy
from gpucnn.backends.cpu.finishing import NOTHING, Finish, finish_of
from gpucnn.backends.cpu.library import Layout, layout
from gpucnn.backends.cpu.select import Order
from gpucnn.backends.cpu.tiling import Residue, Samplings, flattened, whole
from gpucnn.backends.dtypes import name_of
from gpucnn.backends.listening import computing, note_computed, read
from gpucnn.backends.numpy import convolution as in_numpy
from gpucnn.backends.numpy import pool
from gpucnn.backends.numpy.memory import Array
from gpucnn.geometry import ConvGeometry
from gpucnn.numerics import choices

_NUMPY = (
    computing(in_numpy.convolve),
    computing(in_numpy.convolve_backward_input),
    computing(in_numpy.convolve_backward_weight),
)
_OTHERS: dict[str, tuple[Callable[..., None], ...]] = {  # than contractions: forward, dgrad, wgrad
    "direct": _NUMPY,
    "im2col": _NUMPY,
    "depthwise": (depthwise.forward, depthwise.backward_input, depthwise.backward_weight),
}


def convolve(x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Y [N, OC, OD, OH, OW] = x [N, C, D, H, W] * w [OC, C / groups, KD, KH, KW] + bias [OC]."""
    algorithm = select.algorithm("forward", geometry, choices().algorithm, _are_in_rows(x, y))
    if algorithm == "fold":
        folding.forward(x, w, bias, y, geometry, contract)
        return
    if algorithm is not None:
        _OTHERS[algorithm][0](x, w, bias, y, geometry)
        return
    contract(x, *_by_group(w, bias, geometry), geometry.forward, y)


def convolve_in_one_pass(
    x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry, epilogue: Epilogue
) -> bool:
    """As `convolve`, with the epilogue of y's sums; False, with nothing done, where kernels cannot apply it."""
    residual, finish = epilogue.residual, finish_of(epilogue)
    algorithm = select.algorithm("forward", geometry, choices().algorithm, _are_in_rows(x, y))
    if algorithm == "depthwise" and residual is None:
        depthwise.forward(x, w, bias, y, geometry, finish)
        return True
    if algorithm is not None or (residual is not None and not _has_steps_of(residual, y)):
        return False
    contract(x, *_by_group(w, bias, geometry), geometry.forward, y, residual, finish)
    return True


def convolve_backward_input(grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry) -> None:
    """grad_x [N, C, D, H, W] from grad_y [N, OC, OD, OH, OW]: a contraction for each stride residue."""
    algorithm = select.algorithm("backward_input", geometry, choices().algorithm, _are_in_rows(grad_y, grad_x))
    if algorithm == "fold":
        folding.backward_input(grad_y, w, bias, grad_x, geometry, contract)
        return
    if algorithm is not None:
        _OTHERS[algorithm][1](grad_y, w, bias, grad_x, geometry)
        return
    inputs, outputs, groups = geometry.channels
    weight = w.reshape(groups, outputs // groups, inputs // groups, *geometry.kernel_size).swapaxes(1, 2)
    if any(len(axis.backward) < min(axis.stride, axis.size) for axis in geometry.axes):  # no tap reaches the others
        zero = _zero(name_of(grad_x.dtype))
        read(zero)
        copy(np.broadcast_to(zero if bias is None else bias.reshape(-1, 1, 1, 1), grad_x.shape), grad_x)
    residues, targets = _residues(geometry)
    by_group = None if bias is None else bias.reshape(groups, -1)
    _contract_residues(grad_y, weight, residues, [grad_x[target] for target in targets], by_group)


@cache
def _zero(dtype: str) -> Array:
    return np.zeros(1, dtype)


@lru_cache(maxsize=512)
def _residues(geometry: ConvGeometry) -> tuple[tuple[Residue, ...], list[Any]]:
    """The stride residues of a dgrad, and the slices of their targets."""
    residues, targets = [], []
    for each in product(*(axis.backward for axis in geometry.axes)):
        indices = [r.kernel_indices[:: -1 if r.sampling.spacing < 0 else 1] for r in each]
        depth, height, width = (r.sampling for r in each)
        residues.append(Residue((depth, height, width), (indices[0], indices[1], indices[2])))
        slices = (slice(r.first, None, axis.stride) for r, axis in zip(each, geometry.axes, strict=True))
        targets.append((slice(None), slice(None), *slices))
    return tuple(residues), targets


def _has_steps_of(residual: Array, y: Array) -> bool:
    """Whether arrays of one shape have the same strides, which do not matter along an axis of one element."""
    steps = zip(y.shape, residual.strides, y.strides, strict=True)
    return all(size == 1 or one == other for size, one, other in steps)


def _by_group(w: Array, bias: Array | None, geometry: ConvGeometry) -> tuple[Array, Array | None]:
    """The filters [G, M, C, KD, KH, KW] and biases [G, M] of a forward."""
    inputs, outputs, groups = geometry.channels
    weight = w.reshape(groups, outputs // groups, inputs // groups, *geometry.kernel_size)
    return weight, None if bias is None else bias.reshape(groups, -1)


def contract(
    x: Array,
    w: Array,
    bias: Array | None,
    samplings: Samplings,
    y: Array,
    residual: Array | None = None,
    finish: Finish = NOTHING,
) -> None:
    """y[n, (g, m), o] = bias[g, m] + sum over c, t of w[g, m, c, t] * x[n, (g, c), where o reads at t], finished.

    x [N, G * C, D, H, W]; w [G, M, C, KD, KH, KW]; bias [G, M] or None; y [N, G * M, *o], any strides; the residual is
    None, or has the layout of y.
    """
    if any(axis.spacing < 0 for axis in samplings):
        ascending: Any = (..., *(slice(None, None, -1 if axis.spacing < 0 else 1) for axis in samplings))
        w = w[ascending]
    _contract_ascending(x, w, bias, samplings, y, residual, finish)


def _contract_ascending(
    x: Array,
    w: Array,
    bias: Array | None,
    samplings: Samplings,
    y: Array,
    residual: Array | None = None,
    finish: Finish = NOTHING,
) -> None:
    """As `contract`, with the taps of w in the order of ascending offsets."""
    if y.size == 0:
        return
    not_finite = _compute(x, w, bias, samplings, y, residual, finish, choices().algorithm)
    for n in not_finite or ():  # Winograd's transforms spread them over a tile
        one = slice(n, n + 1)
        beside = None if residual is None else residual[one]
        _compute(x[one], w, bias, samplings, y[one], beside, finish, "implicit_gemm")


def _compute(
    x: Array,
    w: Array,
    bias: Array | None,
    samplings: Samplings,
    y: Array,
    residual: Array | None,
    finish: Finish,
    chosen: str | None,
) -> list[int] | None:
    shape = None if bias is None else layout(bias)
    planned = _plan(layout(x), layout(w), layout(y), shape, samplings, name_of(x.dtype), chosen, finish)
    return planned(x, w, y, bias, residual)


def _contract_residues(x: Array, w: Array, residues: tuple[Residue, ...], ys: list[Array], bias: Array | None) -> None:
    """As `contract`, for each residue with its taps of w and its y; these are parts of one image."""
    if len(residues) > 1:
        offsets = tuple((y.ctypes.data - ys[0].ctypes.data) // y.itemsize for y in ys)
        shape = None if bias is None else layout(bias)
        planned = _plan_residues(
            layout(x), layout(w), layout(ys[0]), shape, residues, offsets, name_of(x.dtype), choices().algorithm
        )
        if planned is not None:
            planned(x, w, ys[0], bias)
            return
    for (samplings, taps), y in zip(residues, ys, strict=True):
        ascending: Any = (..., *(slice(t.start, t.stop if t.stop >= 0 else None, t.step) for t in taps))
        _contract_ascending(x, w[ascending], bias, samplings, y)


@lru_cache(maxsize=512)
def _plan_residues(
    x: Layout,
    w: Layout,
    y: Layout,
    bias: Layout | None,
    residues: tuple[Residue, ...],
    offsets: tuple[int, ...],
    dtype: str,
    chosen: str | None,
) -> Callable[..., None] | None:
    """The implicit GEMM of all residues, unless `select` chooses something else for one of them."""
    for samplings, taps in residues:
        weight = (*w.shape[:3], *map(len, taps))
        if select.contraction(x.shape[0], weight, samplings, dtype, Order.OTHER, chosen) != "implicit_gemm":
            return None
    return implicit_gemm.plan(x, w, y, bias, residues, offsets, dtype)


@lru_cache(maxsize=512)
def _plan(
    x: Layout,
    w: Layout,
    y: Layout,
    bias: Layout | None,
    samplings: Samplings,
    dtype: str,
    chosen: str | None,
    finish: Finish,
) -> Callable[..., list[int] | None]:
    """The function of arrays of these layouts that computes a contraction, by the algorithm that `select` chooses."""
    flat = flattened(x, y, samplings)
    algorithm = select.contraction(x.shape[0], w.shape, samplings, dtype, _order(*flat[:2]), chosen)
    if algorithm == "winograd":
        return winograd.plan(x, w, y, bias, samplings, dtype, finish)
    x, y, samplings = flat
    if algorithm == "pointwise":
        return pointwise.plan(x, w, y, bias, dtype, finish)
    if algorithm == "pointwise_dots":
        return pointwise.plan_dots(x, w, y, bias, dtype, finish)
    return implicit_gemm.plan(x, w, y, bias, (whole(samplings),), (0,), dtype, finish)


def _are_in_rows(x: Array, y: Array) -> bool:
    return x.flags.c_contiguous and y.flags.c_contiguous


def _order(x: Layout, y: Layout) -> Order:
    """The memory order of images that are flattened, where they can be."""
    if any(each.shape[2:4] != (1, 1) for each in (x, y)):
        return Order.OTHER
    if all(each.strides[-1] == each.itemsize for each in (x, y)):
        return Order.ROWS
    return Order.PIXELS if x.strides[1] == x.itemsize else Order.OTHER


def convolve_backward_weight(x: Array, grad_y: Array, grad_w: Array, geometry: ConvGeometry) -> None:
    """grad_w [OC, C / groups, KD, KH, KW] from x [N, C, D, H, W] and grad_y [N, OC, OD, OH, OW]."""
    algorithm = select.algorithm("backward_weight", geometry, choices().algorithm)
    if algorithm is not None:
        _OTHERS[algorithm][2](x, grad_y, grad_w, geometry)
        return
    if x.size == 0:
        grad_w[...] = 0
        return
    inputs, outputs, groups = geometry.channels
    by_group = grad_w.reshape(groups, outputs // groups, inputs // groups, *geometry.kernel_size)
    planned = _plan_weight(layout(x), layout(grad_y), layout(by_group), geometry.forward, name_of(x.dtype))
    planned(x, grad_y, by_group)
    if not np.may_share_memory(by_group, grad_w):
        note_computed()
        grad_w[...] = by_group.reshape(grad_w.shape)


@lru_cache(maxsize=512)
def _plan_weight(
    x: Layout, grad_y: Layout, grad_w: Layout, samplings: Samplings, dtype: str
) -> Callable[[Array, Array, Array], None]:
    """The function of arrays of these layouts that computes a wgrad."""
    x, grad_y, samplings = flattened(x, grad_y, samplings)
    return implicit_gemm.plan_weight(x, grad_y, grad_w, samplings, dtype)


def empty_weight(shape: tuple[int, ...], dtype: Any, x: Array) -> Array:
    """An array [OC, C / groups, *k] for a weight's gradient, in the order of its sums: the channels innermost."""
    last = len(shape) - 1
    return pool.empty((shape[0], *shape[2:], shape[1]), dtype).transpose(0, last, *range(1, last))
