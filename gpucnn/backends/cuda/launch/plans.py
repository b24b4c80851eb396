"""Launch plans of a kernel over its arrays: index type, build, grid, and arguments.

A plan depends only on the arrays' layouts and the geometry. It is made once for each such set and kept as a `Plan`;
another call of the same layer costs a look-up and the launch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from inspect import signature
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.cuda.device.runtime import ALIGNMENTS, MAX_BYTES, Array, Device, Plan, Runtime
from gpucnn.backends.cuda.device.sources import Kernel, source, structure
from gpucnn.backends.layout import is_channels_last
from gpucnn.backends.listening import this_thread

INT32_END = 2**31
PAST_END = 64  # elements past an array's end that indices reach: an access, or a sector of the smallest elements
SPACE = ("d", "h", "w")
IMAGE = ("n", "c", *SPACE)  # names of axes, as in fields of strides
Fields = dict[str, Any]
_NONE_KNOWN: Mapping[str, Any] = {}


class Layout(NamedTuple):
    """Memory layout of an array, as far as a launch depends on it."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    alignment: int = MAX_BYTES  # of its first element's address in bytes, up to those of one access

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def pack(self, axis: int) -> int:
        """Vector width along `axis`: elements per access at any multiple of their number.

        A power of two that divides the axis; 1 where the axis is not contiguous.
        """
        step, size = self.strides[axis], self.shape[axis]
        if step != self.itemsize:
            return 1
        others = [abs(step) for other, step in enumerate(self.strides) if other != axis and self.shape[other] > 1]
        return gcd(self.alignment, size * self.itemsize, *others) // self.itemsize or 1


class Work(NamedTuple):
    """The parameters of a launch.

    `fields` fill the kernel's structure. The grid has one thread for each of `threads`, or `blocks` blocks, of the
    kernel's block size or of `block`. `extents` are further bounds of its index arithmetic, in addition to the fields.
    `constants` are macros in every build of the program: each set of them is a separate program.
    """

    fields: Fields
    threads: int = 0
    blocks: int | None = None
    block: int | None = None
    extents: tuple[int, ...] = ()
    constants: tuple[tuple[str, int | str], ...] = ()
    shared_bytes: int = 0  # of dynamic shared memory


def layout(array: Array) -> Layout:
    """The memory layout of `array`; NumPy arrays, which dry runs use, count as aligned."""
    address = 0 if isinstance(array, np.ndarray) else array.data.ptr
    return Layout(array.shape, array.strides, array.itemsize, ALIGNMENTS[address & 15])


def layouts(arrays: Mapping[str, Array | None]) -> dict[str, Layout | None]:
    """The memory layout of each array, None where there is none."""
    return {name: None if array is None else layout(array) for name, array in arrays.items()}


def dense(shape: tuple[int, ...], itemsize: int, channels_last: bool = False) -> Layout:
    """The layout of a new dense array [N, C, *]: in C order, or with its channels innermost.

    Examples
    --------
    >>> dense((2, 3, 5), 4).strides, dense((2, 3, 5), 4, channels_last=True).strides
    ((60, 20, 4), (60, 4, 12))
    """
    order = (0, *range(2, len(shape)), 1) if channels_last else tuple(range(len(shape)))
    step, strides = itemsize, [0] * len(shape)
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return Layout(tuple(shape), tuple(strides), itemsize)


def is_addressable(array: Array) -> bool:
    """Whether the elements of an array are aligned to their size.

    A field of packed records is not, and a view of real numbers as complex ones may not be. Kernels count strides in
    elements, and a GPU reads no misaligned element, not even a complex number, which some kernels read by one access.
    """
    return all(each % array.itemsize == 0 for each in (layout(array).alignment, *array.strides))


