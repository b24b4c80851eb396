"""Statistics, application and gradients of the norms, over x seen as [N, G, C, P] (see `NormGeometry`).

All of them share one scheme. Arrays are viewed as [B, O, S, I, P] in memory order (`_View`): B and S index the
statistics, I the channels that share one, O and P the other reduced axes. They are cut into pieces of whole
statistics, which threads process, and a piece is summed and then normalised while it is in the cache.

BLAS sums runs of at most `RUN` values; the partial sums are added in float64. Where a mean is more than `FAR`
deviations away from zero it is subtracted first: variances and results are as exact with a large mean as without one.

Where squares leave the range of the dtype, as those of float32 values beyond 1e19 do, the sums are recomputed from
values scaled by a power of two. The statistics detect that: ordinary values are not read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from gpucnn.backends.base import Epilogue
from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.layout import channels_are_inner
from gpucnn.backends.numpy import memory, threads
from gpucnn.backends.numpy.elementwise import activate, activation_backward, computed
from gpucnn.backends.numpy.memory import Array, Block
from gpucnn.geometry import NormGeometry

PIECE_VALUES = 1 << 19  # a call on these takes at least 50 us; with fewer, threads wait for the interpreter's lock
WHOLE_VALUES = 1 << 20  # a statistic of more values is summed in several pieces, and used when all are done
RUN = 512  # most values of a row that are summed in the dtype of x; NumPy holds the interpreter's lock below 500
LONG = 256  # values of an inner loop that amortise its start
FAR = 2.0  # a variance about zero has at most 1 + FAR**2 times the rounding of one about the mean

BATCH, ROW = (0, 2, 3), (2, 3)
_ALL = slice(None)


# --- Primitives ---------------------------------------------------------------------------------------------------


def norm_statistics(x: Array, mean: Array, var: Array, rstd: Array, geometry: NormGeometry, eps: float) -> None:
    """Mean, biased variance and ``1 / sqrt(var + eps)`` over ``geometry.axes``, as axes of size 1."""
    view = _View(x, geometry.axes)
    xs, pieces = view.of(x), view.pieces

    def moments(scale: Array | None) -> tuple[Array, Array]:
        parts: list[Any] = [None] * len(pieces)

        def task(number: int) -> None:
            piece = pieces[number]
            by = None if scale is None else _statistic(scale, piece)
            parts[number] = _moments(_scaled(_dense(xs[piece], view.wide, "x"), by))

        view.run(task, range(len(pieces)))
        count, centre, square = (np.zeros(view.statistics) for _ in range(3))
        for piece, (part_mean, part_square) in zip(pieces, parts, strict=True):  # Chan's update, in the order of pieces
            part, values = (piece[0], _ALL, piece[2]), xs[piece].size / part_mean.size
            count[part] += values
            away = part_mean - centre[part]
            centre[part] += away * (values / count[part])
            square[part] += part_square + away * away * (values * (1 - values / count[part]))
        return centre, square

    found = _statistics(moments, max(1, view.count), eps, view.wide)
    for array, values in zip((mean, var, rstd), found, strict=True):
        array[...] = values[:, 0]


def _reciprocal(var: Array, eps: float) -> Array:
    """The reciprocal standard deviation."""
    reciprocal: Array = 1 / np.sqrt(var + eps)
    return reciprocal


def norm_apply(
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None,
    bias: Array | None,
    y: Array,
    eps: float,
    epilogue: Epilogue,
) -> None:
    """Y = epilogue of ``(x - mean) / sqrt(var + eps) * weight + bias``."""
    _apply(x, mean, _reciprocal(var, eps), weight, bias, y, epilogue)


def _apply(
    x: Array, mean: Array, rstd: Array, weight: Array | None, bias: Array | None, y: Array, epilogue: Epilogue
) -> None:
    view = _View(x, ROW if len(mean) == len(x) else BATCH)
    xs, ys, epilogue = view.of(x), view.of(y), _seen(epilogue, view)
    mean, rstd, factor, term = _lifted(mean), _lifted(rstd), _lifted(weight), _lifted(bias)

    def task(piece: Block) -> None:
        values, centre, scale = _dense(xs[piece], view.wide, "x"), _statistic(mean, piece), _statistic(rstd, piece)
        with _written(ys[piece], view.wide) as out:
            _normalise(values, centre, scale, _parameter(factor, piece), _parameter(term, piece), out)
            _finish(out, piece, epilogue)

    view.run(task, view.pieces)


def norm_forward(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    y: Array,
    mean: Array,
    var: Array,
    rstd: Array,
    geometry: NormGeometry,
    eps: float,
    epilogue: Epilogue,
) -> None:
    """As `norm_apply` with x's own statistics, which are returned too: mean, variance, rstd."""
    view = _View(x, geometry.axes)
    if not view.whole:
        norm_statistics(x, mean, var, rstd, geometry, eps)
        _apply(x, mean, rstd, weight, bias, y, epilogue)
        return
    xs, ys, epilogue = view.of(x), view.of(y), _seen(epilogue, view)
    statistics = [_lifted(array) for array in (mean, var, rstd)]
    factor, term = _lifted(weight), _lifted(bias)

    def task(piece: Block) -> None:
        values = _dense(xs[piece], view.wide, "x")
        found = _statistics(lambda scale: _moments(_scaled(values, scale)), view.count, eps, view.wide)
        for array, part in zip(statistics, found, strict=True):
            _statistic(array, piece)[...] = part
        centre, _, scale = found
        with _written(ys[piece], view.wide) as out:
            _normalise(values, centre, scale, _parameter(factor, piece), _parameter(term, piece), out)
            _finish(out, piece, epilogue)

    view.run(task, view.pieces)


