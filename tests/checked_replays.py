"""A check on all that the suite computes by compiled kernels: a replay of a call gives the call's bits.

So it does to what the call changes in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from gpucnn.backends.cpu import replays
from gpucnn.backends.replaying import Recorded

Array = np.ndarray[Any, Any]


def facts(result: Any) -> list[Any]:
    """All that a caller can see of a result."""
    arrays = result if isinstance(result, tuple) else (result,)
    return [None if array is None else (array.shape, array.strides, array.dtype, array.tobytes()) for array in arrays]


def spoiling(make: Callable[..., Array]) -> Callable[..., Array]:
    """`make`, whose arrays are full of bits that no operation leaves there by chance."""

    def spoil(*arguments: Any) -> Array:
        array = make(*arguments)
        array[...] = np.frombuffer(b"\xa5" * array.itemsize, array.dtype)[0]
        return array

    return spoil


@contextmanager
def checked_replays() -> Iterator[None]:
    """Within the block each call that can be replayed is, at once, into memory that was spoiled, and compared."""
    record, new, maker = replays.CompiledReplays.record, replays.Recording.new, replays._maker

    def compared(self: Any, arrays: Sequence[Array], *others: Any) -> Recorded:
        before = [array.copy() for array in arrays]
        recorded = record(self, arrays, *others)
        if recorded.replay is not None:
            after = facts(tuple(arrays))
            for array, old in zip(arrays, before, strict=True):
                if array.tobytes() != old.tobytes():
                    array[...] = old
            assert facts(recorded.replay(arrays)) == facts(recorded.result)
            assert facts(tuple(arrays)) == after
        return recorded

    def new_and_spoiled(self: Any, *arguments: Any, **named: Any) -> Array:
        array = new(self, *arguments, **named)
        if not named["zeros"]:
            self._makers[-1] = spoiling(self._makers[-1])
        return array

    with (
        mock.patch.object(replays.CompiledReplays, "record", compared),
        mock.patch.object(replays.Recording, "new", new_and_spoiled),
        mock.patch.object(replays, "_maker", lambda form: spoiling(maker(form))),
    ):
        yield
