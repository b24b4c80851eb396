"""Choice of a convolution's algorithm on a GPU: pure functions, so that results never depend on the device.

No kernel has run on a device yet. The plain direct and im2col ones are the default; depthwise tiles stand before them
for what they are counted to save (benchmarks/results/kernel-gains.md).
"""

from __future__ import annotations

from math import prod

from gpucnn.backends.cuda.convolution import depthwise, im2col
from gpucnn.backends.cuda.launch.plans import Layout
from gpucnn.geometry import ConvGeometry
from gpucnn.numerics import choices


def algorithm(direction: str, geometry: ConvGeometry, dtype: str, x: Layout, y: Layout) -> str:
    """The algorithm of a convolution: the caller's choice, or the pick within `gpucnn.tuned`, else by its size.

    Without the caller's choice, depthwise convolutions of floats are ``"depthwise"``, regardless of tuning, if the
    kernels accept images with the layouts x [N, C, D, H, W] and y [N, OC, OD, OH, OW].

    `direction` is "forward", "backward_input" or "backward_weight".

    Raises
    ------
    ValueError
        The caller's choice does not compute this.
    """
    (chosen, picks, *_), computed = choices(), algorithms(dtype)
    if chosen not in (None, "direct", "im2col"):
        raise ValueError(f"algorithm: {chosen!r} is not computed on a GPU, expected 'direct' or 'im2col'")
    if chosen not in (None, *computed):
        raise ValueError(f"algorithm: 'im2col' computes no convolution of {dtype}, expected 'direct'")
    if chosen is not None:
        return chosen
    if takes_depthwise(direction, geometry, dtype, x, y):
        return "depthwise"
    picked = None if picks is None else picks.algorithm(direction, geometry, dtype)
    if picked in computed:
        return picked
    c, oc, groups = geometry.channels
    large = c // groups * geometry.taps >= 32 and oc // groups >= 16
    worth = prod(geometry.output_size) >= 16 or im2col.is_pixel_by_pixel(geometry)  # its columns, if it takes any
    return "im2col" if large and worth and "im2col" in computed else "direct"


def algorithms(dtype: str) -> tuple[str, ...]:
    """The algorithms of any convolution of `dtype`, in each direction; depthwise kernels are selected separately.

    Examples
    --------
    >>> algorithms("int32")
    ('direct',)
    """
    return ("direct", "im2col") if dtype in _PRODUCTS else ("direct",)


_PRODUCTS = frozenset({"float16", "bfloat16", "float32", "float64", "complex64", "complex128"})  # of cuBLAS

# Other dtypes are too rare for separate kernels.
_STAGED = frozenset({"float16", "bfloat16", "float32", "float64"})


def takes_depthwise(direction: str, geometry: ConvGeometry, dtype: str, x: Layout, y: Layout) -> bool:
    """Whether each of several channels of floats is filtered alone, in images of which a tile fits."""
    c, _, groups = geometry.channels
    return c == groups > 1 and dtype in _STAGED and depthwise.takes(direction, x, y, geometry)