def norm_activation_backward(
    grad_y: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None,
    bias: Array | None,
    grad: Array,
    epilogue: Epilogue,
) -> None:
    """Grad = the gradient with respect to the activation's input, whose signs are recomputed."""
    wide = accumulator(x.dtype)
    signs = (x.astype(wide, copy=False) - mean) * rstd
    if weight is not None:
        signs *= weight
    if bias is not None:
        signs += bias
    if epilogue.residual is not None:
        signs += epilogue.residual.astype(wide, copy=False)
    with computed(grad) as result:
        activation_backward(grad_y, signs, result, epilogue)


def norm_backward(
    grad_y: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None,
    grad_x: Array | None,
    grad_weight: Array | None,
    grad_bias: Array | None,
    geometry: NormGeometry,
) -> None:
    """Gradients of weight and bias, and grad_x by the closed form, with g = grad_y * weight and h = (x - mean) * rstd:

    ``grad_x = rstd * (g - mean(g) - h * mean(g * h))``: the contributions through mean and variance are subtracted.
    """
    view = _View(x, geometry.axes)
    xs, grads, pieces = view.of(x), view.of(grad_y), view.pieces if x.size else ()
    mean, rstd, factor = _lifted(mean), _lifted(rstd), _lifted(weight)
    sums: list[Any] = [None] * len(pieces)
    totals = [np.zeros(view.affine), np.zeros(view.affine), np.zeros(view.statistics), np.zeros(view.statistics)]

    def operands(piece: Block) -> Operands:
        grad, values = _dense(grads[piece], view.wide, "grad"), _dense(xs[piece], view.wide, "x")
        given = _centred(values, _statistic(mean, piece), _statistic(rstd, piece))
        return grad, *given, _parameter(factor, piece)

    def write(piece: Block, given: Operands, share_gh: Array, share_g: Array) -> None:
        if grad_x is not None:
            with _written(view.of(grad_x)[piece], view.wide) as out:
                _gradient(*given, _statistic(rstd, piece), share_gh, share_g, out)

    def task(number: int) -> None:
        given = operands(pieces[number])
        sums[number] = _gradient_sums(*given)
        if view.whole:
            write(pieces[number], given, *(share / view.count for share in sums[number][2:]))

    view.run(task, range(len(pieces)))
    for piece, (gh, g, row_gh, row_g) in zip(pieces, sums, strict=True):
        for total, part in zip(totals[:2], (gh, g), strict=True):
            total[:, :, piece[2], piece[3]] += part
        for total, part in zip(totals[2:], (row_gh, row_g), strict=True):
            total[piece[0], :, piece[2]] += part
    if not view.whole:
        shares = [total / max(1, view.count) for total in totals[2:]]
        view.run(lambda piece: write(piece, operands(piece), *(_statistic(share, piece) for share in shares)), pieces)
    for array, total in zip((grad_weight, grad_bias), totals[:2], strict=True):
        if array is not None:
            array[...] = total.reshape(array.shape)


