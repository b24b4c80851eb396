"""Choice of a convolution's algorithm on a GPU: pure functions of sizes, dtype and compute capability.

No kernel has run on a device yet. Depthwise tiles and the implicit GEMM stand before the direct and im2col ones for
what they save by count: of bytes (benchmarks/results/kernel-gains.md), or of instructions per multiply-add.
"""

from __future__ import annotations

from math import prod

from gpucnn.backends.cuda.convolution import depthwise
from gpucnn.backends.cuda.launch.plans import Layout
from gpucnn.backends.dtypes import FLOATING, LINEAR
from gpucnn.geometry import ConvGeometry
from gpucnn.numerics import choices

SM_75, SM_80 = (7, 5), (8, 0)
_ON_A_GPU = ("direct", "im2col", "implicit_gemm", "winograd")
_16_BITS = frozenset({"float16", "bfloat16"})
_MIN_PRODUCTS = 64  # of an output of a group, below which a tile is mostly padding
_PRODUCTS_PER_BYTE = 10  # that a GPU computes in float32 while it moves a byte: 6 to 10 on an A100 and an H100
_MIN_GAIN = 1.1  # of Winograd's filtering


def algorithm(
    direction: str, geometry: ConvGeometry, dtype: str, x: Layout, y: Layout, capability: tuple[int, int]
) -> str:
    """The algorithm of a convolution: the caller's choice, or the pick within `gpucnn.tuned`, else by its size.

    Without the caller's choice, depthwise convolutions of floats are ``"depthwise"``, regardless of tuning, if the
    kernels accept images with the layouts x [N, C, D, H, W] and y [N, OC, OD, OH, OW].

    `direction` is "forward", "backward_input" or "backward_weight"; `capability` is the device's compute capability.

    Raises
    ------
    ValueError
        The caller's choice does not compute this.
    """
    (chosen, picks, *_), computed = choices(), algorithms(direction, geometry, dtype, capability)
    if chosen not in (None, *computed):
        is_old = chosen != "im2col" and capability < SM_80
        on_this = " on a GPU of compute capability {}.{}".format(*capability) if is_old else ""
        what = "no such convolution" if chosen == "winograd" else "no convolution"
        raise ValueError(f"algorithm: {chosen!r} computes {what} of {dtype}{on_this}, expected one of {computed}")
    if chosen is not None:
        return chosen
    if takes_depthwise(direction, geometry, dtype, x, y):
        return "depthwise"
    picked = None if picks is None else picks.algorithm(direction, geometry, dtype)
    if picked in computed:
        return picked
    c, oc, groups = geometry.channels
    length, rows = c // groups * geometry.taps, oc // groups
    large, is_pixel_by_pixel = length >= 32 and rows >= 16, geometry.is_pixel_by_pixel
    is_split = dtype == "float32" and choices().precision == "fp32x3"  # which cuBLAS does not compute
    by_cublas = is_pixel_by_pixel and not is_split  # it has nothing to copy
    if "winograd" in computed and _transforms_pay(geometry):
        return "winograd"
    if "implicit_gemm" in computed and length * rows >= _MIN_PRODUCTS and not by_cublas:
        return "implicit_gemm"
    enough = length * rows >= _MIN_PRODUCTS if dtype in _16_BITS or is_pixel_by_pixel else large
    worth = prod(geometry.output_size) >= 16 or is_pixel_by_pixel  # its columns, if it takes any
    return "im2col" if enough and worth and "im2col" in computed else "direct"


def algorithms(direction: str, geometry: ConvGeometry, dtype: str, capability: tuple[int, int]) -> tuple[str, ...]:
    """The algorithms that compute a convolution of `dtype`; depthwise kernels are selected separately.

    Examples
    --------
    >>> from gpucnn.geometry.geometries import Channels, conv_geometry
    >>> geometry = conv_geometry("conv2d", (56, 56), Channels(64, 64), 3, 1, 1, 1)
    >>> for dtype in ("int32", "float16", "float32"):
    ...     algorithms("forward", geometry, dtype, (8, 0))
    ('direct',)
    ('direct', 'im2col', 'implicit_gemm')
    ('direct', 'im2col', 'implicit_gemm', 'winograd')
    """
    if dtype not in LINEAR:  # of which cuBLAS computes products
        return ("direct",)
    if not _gathers(dtype, capability):
        return ("direct", "im2col")
    return _ON_A_GPU if _transforms(direction, geometry, dtype) else _ON_A_GPU[:-1]


def _gathers(dtype: str, capability: tuple[int, int]) -> bool:
    """Whether a device has the implicit GEMM's instructions: before 8.0 those for float16, and FFMA."""
    if capability >= SM_80:
        return dtype in ("float16", "bfloat16", "float32")
    return capability >= SM_75 and (dtype == "float16" or (dtype == "float32" and choices().precision == "fp32"))


def _transforms(direction: str, geometry: ConvGeometry, dtype: str) -> bool:
    """Whether Winograd's transforms apply: to ungrouped 3 x 3 taps side by side, in full float32."""
    depth, *plane = geometry.axes
    return (
        direction != "backward_weight"
        and dtype == "float32"
        and choices().precision == "fp32"
        and geometry.channels.groups == 1
        and (depth.size, depth.kernel, depth.out) == (1, 1, 1)
        and all((axis.kernel, axis.stride, axis.dilation) == (3, 1, 1) for axis in plane)
    )


def _transforms_pay(geometry: ConvGeometry) -> bool:
    """Whether 20 products of 36 saved are worth the transforms' 128 bytes for each channel of a tile.

    By count it takes 0.73 of the time of a ResNet's 256 channels on an H100, and 1.3 of that of 64.

    Examples
    --------
    >>> from gpucnn.geometry.geometries import Channels, conv_geometry
    >>> [_transforms_pay(conv_geometry("conv2d", (14, 14), Channels(c, c), 3, 1, 1, 1)) for c in (64, 128, 256)]
    [False, False, True]
    """
    c, oc, _ = geometry.channels
    tiles = prod(-(-axis.out // 2) for axis in geometry.axes[1:])
    direct = 9 * prod(geometry.output_size) * c * oc
    return _MIN_GAIN * tiles * (16 * c * oc + 128 * _PRODUCTS_PER_BYTE * (c + oc)) <= direct


def takes_depthwise(direction: str, geometry: ConvGeometry, dtype: str, x: Layout, y: Layout) -> bool:
    """Whether each of several channels of floats is filtered alone, in images of which a tile fits."""
    c, _, groups = geometry.channels
    return c == groups > 1 and dtype in FLOATING and depthwise.takes(direction, x, y, geometry)
