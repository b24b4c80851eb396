"""The table of operations and chunks that must give what arrays in memory give, wherever the tasks run."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from array_backends import ArrayBackend
from calls import CALLS, fresh, numbers, with_backward
from tolerances import assert_close

import gpucnn.functional as F

Array = np.ndarray[Any, Any]
Chunks = tuple[tuple[int, ...], ...]

PARAMETERS = frozenset({"weight", "bias", "running_mean", "running_var", "grad_grad_weight"})
SUPPORTED = re.compile(
    "(conv[123]d|conv_transpose[123]d|(adaptive_)?(max|avg|sum|lp)_pool[123]d|(leaky_)?relu|sigmoid|gelu|(log_)?softmax"
    "|bias_activation|linear|interpolate|resample|im2col|col2im|unfold|fold|pad|dropout|max_unpool[123]d"
    "|bed_of_nails[123]d|local_response_norm|(batch|instance|group|layer|rms)_norm)"
    "(_activation|_input|_weight)?(_backward)?"
)
OPERATIONS = [name for name in CALLS if SUPPORTED.fullmatch(name)]
OTHERS = [name for name in CALLS if name not in OPERATIONS]


# --- Calls --------------------------------------------------------------------------------------------------------


def of_dask(name: str) -> dict[str, Any]:
    """A valid call, without running statistics to update in place."""
    arguments = fresh(name)
    if name.startswith(("batch_norm", "instance_norm")):
        arguments |= {"running_mean": None, "running_var": None}
    return arguments


def _wide(n: int) -> dict[str, dict[str, Any]]:
    """Windows of five elements with uneven padding, which reach over several chunks, of n-d images."""
    space = (5, 4, 3) if n == 3 else (7, 6)[:n]
    x, filters = numbers(2, 2, *space), {"weight": numbers(4, 1, *(3,) * n), "bias": numbers(4)}
    window: dict[str, Any] = {"stride": (1, 2, 2)[:n], "padding": ((3, 1),) * n, "dilation": 2}
    y = getattr(F, f"conv{n}d")(x, **filters, **window, groups=2)
    pool = {"input": x, "kernel_size": (3,) * n, **window}
    forwards: dict[str, dict[str, Any]] = {
        f"conv{n}d": {"input": x, **filters, **window, "groups": 2},
        f"conv{n}d_activation": {
            "input": x, **filters, **window, "groups": 2, "residual": y[::-1], "activation": "relu"
        },
        f"conv{n}d_input": {
            "input_size": x.shape, "weight": filters["weight"], "grad_output": y, **window, "groups": 2
        },
        f"conv{n}d_weight": {
            "input": x, "weight_size": filters["weight"].shape, "grad_output": y, **window, "groups": 2
        },
        f"conv_transpose{n}d": {"input": x, "weight": numbers(2, 2, *(3,) * n), **window, "groups": 2},
        **{f"{kind}_pool{n}d": pool for kind in ("max", "avg", "sum")},
        f"lp_pool{n}d": {**pool, "norm_type": 2.0},
        "im2col": pool,
        "col2im": {"input": F.im2col(**pool), "output_size": space, **{k: pool[k] for k in pool if k != "input"}},
        "pad": {"input": x, "pad": (3, 2) * min(n, 2), "mode": ("reflect", "circular", "symmetric")[n - 1]},
    }  # fmt: skip
    calls: dict[str, dict[str, Any]] = {}
    for name, arguments in forwards.items():
        calls |= {f"{made}, {n}-d, wide": call for made, call in with_backward(name, arguments).items()}
    same = {"input": x, **filters, "stride": 2, "padding": "same", "dilation": 2, "groups": 2}
    return calls | {f"{made}, same": call for made, call in with_backward(f"conv{n}d", same).items()}


ROWS: dict[str, dict[str, Any]] = {
    **{name: of_dask(name) for name in OPERATIONS if "dropout" not in name},  # which draws by chunks
    **{name: call for n in (1, 2, 3) for name, call in _wide(n).items()},
}
"""Keyword arguments of calls; the operation's name is the first word of each key."""


