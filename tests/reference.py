"""The oracle of the test suite: every operation as naive loops, straight from its definition.

Arrays are batched, [N, C, *spatial], with one to three spatial axes. Real input is computed in
float64, complex input in complex128, integers in int64 (the caller wraps them to their dtype).
`kernel`, `stride` and `dilation` hold one int for each spatial axis, `pads` one (low, high);
`geometry` stands for these four in the order kernel, stride, pads, dilation.
The gradient of complex input is the adjoint, as in PyTorch: the other factor is conjugated.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Position = tuple[int, ...]
Ints = Sequence[int]
Pairs = Sequence[tuple[int, int]]
Windows = Iterable[tuple[Position, Position]]
Meetings = Iterator[tuple[Any, Any, Any]]  # an index of the input, one of the weight, one of the output
ALL = slice(None)


def wide(array: Array) -> Array:
    """The same values in float64, complex128 or int64."""
    kinds = {"c": np.complex128, "i": np.int64, "u": np.int64, "b": np.int64}
    return array.astype(kinds.get(array.dtype.kind, np.float64))


def lowest(dtype: np.dtype[Any]) -> float | int:
    """What the maximum of nothing is: -inf, or the least integer."""
    return int(np.iinfo(dtype).min) if dtype.kind in "iu" else -math.inf


def at(*axes: slice | Position) -> Any:
    """An index of slices and positions, axis by axis."""
    parts = [(axis,) if isinstance(axis, slice) else axis for axis in axes]
    return tuple(itertools.chain.from_iterable(parts))


def per_channel(values: Array, ndim: int) -> Array:
    """values [C] in a shape that broadcasts against [N, C, *spatial]."""
    return wide(values).reshape(-1, *[1] * (ndim - 2))


def sum_per_channel(array: Array) -> Array:
    """[C] of [N, C, *spatial]."""
    return np.asarray(array.sum(axis=(0, *range(2, array.ndim))))


# --- Geometry -----------------------------------------------------------------------------------


def positions(sizes: Ints) -> Iterator[Position]:
    """Every index of an array of these sizes, row-major."""
    return itertools.product(*map(range, sizes))


def count_windows(size: int, kernel: int, stride: int, pads: tuple[int, int], dilation: int, ceil_mode: bool) -> int:
    """How many windows one axis holds, by laying them down one after the other."""
    extent = dilation * (kernel - 1) + 1
    end = size + pads[1]
    start, count = -pads[0], 0
    while True:
        fits = start + extent <= end
        previous_fell_short = start - stride + extent < end
        if not fits and not (ceil_mode and previous_fell_short and start < size):
            return count
        start, count = start + stride, count + 1


def output_size(
    sizes: Ints, kernel: Ints, stride: Ints, pads: Pairs, dilation: Ints, ceil_mode: bool = False
) -> Position:
    """The spatial size of a convolution or pooling."""
    axes = zip(sizes, kernel, stride, pads, dilation, strict=True)
    return tuple(count_windows(*axis, ceil_mode) for axis in axes)


def transposed_size(
    sizes: Ints, kernel: Ints, stride: Ints, pads: Pairs, dilation: Ints, output_padding: Ints
) -> Position:
    """The spatial size of a transposed convolution: from the first tap to the last, less pads."""
    axes = zip(sizes, kernel, stride, pads, dilation, output_padding, strict=True)
    return tuple((i - 1) * s + d * (k - 1) + 1 - low - high + extra for i, k, s, (low, high), d, extra in axes)


def same_pads(size: int, kernel: int, stride: int, dilation: int) -> int:
    """The least padding in all under which an axis has ceil(size / stride) windows."""
    total = 0
    while count_windows(size, kernel, stride, (0, total), dilation, False) < -(-size // stride):
        total += 1
    return total


def resolve_padding(
    padding: Any, sizes: Ints, kernel: Ints, stride: Ints, dilation: Ints
) -> tuple[tuple[int, int], ...]:
    """Any public form of padding as one (low, high) for each axis."""
    if padding == "valid":
        return ((0, 0),) * len(sizes)
    if padding in ("same", "same_lower"):
        totals = [same_pads(*axis) for axis in zip(sizes, kernel, stride, dilation, strict=True)]
        pads = tuple((total // 2, total - total // 2) for total in totals)
        return pads if padding == "same" else tuple((high, low) for low, high in pads)
    axes = [padding] * len(sizes) if isinstance(padding, int) else list(padding)
    return tuple((axis, axis) if isinstance(axis, int) else (axis[0], axis[1]) for axis in axes)


def resolve_transposed_padding(
    padding: Any, sizes: Ints, kernel: Ints, stride: Ints, dilation: Ints
) -> tuple[tuple[tuple[int, int], ...], Position]:
    """(pads, output_padding) of a transposed convolution; "same" makes its size input x stride."""
    goal = [size * s for size, s in zip(sizes, stride, strict=True)]
    pads = resolve_padding(padding, goal, kernel, stride, dilation)
    if padding not in ("same", "same_lower"):
        return pads, (0,) * len(pads)
    without = transposed_size(sizes, kernel, stride, pads, dilation, [0] * len(pads))
    return pads, tuple(g - size for g, size in zip(goal, without, strict=True))


def taps(
    sizes: Ints, out_sizes: Ints, kernel: Ints, stride: Ints, pads: Pairs, dilation: Ints
) -> Iterator[tuple[Position, Position, Position]]:
    """Every (output position, kernel tap, input position) that lies inside the input."""
    for out, tap in itertools.product(positions(out_sizes), positions(kernel)):
        axes = zip(out, stride, tap, dilation, pads, strict=True)
        pos = tuple(o * s + t * d - low for o, s, t, d, (low, _) in axes)
        if all(0 <= p < size for p, size in zip(pos, sizes, strict=True)):
            yield out, tap, pos


# --- Convolution --------------------------------------------------------------------------------


def channel_groups(c: int, oc: int, groups: int) -> list[tuple[slice, slice]]:
    """For each group its slice of c channels and its slice of oc channels."""
    m, n = c // groups, oc // groups
    return [(slice(g * m, (g + 1) * m), slice(g * n, (g + 1) * n)) for g in range(groups)]


def gathered(x: Array, w: Array, shape: Ints, meetings: Meetings) -> Array:
    """y of `shape`: where x [N, C], w [C, OC] and y [N, OC] meet, their product is added."""
    y = np.zeros(tuple(shape), np.result_type(x, w))
    for here, tap, there in meetings:
        y[there] += x[here] @ w[tap]
    return y


def gathered_backward(grad: Array, x: Array, w: Array, meetings: Meetings) -> tuple[Array, Array]:
    """(gx, gw) of gathered."""
    gx, gw = np.zeros(x.shape, np.result_type(grad, w)), np.zeros(w.shape, np.result_type(grad, x))
    for here, tap, there in meetings:
        gx[here] += grad[there] @ w[tap].conj().T
        gw[tap] += x[here].conj().T @ grad[there]
    return gx, gw


def conv_meetings(x: Array, w: Array, out_sizes: Ints, geometry: tuple[Any, ...], groups: int) -> Meetings:
    """Of a convolution of x [N, C, *in] with w [C/groups, OC, *k]."""
    for out, tap, pos in taps(x.shape[2:], out_sizes, w.shape[2:], *geometry):
        for ins, outs in channel_groups(x.shape[1], w.shape[1], groups):
            yield at(ALL, ins, pos), at(ALL, outs, tap), at(ALL, outs, out)


def conv(x: Array, w: Array, bias: Array | None, stride: Ints, pads: Pairs, dilation: Ints, groups: int = 1) -> Array:
    """y [N, OC, *out] of x [N, C, *in], w [OC, C/groups, *k] and bias [OC]."""
    x, w, geometry = wide(x), wide(w).swapaxes(0, 1), (stride, pads, dilation)
    out_sizes = output_size(x.shape[2:], w.shape[2:], *geometry)
    y = gathered(x, w, (len(x), w.shape[1], *out_sizes), conv_meetings(x, w, out_sizes, geometry, groups))
    return y if bias is None else y + per_channel(bias, y.ndim)


def conv_backward(
    grad: Array, x: Array, w: Array, stride: Ints, pads: Pairs, dilation: Ints, groups: int = 1
) -> tuple[Array, Array, Array]:
    """(gx, gw, gb) of conv."""
    grad, x, w = wide(grad), wide(x), wide(w).swapaxes(0, 1)
    meetings = conv_meetings(x, w, grad.shape[2:], (stride, pads, dilation), groups)
    gx, gw = gathered_backward(grad, x, w, meetings)
    return gx, gw.swapaxes(0, 1), sum_per_channel(grad)


def conv_backward_input(
    grad: Array, w: Array, sizes: Ints, stride: Ints, pads: Pairs, dilation: Ints, groups: int = 1
) -> Array:
    """gx [N, C, *sizes] of grad [N, OC, *out] and w [OC, C/groups, *k]."""
    x = np.zeros((len(grad), w.shape[1] * groups, *sizes), grad.dtype)
    return conv_backward(grad, x, w, stride, pads, dilation, groups)[0]


def transposed_meetings(x: Array, w: Array, out_sizes: Ints, geometry: tuple[Any, ...], groups: int) -> Meetings:
    """Of a transposed convolution of x [N, C, *in] with w [C, OC/groups, *k]."""
    for pos, tap, out in taps(out_sizes, x.shape[2:], w.shape[2:], *geometry):
        for ins, outs in channel_groups(x.shape[1], w.shape[1] * groups, groups):
            yield at(ALL, ins, pos), at(ins, ALL, tap), at(ALL, outs, out)


def conv_transpose(
    x: Array,
    w: Array,
    bias: Array | None,
    stride: Ints,
    pads: Pairs,
    output_padding: Ints,
    dilation: Ints,
    groups: int = 1,
) -> Array:
    """y [N, OC, *out]: every value of x [N, C, *in] adds w [C, OC/groups, *k] times itself."""
    x, w, geometry = wide(x), wide(w), (stride, pads, dilation)
    out_sizes = transposed_size(x.shape[2:], w.shape[2:], *geometry, output_padding)
    shape = (len(x), w.shape[1] * groups, *out_sizes)
    y = gathered(x, w, shape, transposed_meetings(x, w, out_sizes, geometry, groups))
    return y if bias is None else y + per_channel(bias, y.ndim)


def conv_transpose_backward(
    grad: Array, x: Array, w: Array, stride: Ints, pads: Pairs, dilation: Ints, groups: int = 1
) -> tuple[Array, Array, Array]:
    """(gx, gw, gb) of conv_transpose; grad [N, OC, *out] tells the output padding."""
    grad, x, w = wide(grad), wide(x), wide(w)
    meetings = transposed_meetings(x, w, grad.shape[2:], (stride, pads, dilation), groups)
    return *gathered_backward(grad, x, w, meetings), sum_per_channel(grad)


def local_meetings(x: Array, w: Array, *geometry: Any) -> Meetings:
    """Of filters w [C, OC, *out, *k] at each position of their own with x [N, C, *in]."""
    rank = x.ndim - 2
    for out, tap, pos in taps(x.shape[2:], w.shape[2 : 2 + rank], w.shape[2 + rank :], *geometry):
        yield at(ALL, ALL, pos), at(ALL, ALL, out, tap), at(ALL, ALL, out)


def locally_connected(x: Array, w: Array, bias: Array | None, stride: Ints, pads: Pairs, dilation: Ints) -> Array:
    """y [N, OC, *out] of x [N, C, *in], w [OC, *out, C, *k] and bias [OC, *out]."""
    x, w = wide(x), np.moveaxis(wide(w), x.ndim - 1, 0)
    y = gathered(x, w, (len(x), *w.shape[1 : x.ndim]), local_meetings(x, w, stride, pads, dilation))
    return y if bias is None else y + wide(bias)


def locally_connected_backward(
    grad: Array, x: Array, w: Array, stride: Ints, pads: Pairs, dilation: Ints
) -> tuple[Array, Array, Array]:
    """(gx, gw, gb) of locally_connected, gb [OC, *out]."""
    grad, x, w = wide(grad), wide(x), np.moveaxis(wide(w), x.ndim - 1, 0)
    gx, gw = gathered_backward(grad, x, w, local_meetings(x, w, stride, pads, dilation))
    return gx, np.moveaxis(gw, 0, x.ndim - 1), grad.sum(axis=0)


# --- Unfolding: each is the gradient of the other -----------------------------------------------


def im2col(x: Array, kernel: Ints, stride: Ints, pads: Pairs, dilation: Ints) -> Array:
    """Columns [N, C * prod(k), prod(out)] of x [N, C, *in]."""
    n, c, *sizes = x.shape
    out_sizes = output_size(sizes, kernel, stride, pads, dilation)
    columns = np.zeros((n, c, *kernel, *out_sizes), wide(x).dtype)
    for out, tap, pos in taps(sizes, out_sizes, kernel, stride, pads, dilation):
        columns[at(ALL, ALL, tap, out)] = x[at(ALL, ALL, pos)]
    return columns.reshape(n, c * math.prod(kernel), math.prod(out_sizes))


def col2im(columns: Array, sizes: Ints, kernel: Ints, stride: Ints, pads: Pairs, dilation: Ints) -> Array:
    """x [N, C, *sizes]: what meets at a position adds up. columns [N, C * prod(k), prod(out)]."""
    n, c = columns.shape[0], columns.shape[1] // math.prod(kernel)
    out_sizes = output_size(sizes, kernel, stride, pads, dilation)
    columns = wide(columns).reshape(n, c, *kernel, *out_sizes)
    x = np.zeros((n, c, *sizes), columns.dtype)
    for out, tap, pos in taps(sizes, out_sizes, kernel, stride, pads, dilation):
        x[at(ALL, ALL, pos)] += columns[at(ALL, ALL, tap, out)]
    return x


# --- Pooling: over pairs of (output position, input position) ----------------------------------


def pool_windows(sizes: Ints, out_sizes: Ints, *geometry: Any) -> Windows:
    """The pairs of a pooling."""
    for out, _, pos in taps(sizes, out_sizes, *geometry):
        yield out, pos


def adaptive_span(out: int, size: int, out_size: int) -> range:
    """What one output position sees of an axis: [floor(o I / O), ceil((o + 1) I / O))."""
    return range(out * size // out_size, -(-(out + 1) * size // out_size))


def adaptive_windows(sizes: Ints, out_sizes: Ints) -> Windows:
    """The pairs of an adaptive pooling."""
    for out in positions(out_sizes):
        spans = [adaptive_span(*axis) for axis in zip(out, sizes, out_sizes, strict=True)]
        for pos in itertools.product(*spans):
            yield out, pos


def sum_over(x: Array, out_sizes: Ints, windows: Windows) -> Array:
    """y [N, C, *out]: the sum of each window."""
    x = wide(x)
    y = np.zeros((*x.shape[:2], *out_sizes), x.dtype)
    for out, pos in windows:
        y[at(ALL, ALL, out)] += x[at(ALL, ALL, pos)]
    return y


def spread_over(grad: Array, sizes: Ints, windows: Windows) -> Array:
    """gx [N, C, *sizes]: every value of grad [N, C, *out] goes to all of its window."""
    return sum_over(grad, sizes, ((pos, out) for out, pos in windows))


def count_over(out_sizes: Ints, windows: Windows) -> Array:
    """How many positions each window has, [*out]; 1 for none, so that 0 / 0 becomes 0."""
    counts = np.zeros(tuple(out_sizes))
    for out, _ in windows:
        counts[out] += 1
    return np.maximum(counts, 1)


def max_over(x: Array, out_sizes: Ints, windows: Windows) -> tuple[Array, Array]:
    """(y, flat indices), both [N, C, *out]: the first maximum, or the last NaN."""
    n, c, *sizes = x.shape
    least, x = lowest(x.dtype), wide(x)
    y = np.full((n, c, *out_sizes), least, x.dtype)
    indices = np.full(y.shape, -1)
    for out, pos in windows:
        here, value = at(ALL, ALL, out), x[at(ALL, ALL, pos)]
        wins = (indices[here] < 0) | (value > y[here]) | np.isnan(value)
        y[here] = np.where(wins, value, y[here])
        indices[here] = np.where(wins, np.ravel_multi_index(pos, sizes), indices[here])
    return y, indices


def max_pool(x: Array, *geometry: Any, ceil_mode: bool = False) -> tuple[Array, Array]:
    """(y, indices), both [N, C, *out]; a window wholly in padding has the index -1."""
    sizes = x.shape[2:]
    out_sizes = output_size(sizes, *geometry, ceil_mode)
    return max_over(x, out_sizes, pool_windows(sizes, out_sizes, *geometry))


def located(indices: Array) -> Iterator[tuple[Position, Position]]:
    """Each place of indices [N, C, *out] that has one, with the flat place (n, c, index) that it stands for."""
    for n, c, *out in np.ndindex(indices.shape):
        if (index := int(indices[(n, c, *out)])) >= 0:
            yield (n, c, *out), (n, c, index)


def max_pool_backward(grad: Array, indices: Array, input_shape: Ints) -> Array:
    """gx [N, C, *in]: each value of grad [N, C, *out] goes to its index (also adaptive)."""
    gx = np.zeros((*input_shape[:2], math.prod(input_shape[2:])), wide(grad).dtype)
    for out, pos in located(indices):
        gx[pos] += grad[out]
    return gx.reshape(input_shape)


def sum_pool(x: Array, *geometry: Any, ceil_mode: bool = False) -> Array:
    """y [N, C, *out] of x [N, C, *in]."""
    sizes = x.shape[2:]
    out_sizes = output_size(sizes, *geometry, ceil_mode)
    return sum_over(x, out_sizes, pool_windows(sizes, out_sizes, *geometry))


def sum_pool_backward(grad: Array, sizes: Ints, *geometry: Any) -> Array:
    """gx [N, C, *sizes] of grad [N, C, *out]."""
    return spread_over(grad, sizes, pool_windows(sizes, grad.shape[2:], *geometry))


def pool_divisors(
    sizes: Ints,
    out_sizes: Ints,
    kernel: Ints,
    stride: Ints,
    pads: Pairs,
    dilation: Ints,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """What each window's sum is divided by, [*out]: its taps inside the (padded) input."""
    if divisor_override is not None:
        return np.full(tuple(out_sizes), float(divisor_override))
    if count_include_pad:
        sizes = [size + low + high for size, (low, high) in zip(sizes, pads, strict=True)]
        pads = [(0, 0)] * len(sizes)
    windows = pool_windows(sizes, out_sizes, kernel, stride, pads, dilation)
    return count_over(out_sizes, windows)


