"""The norms on the GPU: reductions over x viewed as [N, G, C, P], and elementwise steps with their results.

Contiguous rows that fit into the registers of a block are normalised there, reading x once (`norm_rows`). All others
use general kernels, for any strides: sums over some axes, then a step over all elements. They index x's axes in memory
order, so channels-last images are read in the same way as channels-first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from gpucnn.backends.base import Epilogue
from gpucnn.backends.cuda.device.limits import power_of_two
from gpucnn.backends.cuda.device.runtime import Array, Runtime
from gpucnn.backends.cuda.device.sources import Kernel
from gpucnn.backends.cuda.elementwise.bias_activation import Activation, activation_of
from gpucnn.backends.cuda.launch.plans import Fields, Layout, Work, empty, launch, layout, layouts
from gpucnn.backends.cuda.normalization.tiles import norm_rows, norm_tile
from gpucnn.backends.dtypes import accumulator
from gpucnn.backends.layout import is_dense
from gpucnn.geometry import NormGeometry

STATISTICS = Kernel("norm_statistics", "NormParams")
STATISTICS_COMBINE = Kernel("norm_statistics", "NormParams", "norm_statistics_combine")
BACKWARD_SUMS = Kernel("norm_backward_sums", "NormParams")
BACKWARD_SUMS_COMBINE = Kernel("norm_backward_sums", "NormParams", "norm_backward_sums_combine")
APPLY = Kernel("norm_apply", "NormParams")
BACKWARD_APPLY = Kernel("norm_backward_apply", "NormParams")
ACTIVATION_BACKWARD = Kernel("norm_activation_backward", "NormParams")
MOVING_AVERAGE = Kernel("moving_average", "MovingAverageParams")
ROWS = Kernel("norm_rows", "NormRowParams")
ROWS_BACKWARD = Kernel("norm_rows_backward", "NormRowParams")

HELD, BACKWARD_HELD = 32, 16  # values of each array that a thread holds, forward and backward: see HELD in kernels/
COMBINED = 8  # sums whose parts one block adds: COMBINED in norm_tiles.cuh

Axes = tuple[int, ...]


# --- Axes in memory order -----------------------------------------------------------------------------------------


class Dim(NamedTuple):
    """An axis, or several joined: its size, whether it is reduced, and the arrays' strides."""

    size: int
    is_reduced: bool
    steps: tuple[int, ...]


def memory_order(x: Layout) -> Axes:
    """The axes of x from the outermost to the innermost in memory; axes of size 1 come last."""
    return tuple(sorted(range(len(x.shape)), key=lambda axis: (x.shape[axis] == 1, -abs(x.strides[axis]))))