# --- Chunks -------------------------------------------------------------------------------------------------------


def pieces(size: int) -> tuple[int, ...]:
    """Chunks of several sizes, the last ones of a single element, in an axis of `size`."""
    return (size - 2, 1, 1) if size > 2 else (1,) * size


def pieces_of(shape: tuple[int, ...]) -> Chunks:
    return tuple(map(pieces, shape))


def of_one_axis(axis: int) -> Callable[[tuple[int, ...]], Chunks]:
    """One element a chunk along an axis."""
    return lambda shape: tuple((1,) * size if at == axis % len(shape) else (size,) for at, size in enumerate(shape))


CHUNKINGS: dict[str, Callable[[tuple[int, ...]], Chunks]] = {
    "one chunk": lambda shape: tuple((size,) for size in shape),
    "uneven": pieces_of,
    "the batch is split": of_one_axis(0),
    "channels are split": of_one_axis(1),
    "rows of one element": of_one_axis(-1),
    "one element": lambda shape: tuple(
        (size,) if at < len(shape) - 3 else (1,) * size for at, size in enumerate(shape)
    ),
    "with empty chunks": lambda shape: tuple(
        (size,) if at < len(shape) - 2 else (0, *pieces(size), 0) for at, size in enumerate(shape)
    ),
}


# --- Comparing ----------------------------------------------------------------------------------------------------


def copied(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in arguments.items()}


def in_memory(row: str) -> Any:
    """What the operation of a row gives for NumPy's arrays."""
    return getattr(F, row.split(",")[0])(**copied(ROWS[row]))


def called(
    da: Any,
    name: str,
    arguments: dict[str, Any],
    chunks: Callable[[tuple[int, ...]], Chunks],
    backend: ArrayBackend | None = None,
) -> Any:
    """The operation on Dask's arrays of images, of NumPy's blocks or the backend's, and parameters in memory."""

    def taken(key: str, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        if key in PARAMETERS or value.ndim < 2:
            return value if backend is None else backend.asarray(value)
        lazy = da.from_array(value, chunks=chunks(value.shape))
        if backend is None or backend.takes_numpy:
            return lazy
        return lazy.map_blocks(backend.asarray, meta=backend.asarray(np.zeros((0,) * value.ndim, value.dtype)))

    return getattr(F, name.split(",")[0])(**{key: taken(key, value) for key, value in arguments.items()})


def expect_same(
    da: Any,
    found: Any,
    expected: Any,
    exactly: bool = False,
    compute: Callable[[list[Any]], Any] | None = None,
    asnumpy: Callable[[Any], Array] = np.asarray,
) -> None:
    """Raise unless results are Dask's, of the declared shapes, chunks and dtypes, and have the expected values.

    `compute` computes several Dask arrays, by default with threads.
    """
    if not isinstance(expected, tuple):
        found, expected = (found,), (expected,)
    assert len(found) == len(expected)
    assert [one is None for one in found] == [other is None for other in expected]
    pairs = [(one, other) for one, other in zip(found, expected, strict=True) if other is not None]
    blocks = [one.blocks[(at,) * one.ndim] for one, _ in pairs for at in (0, -1) if one.ndim]
    run = compute or (lambda arrays: [array.compute(scheduler="threads") for array in arrays])
    results = iter(run([*(one for one, _ in pairs), *blocks]))
    for (one, other), values in zip(pairs, results, strict=False):
        assert isinstance(one, da.Array)
        assert one.shape == other.shape
        assert one.dtype == one._meta.dtype == other.dtype
        assert isinstance(values, type(one._meta))
        host = asnumpy(values)
        if exactly:
            np.testing.assert_array_equal(host, other)
        else:
            assert_close(host, other)
    for block, values in zip(blocks, results, strict=True):
        assert values.shape == block.shape