def strides(prefix: str, names: Sequence[str], array: Layout | None) -> Fields:
    """The strides of `array` in elements, as the fields ``prefix_name``; zeros where it is None."""
    steps = [0] * len(names)
    if array is not None:
        axes = zip(array.strides, array.shape, strict=True)
        steps = [step // array.itemsize if size > 1 else 0 for step, size in axes]
    return {f"{prefix}_{name}": step for name, step in zip(names, steps, strict=True)}


def empty(runtime: Runtime, shape: Sequence[int], dtype: Any, like: Array | None = None) -> Array:
    """A new array on the current device, uninitialised: [N, C, *] in the memory order of `like`, else in C order."""
    if like is not None and is_channels_last(like):
        n, c, *spatial = shape
        return runtime.xp.moveaxis(empty(runtime, (n, *spatial, c), dtype), -1, 1)
    make, listener = runtime.xp.empty, this_thread.listener
    return make(tuple(shape), dtype) if listener is None else listener.new(make, tuple(shape), dtype, False)


def zeros(runtime: Runtime, shape: Sequence[int], dtype: Any) -> Array:
    """A new array of zeros on the current device, in C order."""
    make, listener = runtime.xp.zeros, this_thread.listener
    return make(tuple(shape), dtype) if listener is None else listener.new(make, tuple(shape), dtype, True)


def needs_int64(layouts: Iterable[Layout | None], extents: Iterable[int]) -> bool:
    """Whether an extent, an offset within one of the arrays, or an array's number of elements overflows int."""
    ends = [*extents]
    for array in layouts:
        if array is not None:
            steps = zip(array.strides, array.shape, strict=True)
            reach = sum(abs(step) // array.itemsize * (size - 1) for step, size in steps)
            ends.append(max(array.size, reach + 1) + PAST_END - 1)  # the last index that is reached
    return any(abs(end) >= INT32_END for end in ends)


def launch(
    runtime: Runtime,
    kernel: Kernel,
    dtype: np.dtype[Any],
    arrays: Mapping[str, Array | None],
    work: Callable[..., Work],
    known: Mapping[str, Layout | None] = _NONE_KNOWN,
    /,
    **facts: Hashable,
) -> None:
    """Launch `kernel`, in a program for `dtype`, over arrays by the names of its parameters, as planned by `work`.

    `work` is pure, and called once per set of layouts and facts, with those that its own parameters name. Arrays that
    are no parameters of the kernel are left out. `known` are layouts that the caller has read.
    """
    ordered = [arrays[name] for name in kernel.arrays]
    device = runtime.device(next(array for array in ordered if array is not None))
    pairs = zip(kernel.arrays, ordered, strict=True)
    found = tuple([known.get(name) or (None if array is None else layout(array)) for name, array in pairs])
    plan = _plan(runtime, device, kernel, dtype, work, found, tuple(facts.items()))
    if plan is not None:
        enqueue(runtime, plan, ordered)


def enqueue(runtime: Runtime, plan: Plan, arrays: Sequence[Array | None]) -> None:
    """Launch the plan over `arrays`, which are on the current device, and notify the listener."""
    listener = this_thread.listener
    if listener is not None and not listener.launched(plan, arrays):
        return
    if plan.function is None:
        plan = _loaded(runtime, plan)
    assert plan.function is not None
    null = runtime.null
    taken = [null if array is None else array for array in arrays]
    plan.function(plan.grid, plan.block, (*taken, plan.parameters), plan.shared_bytes)


def _loaded(runtime: Runtime, plan: Plan) -> Plan:
    """The plan with its function loaded, or the generic one while its program is compiled in the background."""
    source, generic, background = plan.source, plan.generic, runtime.background
    assert source is not None  # since other plans have their function from the start
    if (
        background is not None
        and generic is not None
        and not background.is_ready(source, plan.device, recurs=generic.function is not None)
    ):
        return _loaded(runtime, generic)
    plan.function = runtime.function(source, plan.device)
    return plan


@lru_cache(maxsize=4096)
def _plan(
    runtime: Runtime,
    device: Device,
    kernel: Kernel,
    dtype: np.dtype[Any],
    work: Callable[..., Work],
    layouts: tuple[Layout | None, ...],
    facts: tuple[tuple[str, Hashable], ...],
) -> Plan | None:
    """The launch, or None where there is nothing to do."""
    given = dict(zip(kernel.arrays, layouts, strict=True)) | dict(facts)
    done = work(**{name: given[name] for name in signature(work).parameters if name in given})
    block = kernel.block if done.block is None else done.block
    blocks = -(-done.threads // block) if done.blocks is None else done.blocks
    if not blocks:
        return None
    numbers = (value for value in done.fields.values() if isinstance(value, int))
    wide = needs_int64(layouts, (*done.extents, blocks * block, *numbers))
    parameters = structure(kernel.params)

    def build(fixed: Fields | None) -> Plan:
        program = source(kernel, dtype.name, wide, fixed, done.constants)
        packed = runtime.by_value(parameters.packed(done.fields, wide, fixed is not None))
        return Plan(program, device, (blocks,), (block,), packed, done.shared_bytes)

    if not runtime.specialises:
        return build(None)
    plan = build({name: done.fields[name] for name, _, live in parameters.fields if not live})
    if runtime.background is not None:
        plan.generic = build(None)
    return plan