def avg_pool(x: Array, *geometry: Any, ceil_mode: bool = False, **divided: Any) -> Array:
    """y [N, C, *out] of x [N, C, *in]; `divided` are pool_divisors' options."""
    y = sum_pool(x, *geometry, ceil_mode=ceil_mode)
    return y / pool_divisors(x.shape[2:], y.shape[2:], *geometry, **divided)


def avg_pool_backward(grad: Array, sizes: Ints, *geometry: Any, **divided: Any) -> Array:
    """gx [N, C, *sizes] of grad [N, C, *out]."""
    return sum_pool_backward(wide(grad) / pool_divisors(sizes, grad.shape[2:], *geometry, **divided), sizes, *geometry)


def lp_pool(x: Array, norm_type: float, *geometry: Any, ceil_mode: bool = False) -> Array:
    """y [N, C, *out] = (mean of x^p times prod(k))^(1/p), so a cut window counts in full."""
    mean = avg_pool(wide(x) ** norm_type, *geometry, ceil_mode=ceil_mode)
    return (mean * math.prod(geometry[0])) ** (1 / norm_type)


def lp_pool_backward(grad: Array, x: Array, norm_type: float, *geometry: Any, ceil_mode: bool = False) -> Array:
    """gx [N, C, *in] by the chain power, mean, root; zero where a window's sum is zero."""
    x, p, taps_of_window = wide(x), norm_type, math.prod(geometry[0])
    total = avg_pool(x**p, *geometry, ceil_mode=ceil_mode) * taps_of_window
    root_slope = np.where(total == 0, 0, np.where(total == 0, 1, total) ** (1 / p - 1) / p)
    grad_mean = wide(grad) * root_slope * taps_of_window
    return avg_pool_backward(grad_mean, x.shape[2:], *geometry) * p * x ** (p - 1)


