"""Convolutions and locally connected layers on the GPU: directly, or by im2col and a matrix product.

A locally connected layer is a convolution whose weight moves with the output, so both run the same kernels.
"""

from __future__ import annotations

from math import gcd, prod
from typing import TYPE_CHECKING, Any

from gpucnn.backends.cuda import select
from gpucnn.backends.cuda.launching import Fields, empty, launch, strides
from gpucnn.backends.cuda.runtime import Array
from gpucnn.backends.cuda.sources import SCALARS, Kernel
from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.layout import is_channels_last
from gpucnn.geometry import Axis, ConvGeometry

if TYPE_CHECKING:
    from gpucnn.backends.cuda import CudaBackend

FORWARD = Kernel("conv_forward", "ConvParams")
BACKWARD_INPUT = Kernel("conv_backward_input", "ConvParams")
BACKWARD_WEIGHT = Kernel("conv_backward_weight", "ConvParams", block=128)
SUM_SPLITS = Kernel("sum_splits", "ConvParams")
LOCAL_BACKWARD_WEIGHT = Kernel("local_backward_weight", "ConvParams")

IMAGE = ("n", "c", "d", "h", "w")
WEIGHT = ("oc", "c", "kd", "kh", "kw")
LOCAL_WEIGHT = ("oc", "od", "oh", "ow", "c", "kd", "kh", "kw")
SPACE = ("d", "h", "w")


# --- What the kernels are told ------------------------------------------------------------------------------------


