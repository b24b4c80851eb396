"""Kernel parameters of convolution, locally connected layers and unfolding: the fields of ConvParams."""

from __future__ import annotations

from math import gcd

from gpucnn.backends.cuda.launch.plans import IMAGE, SPACE, Fields, Layout, strides
from gpucnn.backends.layout import is_channels_last
from gpucnn.geometry import Axis, ConvGeometry

WEIGHT = ("oc", "c", "kd", "kh", "kw")
LOCAL_WEIGHT = ("oc", "od", "oh", "ow", "c", "kd", "kh", "kw")


def conv_fields(
    geometry: ConvGeometry, x: Layout, w: Layout | None, y: Layout, bias: Layout | None = None, *, written: Layout
) -> Fields:
    """The fields for x and y [N, C, …] and w and bias of a convolution or a locally connected layer."""
    c, oc, groups = geometry.channels
    fields: Fields = {"n": x.shape[0], "c": c, "oc": oc, "c_group": c // groups, "oc_group": oc // groups}
    for name, axis in zip(SPACE, geometry.axes, strict=True):
        fields |= axis_fields(name, axis)
    return {
        **fields,
        **strides("x", IMAGE, x),
        **strides("y", IMAGE, y),
        **dict.fromkeys(("w_od", "w_oh", "w_ow", "bias_d", "bias_h", "bias_w", "splits", "run"), 0),
        **strides("w", WEIGHT if w is None or len(w.shape) == len(WEIGHT) else LOCAL_WEIGHT, w),
        **strides("bias", ("c",) if bias is None or len(bias.shape) == 1 else ("c", *SPACE), bias),
        "channels_last": int(is_channels_last(written)),
    }


def axis_fields(name: str, axis: Axis) -> Fields:
    """The fields of a window along one axis."""
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


def extents(geometry: ConvGeometry) -> tuple[int, ...]:
    """Bounds of index arithmetic along the axes of `geometry`."""
    return tuple(
        axis.size + axis.low + axis.high + (axis.out + 1) * axis.stride + (axis.kernel + axis.stride) * axis.dilation
        for axis in geometry.axes
    )