def adaptive_max_pool(x: Array, out_sizes: Ints) -> tuple[Array, Array]:
    """(y, indices), both [N, C, *out_sizes]; the backward is max_pool_backward."""
    return max_over(x, out_sizes, adaptive_windows(x.shape[2:], out_sizes))


def adaptive_avg_pool(x: Array, out_sizes: Ints) -> Array:
    """y [N, C, *out_sizes] of x [N, C, *in]."""
    sizes = x.shape[2:]
    counts = count_over(out_sizes, adaptive_windows(sizes, out_sizes))
    return sum_over(x, out_sizes, adaptive_windows(sizes, out_sizes)) / counts


def adaptive_avg_pool_backward(grad: Array, sizes: Ints) -> Array:
    """gx [N, C, *sizes] of grad [N, C, *out]."""
    out_sizes = grad.shape[2:]
    counts = count_over(out_sizes, adaptive_windows(sizes, out_sizes))
    return spread_over(wide(grad) / counts, sizes, adaptive_windows(sizes, out_sizes))


# --- Unpooling and interpolation ----------------------------------------------------------------


def max_unpool(x: Array, indices: Array, out_sizes: Ints) -> Array:
    """y [N, C, *out_sizes]: x at its indices, the last one wins; an index of -1 is dropped."""
    y = np.zeros((*x.shape[:2], math.prod(out_sizes)), wide(x).dtype)
    for pos, out in located(indices):
        y[out] = x[pos]
    return y.reshape(*x.shape[:2], *out_sizes)


