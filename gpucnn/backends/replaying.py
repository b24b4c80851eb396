"""Recorded calls: replays of public operations whose every effect is a new array or a launch of a kernel.

A backend registers `Replays` for its type of array. They see each call of a `replayed` operation before any argument
is read. The first call of a form, with arrays of these shapes, strides and dtypes and with these other arguments, runs
normally and is recorded; a later one of this form costs a look-up, its allocations and its launches. Checks, geometry,
the choice of an algorithm and views are not repeated: they depend on the form alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import wraps
from inspect import signature
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from gpucnn.backends.deferring import DeferredArraysError
from gpucnn.backends.listening import this_thread
from gpucnn.geometry.caches import INTS, SCALARS, is_ints
from gpucnn.numerics import choices

P = ParamSpec("P")
R = TypeVar("R")
Array = Any
Replay = Callable[[Sequence[Array]], Any]
"""Function of a call's arrays that returns its result; NotImplemented where it does not serve for these arrays."""

Forms = Callable[[Sequence[Array]], Iterable[Hashable]]

MAX_KEPT = 4096  # forms of calls; beyond it all are dropped, for programs whose sizes never recur
MAX_DISTANCES = 64  # sets of address distances between interleaved arrays, kept per form of call
MAX_CONSTANT_BYTES = 64 << 20  # of the tables that they read; beyond it all are dropped as well

_BOOLS = frozenset({bool})
_NEW: Any = object()  # in place of the replay of a form that is not kept


class Recorded(NamedTuple):
    """The result of a call that was recorded, and what serves for later ones."""

    result: Any
    replay: Replay | None = None
    constant_bytes: int = 0
    is_final: bool = True  # whether a later call of this form would be recorded as the same


