"""From a kernel, its arrays and its parameters to a launch: index type, build, grid, and what it is handed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from gpucnn.backends.cuda.runtime import Array, Device, Function, Runtime
from gpucnn.backends.cuda.sources import Kernel, source
from gpucnn.backends.layout import is_channels_last

INT32_END = 2**31
Fields = dict[str, Any]


def strides(prefix: str, names: Sequence[str], array: Array | None) -> Fields:
    """The strides of `array` in elements, as the fields ``prefix_name``; zeros where it is None."""
    if array is None:
        return dict.fromkeys((f"{prefix}_{name}" for name in names), 0)
    steps = (step // array.itemsize if size > 1 else 0 for step, size in zip(array.strides, array.shape, strict=True))
    return {f"{prefix}_{name}": step for name, step in zip(names, steps, strict=True)}


def empty(runtime: Runtime, shape: Sequence[int], dtype: Any, like: Array) -> Array:
    """A new array [N, C, *spatial] in the memory order of `like`."""
    if not is_channels_last(like):
        return runtime.xp.empty(tuple(shape), dtype)
    n, c, *spatial = shape
    return runtime.xp.moveaxis(runtime.xp.empty((n, *spatial, c), dtype), -1, 1)


def needs_int64(arrays: Iterable[Array | None], extents: Iterable[int]) -> bool:
    """Whether an offset within one of `arrays`, or one of `extents`, is out of a 32-bit index's reach."""
    return any(abs(extent) >= INT32_END for extent in extents) or any(
        _reach(array) >= INT32_END for array in arrays if array is not None
    )


def _reach(array: Array) -> int:
    """Elements from the first of `array` to the one farthest from it, at most."""
    return sum(abs(step) // array.itemsize * (size - 1) for step, size in zip(array.strides, array.shape, strict=True))


def launch(
    runtime: Runtime,
    kernel: Kernel,
    dtype: np.dtype[Any],
    fields: Mapping[str, Any],
    arrays: Sequence[Array | None],
    *,
    threads: int | None = None,
    blocks: int | None = None,
    extents: Iterable[int] = (),
) -> None:
    """Launch `kernel` over `arrays` of a program for `dtype`, one thread an element or as many `blocks` as are said.

    `fields` fill the kernel's structure. `extents` are the numbers that its index arithmetic meets beside them.
    """
    if blocks is None:
        assert threads is not None
        blocks = -(-threads // kernel.block)
    if not blocks:
        return
    extents = (*extents, blocks * kernel.block, *(value for value in fields.values() if isinstance(value, int)))
    wide = needs_int64(arrays, extents)
    holder = next(array for array in arrays if array is not None)
    device = runtime.device(holder)
    structure = kernel.structure
    fixed = None
    if runtime.specialises:
        fixed = tuple(fields[name] for name, _, live in structure.fields if not live)
    function = _function(runtime, kernel, dtype.name, wide, fixed, device)
    function((blocks,), (kernel.block,), (*arrays, structure.packed(fields, wide, fixed is not None)))


@lru_cache(maxsize=4096)
def _function(
    runtime: Runtime, kernel: Kernel, dtype: str, wide: bool, fixed: tuple[Any, ...] | None, device: Device
) -> Function:
    names = [name for name, _, live in kernel.structure.fields if not live]
    constants = None if fixed is None else dict(zip(names, fixed, strict=True))
    return runtime.function(source(kernel, dtype, wide, constants), device)
