"""Norms of Dask's arrays by statistics over several chunks, and their gradients.

A chunk is seen as [N, G, C, P], as in `gpucnn.geometry.NormGeometry`. Statistics and sums of chunks are combined in the
order of a fixed tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from typing import Any

from gpucnn.backends import backend_of
from gpucnn.backends.dtypes import accumulator
from gpucnn.dask._calls import DaskCall
from gpucnn.dask._tiles import Index, Key, Result, Source, Spans, in_one_chunk, parameter, sizes_of, spans_of, whole
from gpucnn.dask.rows import kept_norm, kept_norm_backward
from gpucnn.functional._norm_call import BATCH, ROW, NormCall
from gpucnn.geometry import NormGeometry

Array = Any
Given = dict[str, Any]
Moments = tuple[int, Array, Array]
"""Number of values that share a mean, their means, and their sums of squared distances from it."""


@dataclass(frozen=True)
class View:
    """The view of a chunk x [N, C, *space] as [N, G, C / G, P], and the axes that share a mean."""

    op: str
    groups: int
    axes: tuple[int, ...]

    def shape(self, x: Array) -> tuple[int, int, int, int]:
        """[N, G, C / G, P] of a chunk."""
        return x.shape[0], self.groups, x.shape[1] // self.groups, prod(x.shape[2:])

    @property
    def is_of_batch(self) -> bool:
        """Whether all images share a mean."""
        return self.axes == BATCH


@dataclass
class Norm:
    """The graph of one norm: its view, and what its tasks read of the images, of which each task has all channels."""

    call: DaskCall
    view: View

    def __post_init__(self) -> None:
        x = self.x = self.call.images["input"]
        self.spans: tuple[Spans, ...] = (
            spans_of(x.chunks[0]),
            whole(x.shape[1]),
            *(spans_of(sizes) for sizes in x.chunks[2:]),
        )
        self.grid = tuple(map(len, self.spans))
        self.tiles = self.call.tiles()
        self.count = prod(x.shape[axis] for axis in range(x.ndim) if axis != 1 and (axis or self.view.is_of_batch))
        self.count *= x.shape[1] // self.view.groups
        if self.count * (1 if self.view.is_of_batch else x.shape[0]) == 1:
            raise ValueError(f"{self.call.op}: input has shape {x.shape}, expected more than one value for each mean")

    @property
    def sources(self) -> dict[str, Source]:
        """The images, and the parameters that are applied."""
        applied = {name: self.call.parameters[name] for name in ("weight", "bias") if name in self.call.parameters}
        return {
            **{name: Source(array, self.spans[: array.ndim]) for name, array in self.call.images.items()},
            **{name: parameter(array) for name, array in applied.items()},
        }

    @property
    def finish(self) -> Given:
        """The arguments about what follows the norm."""
        return {name: self.call.options[name] for name in ("eps", "activation", "negative_slope")}

    def over_chunks(
        self, part: str, combine: Callable[[list[Any]], Any], key: Callable[[Index], Key]
    ) -> Callable[[Index], Key]:
        """The results for chunks, combined over all that share a mean: a key by the index of a chunk."""
        space = list(product(*map(range, self.grid[1:])))
        images = range(self.grid[0])
        if self.view.is_of_batch:
            total = self.tiles.reduce(part, combine, [key((image, *rest)) for image in images for rest in space])
            return lambda index: total
        totals = [
            self.tiles.reduce(part, combine, [key((image, *rest)) for rest in space], (image,)) for image in images
        ]
        return lambda index: totals[index[0]]

    def statistics(self) -> Callable[[Index], Key]:
        """The moments of the images themselves: a key by the index of a chunk."""
        sources = {"input": self.sources["input"]}
        key = self.tiles.compute("moments", partial(_moments_of, self.view), self.grid, sources)
        return self.over_chunks("moments-of-all", _combined, key)

    def image(self, part: str, key: Callable[[Index], Key], meta: Array, item: int = -1) -> Array:
        """A result in the chunks of the input, all channels together."""
        return self.tiles.result(part, key, tuple(map(sizes_of, self.spans)), meta, item)


# --- Forward ------------------------------------------------------------------------------------------------------


def _batch_norm(op: str, given: Given) -> Any:
    if given["training"] is False:
        return _by_running_statistics(op, given)
    return _forward(op, given, lambda x: View(op, x.shape[1], BATCH))


def _instance_norm(op: str, given: Given) -> Any:
    if given["use_input_stats"] is False:
        return _by_running_statistics(op, given)
    return _forward(op, given, lambda x: View(op, x.shape[1], ROW))


def _by_running_statistics(op: str, given: Given) -> Any:
    y = kept_norm(op, given | {"return_statistics": False})
    if not given["return_statistics"]:
        return y
    wide = accumulator(y.dtype)
    mean, var = (in_one_chunk(given[name]).astype(wide) for name in ("running_mean", "running_var"))
    return y, mean, var.map_blocks(_reciprocal, given["eps"], dtype=wide, meta=var._meta)


def _group_norm(op: str, given: Given) -> Any:
    return _forward(op, given, lambda x: View(op, int(given["num_groups"]), ROW))


def _forward(op: str, given: Given, view_of: Callable[[Array], View]) -> Any:
    if given.get("running_mean") is not None or given.get("running_var") is not None:
        raise TypeError(
            f"{op}: running_mean and running_var are given with arrays of dask, expected None: nothing is updated in "
            "place; return_statistics=True returns the mean and the reciprocal standard deviation"
        )
    call = DaskCall(op, given)
    norm = Norm(call, view_of(call.images["input"]))
    moments = norm.statistics()
    function = partial(_applied, norm.view)
    sources: dict[str, Source | Result] = {**norm.sources, "moments": Result(moments)}
    key = norm.tiles.compute("image", function, norm.grid, sources, lambda index: norm.finish)
    y, *statistics = call.trial if isinstance(call.trial, tuple) else (call.trial,)
    results = [norm.image("image", key, y)]
    for item, (part, meta) in enumerate(zip(("mean", "rstd"), statistics, strict=False)):
        results.append(_statistic(norm, moments, part, item, meta))
    return tuple(results) if statistics else results[0]


def _statistic(norm: Norm, moments: Callable[[Index], Key], part: str, item: int, meta: Array) -> Array:
    """Mean or reciprocal standard deviation, [C], or [N, G] in chunks of the batch."""
    batch = () if norm.view.is_of_batch else (norm.spans[0],)
    grid = tuple(map(len, batch)) or (1,)
    function = partial(_statistic_of, norm.call.options["eps"], item, norm.view.is_of_batch)
    key = norm.tiles.compute(part, function, (*grid, 1)[: meta.ndim], {"moments": Result(moments)})
    return norm.tiles.result(part, key, (*map(sizes_of, batch), (meta.shape[-1],)), meta)


# --- Gradients ----------------------------------------------------------------------------------------------------


def _batch_norm_backward(op: str, given: Given) -> tuple[Array | None, ...]:
    if given["training"] is False:
        return kept_norm_backward(op, given)
    return _backward(op, given, lambda x: View(op, x.shape[1], BATCH))


def _instance_norm_backward(op: str, given: Given) -> tuple[Array | None, ...]:
    if given["use_input_stats"] is False:
        return kept_norm_backward(op, given)
    return _backward(op, given, lambda x: View(op, x.shape[1], ROW))


def _group_norm_backward(op: str, given: Given) -> tuple[Array | None, ...]:
    return _backward(op, given, lambda x: View(op, int(given["num_groups"]), ROW))


def _backward(op: str, given: Given, view_of: Callable[[Array], View]) -> tuple[Array | None, ...]:
    is_of_batch = "batch_norm" in op
    call = DaskCall(op, given, per_image=() if is_of_batch else ("mean", "rstd"))
    norm = Norm(call, view_of(call.images["input"]))
    sources: dict[str, Source | Result] = dict(norm.sources)
    if given["mean"] is None:
        sources["moments"] = Result(norm.statistics())
    elif is_of_batch:
        sources |= {name: parameter(given[name]) for name in ("mean", "rstd")}
    key = norm.tiles.compute("sums", partial(_gradient_sums, norm.view), norm.grid, sources, lambda index: norm.finish)
    sums = norm.over_chunks("sums-of-all", _added, key)
    sources["sums"] = Result(sums)
    options = {**norm.finish, "count": norm.count}
    key = norm.tiles.compute("gradients", partial(_gradients, norm.view), norm.grid, sources, lambda index: options)
    of_x, of_weight, of_bias, *of_residual = (
        gradient for name, gradient in zip(_arguments(given), call.trial, strict=True) if "running" not in name
    )
    results = {
        "input": None if of_x is None else norm.image("image", key, of_x, 0),
        "weight": None if of_weight is None else _parameter(norm, sums, "weight", 1, of_weight),
        "bias": None if of_bias is None else _parameter(norm, sums, "bias", 0, of_bias),
    }
    if of_residual:
        results["residual"] = None if of_residual[0] is None else norm.image("residual", key, of_residual[0], 1)
    return tuple(results.get(name) for name in _arguments(given))


def _arguments(given: Given) -> list[str]:
    """The arguments that have gradients, or None in their place, in their order."""
    names: list[str] = [name for name in ("input", "running_mean", "running_var", "weight", "bias") if name in given]
    return names if given["residual"] is None else [*names, "residual"]


def _parameter(norm: Norm, sums: Callable[[Index], Key], part: str, item: int, meta: Array) -> Array:
    """The gradient of weight or bias, from the sums of each image."""
    images = range(1 if norm.view.is_of_batch else norm.grid[0])
    shares: list[Key] = []
    for image in images:
        share = (norm.tiles.name(f"{part}-share"), image)
        norm.tiles.tasks[share] = (partial(_share_of, item), sums((image,)))
        shares.append(share)
    return norm.tiles.sum(part, shares, meta)


# --- What the tasks run -------------------------------------------------------------------------------------------


def _moments_of(view: View, input: Array) -> Moments:
    call = NormCall(view.op.removesuffix("_backward"), input, eps=1.0)
    geometry = NormGeometry(view.shape(input), view.axes)
    mean, var, rstd = call.new_statistics(geometry)
    if not geometry.count:
        return 0, mean, var
    call.backend.norm_statistics(input.reshape(geometry.shape), mean, var, rstd, geometry, 1.0)
    return geometry.count, mean, var * geometry.count


def _combined(parts: Sequence[Moments]) -> Moments:
    """Moments of all parts, by the parallel algorithm of Chan, Golub and LeVeque (1979)."""
    count, mean, squares = parts[0]
    for more, other, others in parts[1:]:
        total, delta = count + more, other - mean
        mean = mean + delta * (more / max(total, 1))
        squares = squares + others + delta * delta * (count * more / max(total, 1))
        count = total
    return count, mean, squares


def _applied(
    view: View,
    input: Array,
    moments: Moments,
    eps: float,
    activation: str | None,
    negative_slope: float,
    weight: Array | None = None,
    bias: Array | None = None,
    residual: Array | None = None,
) -> Array:
    finish = residual, activation, negative_slope
    call = NormCall(view.op, input, eps=eps, finish=finish, weight=weight, bias=bias)
    count, mean, squares = moments
    y: Array = call.result(call.applied(view.shape(input), mean, squares / max(count, 1)))
    return y


def _statistic_of(eps: float, item: int, is_of_batch: bool, moments: Moments) -> Array:
    count, mean, squares = moments
    value = mean if item == 0 else _reciprocal(squares / max(count, 1), eps)
    return value.reshape(value.shape[1:2] if is_of_batch else value.shape[:2])


def _reciprocal(var: Array, eps: float) -> Array:
    return 1 / backend_of(var).xp.sqrt(var + eps)


def _normalized(
    view: View,
    grad_output: Array,
    input: Array,
    eps: float,
    activation: str | None,
    negative_slope: float,
    moments: Moments | None = None,
    mean: Array | None = None,
    rstd: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    residual: Array | None = None,
) -> tuple[NormCall, Array, Array, Array]:
    """The call on one chunk, its gradient before the activation, its normalised values and their scale."""
    finish = residual, activation, negative_slope
    call = NormCall(view.op, input, grad_output, eps=eps, finish=finish, weight=weight, bias=bias)
    shape = view.shape(input)
    if moments is not None:
        count, centre, squares = moments
        scale = _reciprocal(squares / max(count, 1), eps)
    else:
        kept = NormGeometry(shape, view.axes).kept
        centre, scale = (call.promoted(array).reshape(kept) for array in (mean, rstd))
    grad = call.before_activation(shape, centre, scale)
    return call, grad, (call.promoted(input).reshape(shape) - centre) * scale, scale


def _gradient_sums(view: View, **arguments: Any) -> tuple[Array, Array]:
    """The sums of a chunk's gradients, and of these times the normalised values, [N, G, C, 1], N = 1 for a batch."""
    call, grad, normalized, _ = _normalized(view, **arguments)
    wide = call.promoted(grad)
    axes = (0, 3) if view.is_of_batch else (3,)
    return wide.sum(axis=axes, keepdims=True), (wide * normalized).sum(axis=axes, keepdims=True)


