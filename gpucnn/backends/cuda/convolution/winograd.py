"""Convolution with 3 x 3 taps and stride 1 by Winograd's minimal filtering, F(2 x 2, 3 x 3): float32.

A tile of 2 x 2 outputs takes 16 products in place of 36. Images and filters are transformed, each of the 16 frequencies
is a group of one implicit GEMM, and the sums are transformed back; as many images at once as their transforms fit
`gpucnn.workspace_limit`. The gradient of the input is the convolution with flipped filters.

Errors are relative to the tile. Results that are infinite or NaN are summed anew, without transforms.
"""

from __future__ import annotations

from math import prod

from gpucnn.backends.cuda.convolution import implicit_gemm
from gpucnn.backends.cuda.convolution.im2col import images_at_once
from gpucnn.backends.cuda.device.runtime import Array, Runtime
from gpucnn.backends.cuda.device.sources import Kernel
from gpucnn.backends.cuda.elementwise.bias_activation import bias_dtype
from gpucnn.backends.cuda.launch.plans import Fields, Layout, Work, empty, launch, strides
from gpucnn.backends.layout import is_channels_last
from gpucnn.geometry import ConvGeometry

INPUT = Kernel("winograd_input", "WinogradInputParams")
FILTERS = Kernel("winograd_filters", "WinogradFilterParams")
OUTPUT = Kernel("winograd_output", "WinogradOutputParams")

FREQUENCIES = 16
PLANE = ("n", "c", "h", "w")


def forward(runtime: Runtime, x: Array, w: Array, bias: Array | None, y: Array, geometry: ConvGeometry) -> None:
    """Write y [N, OC, 1, OH, OW]."""
    _, height, width = geometry.axes
    _filter(runtime, x, w, bias, y, (height.low, width.low), is_flipped=False)


def backward_input(
    runtime: Runtime, grad_y: Array, w: Array, bias: Array | None, grad_x: Array, geometry: ConvGeometry
) -> None:
    """Write grad_x [N, C, 1, H, W], plus bias [C] where it is a transposed convolution."""
    _, height, width = geometry.axes
    _filter(runtime, grad_y, w.swapaxes(0, 1), bias, grad_x, (2 - height.low, 2 - width.low), is_flipped=True)


def _filter(
    runtime: Runtime, x: Array, w: Array, bias: Array | None, y: Array, low: tuple[int, int], is_flipped: bool
) -> None:
    """Write y [N, OC, 1, OH, OW]: x [N, C, 1, H, W], padded by `low`, with filters w [OC, C, 1, 3, 3].

    Filters are flipped by the kernels: a view of them would begin elsewhere, and the call not be recorded.
    """
    (n, c, *_), (_, oc, _, *size) = x.shape, y.shape
    depth = implicit_gemm.padded_depth(c, x.itemsize)
    tiles = (1, *(-(-each // 2) for each in size))
    filters = empty(runtime, (FREQUENCIES, oc, depth), x.dtype)
    launch(runtime, FILTERS, w.dtype, {"w": w, "u": filters}, _filters_work, is_flipped=is_flipped)
    step = images_at_once(FREQUENCIES * prod(tiles) * (depth + oc) * x.itemsize)
    for start in range(0, n, step):
        images, out = x[start : start + step], y[start : start + step]
        transformed = empty(runtime, (len(images), *tiles, FREQUENCIES, depth), x.dtype)
        launch(runtime, INPUT, x.dtype, {"x": images, "v": transformed}, _input_work, low=low)
        sums = empty(runtime, (len(images), FREQUENCIES * oc, *tiles), x.dtype, like=out)
        implicit_gemm.multiply(
            runtime, runtime.xp.moveaxis(transformed, (4, 5), (1, 2)), filters.reshape(-1, 1, 1, 1, depth), sums
        )
        arrays = {"m": sums, "x": images, "w": w, "bias": bias, "y": out}
        facts = {"low": low, "is_flipped": is_flipped, "biases": bias_dtype(x, bias)}
        launch(runtime, OUTPUT, x.dtype, arrays, _output_work, **facts)


# --- Works ------------------------------------------------------------------------------------------------------------


def _input_work(x: Layout, v: Layout, low: tuple[int, int]) -> Work:
    n, _, tiles_h, tiles_w, _, depth = v.shape
    _, c, _, h, w = x.shape
    fields = {
        **{"n": n, "c": c, "h": h, "w": w, "low_h": low[0], "low_w": low[1]},
        **{"tiles_h": tiles_h, "tiles_w": tiles_w, "depth": depth},
        **strides("x", PLANE, _plane(x)),
        "channels_last": int(is_channels_last(x)),
    }
    blocks = n * tiles_h * -(-tiles_w // 16) * -(-depth // 32)
    return Work(fields, blocks=blocks, extents=(2 * tiles_w + 32, 2 * tiles_h + 4, depth + 32))


def _filters_work(w: Layout, u: Layout, is_flipped: bool) -> Work:
    _, oc, depth = u.shape
    return Work({"oc": oc, "c": w.shape[1], "depth": depth, **_filter_fields(w, is_flipped)}, oc * depth)


def _filter_fields(w: Layout, is_flipped: bool) -> Fields:
    """Where the first tap of a filter is, and the strides."""
    fields = {"w_first": 0, **strides("w", ("oc", "c", "h", "w"), _plane(w))}
    if is_flipped:
        step_h, step_w = fields["w_h"], fields["w_w"]
        fields |= {"w_first": 2 * (step_h + step_w), "w_h": -step_h, "w_w": -step_w}
    return fields


def _output_work(
    m: Layout, x: Layout, w: Layout, bias: Layout | None, y: Layout, low: tuple[int, int], is_flipped: bool, biases: str
) -> Work:
    n, oc, _, height, width = y.shape
    tiles_h, tiles_w = m.shape[3:]
    fields = {
        **{"n": n, "oc": oc, "h": height, "w": width, "tiles_h": tiles_h, "tiles_w": tiles_w},
        **{"c": x.shape[1], "xh": x.shape[3], "xw": x.shape[4], "low_h": low[0], "low_w": low[1]},
        **strides("x", PLANE, _plane(x)),
        **_filter_fields(w, is_flipped),
        **strides("m", PLANE, _plane(m)),
        **{"m_k": m.strides[1] // m.itemsize * oc, "m_c": m.strides[1] // m.itemsize},
        **strides("y", PLANE, _plane(y)),
        **strides("bias", ("c",), bias),
        "channels_last": int(is_channels_last(y)),
    }
    return Work(fields, n * oc * tiles_h * tiles_w, extents=(height + 2, width + 2), constants=(("BIAS", biases),))


def _plane(x: Layout) -> Layout:
    """X [N, C, 1, H, W] without its depth."""
    (n, c, _, h, w), (step_n, step_c, _, step_h, step_w) = x.shape, x.strides
    return x._replace(shape=(n, c, h, w), strides=(step_n, step_c, step_h, step_w))