def joined(x: Layout, axes: Axes, arrays: Sequence[Layout | None]) -> list[Dim]:
    """The axes of x in memory order, without those of size 1, joined where possible; `axes` are reduced.

    Examples
    --------
    >>> images = Layout((8, 64, 1, 49), (12544, 196, 196, 4), 4)
    >>> [(dim.size, dim.is_reduced) for dim in joined(images, (0, 2, 3), [images])]
    [(8, True), (64, False), (49, True)]
    >>> channels_last = Layout((8, 64, 1, 49), (12544, 4, 4, 256), 4)
    >>> [(dim.size, dim.is_reduced) for dim in joined(channels_last, (0, 2, 3), [channels_last])]
    [(392, True), (64, False)]
    """
    dims: list[Dim] = []
    for axis in memory_order(x):
        size = x.shape[axis]
        if size == 1:
            continue
        steps = tuple(0 if a is None or a.shape[axis] == 1 else a.strides[axis] // a.itemsize for a in arrays)
        dim = Dim(size, axis in axes, steps)
        if dims and dims[-1].is_reduced == dim.is_reduced and dims[-1].steps == tuple(size * step for step in steps):
            dim = dim._replace(size=dims.pop().size * size)
        dims.append(dim)
    return dims


@dataclass(frozen=True, eq=False)
class Tiling:
    """The fields of NormParams that partition the work, and the resulting launch; equal only to itself."""

    fields: Fields
    block: int
    constants: tuple[tuple[str, int | str], ...]

    @property
    def parts_shape(self) -> tuple[int, int] | None:
        """The parts of a reduction and the values of each, or None where no sum has several parts."""
        splits = self.fields["splits"]
        return None if splits == 1 else (splits, _part_length(self.fields["kept"]))

    def work(self, eps: float | None = 0.0, divisor: int = 1, weighs: bool = False, centred: bool = True) -> Work:
        """The launch of a kernel over the tiles; by rstd in the variance's place where eps is None."""
        fields = self.fields | {"divisor": divisor, "weighs": int(weighs), "centred": int(centred)}
        fields |= {"has_rstd": 1} if eps is None else {"eps": eps}
        extents = (fields["reduced"] + fields["run"] + self.block, fields["kept"] + fields["sums"])
        blocks = -(-fields["kept"] // fields["sums"]) * fields["splits"]
        return Work(fields, blocks=blocks, block=self.block, extents=extents, constants=self.constants)

    def combine(self, eps: float = 0.0) -> Work:
        """The launch that adds the parts."""
        fields = self.fields | {"sums": _part_length(self.fields["kept"]), "eps": eps}
        extents = (fields["splits"] * fields["sums"] + COMBINED,)
        return Work(fields, blocks=-(-fields["kept"] // COMBINED), extents=extents, constants=_PLAIN)


_NAMES = ("x", "y", "z", "added", "mean", "rstd", "weight", "bias", "sum")
_WHOLE = ("x", "y", "z", "added")  # arrays of the shape of x
_PLAIN = (("PACK", 1), ("ALONG", 0))  # macros of the kernels that add parts
_REST: Fields = {
    "divisor": 1, "weighs": 0, "groups": 1, "has_rstd": 0, "activation": 0, "negative_slope": 0.0, "eps": 0.0,
    "centred": 1,
}  # fmt: skip


@lru_cache(maxsize=4096)
def tiling(x: Layout, axes: Axes, held: int, **arrays: Layout | None) -> Tiling:
    """Partition of a reduction of x over `axes`; `arrays` are the others that the kernel reads and writes."""
    given = {"x": x, **arrays}
    lead = arrays.get("z") or x  # the output is dense, while x may be broadcast
    dims = joined(lead, axes, [given.get(name) for name in _NAMES])
    whole = [array for name in _WHOLE if (array := given.get(name)) is not None]
    kept, reduced = (prod(x.shape[axis] for axis in range(4) if (axis in axes) == side) for side in (False, True))
    innermost = [axis for axis in memory_order(lead) if lead.shape[axis] > 1][-1:]
    pack = min((array.pack(axis) for axis in innermost for array in whole), default=1)
    inner, is_along = _run(dims, reduced=False), bool(dims) and not dims[-1].is_reduced
    run = 1 if is_along else _run(dims, reduced=True)
    beside = inner if is_along else _run([dim for dim in dims if not dim.is_reduced], reduced=False)
    chosen = norm_tile(is_along, run, beside, reduced, pack, held, x.itemsize)
    fields: Fields = {"kept": kept, "reduced": reduced, **chosen._asdict()}
    del fields["block"]
    fields["splits"] = max(1, -(-reduced // chosen.run))
    dims = [Dim(1, False, (0,) * len(_NAMES))] * (4 - len(dims)) + dims
    for number, dim in enumerate(dims):
        if number:
            size = max(1, dim.size)  # of an empty batch, which nothing is read of
            fields[f"kept_{number}"] = 1 if dim.is_reduced else size
            fields[f"reduced_{number}"] = size if dim.is_reduced else 1
        fields |= {f"{name}_{number}": step for name, step in zip(_NAMES, dim.steps, strict=True)}
    statistics = [_NAMES.index(name) for name in ("mean", "rstd")]
    fields["moves"] = int(any(dim.steps[at] for dim in dims for at in statistics if dim.is_reduced))
    constants = (("PACK", pack), ("ALONG", int(is_along and pack > 1)))
    return Tiling(_REST | fields, chosen.block, constants)


def _run(dims: Sequence[Dim], reduced: bool) -> int:
    """Elements of the innermost dims that are reduced, or are not."""
    size = 1
    for dim in reversed(dims):
        if dim.is_reduced != reduced:
            break
        size *= dim.size
    return size


def _flat(kept: int, splits: int, sums: int) -> Fields:
    """The fields of a combination of parts [kept / sums, splits, sums] to sums [kept].

    Where the parts of a sum are adjacent, `side` threads read them; sums of one part each are all adjacent.
    """
    sums, side = (max(1, kept), 1) if splits == 1 else (max(1, sums), min(32, power_of_two(splits)))
    fields = {f"{name}_{number}": 0 for name in _NAMES for number in range(4)}
    fields |= {f"{name}_{number}": 1 for name in ("kept", "reduced") for number in (1, 2, 3)}
    fields |= {"kept": kept, "kept_3": max(1, kept), "sum_3": 1, "reduced": splits, "splits": splits, "run": 1}
    return _REST | fields | {"sums": sums, "side": side, "columns": 1, "rows": 1, "apart": 1, "moves": 0}


def _part_length(kept: int | float) -> int:
    """Values of one part of all sums, padded to whole sectors: part_length in norm_tiles.cuh."""
    return -(-int(kept) // COMBINED) * COMBINED


# --- Statistics ---------------------------------------------------------------------------------------------------


def norm_statistics(
    runtime: Runtime, x: Array, mean: Array, var: Array, rstd: Array, geometry: NormGeometry, eps: float
) -> None:
    """Mean, biased variance and ``1 / sqrt(var + eps)`` over ``geometry.axes``, as axes of size 1."""
    found = {"mean": mean, "var": var, "rstd": rstd}
    if _rows(x, geometry, HELD):
        absent = dict.fromkeys(("weight", "bias", "residual", "z"))
        arrays, activation = {"x": x, **absent, **found}, activation_of(Epilogue())
        launch(runtime, ROWS, x.dtype, arrays, _rows_work, eps=eps, activation=activation, centred=geometry.centred)
        return
    read = layouts({"x": x, **found})
    held = HELD if x.dtype.itemsize > 2 else 2 * HELD
    tiled = tiling(read["x"], geometry.axes, held, sum=read["mean"])
    shape = tiled.parts_shape
    parts = None if shape is None else empty(runtime, (3, *shape), mean.dtype)
    arrays = {"x": x, "parts": parts, **found}
    launch(runtime, STATISTICS, x.dtype, arrays, tiled.work, read, eps=eps, centred=geometry.centred)
    if parts is not None:
        launch(runtime, STATISTICS_COMBINE, x.dtype, arrays, tiled.combine, eps=eps)


def moving_average(runtime: Runtime, found: Array, average: Array, factor: float, momentum: float) -> None:
    """Average [C] = ``(1 - momentum) * average + momentum * mean``, where that is the mean over N of found * factor."""
    arrays = {"found": found, "average": average}
    launch(runtime, MOVING_AVERAGE, average.dtype, arrays, _moving_average_work, factor=factor, momentum=momentum)


def _moving_average_work(found: Layout, average: Layout, factor: float, momentum: float) -> Work:
    n, c = found.shape[:2]
    fields: Fields = {"n": n, "c": c, "found_n": _step(found, 0), "found_c": _step(found, 1)}
    fields |= {"average_c": _step(average, 0), "factor": factor, "momentum": momentum, "kept": 1 - momentum}
    return Work(fields, threads=c)


# --- Sums of the backward pass ------------------------------------------------------------------------------------

Sums = tuple[Array, Array]  # of g and of g * h


def _sum(
    runtime: Runtime, grad_y: Array, x: Array, mean: Array, rstd: Array, weight: Array | None, axes: Axes, sums: Sums
) -> None:
    """Write the sums over `axes` of ``g = grad_y * weight`` and of ``g * (x - mean) * rstd``, as axes of size 1."""
    given = {"grad_y": grad_y, "x": x, "mean": mean, "rstd": rstd, "weight": weight, "sum_g": sums[0]}
    read = layouts(given)
    statistics = {"mean": read["mean"], "rstd": read["rstd"]}
    tiled = tiling(
        read["x"], axes, BACKWARD_HELD, y=read["grad_y"], **statistics, weight=read["weight"], sum=read["sum_g"]
    )
    shape = tiled.parts_shape
    parts = (None, None) if shape is None else _both(runtime, shape, mean)
    written = {"parts_g": parts[0], "parts_gh": parts[1], "sum_g": sums[0], "sum_gh": sums[1]}
    launch(runtime, BACKWARD_SUMS, x.dtype, given | written, tiled.work, read)
    if shape is not None:
        launch(runtime, BACKWARD_SUMS_COMBINE, x.dtype, written | {"weight": None}, tiled.combine)


def _sizes_kept(x: Array, axes: Axes) -> Axes:
    return tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))


def _both(runtime: Runtime, shape: Axes, like: Array) -> Sums:
    """Two new arrays, for sums of g and of g * h."""
    return empty(runtime, shape, like.dtype), empty(runtime, shape, like.dtype)


def _added_work(parts_g: Layout, weight: Layout | None, sum_g: Layout, sums: int) -> Work:
    kept = sum_g.size
    fields = _flat(kept, parts_g.size // max(1, kept), sums)
    if weight is not None:
        fields |= {"weight_1": _step(weight, 1), "weight_2": _step(weight, 2)}
        fields["groups"] = weight.shape[1]
    return Work(fields, blocks=-(-kept // COMBINED), extents=(parts_g.size + sums,), constants=_PLAIN)


def _add(runtime: Runtime, x: Array, parts: Any, weight: Array | None, result: Sums, sums: int) -> None:
    """Write both sums of parts [tiles, parts, sums], which are in C order; each part times its weight."""
    arrays = {"parts_g": parts[0], "parts_gh": parts[1], "weight": weight, "sum_g": result[0], "sum_gh": result[1]}
    launch(runtime, BACKWARD_SUMS_COMBINE, x.dtype, arrays, _added_work, sums=sums)


# --- Element by element -------------------------------------------------------------------------------------------


def _elementwise(x: Layout, mean: Layout, held: int, **arrays: Layout | None) -> Tiling:
    """The tiling of a step over all elements, by the axes along which they have the same parameters.

    Rows with P = 1 share all but weight and bias.
    """
    axes = (3,) if x.shape[3] > 1 and mean.shape[0] > 1 else (0, 3)
    return tiling(x, axes, held, mean=mean, **arrays)


def _finished(work: Work, residual: Layout | None, activation: Activation) -> Work:
    """A launch that adds a residual, in a separate program, and applies an activation."""
    return work._replace(
        fields=work.fields | activation.fields,
        constants=(*work.constants, ("RESIDUAL", int(residual is not None))),
    )


def norm_apply(
    runtime: Runtime,
    x: Array,
    mean: Array,
    var: Array,
    weight: Array | None,
    bias: Array | None,
    y: Array,
    eps: float | None,
    epilogue: Epilogue,
) -> None:
    """Y = epilogue of ``(x - mean) / sqrt(var + eps) * weight + bias``; ``var`` is rstd where eps is None."""
    arrays = {"x": x, "mean": mean, "var": var, "weight": weight, "bias": bias, "residual": epilogue.residual, "z": y}
    launch(runtime, APPLY, x.dtype, arrays, _apply_work, eps=eps, activation=activation_of(epilogue))


def _apply_work(
    x: Layout,
    mean: Layout,
    var: Layout,
    weight: Layout | None,
    bias: Layout | None,
    residual: Layout | None,
    z: Layout,
    eps: float | None,
    activation: Activation,
) -> Work:
    held = HELD if residual is None else BACKWARD_HELD if x.itemsize < 8 else BACKWARD_HELD // 2  # of two arrays
    tiled = _elementwise(x, mean, held, y=residual, rstd=var, weight=weight, bias=bias, z=z)
    return _finished(tiled.work(eps), residual, activation)


# --- Rows in the registers of a block -----------------------------------------------------------------------------


def _rows(x: Array, geometry: NormGeometry, held: int, *others: Array) -> bool:
    """Whether a norm over rows can hold them whole: they are contiguous in x and in the other arrays, and small.

    A result in the memory order of such an x is in C order, so its rows are contiguous as well.
    """
    if geometry.axes == (0, 2, 3) or not all(is_dense(array, (2, 3)) for array in (x, *others)):
        return False
    return norm_rows(*_segments(x.shape), held, accumulator(x.dtype).itemsize) is not None


def _segments(shape: Axes) -> tuple[int, int, bool]:
    """The segments of a row, their length, and whether weights vary along them, as in layer norm."""
    _, g, c, p = shape
    return (1, c, True) if g == p == 1 else (c, p, False)


def _row_work(
    x: Layout, held: int, wide: int, weight: Layout | None, bias: Layout | None, arrays: dict[str, Layout | None]
) -> Work:
    n, g, _, _ = x.shape
    segments, length, along = _segments(x.shape)
    axis = 2 if along else 3
    whole = [x, *(array for name, array in arrays.items() if name in _WHOLE and array is not None)]
    pack = min(array.pack(axis) if length > 1 else 1 for array in whole)
    chosen = norm_rows(segments, length, along, held, wide, pack, n * g)
    assert chosen is not None  # as `_rows` has found
    fields: Fields = {"rows": n * g, "g": g, "segments": segments, "length": length, "along": int(along), "eps": 0.0}
    fields |= {"lanes": chosen.lanes, "at_once": chosen.at_once, "turns": chosen.turns}
    fields |= {"activation": 0, "negative_slope": 0.0}
    for name, array in ({"x": x, "y": None, "z": None, "mean": None, "rstd": None} | arrays).items():
        fields |= {f"{name}_n": _step(array, 0), f"{name}_g": _step(array, 1)}
    for name, array in (("weight", weight), ("bias", bias)):
        fields |= {f"{name}_g": _step(array, 1), f"{name}_c": _step(array, 2)}
    return Work(
        fields,
        blocks=-(-n * g // (chosen.at_once * chosen.turns)),
        block=chosen.block,
        extents=(n * g + chosen.at_once * chosen.turns, held * chosen.block),
        constants=(("PACK", pack),),
        shared_bytes=chosen.shared_bytes,
    )


def _step(array: Layout | None, axis: int) -> int:
    return 0 if array is None or array.shape[axis] == 1 else array.strides[axis] // array.itemsize


def _rows_work(
    x: Layout,
    weight: Layout | None,
    bias: Layout | None,
    residual: Layout | None,
    z: Layout | None,
    mean: Layout,
    eps: float,
    activation: Activation,
    centred: bool,
) -> Work:
    work = _row_work(x, HELD, mean.itemsize, weight, bias, {"y": residual, "z": z})
    return _finished(work._replace(fields=work.fields | {"eps": eps, "centred": int(centred)}), residual, activation)


def _rows_backward_work(
    grad_y: Layout, x: Layout, mean: Layout, rstd: Layout, weight: Layout | None, z: Layout | None, centred: bool
) -> Work:
    arrays = {"y": grad_y, "z": z, "mean": mean, "rstd": rstd}
    work = _row_work(x, BACKWARD_HELD, mean.itemsize, weight, None, arrays)
    return work._replace(fields=work.fields | {"centred": int(centred)})


def norm_forward(
    runtime: Runtime,
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
    """Y by x's own statistics, which are written too: mean, biased variance and ``1 / sqrt(var + eps)``."""
    residual = epilogue.residual
    if _rows(x, geometry, HELD, *(() if residual is None else (residual,))):
        arrays = {"x": x, "weight": weight, "bias": bias, "residual": residual, "z": y}
        arrays |= {"mean": mean, "var": var, "rstd": rstd}
        activation = activation_of(epilogue)
        launch(runtime, ROWS, x.dtype, arrays, _rows_work, eps=eps, activation=activation, centred=geometry.centred)
        return
    norm_statistics(runtime, x, mean, var, rstd, geometry, eps)
    norm_apply(runtime, x, mean, rstd, weight, bias, y, None, epilogue)


# --- Gradients ----------------------------------------------------------------------------------------------------


def norm_activation_backward(
    runtime: Runtime,
    grad_y: Array,
    x: Array,
    mean: Array,
    rstd: Array,
    weight: Array | None,
    bias: Array | None,
    grad: Array,
    epilogue: Epilogue,
) -> None:
    """Grad = the gradient with respect to the activation's input: one pass over the arrays."""
    arrays = {"grad_y": grad_y, "x": x, "mean": mean, "rstd": rstd, "weight": weight, "bias": bias}
    arrays |= {"residual": epilogue.residual, "z": grad}
    activation = activation_of(epilogue)
    launch(runtime, ACTIVATION_BACKWARD, x.dtype, arrays, _activation_backward_work, activation=activation)


def _activation_backward_work(
    grad_y: Layout,
    x: Layout,
    mean: Layout,
    rstd: Layout,
    weight: Layout | None,
    bias: Layout | None,
    residual: Layout | None,
    z: Layout,
    activation: Activation,
) -> Work:
    held = BACKWARD_HELD if residual is None or x.itemsize < 8 else BACKWARD_HELD // 2  # of three arrays
    tiled = _elementwise(x, mean, held, y=grad_y, added=residual, rstd=rstd, weight=weight, bias=bias, z=z)
    return _finished(tiled.work(), residual, activation)


def norm_backward(
    runtime: Runtime,
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
    """The requested gradients, those of weight and bias both or neither, from shared sums."""
    given, axes = (grad_y, x, mean, rstd), geometry.axes
    affine = None if grad_weight is None or grad_bias is None else (grad_bias, grad_weight)
    if _rows(x, geometry, BACKWARD_HELD, grad_y):
        _backward_of_rows(runtime, given, weight, grad_x, affine, geometry)
    elif axes == (0, 2, 3):  # the means of g and g * h are grad_bias and grad_weight times weight
        sums = affine or _both(runtime, _sizes_kept(x, axes), mean)
        _sum(runtime, *given, None, axes, sums)
        if grad_x is not None:
            _apply_backward(runtime, given, weight, sums, grad_x, geometry, weighs=True)
    elif x.shape[3] > 1:  # sums of each channel of each image serve both
        planes = _both(runtime, _sizes_kept(x, (3,)), mean)
        _sum(runtime, *given, None, (3,), planes)
        if grad_x is not None:
            sums = _both(runtime, _sizes_kept(x, axes), mean)
            _add(runtime, x, planes, weight, sums, 1)
            _apply_backward(runtime, given, weight, sums, grad_x, geometry, weighs=False)
        if affine is not None:
            _add(runtime, x, planes, None, affine, affine[0].size)
    else:
        if grad_x is not None:
            sums = _both(runtime, _sizes_kept(x, axes), mean)
            _sum(runtime, *given, weight, axes, sums)
            _apply_backward(runtime, given, weight, sums, grad_x, geometry, weighs=False)
        if affine is not None:
            _sum(runtime, *given, None, geometry.affine_axes, affine)


def _apply_backward(
    runtime: Runtime,
    given: tuple[Array, Array, Array, Array],
    weight: Array | None,
    sums: Sums,
    grad_x: Array,
    geometry: NormGeometry,
    *,
    weighs: bool,
) -> None:
    """grad_x by the closed form; with `weighs` the sums have yet to be multiplied by weight."""
    count = max(1, geometry.count)  # an empty batch has none
    grad_y, x, mean, rstd = given
    arrays = {"grad_y": grad_y, "x": x, "mean": mean, "rstd": rstd, "weight": weight}
    arrays |= {"sum_g": sums[0], "sum_gh": sums[1], "z": grad_x}
    facts = {"divisor": count, "weighs": weighs, "centred": geometry.centred}
    launch(runtime, BACKWARD_APPLY, grad_x.dtype, arrays, _apply_backward_work, **facts)


def _apply_backward_work(
    grad_y: Layout,
    x: Layout,
    mean: Layout,
    rstd: Layout,
    weight: Layout | None,
    sum_g: Layout,
    z: Layout,
    divisor: int,
    weighs: bool,
    centred: bool,
) -> Work:
    tiled = _elementwise(x, mean, BACKWARD_HELD, y=grad_y, rstd=rstd, weight=weight, sum=sum_g, z=z)
    return tiled.work(divisor=divisor, weighs=weighs, centred=centred)


def _backward_of_rows(
    runtime: Runtime,
    given: tuple[Array, Array, Array, Array],
    weight: Array | None,
    grad_x: Array | None,
    affine: Sums | None,
    geometry: NormGeometry,
) -> None:
    """All gradients of rows that a block holds whole; each block writes a partial sum over its rows."""
    x, mean = given[1], given[2]
    parts: Sums | tuple[None, None] = (None, None)
    if affine is not None:
        splits = _rows_backward_blocks(*map(layout, given)) if _segments(x.shape)[2] else x.shape[0]
        parts = _both(runtime, (splits, *x.shape[1:3]), mean)
    arrays = dict(zip(("grad_y", "x", "mean", "rstd"), given, strict=True))
    arrays |= {"weight": weight, "z": grad_x, "parts_g": parts[0], "parts_gh": parts[1]}
    launch(runtime, ROWS_BACKWARD, x.dtype, arrays, _rows_backward_work, centred=geometry.centred)
    if affine is not None:
        _add(runtime, x, parts, None, affine, affine[0].size)


@lru_cache(maxsize=1024)
def _rows_backward_blocks(grad_y: Layout, x: Layout, mean: Layout, rstd: Layout) -> int:
    """Number of blocks of a launch over rows, each of which writes a partial sum over its rows."""
    return _rows_backward_work(grad_y, x, mean, rstd, None, None, True).blocks or 0