def _added(parts: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    first, second = parts[0]
    for others in parts[1:]:
        first, second = first + others[0], second + others[1]
    return first, second


def _gradients(view: View, sums: tuple[Array, Array], count: int, **arguments: Any) -> tuple[Array, Array]:
    """The gradients of a chunk of the input and of the residual, by the formula of `batch_norm_backward`."""
    call, grad, normalized, scale = _normalized(view, **arguments)
    shape, wide = view.shape(call.x), call.promoted(grad)
    weight = call.spread(call.weight, shape)
    if weight is not None:
        wide, sums = wide * weight, (sums[0] * weight, sums[1] * weight)
    mean, projected = (each.sum(axis=2, keepdims=True) / count for each in sums)
    of_x = scale * (wide - mean - normalized * projected)
    return of_x.astype(call.dtype, copy=False).reshape(call.x.shape), grad.reshape(call.x.shape)


def _share_of(item: int, sums: tuple[Array, Array]) -> Array:
    """The sum over images of one of two sums, by channel."""
    return sums[item].sum(axis=0).reshape(-1)


OPERATIONS = {
    "batch_norm": _batch_norm,
    "batch_norm_backward": _batch_norm_backward,
    "instance_norm": _instance_norm,
    "instance_norm_backward": _instance_norm_backward,
    "group_norm": _group_norm,
    "group_norm_backward": _group_norm_backward,
}
