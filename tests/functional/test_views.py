"""Arrays of a call as views of other layouts, each in turn and all at once: each view gives what its copy gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from calls import ALIASES, ARRAYS, CALLS, fresh, numbers
from pooling_cases import as_tuple
from tolerances import assert_close

import gpucnn.functional as F

Array = np.ndarray[Any, Any]
Call = dict[str, Any]
WRITTEN = ("running_mean", "running_var")


# --- Views --------------------------------------------------------------------------------------------------------


def broadcast(array: Array, axis: int) -> Array:
    """The first part along an axis in place of all others."""
    return np.broadcast_to(np.take(array, [0], axis), array.shape)


def reversed_along(array: Array, axis: int) -> Array:
    """The same values, the other way round in memory."""
    return np.flip(np.ascontiguousarray(np.flip(array, axis)), axis)


def sliding(array: Array, axis: int) -> Array:
    """Windows whose starts along an axis are one step of the last axis apart."""
    rest = array.shape[axis + 1 :]
    row = np.resize(array, (*array.shape[:axis], *rest[:-1], rest[-1] + array.shape[axis] - 1))
    windows = np.lib.stride_tricks.sliding_window_view(row, rest[-1], axis=-1)
    return np.moveaxis(windows, -2, axis)


def channels_last(array: Array) -> Array:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def one_image(array: Array) -> Array:
    """The first image for all others, with its channels last."""
    return np.broadcast_to(channels_last(array[:1]), array.shape)


def views_of(array: Array, is_written: bool) -> Iterator[tuple[str, Array]]:
    """Views of the array's shape, and what they are."""
    for axis in {0, 1, array.ndim - 1} & set(range(array.ndim)):
        yield f"reversed along axis {axis}", reversed_along(array, axis)
        if not is_written:
            yield f"broadcast along axis {axis}", broadcast(array, axis)
            if axis < array.ndim - 1:
                yield f"sliding along axis {axis}", sliding(array, axis)
    if array.ndim > 2:
        yield "channels last", channels_last(array)
        yield "one image with channels last", one_image(array)
        spread = channels_last(np.repeat(array, 2, axis=1))
        yield "channels last with gaps between channels", spread[:, ::2]
        yield "channels last with gaps, unaligned", unaligned(spread)[:, ::2]
        corner = array.reshape(*array.shape[:2], -1)[..., :1].reshape(*array.shape[:2], *(1,) * (array.ndim - 2))
        yield "broadcast along the spatial axes", np.broadcast_to(corner, array.shape)


class Tagged(np.ndarray[Any, Any]):
    """A subclass that would rather see its own kind come back."""


def zero_strides(array: Array) -> Array:
    """The first item of each axis but the last, in place of all others."""
    corner = array[(slice(0, 1),) * (array.ndim - 1)] if array.ndim else array
    return np.broadcast_to(corner, array.shape)


def overlapping(array: Array) -> Array:
    """Rows that begin one element after each other, as a sliding window reads them."""
    line = np.resize(array, sum(array.shape) + 1).copy()
    return np.lib.stride_tricks.as_strided(line, array.shape, (array.itemsize,) * array.ndim)


def unaligned(array: Array) -> Array:
    """A copy in the same memory order that starts between elements."""
    axes = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    stored = array.transpose(axes)
    copy = np.frombuffer(b"." + stored.tobytes(), array.dtype, offset=1).reshape(stored.shape)
    return copy.transpose(np.argsort(axes))


def read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "read-only": lambda array: read_only(array.copy()),
    "Fortran order": lambda array: np.array(array, order="F"),
    "zero strides": zero_strides,
    "overlapping": overlapping,
    "reversed": lambda array: array[(slice(None, None, -1),) * array.ndim],
    "every other": lambda array: np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array,
    "unaligned": unaligned,
    "subclass": lambda array: array.view(Tagged),
}


# --- Calls --------------------------------------------------------------------------------------------------------


