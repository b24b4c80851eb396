"""Recorded calls on NumPy arrays by compiled kernels: their new arrays and launches, see `gpucnn.backends.replaying`.

NumPy computes parts of many primitives, which no launch shows. So a call is replayed only if all its primitives are
among `LAUNCHING`: these launch kernels and do nothing else, or note where NumPy computes for them (`note_computed`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from operator import attrgetter
from typing import Any

import numpy as np

from gpucnn.backends.cpu.library import Launch, Launches, Place, address
from gpucnn.backends.listening import listening
from gpucnn.backends.numpy import pool
from gpucnn.backends.numpy.memory import Array
from gpucnn.backends.replaying import Apart, Recorded, Replay, Replays

LAUNCHING = frozenset({
    "average_pool", "average_pool_backward", "bias_activation", "bias_activation_backward", "channel_sums", "convolve",
    "convolve_backward_input", "convolve_backward_weight", "copy", "im2col", "interpolate", "interpolate_backward",
    "linear", "linear_backward_input", "linear_backward_weight", "masked", "max_pool", "moving_average",
    "norm_activation_backward", "norm_apply", "norm_backward", "norm_forward", "norm_statistics",
})  # fmt: skip

FORM = ("shape", "strides", "dtype", "flags.aligned", "flags.writeable")
"""All that calls depend on of each array."""


class CompiledReplays(Replays):
    """The recorded calls on NumPy arrays."""

    def __init__(self, serves: Callable[[], bool]) -> None:
        """`serves` says whether compiled kernels compute on NumPy arrays at this time."""
        super().__init__(np.ndarray, partial(map, attrgetter(*FORM)), serves)

    def record(self, arrays: Sequence[Array], call: Callable[[], Any], out: Array | None) -> Recorded:
        """Run a call and record it; a replay with `out` serves where none shares an element with it."""
        if any(np.may_share_memory(*pair) for pair in combinations(arrays, 2)):  # a place in both would be ambiguous
            return Recorded(call(), is_final=False)
        recording = Recording(arrays)
        with listening(recording):
            result = call()
        return Recorded(result, recording.replay(result, out), recording.constant_bytes)


class Recording:
    """The arrays and launches of a call.

    Arrays are numbered: 0 is none, then the caller's, then the new ones as they appear. Constants, the same for all
    calls, have their addresses.
    """

    def __init__(self, given: Sequence[Array]) -> None:
        self._arrays = dict(enumerate(given, 1))  # kept alive, so that no other has its address
        self._first_new = 1 + len(given)
        self._makers: list[Callable[[], Array]] = []
        self._zeroed: list[int] = []  # new ones that are made as zeros
        self._constants: list[Array] = []
        self._steps: list[tuple[Launch, list[Place]]] = []
        self._is_whole = all(array.size for array in given)

    def new(self, make: Callable[..., Array], shape: tuple[int, ...], dtype: Any, zeros: bool) -> Array:
        """A new array, or a buffer of this thread."""
        with listening(None):
            array = make(shape, dtype)
        self._is_whole &= array.size > 0
        number = self._first_new + len(self._makers)
        self._arrays[number] = array
        if zeros:
            self._zeroed.append(number)
        self._makers.append(partial(make, shape, dtype))
        return array

    def constants(self, arrays: Sequence[Array]) -> None:
        """Record `arrays`, which a replay keeps."""
        self._constants += arrays

    def computed(self) -> None:
        """Record that a result was computed without a launch."""
        self._is_whole = False

    def launched(self, plan: Launch, arrays: Sequence[Array | None]) -> bool:
        """Record a launch over arrays, or over parts of them."""
        self._steps.append((plan, [(0, 0) if array is None else self._place(array) for array in arrays]))
        return True

    def _place(self, array: Array) -> Place:
        """The place of an array, or of a part of it; the null pointer for one that NumPy made, which is no replay's."""
        at = address(array)
        for number, each in reversed(self._arrays.items()):  # of a buffer that was requested again, the last one
            if _holds(each, at):
                return number, at - address(each)
        if any(_holds(each, at) for each in self._constants):
            return 0, at
        self._is_whole = False
        return 0, 0

    @property
    def constant_bytes(self) -> int:
        """Bytes of the constants."""
        return sum(array.nbytes for array in self._constants)

    def replay(self, result: Any, out: Array | None = None) -> Replay | None:
        """A function that repeats the call for other arrays of the same form, with a result of the form of `result`."""
        results = result if isinstance(result, tuple) else (result,)
        answers, makers = [], [*self._makers]
        for each in results:
            number, distance = (0, 0) if each is None else self._place(each)
            answers.append(number)
            if each is not None and each is not out:
                is_new = number >= self._first_new and distance == 0 and each.size == self._arrays[number].size
                if not is_new or number in {*answers[:-1], *self._zeroed}:
                    return None
                makers[number - self._first_new] = _maker(each)
        if not self._is_whole or not self._steps:
            return None
        launches = Launches(self._steps, self._first_new + len(makers), self._constants)
        is_tuple = isinstance(result, tuple)

        def replay(arrays: Sequence[Array]) -> Any:
            call = [None, *arrays, *[make() for make in makers]]
            launches(call)
            return tuple([call[number] for number in answers]) if is_tuple else call[answers[0]]

        given = [self._arrays[number] for number in range(1, self._first_new)]
        return replay if out is None else Apart(replay, given, out, address)


def _holds(array: Array, at: int) -> bool:
    """Whether an address is that of an element."""
    low, high = np.lib.array_utils.byte_bounds(array)
    return low <= at < high


def _maker(form: Array) -> Callable[[], Array]:
    """The function that makes arrays of this shape, dtype and strides, without gaps between elements."""
    shape, dtype, strides = form.shape, form.dtype, form.strides
    make = np.empty if form.nbytes < pool.LEAST_BYTES else pool.empty
    if np.empty(shape, dtype).strides == strides:  # those of axes of one element too, which a view may have any of
        return partial(make, shape, dtype)
    return lambda: np.ndarray(shape, dtype, make(shape, dtype), 0, strides)