# --- Pieces -------------------------------------------------------------------------------------------------------

Operands = tuple[Array, Array, Array, Array, Array | None]  # grad_y, x, mean, rstd, weight


class _View:
    """View of arrays [N, G, C, P] as [B, O, S, I, P] in memory order, cut into pieces.

    =============  =====================  =====================
    norm           channels first         channels last
    =============  =====================  =====================
    batch          [1, N, G, C, P]        [1, N * P, G, C, 1]
    others         [N, 1, G, C, P]        [N, P, G, C, 1]
    =============  =====================  =====================
    """

    def __init__(self, x: Array, axes: tuple[int, ...]) -> None:
        self.rows, self.last = axes == ROW, channels_are_inner(x)
        self.wide = accumulator(x.dtype)
        n, g, c, p = x.shape
        inner = p if self.last else 1
        self.shape = (n if self.rows else 1, inner if self.rows else n * inner, g, c, 1 if self.last else p)
        b, o, s, i, p = self.shape
        self.count = o * i * p  # values of a statistic
        self.statistics, self.affine = (b, 1, s, 1, 1), (1, 1, s, i, 1)
        self.whole, self.pieces = _cuts(self.shape, PIECE_VALUES, WHOLE_VALUES)

    def of(self, array: Array) -> Array:
        array = array.transpose(0, 3, 1, 2)[..., None] if self.last else array[:, None]
        return array if self.rows else array.reshape(self.shape)

    def run(self, task: Callable[[Any], object], items: Sequence[Any]) -> None:
        """Run the tasks on threads, with ufuncs that process long rows one by one.

        Otherwise NumPy copies broadcast operands to a buffer of 8192 values, for inner loops of that length: on rows of
        3136 values that takes 1.4 times as long, while rows of 16 take a tenth of the time.
        """
        if _inner(self.shape) < LONG:
            threads.run(task, items)
            return
        size = np.setbufsize(16)  # of this context, which the threads inherit
        try:
            threads.run(task, items)
        finally:
            np.setbufsize(size)


def _inner(shape: Sequence[int]) -> int:
    """Length of the inner loop over [B, O, S, I, P] with an array that varies along S: that of the innermost axis."""
    return shape[4] if shape[4] > 1 else shape[3]