class Replays(ABC):
    """The recorded calls on one type of array.

    Attributes
    ----------
    kept : dict
        The replay of each form of call; None where it cannot be replayed.
    """

    def __init__(self, array: type, forms: Forms, serves: Callable[[], bool] | None = None) -> None:
        """`forms` gives all that calls depend on of each array, `serves` whether calls are replayed at this time."""
        self._array, self._forms, self._serves = array, forms, serves
        self.kept: dict[Hashable, Replay | None] = {}
        self._constant_bytes = 0

    @abstractmethod
    def record(self, arrays: Sequence[Array], call: Callable[[], Any], out: Array | None) -> Recorded:
        """Run a call on `arrays`, of which `out` may be one, and record it."""

    def learn(self, replay: Replay, arrays: Sequence[Array]) -> None:
        """Take note that the operation itself accepted arrays for which a replay did not serve."""
        if isinstance(replay, Apart):
            replay.learn(arrays)

    def __call__(self, operation: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Call the operation, or replay it: the result is that of ``operation(*arguments, **named)``."""
        arrays: list[Array] = []
        replays = this_thread.listener is None and (self._serves is None or self._serves())
        key = self._key(operation, arguments, named, arrays) if replays else None
        if key is None:
            return operation(*arguments, **named)
        replay = self.kept.get(key, _NEW)
        if replay is _NEW:
            return self._recorded(key, arrays, operation, arguments, named)
        if replay is None:
            return operation(*arguments, **named)
        result = replay(arrays)
        if result is NotImplemented:
            result = operation(*arguments, **named)
            self.learn(replay, arrays)
        return result

    def _key(
        self, operation: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any], arrays: list[Array]
    ) -> Hashable | None:
        """The form of a call, whose arrays are appended to `arrays`; None where an argument has an unsupported type."""
        key: list[Any] = [operation, choices()]
        values: Any = arguments
        if named:
            key += named
            values = (*arguments, *named.values())
        kind_of_array = self._array
        for value in values:
            kind = type(value)
            if kind is kind_of_array:
                key.append(kind)
                arrays.append(value)
            elif kind in SCALARS:  # with its type: 1, 1.0 and True are equal but not the same
                key += (kind, value)
            elif kind is tuple and (INTS.issuperset(map(type, value)) or all(map(is_ints, value))):
                key.append(value)
            elif (kind is tuple and _BOOLS.issuperset(map(type, value))) or kind is type or isinstance(value, np.dtype):
                key += (kind, value)
            else:
                return None
        key.extend(self._forms(arrays))
        return tuple(key)

    def _recorded(
        self,
        key: Hashable,
        arrays: Sequence[Array],
        operation: Callable[..., Any],
        arguments: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Any:
        """The call's result; its replay is kept once it is final, or that there is none."""
        recorded = self.record(arrays, lambda: operation(*arguments, **named), named.get("out"))
        if recorded.is_final:
            self._constant_bytes += recorded.constant_bytes
            if len(self.kept) >= MAX_KEPT or self._constant_bytes > MAX_CONSTANT_BYTES:
                self.kept.clear()
                self._constant_bytes = recorded.constant_bytes
            self.kept[key] = recorded.replay if self._are_operands(operation, arguments, named) else None
        return recorded.result

    def _are_operands(self, operation: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Whether no array stands for a number, as a stride of ``np.array(2)``: a form has no values of arrays."""
        form = signature(operation)
        given = form.bind(*arguments, **named).arguments.items()
        return all(
            str(form.parameters[name].annotation).startswith("Array")
            for name, value in given
            if type(value) is self._array
        )


class Apart:
    """`replay` for calls where `out` does not overlap the other arrays.

    Two arrays may interleave without sharing an element, like slices of the channels of one array. Whether they do
    follows from the distance of their addresses: one that the operation accepted once is not checked again.
    """

    def __init__(self, replay: Replay, arrays: Sequence[Array], out: Array, address: Callable[[Array], int]) -> None:
        """`arrays` are those of the call that was recorded, `address` gives where the elements of an array begin."""
        self._replay, self._address = replay, address
        self._spans = [_span(array) for array in arrays]
        self._at = next(index for index, array in enumerate(arrays) if array is out)
        self._seen = {self._between(arrays)}

    def __call__(self, arrays: Sequence[Array]) -> Any:
        """The replay's result; NotImplemented where arrays may share memory."""
        between = self._between(arrays)
        return self._replay(arrays) if not between or between in self._seen else NotImplemented

    def learn(self, arrays: Sequence[Array]) -> None:
        """Record that the operation accepted arrays at these distances."""
        if len(self._seen) >= MAX_DISTANCES:
            self._seen.clear()
        self._seen.add(self._between(arrays))

    def _between(self, arrays: Sequence[Array]) -> tuple[tuple[int, int], ...]:
        """The arrays whose address range intersects that of `out`, and their distances from it."""
        spans, at = self._spans, self._at
        out = self._address(arrays[at])
        low, high = (out + reach for reach in spans[at])
        found: list[tuple[int, int]] = []
        for index, (begin, end) in enumerate(spans):
            address = self._address(arrays[index])
            if address + begin < high and low < address + end and index != at:
                found.append((index, address - out))
        return tuple(found)


def _span(array: Array) -> tuple[int, int]:
    """Byte offsets from an array's address to its lowest byte, and to the first byte past its end."""
    steps = [(size - 1) * step for size, step in zip(array.shape, array.strides, strict=True)]
    return sum(step for step in steps if step < 0), sum(step for step in steps if step > 0) + array.itemsize


REPLAYERS: dict[type, Replays] = {}
"""Replays by the exact type of an operation's first array."""


def replayed(operation: Callable[P, R], first: int = 0) -> Callable[P, R]:
    """`operation`, whose argument number `first` is an array, with its calls passed to the replays of the array's type.

    Only for operations whose every effect is a launch or a new array, for any arguments: other effects are not
    replayed. The launches may depend on shapes, strides, dtypes, plain parameters and the choices of `gpucnn.numerics`,
    and on nothing else. Parameters that take arrays are annotated ``Array``: calls with other ones are not replayed.
    """
    name = list(signature(operation).parameters)[first]

    @wraps(operation)
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        replays = REPLAYERS.get(type(arguments[first] if len(arguments) > first else named.get(name)))
        result: R
        try:
            if replays is None:
                return operation(*arguments, **named)
            result = replays(operation, arguments, named)
            return result
        except DeferredArraysError as error:  # as `deferring`, without the time of another call
            found = error
        result = found.passed_on(arguments, named)
        return result

    return call