def max_unpool_backward(grad: Array, indices: Array) -> Array:
    """gx [N, C, *in]: grad [N, C, *out] at the indices, 0 where the index is -1."""
    flat = wide(grad).reshape(*grad.shape[:2], math.prod(grad.shape[2:]))
    gx = np.zeros(indices.shape, flat.dtype)
    for pos, out in located(indices):
        gx[pos] = flat[out]
    return gx


def corners(sizes: Ints, scale: Ints) -> Windows:
    """Each position with the first corner of its block."""
    for pos in positions(sizes):
        yield pos, tuple(p * s for p, s in zip(pos, scale, strict=True))


def bed_of_nails(x: Array, scale: Ints) -> Array:
    """y [N, C, *(in x scale)]: every value at the first corner of its block of zeros."""
    out_sizes = [size * s for size, s in zip(x.shape[2:], scale, strict=True)]
    y = np.zeros((*x.shape[:2], *out_sizes), wide(x).dtype)
    for pos, corner in corners(x.shape[2:], scale):
        y[at(ALL, ALL, corner)] = x[at(ALL, ALL, pos)]
    return y


def bed_of_nails_backward(grad: Array, scale: Ints) -> Array:
    """gx [N, C, *in] of grad [N, C, *(in x scale)]."""
    sizes = [size // s for size, s in zip(grad.shape[2:], scale, strict=True)]
    gx = np.zeros((*grad.shape[:2], *sizes), wide(grad).dtype)
    for pos, corner in corners(sizes, scale):
        gx[at(ALL, ALL, pos)] = grad[at(ALL, ALL, corner)]
    return gx


Terms = list[tuple[int, int, float]]  # (output position, input position, weight)


def nearest_source(o: int, size: int, out: int, scale: float | None, mode: str) -> int:
    """The input position that output position o copies.

    As in PyTorch, float32 rounds the error of 1 / scale away before the floor, and "nearest" goes by the sizes where an
    axis keeps or doubles its size.
    """
    if mode == "nearest" and out in (size, 2 * size):
        scale = None
    centre = o + 0.5 if mode == "nearest-exact" else o
    source = centre * (1 / scale) if scale else centre * size / out
    return min(math.floor(np.float32(source)), size - 1)


def linear_source(o: int, size: int, out: int, scale: float | None, align_corners: bool) -> tuple[int, float]:
    """(lower neighbour, weight of the upper one); an axis that keeps its size is copied."""
    if align_corners:
        source = o * (size - 1) / max(out - 1, 1)
    elif scale and out != size:
        source = max((o + 0.5) * (1 / scale) - 0.5, 0.0)
    else:
        source = max((o + 0.5) * size / out - 0.5, 0.0)
    lower = min(math.floor(source), size - 1)
    return lower, source - lower


def filter_weight(distance: float, coefficient: float | None) -> float:
    """The weight of an input at a distance: by Keys's cubic with its coefficient a, or linear where that is None."""
    t, a = abs(distance), coefficient
    if a is None:
        return max(1 - t, 0.0)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def filtered_terms(
    size: int, out: int, scale: float | None, align_corners: bool, cubic: bool, antialias: bool
) -> Terms:
    """The terms of a cubic filter, or of any with antialiasing, over all inputs that it could reach.

    As in PyTorch: without antialiasing inputs beyond the borders are those at the borders, with it there are none; an
    axis that keeps its size is copied with antialiasing alone; and positions with it are from border to border.
    """
    step = 1 / scale if scale and not (antialias and out == size) else size / out
    if align_corners:
        step = (size - 1) / (out - 1) if out > 1 else 0.0
    stretch = max(step, 1.0) if antialias else 1.0
    coefficient = (-0.5 if antialias else -0.75) if cubic else None
    terms = []
    for o in range(out):
        source = o * step if align_corners and not antialias else (o + 0.5) * step - 0.5
        inputs = range(size) if antialias else range(math.floor(source) - 1, math.floor(source) + 3)
        weights = {i: filter_weight((i - source) / stretch, coefficient) for i in inputs}
        total = sum(weights.values())
        terms += [(o, min(max(i, 0), size - 1), weight / total) for i, weight in weights.items() if weight]
    return terms


def interpolation_terms(
    size: int, out: int, scale: float | None, mode: str, align_corners: bool, antialias: bool = False
) -> Terms:
    """One axis of an interpolation; a given scale, not size / out, steps through the input."""
    if mode == "area":
        spans = [adaptive_span(o, size, out) for o in range(out)]
        return [(o, i, 1 / len(span)) for o, span in enumerate(spans) for i in span]
    if mode.startswith("nearest"):
        return [(o, nearest_source(o, size, out, scale, mode), 1) for o in range(out)]
    if antialias or mode.endswith("cubic"):
        return filtered_terms(size, out, scale, align_corners, mode.endswith("cubic"), antialias)
    terms = []
    for o in range(out):
        i, upper = linear_source(o, size, out, scale, align_corners)
        terms += [(o, i, 1 - upper), (o, min(i + 1, size - 1), upper)]
    return terms


def weighted(x: Array, axis: int, size: int, terms: Terms) -> Array:
    """x with an axis of `size`, each of whose positions is the sum of its terms."""
    before = np.moveaxis(x, axis, 0)
    y = np.zeros((size, *before.shape[1:]), x.dtype)
    for target, source, weight in terms:
        y[target] += before[source] * weight
    return np.moveaxis(y, 0, axis)


def interpolate(
    x: Array,
    size: Ints | None = None,
    scale_factor: Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool = False,
    antialias: bool = False,
) -> Array:
    """y [N, C, *out] of x [N, C, *in]; out is size, or floor(in x scale_factor)."""
    y = wide(x)
    scales = [None] * (x.ndim - 2) if scale_factor is None else scale_factor
    for axis, scale in enumerate(scales, start=2):
        out = size[axis - 2] if size is not None else math.floor(x.shape[axis] * (scale or 1))
        y = weighted(y, axis, out, interpolation_terms(x.shape[axis], out, scale, mode, align_corners, antialias))
    return y


def interpolate_backward(
    grad: Array,
    sizes: Ints,
    scale_factor: Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool = False,
    antialias: bool = False,
) -> Array:
    """gx [N, C, *sizes] of grad [N, C, *out]."""
    gx = wide(grad)
    scales = [None] * len(sizes) if scale_factor is None else scale_factor
    for axis, (size, scale) in enumerate(zip(sizes, scales, strict=True), start=2):
        terms = interpolation_terms(size, grad.shape[axis], scale, mode, align_corners, antialias)
        gx = weighted(gx, axis, size, [(i, o, weight) for o, i, weight in terms])
    return gx


# --- Sampling at the positions of a grid --------------------------------------------------------

CUBIC = (np.poly1d([1.25, -2.25, 0, 1]), np.poly1d([-0.75, 3.75, -6, 3]))  # Keys' for distances in [0, 1) and [1, 2)


def reflected(x: float, low: float, high: float) -> tuple[float, int]:
    """x between the mirrors low and high, and 1 or -1: the direction in which it then moves with x."""
    direction = 1
    while low < high and not low <= x <= high:
        x, direction = 2 * (low if x < low else high) - x, -direction
    return (x, direction) if low < high else (low, 0)


def axis_samples(
    coordinate: float, size: int, mode: str, padding_mode: str, align_corners: bool
) -> list[tuple[int, float, float]]:
    """(input, weight, slope with respect to the coordinate) of a sample along an axis."""
    low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
    x, rate = low + (coordinate + 1) / 2 * (high - low), (high - low) / 2
    if mode != "bicubic" and padding_mode != "zeros":
        x, direction = reflected(x, low, high) if padding_mode == "reflection" else (x, 1)
        rate, x = rate * direction * (0 < x < size - 1), min(max(x, 0.0), size - 1.0)
    if mode == "nearest":
        terms = [(round(x), 1.0, 0.0)]
    elif mode == "bilinear":
        first = math.floor(x)
        terms = [(first, first + 1 - x, -rate), (first + 1, x - first, rate)]
    else:
        terms = []
        for tap in range(math.floor(x) - 1, math.floor(x) + 3):
            away = abs(x - tap)
            piece = CUBIC[away >= 1]
            terms.append((tap, piece(away), piece.deriv()(away) * np.sign(x - tap) * rate))
    if mode == "bicubic" and padding_mode == "border":
        terms = [(min(max(tap, 0), size - 1), *others) for tap, *others in terms]
    if mode == "bicubic" and padding_mode == "reflection":
        terms = [(int(reflected(tap, low, high)[0]), *others) for tap, *others in terms]
    return [term for term in terms if 0 <= term[0] < size]


def grid_samples(x_size: Ints, grid: Array, **options: Any) -> Iterator[tuple[Any, Any, float, list[float]]]:
    """Index of a sample, of an input that it reads, the weight, and its slopes along the coordinates."""
    for index in np.ndindex(grid.shape[:-1]):
        axes = [
            axis_samples(float(coordinate), size, **options)
            for coordinate, size in zip(grid[index][::-1], x_size, strict=True)
        ]
        for terms in itertools.product(*axes):
            slopes = [
                math.prod(term[2 if axis == moved else 1] for axis, term in enumerate(terms))
                for moved in reversed(range(len(axes)))
            ]
            place = (slice(None), *(term[0] for term in terms))
            yield index, place, math.prod(term[1] for term in terms), slopes


def grid_sample(x: Array, grid: Array, **options: Any) -> Array:
    """y [N, C, *out] of x [N, C, *in] and grid [N, *out, rank]."""
    y = np.zeros((*x.shape[:2], *grid.shape[1:-1]))
    for (n, *out), place, weight, _ in grid_samples(x.shape[2:], wide(grid), **options):
        y[(n, slice(None), *out)] += weight * wide(x[n][place])
    return y


def grid_sample_backward(grad: Array, x: Array, grid: Array, **options: Any) -> tuple[Array, Array]:
    """(gx, gradient of grid), scattered sample by sample."""
    gx, of_grid = np.zeros(x.shape), np.zeros(grid.shape)
    for (n, *out), place, weight, slopes in grid_samples(x.shape[2:], wide(grid), **options):
        g = wide(grad[(n, slice(None), *out)])
        gx[n][place] += weight * g
        of_grid[(n, *out)] += float(g @ wide(x[n][place])) * np.array(slopes)
    return gx, of_grid


def centre(o: int, out: int, align_corners: bool) -> float:
    """The coordinate of an output's centre, -1 and 1 at the ends."""
    if align_corners:
        return 2 * o / (out - 1) - 1 if out > 1 else 0.0
    return (2 * o + 1) / out - 1


def affine_grid(theta: Array, size: Ints, align_corners: bool = False) -> Array:
    """grid [N, *out, rank] of theta [N, rank, rank + 1]."""
    grid = np.zeros((size[0], *size[2:], len(size) - 2))
    for n, *out in np.ndindex(grid.shape[:-1]):
        at = [centre(o, length, align_corners) for o, length in zip(out, size[2:], strict=True)]
        grid[(n, *out)] = wide(theta[n]) @ [*at[::-1], 1.0]
    return grid


def affine_grid_backward(grad: Array, theta: Array, size: Ints, align_corners: bool = False) -> Array:
    """gtheta [N, rank, rank + 1] of grad [N, *out, rank]."""
    gtheta = np.zeros(theta.shape)
    for n, *out in np.ndindex(grad.shape[:-1]):
        at = [centre(o, length, align_corners) for o, length in zip(out, size[2:], strict=True)]
        gtheta[n] += np.outer(wide(grad[(n, *out)]), [*at[::-1], 1.0])
    return gtheta


# --- Padding and elementwise --------------------------------------------------------------------


def pad_source(pos: int, size: int, mode: str) -> int | None:
    """Which input position a position of the padded axis copies; None for the constant."""
    if mode == "constant":
        return pos if 0 <= pos < size else None
    if mode == "replicate":
        return min(max(pos, 0), size - 1)
    if mode == "circular":
        return pos % size
    edge = 1 if mode == "symmetric" else 0  # whether the mirror repeats the border
    while not 0 <= pos < size:
        pos = -pos - edge if pos < 0 else 2 * (size - 1) - pos + edge
    return pos


def pad_pairs(ndim: int, flat_pads: Ints) -> Pairs:
    """(low, high) for every axis; flat_pads start at the last axis and may leave out the first."""
    pairs = list(zip(flat_pads[::2], flat_pads[1::2], strict=True))[::-1]
    return [(0, 0)] * (ndim - len(pairs)) + pairs


def pad_copies(shape: Ints, padded: Ints, flat_pads: Ints, mode: str) -> Windows:
    """Each position of the padded array with the one that it copies, if it copies one."""
    for out in positions(padded):
        axes = zip(out, shape, pad_pairs(len(shape), flat_pads), strict=True)
        source = tuple(pad_source(o - low, size, mode) for o, size, (low, _) in axes)
        if None not in source:
            yield out, source


def pad(x: Array, flat_pads: Ints, mode: str = "constant", value: complex = 0) -> Array:
    """x [*in] padded at its last axes; flat_pads as in PyTorch, negative ones crop."""
    pairs = pad_pairs(x.ndim, flat_pads)
    sizes = [low + size + high for size, (low, high) in zip(x.shape, pairs, strict=True)]
    y = np.full(sizes, value, wide(x).dtype)
    for out, source in pad_copies(x.shape, sizes, flat_pads, mode):
        y[out] = x[source]
    return y


def pad_backward(grad: Array, shape: Ints, flat_pads: Ints, mode: str = "constant") -> Array:
    """gx [*shape]: every position collects the gradients of its copies."""
    gx = np.zeros(tuple(shape), wide(grad).dtype)
    for out, source in pad_copies(shape, grad.shape, flat_pads, mode):
        gx[source] += grad[out]
    return gx


def linear(x: Array, w: Array, bias: Array | None = None) -> Array:
    """y [*, OC] of x [*, C], w [OC, C] and bias [OC]."""
    x, w = wide(x), wide(w)
    y = np.zeros((*x.shape[:-1], w.shape[0]), np.result_type(x, w))
    for oc, c in np.ndindex(w.shape):
        y[..., oc] += x[..., c] * w[oc, c]
    return y if bias is None else y + wide(bias)


def linear_backward(grad: Array, x: Array, w: Array) -> tuple[Array, Array, Array]:
    """(gx, gw, gb) of linear."""
    grad, x, w = wide(grad), wide(x), wide(w)
    gx, gw = np.zeros_like(x), np.zeros_like(w)
    for oc, c in np.ndindex(w.shape):
        gx[..., c] += grad[..., oc] * w[oc, c].conj()
        gw[oc, c] = (grad[..., oc] * x[..., c].conj()).sum()
    return gx, gw, grad.sum(axis=tuple(range(grad.ndim - 1)))


def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    """x where it is positive, else its multiple; NaN stays NaN."""
    x = wide(x)
    return np.where(x > 0, x, x * negative_slope)


def leaky_relu_backward(grad: Array, x: Array, negative_slope: float = 0.01) -> Array:
    """gx; the slope at zero is the negative side's."""
    return np.where(wide(x) > 0, wide(grad), wide(grad) * negative_slope)


def relu(x: Array) -> Array:
    """The larger of x and zero; NaN stays NaN."""
    return np.maximum(wide(x), 0)


def relu_backward(grad: Array, x: Array) -> Array:
    """gx; the slope at zero is zero."""
    return np.where(wide(x) <= 0, 0, wide(grad))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), element by element."""
    return _elementwise(lambda v: 1 / (1 + math.exp(-v)) if v > -700 else 0.0, x)


def sigmoid_backward(grad: Array, x: Array) -> Array:
    """gx: the sigmoids of x and of -x, multiplied."""
    return wide(grad) * sigmoid(x) * sigmoid(-wide(x))


def gelu(x: Array, approximate: str = "none") -> Array:
    """x times the share of the normal distribution below it, by erfc or by tanh."""
    if approximate == "none":
        return _elementwise(lambda v: v * math.erfc(-v / math.sqrt(2)) / 2, x)
    return _elementwise(lambda v: v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2, x)


def gelu_backward(grad: Array, x: Array, approximate: str = "none") -> Array:
    """gx, by the rule of products."""

    def slope(v: float) -> float:
        if approximate == "none":
            return math.erfc(-v / math.sqrt(2)) / 2 + v * math.exp(-v * v / 2) / math.sqrt(2 * math.pi)
        tanh = math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))
        return (1 + tanh) / 2 + v * (1 - tanh * tanh) / 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * v**2)

    return wide(grad) * _elementwise(slope, x)


def smooth_activation(x: Array, kind: str) -> Array:
    """One of the activations of `gpucnn.backends.smooth`, as PyTorch defines it."""
    if kind.startswith("gelu"):
        return gelu(x, "tanh" if kind == "gelu_tanh" else "none")
    return _share(x, kind) * (1 if kind.endswith("sigmoid") else wide(x))


def smooth_activation_backward(grad: Array, x: Array, kind: str) -> Array:
    """gx, by the rule of products."""
    if kind.startswith("gelu"):
        return gelu_backward(grad, x, "tanh" if kind == "gelu_tanh" else "none")
    x = wide(x)
    slope = np.where(np.abs(x) < 3, 1 / 6, 0) if kind.startswith("hard") else sigmoid(x) * sigmoid(-x)
    return wide(grad) * (slope if kind.endswith("sigmoid") else slope * x + _share(x, kind))


def _share(x: Array, kind: str) -> Array:
    """The sigmoid, or the hard one."""
    return np.clip(wide(x) + 3, 0, 6) / 6 if kind.startswith("hard") else sigmoid(x)


def _elementwise(function: Callable[[float], float], x: Array) -> Array:
    """`function` of each element, NaN of NaN."""
    return np.array([function(float(v)) if v == v else v for v in wide(x).ravel()], float).reshape(x.shape)


# --- Gradients of any function ------------------------------------------------------------------


def finite_difference(function: Callable[[Array], Array], x: Array, grad_output: Array, eps: float = 1e-6) -> Array:
    """gx by central differences of the real part of sum(conj(grad_output) * function(x))."""
    x = wide(x)
    gx = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        for direction in (1, 1j) if np.iscomplexobj(x) else (1,):
            step = np.zeros_like(x)
            step[index] = eps * direction
            slope = (function(x + step) - function(x - step)) / (2 * eps)
            gx[index] += direction * np.sum(np.conj(grad_output) * slope).real
    return gx