def window_fields(geometry: ConvGeometry) -> Fields:
    """The fields of ConvParams that follow from `geometry` alone."""
    c, oc, groups = geometry.channels
    fields: Fields = {"c": c, "oc": oc, "c_group": c // groups, "oc_group": oc // groups}
    for name, axis in zip(SPACE, geometry.axes, strict=True):
        fields |= _axis_fields(name, axis)
    return fields


def _axis_fields(name: str, axis: Axis) -> Fields:
    shared = gcd(axis.stride, axis.dilation)
    return {
        name: axis.size,
        f"o{name}": axis.out,
        f"k{name}": axis.kernel,
        f"stride_{name}": axis.stride,
        f"dilation_{name}": axis.dilation,
        f"low_{name}": axis.low,
        f"residues_{name}": min(axis.stride, axis.size),
        f"run_{name}": -(-axis.size // axis.stride),
        f"tap_step_{name}": axis.stride // shared,
        f"output_step_{name}": axis.dilation // shared,
    }


def _fields(
    geometry: ConvGeometry, x: Array, w: Array | None, y: Array, bias: Array | None = None, *, written: Array
) -> Fields:
    moving = w is not None and w.ndim == len(LOCAL_WEIGHT)
    fields = {
        "n": x.shape[0],
        **window_fields(geometry),
        **strides("x", IMAGE, x),
        **strides("y", IMAGE, y),
        **dict.fromkeys(("w_od", "w_oh", "w_ow", "bias_d", "bias_h", "bias_w", "splits", "run"), 0),
        **strides("w", LOCAL_WEIGHT if moving else WEIGHT, w),
        **strides("bias", ("c", *SPACE) if bias is not None and bias.ndim == 4 else ("c",), bias),
        "channels_last": int(is_channels_last(written)),
    }
    return fields


def extents(geometry: ConvGeometry) -> list[int]:
    """The largest numbers that index arithmetic along the axes of `geometry` meets."""
    return [
        axis.size + axis.low + axis.high + axis.out * axis.stride + axis.kernel * axis.dilation
        for axis in geometry.axes
    ]


# --- Forward ------------------------------------------------------------------------------------------------------


def convolve(backend: CudaBackend, x: Array, w: Array, bias: Array | None, geometry: ConvGeometry) -> Array:
    """Y [N, OC, OD, OH, OW], plus bias [OC]."""
    return _forward(backend, x, w, bias, geometry)


def locally_connect(backend: CudaBackend, x: Array, w: Array, bias: Array | None, geometry: ConvGeometry) -> Array:
    """Y [N, OC, OD, OH, OW] by filters w [OC, OD, OH, OW, C, KD, KH, KW] of each position's own."""
    return _forward(backend, x, w, bias, geometry)


def _forward(backend: CudaBackend, x: Array, w: Array, bias: Array | None, geometry: ConvGeometry) -> Array:
    y = empty(backend.runtime, (x.shape[0], geometry.channels.outputs, *geometry.output_size), x.dtype, like=x)
    fields = _fields(geometry, x, w, y, bias, written=y)
    launch(backend.runtime, FORWARD, x.dtype, fields, (x, w, bias, y), threads=y.size, extents=extents(geometry))
    return y


# --- Backward -----------------------------------------------------------------------------------------------------


def convolve_backward_input(
    backend: CudaBackend, grad_y: Array, w: Array, bias: Array | None, geometry: ConvGeometry
) -> Array:
    """grad_x [N, C, D, H, W], plus bias [C] where it is a transposed convolution."""
    return _backward_input(backend, grad_y, w, bias, geometry)


def locally_connect_backward_input(backend: CudaBackend, grad_y: Array, w: Array, geometry: ConvGeometry) -> Array:
    """grad_x [N, C, D, H, W] of a locally connected layer."""
    return _backward_input(backend, grad_y, w, None, geometry)


def _backward_input(
    backend: CudaBackend, grad_y: Array, w: Array, bias: Array | None, geometry: ConvGeometry
) -> Array:
    shape = (grad_y.shape[0], geometry.channels.inputs, *geometry.input_size)
    grad_x = empty(backend.runtime, shape, grad_y.dtype, like=grad_y)
    fields = _fields(geometry, grad_x, w, grad_y, bias, written=grad_x)
    launch(
        backend.runtime,
        BACKWARD_INPUT,
        grad_y.dtype,
        fields,
        (grad_y, w, bias, grad_x),
        threads=residue_threads(fields, shape[0] * shape[1]),
        extents=extents(geometry),
    )
    return grad_x


def residue_threads(fields: Fields, planes: int) -> int:
    """One thread an input, residue by residue, each residue as long as the longest."""
    return planes * prod(fields[f"{part}_{name}"] for part in ("residues", "run") for name in SPACE)


def convolve_backward_weight(backend: CudaBackend, x: Array, grad_y: Array, geometry: ConvGeometry) -> Array:
    """grad_w [OC, C / groups, KD, KH, KW]: parts of the sum by one block each, then the parts in order."""
    runtime = backend.runtime
    c, oc, groups = geometry.channels
    grad_w = runtime.xp.empty((oc, c // groups, *geometry.kernel_size), x.dtype)
    positions = x.shape[0] * prod(geometry.output_size)
    splits = select.weight_splits(grad_w.size, positions)
    parts = runtime.xp.empty((splits, grad_w.size), accumulator_dtype(x.dtype))
    fields = _fields(geometry, x, grad_w, grad_y, written=grad_w)
    fields |= {"splits": splits, "run": -(-positions // splits)}
    reach = (*extents(geometry), positions + BACKWARD_WEIGHT.block, parts.size)
    launch(
        runtime,
        BACKWARD_WEIGHT,
        x.dtype,
        fields,
        (x, grad_y, parts),
        blocks=parts.size,
        extents=reach,
    )
    launch(runtime, SUM_SPLITS, x.dtype, fields, (parts, grad_w), threads=grad_w.size, extents=reach)
    return grad_w


def accumulator_dtype(dtype: Any) -> Any:
    """The dtype of an array that holds sums of `dtype` between two kernels."""
    if dtype.kind in "iu":
        return SCALARS[dtype.name].accumulator.endswith("long long") and "uint64" or "uint32"
    return accumulator(dtype)


def locally_connect_backward_weight(backend: CudaBackend, x: Array, grad_y: Array, geometry: ConvGeometry) -> Array:
    """grad_w [OC, OD, OH, OW, C, KD, KH, KW]: each filter's sum over the batch."""
    runtime = backend.runtime
    c, oc, _ = geometry.channels
    grad_w = runtime.xp.empty((oc, *geometry.output_size, c, *geometry.kernel_size), x.dtype)
    fields = _fields(geometry, x, grad_w, grad_y, written=grad_w)
    launch(
        runtime,
        LOCAL_BACKWARD_WEIGHT,
        x.dtype,
        fields,
        (x, grad_y, grad_w),
        threads=grad_w.size,
        extents=extents(geometry),
    )
    return grad_w
