"""Operations on Dask's arrays that need nothing of other chunks: elementwise ones and norms of rows, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from operator import itemgetter
from typing import Any

from gpucnn.backends.dtypes import accumulator
from gpucnn.dask._calls import DaskCall
from gpucnn.dask._tiles import Index, Source, Spans, Tiles, sizes_of, spans_of, whole

Array = Any
Given = dict[str, Any]
Axes = Callable[[DaskCall], Sequence[int]]

_ROW_STATISTICS = ("mean", "rstd")


def _none(call: DaskCall) -> Sequence[int]:
    return ()


def _channels(call: DaskCall) -> Sequence[int]:
    return (1,) if call.parameters else ()  # parameters are read as a whole


def _dim(call: DaskCall) -> Sequence[int]:
    return (int(call.options["dim"]) % call.images["input"].ndim,)


def _last(call: DaskCall) -> Sequence[int]:
    return (call.images["input"].ndim - 1,)


def _space(call: DaskCall) -> Sequence[int]:
    return range(2, call.images["input"].ndim)


def _neighbours(call: DaskCall) -> Sequence[int]:
    return (1,)


def _row(call: DaskCall) -> Sequence[int]:
    x, shape = call.images["input"], call.options["normalized_shape"]
    return range(x.ndim - (len(shape) if hasattr(shape, "__len__") else 1), x.ndim)


def _forward(axes: Axes) -> Callable[[str, Given], Array]:
    """The operation that computes the chunks of its input one by one, but along `axes`, which it needs whole."""

    def compute(op: str, given: Given) -> Array:
        if given.get("return_statistics"):
            raise TypeError(f"{op}: return_statistics is True with arrays of dask, expected False")
        call = DaskCall(op, given)
        spans = _spans_in(call, call.images["input"].shape, axes)
        tiles = call.tiles()
        grid = tuple(map(len, spans))
        key = tiles.compute("image", call.function, grid, _sources(call, axes), lambda index: call.options)
        shape = (*call.images["input"].shape[:1], *call.trial.shape[1:])
        chunks = tuple(map(sizes_of, _spans_in(call, shape, axes)))
        return call.give_back(tiles.result("image", key, chunks, call.trial))

    return compute


def _backward(axes: Axes) -> Callable[[str, Given], tuple[Array | None, ...]]:
    """The gradients of such an operation; those of its parameters are sums over the chunks."""

    def compute(op: str, given: Given) -> tuple[Array | None, ...]:
        call = DaskCall(op, given, per_image=_ROW_STATISTICS if axes is _row else ())
        spans = _spans_in(call, call.images["input"].shape, axes)
        grid = tuple(map(len, spans))
        tiles = call.tiles()
        function = partial(_with_wide_parameters, call.function, tuple(call.parameters))
        key = tiles.compute("gradients", function, grid, _sources(call, axes), lambda index: call.options)
        image = (0, *call.images["input"].shape[1:])
        results: list[Array | None] = []
        for item, meta in enumerate(call.trial):
            if meta is None:
                results.append(None)
            elif meta.shape == image or not meta.ndim:
                image_of = tiles.result(f"image-{item}", key, tuple(map(sizes_of, spans)), meta, item)
                results.append(call.give_back(image_of))
            else:
                results.append(_parameter_gradient(tiles, key, grid, item, meta))
        return tuple(results)

    return compute


def _parameter_gradient(tiles: Tiles, key: Callable[[Index], Any], grid: Index, item: int, meta: Array) -> Array:
    shares = []
    for index in product(*map(range, grid)):
        share = (tiles.name(f"share-{item}"), *index)
        tiles.tasks[share] = (itemgetter(item), key(index))
        shares.append(share)
    return tiles.sum(f"parameter-{item}", shares, meta)


def _with_wide_parameters(function: Callable[..., Any], names: Sequence[str], **arguments: Any) -> Any:
    """Call a gradient on parameters in the dtype that sums are kept in, for gradients in that one."""
    for name in names:
        arguments[name] = arguments[name].astype(accumulator(arguments[name].dtype), copy=False)
    return function(**arguments)


def _spans_in(call: DaskCall, shape: Sequence[int], axes: Axes) -> tuple[Spans, ...]:
    """What the tasks read or write of an array of this shape, which but for the whole axes is that of the input."""
    shared = axes(call)
    return tuple(
        whole(size) if axis in shared else spans_of(sizes)
        for axis, (size, sizes) in enumerate(zip(shape, call.images["input"].chunks, strict=False))
    )


def _sources(call: DaskCall, axes: Axes) -> dict[str, Source]:
    images = {name: Source(array, _spans_in(call, array.shape, axes)) for name, array in call.images.items()}
    return images | call.sources()


_AXES: dict[str, Axes] = {
    **dict.fromkeys(("relu", "leaky_relu", "sigmoid", "gelu"), _none),
    **dict.fromkeys(("softmax", "log_softmax"), _dim),
    **dict.fromkeys(("layer_norm", "rms_norm"), _row),
    "bias_activation": _channels,
    "local_response_norm": _neighbours,
    "linear": _last,
}

kept_norm, kept_norm_backward = _forward(_channels), _backward(_channels)
"""A norm by statistics that are given, and its gradients."""

_PLANES = ("max_unpool{n}d", "bed_of_nails{n}d")  # whose values may go to any place of a plane
_AXES |= dict.fromkeys(_PLANES, _space)

OPERATIONS = {
    **{name: _forward(axes) for name, axes in _AXES.items()},
    **{f"{name}_backward": _backward(axes) for name, axes in _AXES.items()},
}