@lru_cache(maxsize=1024)
def _cuts(shape: Sequence[int], most: int, most_whole: int) -> tuple[bool, tuple[Block, ...]]:
    """Pieces [B, O, S, I, P] of about equal size, an even number of them or one; whether they hold whole statistics."""
    b, o, s, i, p = shape
    size, count = prod(shape), max(1, o * i * p)
    values = max(1, size if size <= most // 4 else -(-size // (2 * max(1, -(-size // (2 * most))))))
    together = min(s, -(-values // count))
    is_long = o == 1 or together == s or together * i * p >= 4 * LONG  # or a piece were many short runs
    if not (o * p == 1 or (is_long and count <= most_whole)):
        return False, tuple(memory.blocks(shape, values))
    return True, tuple((outer, _ALL, inner, _ALL, _ALL) for outer, inner in memory.blocks((b, s), -(-values // count)))


def _seen(epilogue: Epilogue, view: _View) -> Epilogue:
    """The epilogue, with its residual in the layout of `view`."""
    return epilogue if epilogue.residual is None else replace(epilogue, residual=view.of(epilogue.residual))


def _lifted(array: Any) -> Any:
    """A statistic [N or 1, G, 1, 1] or parameter [1, G, C, 1] as [B, 1, S, 1, 1] or [1, 1, S, I, 1], None as None."""
    return None if array is None else array[:, None]


def _statistic(array: Array, piece: Block) -> Array:
    """The part of an array [B, 1, S, 1, 1] that a piece is broadcast against."""
    part: Array = array[piece[0], :, piece[2]]
    return part


def _parameter(array: Array | None, piece: Block) -> Array | None:
    """The part of an array [1, 1, S, I, 1] that a piece is broadcast against."""
    return None if array is None else array[:, :, piece[2], piece[3]]


def _dense(part: Array, dtype: Any, name: str) -> Array:
    """The part, or a copy in scratch, in `dtype` and with its last three axes contiguous; all of them but for O > 1."""
    inner = part[:1, :1].flags.c_contiguous and len(part) == 1 and part.strides[1] >= part[0, :1].nbytes
    if part.dtype == dtype and (part.flags.c_contiguous or inner):
        return part
    copy = memory.scratch(name, part.shape, dtype)
    copy[...] = part
    return copy


@contextmanager
def _written(part: Array, dtype: Any) -> Iterator[Array]:
    """Buffer for a result in `dtype`: the part itself, or scratch that is copied to it."""
    if part.dtype == dtype:
        yield part
    else:
        out = memory.scratch("out", part.shape, dtype)
        yield out
        part[...] = out


# --- Sums of a piece ----------------------------------------------------------------------------------------------


def _sums(a: Array, times: Array | None = None) -> Array:
    """Sums over O and P of a [B, O, S, I, P], or of its products with another array: float64 [B, 1, S, I, 1]."""
    b, o, s, i, p = a.shape
    if times is not None and p < LONG:  # a call of BLAS for each short run would take longer than a pass
        a, times = np.multiply(a, times, out=memory.scratch("products", a.shape, a.dtype)), None
    if p < LONG and o > 1:  # sum over the outer axis first, along contiguous elements
        columns = a.reshape(b, o, s * i * p)
        total = np.zeros((b, s * i))
        for start in range(0, o, LONG):
            cut = columns[:, start : start + LONG]
            sums = _ones(cut.shape[1], a.dtype) @ cut
            total += sums if p == 1 else (sums.reshape(b, s * i, p) @ _ones(p, a.dtype))
        return total.reshape(b, 1, s, i, 1)
    rows = a.reshape(-1, p) if o == 1 else a.reshape(b, o, s * i, p)
    others = None if times is None else times.reshape(rows.shape)
    runs, length = _runs(p)
    total = _run_sums(rows, others, 0, runs, length)
    if runs * length < p:
        total += _run_sums(rows, others, runs * length, 1, p - runs * length)
    return (total if o == 1 else total.sum(axis=1)).reshape(b, 1, s, i, 1)


def _run_sums(rows: Array, others: Array | None, start: int, runs: int, length: int) -> Array:
    """Sums of `runs` times `length` values of each row, from `start` on, in float64."""
    cut = slice(start, start + runs * length)
    whole = runs * length == rows.shape[-1]  # then all runs of all rows are the rows of one matrix
    shape = (*rows.shape[:-2], -1, length) if whole else (*rows.shape[:-1], runs, length)
    if others is None:
        sums = rows[..., cut].reshape(shape) @ _ones(length, rows.dtype)
    else:
        sums = np.vecdot(rows[..., cut].reshape(shape), others[..., cut].reshape(shape))
    return np.asarray(sums.reshape(*rows.shape[:-1], runs).sum(axis=-1, dtype=np.float64))


@lru_cache(maxsize=256)
def _runs(p: int) -> tuple[int, int]:
    """Number and length, at most `RUN`, of the runs of a row of p values; without remainder if possible."""
    least = max(1, -(-p // RUN))
    runs = next((runs for runs in range(least, 4 * least) if p % runs == 0), 0)
    return (runs, p // runs) if runs else (p // RUN, RUN)


@lru_cache(maxsize=64)
def _ones(count: int, dtype: Any) -> Array:
    ones = np.ones(count, dtype)
    ones.flags.writeable = False
    return ones


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean of each statistic and sum of squares about it: float64 [B, 1, S, 1, 1]."""
    b, o, s, i, p = x.shape
    x = x.reshape(b, o, s, 1, i * p)
    count = o * i * p
    mean = _sums(x) / count
    square = _sums(x, x) - mean * mean * count
    if not (mean * mean * count <= FAR * FAR * square).all():  # also where one is NaN
        about = mean.astype(x.dtype)
        away = _less(x, about)
        rest = _sums(away) / count  # of the mean's rounding
        mean, square = about + rest, _sums(away, away) - rest * rest * count
    return mean, np.maximum(square, 0)


def _statistics(
    moments: Callable[[Array | None], tuple[Array, Array]], count: int, eps: float, dtype: np.dtype[Any]
) -> tuple[Array, Array, Array]:
    """Mean, biased variance and reciprocal standard deviation in `dtype`, of the moments of values times a scale.

    None is a scale of 1; another has the shape of the statistics, and keeps all squares that need it in range.
    """
    limits = np.finfo(dtype)
    up = 2.0 ** (3 * limits.maxexp // 4)
    least, most = limits.tiny / limits.eps, limits.max  # of variances with all their digits
    with np.errstate(over="ignore", invalid="ignore"):
        mean, square = moments(None)
        var = (square / count).astype(dtype)
        shown = var + eps
        fits = (least <= shown) & (shown <= most)  # not where it is NaN
        if fits.all():
            return mean.astype(dtype), var, _reciprocal(var, eps)
        scale = np.where(fits, 1.0, np.where(shown < least, up, 1 / up))
        mean, square = moments(scale)
        scaled = square / count
        var = (scaled / scale / scale).astype(dtype)
        shown = var + eps
        fits = (least <= shown) & (shown <= most)
        with np.errstate(divide="ignore"):
            rstd = np.where(fits, _reciprocal(var, eps), scale / np.sqrt(scaled + eps * scale * scale))
        return (mean / scale).astype(dtype), var, rstd.astype(dtype)


def _gradient_sums(
    grad: Array, x: Array, mean: Array, rstd: Array, weight: Array | None
) -> tuple[Array, Array, Array, Array]:
    """Sums of grad * h and grad for each weight and bias, of g * h and g for each statistic (`norm_backward_input`)."""
    if _are_rows(x):
        return _row_gradient_sums(grad, x, mean, rstd, weight)
    sum_g = _sums(grad)
    sum_gh = (_sums(grad, x) - mean * sum_g) * rstd
    weighted = [sums if weight is None else sums * weight for sums in (sum_gh, sum_g)]
    return (
        sum_gh.sum(axis=0, keepdims=True),
        sum_g.sum(axis=0, keepdims=True),
        *(sums.sum(axis=3, keepdims=True) for sums in weighted),
    )


def _row_gradient_sums(
    grad: Array, x: Array, mean: Array, rstd: Array, weight: Array | None
) -> tuple[Array, Array, Array, Array]:
    """As `_gradient_sums` for rows [B, I], where each of these sums is a product of a matrix and a vector."""
    b, i = len(x), x.shape[3]
    rows, offsets, scales = grad.reshape(b, i), -(mean * rstd).reshape(b), rstd.reshape(b)
    products = np.multiply(rows, x.reshape(b, i), out=memory.scratch("products", (b, i), x.dtype))
    factor = _ones(i, x.dtype) if weight is None else weight.reshape(i)
    sum_g, sum_gh = np.zeros(i), np.zeros(i)
    runs, length = _runs(b)
    for start, count, size in ((0, runs, length), (runs * length, 1, b - runs * length)):
        if size:
            cut, shape = slice(start, start + count * size), (count, size, i)
            left = np.stack([np.ones_like(offsets[cut]), offsets[cut]]).reshape(2, count, size).swapaxes(0, 1)
            of_g, of_gh = (left @ rows[cut].reshape(shape)).sum(axis=0, dtype=np.float64)
            sum_g += of_g
            sum_gh += of_gh
            sum_gh += (scales[cut].reshape(count, 1, size) @ products[cut].reshape(shape)).sum((0, 1), np.float64)
    row_g = rows.dot(factor).astype(np.float64)
    row_gh = products.dot(factor) * scales + offsets * row_g
    shapes = ((1, 1, 1, i, 1), (1, 1, 1, i, 1), (b, 1, 1, 1, 1), (b, 1, 1, 1, 1))
    return tuple(sums.reshape(shape) for sums, shape in zip((sum_gh, sum_g, row_gh, row_g), shapes, strict=True))


# --- Element by element, over a piece -----------------------------------------------------------------------------


def _normalise(x: Array, mean: Array, rstd: Array, weight: Array | None, bias: Array | None, out: Array) -> None:
    """``(x - mean) * rstd * weight + bias`` as one product and one sum."""
    x, mean, rstd = _centred(x, mean, rstd)
    if _are_rows(x):  # BLAS makes their shift: up to 1.35 times as quick
        b, i = len(x), x.shape[3]
        factor = _ones(i, x.dtype) if weight is None else weight.reshape(i)
        ends = np.zeros(i, x.dtype) if bias is None else bias.reshape(i)
        matrix, rows = memory.scratch("matrix", (b, i), x.dtype), out.reshape(b, i)
        np.multiply(x.reshape(b, i), _outer(rstd, factor, matrix), out=rows)
        left = np.stack([(-mean * rstd).reshape(b), _ones(b, x.dtype)], axis=1)
        rows += np.matmul(left, np.stack([factor, ends]), out=matrix)
        return
    scale = rstd if weight is None else rstd * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    np.multiply(x, _spread(scale, x), out=out)
    out += _spread(shift, x)


def _finish(out: Array, piece: Block, epilogue: Epilogue) -> None:
    """Add the piece of the residual and apply the activation, in place."""
    if epilogue.residual is not None:
        out += epilogue.residual[piece].astype(out.dtype, copy=False)
    activate(out, epilogue)


def _gradient(
    grad: Array,
    x: Array,
    mean: Array,
    scaled_rstd: Array,
    weight: Array | None,
    rstd: Array,
    share_gh: Array,
    share_g: Array,
    out: Array,
) -> None:
    """The closed form as x * a + b + grad * c; the shares are the means of g * h and g (`norm_backward_input`).

    h is computed from x, mean and `scaled_rstd` as `_centred` returns them; `rstd` is that of the norm.
    """
    slope = -rstd * scaled_rstd * share_gh
    shift = (-rstd * share_g - slope * mean).astype(x.dtype)
    np.multiply(x, _spread(slope.astype(x.dtype), x), out=out)
    out += _spread(shift, x)
    matrix = memory.scratch("matrix", x.shape, x.dtype)
    if weight is not None:
        rstd = _outer(rstd, weight, matrix) if _are_rows(x) else rstd * weight
    out += np.multiply(grad, _spread(rstd, x), out=matrix)


def _outer(column: Array, row: Array, out: Array) -> Array:
    """All products of a column and a row of values: for rows of 96 to 768 in 0.7 to 0.95 of np.multiply's time."""
    np.einsum("b,i->bi", column.reshape(-1), row.reshape(-1), out=out.reshape(column.size, row.size))
    return out


def _are_rows(x: Array) -> bool:
    """Whether a piece [B, O, S, I, P] is a matrix [B, I]."""
    return bool(x.shape[1:3] == (1, 1) and x.shape[4] == 1)


def _centred(x: Array, mean: Array, rstd: Array) -> tuple[Array, Array, Array]:
    """The arguments, or with a mean of 0 where it is large, and an rstd of 1 to 2 where that is far from 1.

    The mean is subtracted from x, so that sums do not cancel. x is multiplied by the power of two that rstd is divided
    by, so that products of x and of rstd stay within the range of the dtype.
    """
    far = 2.0 ** (np.finfo(x.dtype).maxexp // 4)
    if not ((rstd * far >= 1) & (rstd <= far)).all():
        scale = np.ldexp(x.dtype.type(0.5), np.frexp(rstd)[1])
        x, mean, rstd = _scaled(x, scale), mean * scale, rstd / scale
    with np.errstate(over="ignore"):
        is_near = (abs(mean) * rstd <= FAR).all()
    if is_near:
        return x, mean, rstd
    return _less(x, mean), np.zeros_like(mean), rstd


def _scaled(x: Array, scale: Array | None) -> Array:
    """X itself, or its product with `scale` in scratch."""
    if scale is None:
        return x
    return np.multiply(x, _spread(scale.astype(x.dtype), x), out=memory.scratch("scaled", x.shape, x.dtype))


def _less(x: Array, mean: Array) -> Array:
    """``x - mean``, in scratch."""
    return np.subtract(x, _spread(mean, x), out=memory.scratch("centred", x.shape, x.dtype))


def _spread(array: Array, x: Array) -> Array:
    """An array as it is, or broadcast to contiguous memory for short runs of x: one inner loop over S, I and P.

    Batch norm of planes of 3 x 3 to 15 x 15 took 1.1 to 1.4 times as long in training without it, and 1.2 to 1.9 times
    in inference; the gradient of a group norm of channels-last images took 4 times as long.
    """
    _, o, s, i, p = x.shape
    if o == 1 or array.shape[2:] == (s, i, p) or _inner(x.shape) >= LONG:
        return array
    return np.ascontiguousarray(np.broadcast_to(array, (len(array), 1, s, i, p)))