def _of_whole_packs() -> dict[str, tuple[str, Call]]:
    """Calls whose sizes are multiples of what one access takes, as those of networks are."""
    x, grad = numbers(3, 8, 8, 8), numbers(3, 8, 8, 8)[::-1]
    rows = {"input": numbers(6, 32), "normalized_shape": 32, "weight": numbers(32), "bias": numbers(32)}
    affine = {"weight": numbers(8), "bias": numbers(8)}
    finish = {"residual": numbers(3, 8, 8, 8)[:, ::-1], "activation": "relu"}
    depthwise = {"weight": numbers(8, 1, 3, 3), "bias": numbers(8), "padding": 1, "groups": 8}
    pixelwise = {"weight": numbers(8, 8, 1, 1), "bias": numbers(8)}
    calls: dict[str, tuple[str, Call]] = {
        "layer norm": ("layer_norm", rows),
        "layer norm of images": ("layer_norm", {"input": x, "normalized_shape": (8, 8, 8), **finish}),
        "group norm": ("group_norm", {"input": x, "num_groups": 2, **affine, **finish}),
        "instance norm": ("instance_norm", {"input": x, **affine, **finish}),
        "batch norm": (
            "batch_norm",
            {"input": x, "running_mean": None, "running_var": None, **affine, "training": True, **finish},
        ),
        "depthwise convolution": ("conv2d", {"input": x, **depthwise}),
        "pixelwise convolution": ("conv2d", {"input": x, **pixelwise}),
        "max pooling": ("max_pool2d", {"input": x, "kernel_size": 2}),
        "average pooling": ("avg_pool2d", {"input": x, "kernel_size": 3, "stride": 2, "padding": 1}),
        "bilinear": ("interpolate", {"input": x, "size": (16, 16), "mode": "bilinear"}),
        "bias and activation": ("bias_activation", {"input": x, "bias": numbers(8), **finish}),
        "im2col": ("im2col", {"input": x, "kernel_size": 3, "padding": 1}),
    }
    for label, (name, arguments) in list(calls.items()):
        shape = (3, 8 * 9, 64) if name == "im2col" else np.shape(getattr(F, name)(**arguments))
        upstream = grad if shape == grad.shape else numbers(*shape)
        handed = {} if name != "max_pool2d" else {"indices": F.max_pool2d(x, 2, return_indices=True)[1]}
        calls[f"gradients of {label}"] = f"{name}_backward", {"grad_output": upstream, **arguments, **handed}
    return calls


def _as_dtype(arguments: Call, dtype: str) -> Call:
    is_real = {key: isinstance(value, np.ndarray) and value.dtype.kind == "f" for key, value in arguments.items()}
    return {key: value.astype(dtype) if is_real[key] else value for key, value in arguments.items()}


OF_WHOLE_PACKS = _of_whole_packs()


def fresh_of(arguments: Call) -> Call:
    """The arguments, with copies of what a call writes to."""
    return {key: np.array(value) if key in WRITTEN and value is not None else value for key, value in arguments.items()}


def check_views(backend: ArrayBackend, name: str, arguments: Call, views: Call, said: str) -> None:
    """Raise unless views in the place of arrays give what their copies do, stay as they are and share no memory."""
    operation, copies = getattr(F, name), {key: np.array(view, order="C", subok=False) for key, view in views.items()}
    try:
        expected = backend.run(operation, **{**fresh_of(arguments), **copies})
        given = {**fresh_of(arguments), **views}
        result = backend.run(operation, **given)
        for one, other in zip(as_tuple(result), as_tuple(expected), strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert_close(one, other)
                assert type(one) is np.ndarray
                assert not any(np.may_share_memory(one, array) for key, array in given.items() if key in ARRAYS)
        for key, view in views.items():
            assert key in WRITTEN or np.asarray(view).tobytes() == copies[key].tobytes()
    except Exception as error:
        error.add_note(f"{sorted(views)} {said}")
        raise


def arrays_of(arguments: Call) -> dict[str, Array]:
    return {key: value for key, value in arguments.items() if key in ARRAYS and isinstance(value, np.ndarray)}


def check_each(backend: ArrayBackend, name: str, arguments: Call) -> None:
    """Raise where a view of one array gives another result than its copy does."""
    for key, array in arrays_of(arguments).items():
        for said, view in views_of(array, key in WRITTEN):
            check_views(backend, name, arguments, {key: view}, said)


@pytest.mark.parametrize("name", sorted(CALLS.keys() - ALIASES))
def test_a_view_of_one_array_gives_what_its_copy_gives(backend: ArrayBackend, name: str) -> None:
    check_each(backend, name, fresh(name))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("label", OF_WHOLE_PACKS)
def test_a_view_of_one_array_of_whole_packs(backend: ArrayBackend, label: str, dtype: str) -> None:
    name, arguments = OF_WHOLE_PACKS[label]
    check_each(backend, name, _as_dtype(arguments, dtype))


@pytest.mark.parametrize("name", CALLS)
def test_views_of_all_arrays_give_what_their_copies_give(backend: ArrayBackend, name: str) -> None:
    arguments = fresh(name)
    arrays = {key: array for key, array in arrays_of(arguments).items() if key not in WRITTEN}
    for said, layout in LAYOUTS.items():
        check_views(backend, name, arguments, {key: layout(array) for key, array in arrays.items()}, said)


@pytest.mark.parametrize("name", [name for name in sorted(CALLS) if "_norm" in name])
def test_a_norm_has_no_gaps_whatever_its_input_is_a_view_of(backend: ArrayBackend, name: str) -> None:
    arguments = fresh(name)
    for said, view in views_of(arguments["input"], False):
        result = backend.run(getattr(F, name), **{**fresh_of(arguments), "input": view})
        y = result[0] if isinstance(result, tuple) else result
        assert y.flags.c_contiguous or np.moveaxis(y, 1, -1).flags.c_contiguous, f"of an input that is {said}"
