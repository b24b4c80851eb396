"""Recorded calls on CuPy's or the simulator's arrays: their allocations and launches, see `gpucnn.backends.replaying`.

While a call runs normally its requests to the runtime are recorded: new arrays and launches, each argument as one of
the caller's arrays, a new array or a constant. A call that computed anything without a launch runs normally each time,
and so does one while generic builds serve for it.

On a stand-in for CuPy that launches nothing, `conv2d` by GEMM takes 4 us of host time when replayed, and 34 us from its
launch plans. A CUDA graph would save some of the remaining launches, but fix the arrays' addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import inf
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, cast

from gpucnn.backends.cuda.device.runtime import ALIGNMENTS, Array, Plan, Runtime
from gpucnn.backends.listening import listening
from gpucnn.backends.replaying import Apart, Recorded, Replay, Replays


class DeviceReplays(Replays):
    """The recorded calls on one runtime's arrays."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime.xp.ndarray, _forms)
        self._runtime = runtime

    def record(self, arrays: Sequence[Array], call: Callable[[], Any], out: Array | None) -> Recorded:
        """Run a call and record it; the replay is final once all its programs are those that stay."""
        if len({array.data.ptr for array in arrays}) < len(arrays):  # the arrays of a launch would be ambiguous
            return Recorded(call(), is_final=False)
        recording = Recording(self._runtime, arrays, out)
        with listening(recording):
            result = call()
        if not recording.is_final:
            return Recorded(result, is_final=False)
        return Recorded(result, recording.replay(result), recording.constant_bytes)


def _forms(arrays: Sequence[Array]) -> list[Hashable]:
    forms: list[Hashable] = []
    for array in arrays:
        data = array.data
        forms.append((array.shape, array.strides, array.dtype, ALIGNMENTS[data.ptr & 15], data.device_id))
    return forms


# --- One recorded call --------------------------------------------------------------------------------------------


class _Step(NamedTuple):
    """A launch: its plan, and the places of its arrays in the pool, negative ones of constants."""

    plan: Plan
    places: tuple[int, ...]


class _New(NamedTuple):
    """A new array, kept alive by the recording so that no other has its address, and its initial value."""

    array: Array
    zeros: bool


class Recording:
    """The requests of a call to its runtime.

    The arrays are numbered: null pointer and None first, then the caller's, then the new ones in their order. Those
    that are the same for all calls are numbered from the other end: -1, -2, …
    """

    def __init__(self, runtime: Runtime, arrays: Sequence[Array], out: Array | None = None) -> None:
        self._runtime = runtime
        self._given = arrays
        self._out = out
        self._new: list[_New] = []
        self._constants: list[Array] = []
        self.constant_bytes = 0
        self._steps: list[_Step] = []
        self._places = {array.data.ptr: 2 + index for index, array in enumerate(arrays)}
        self._is_whole = all(array.size for array in arrays)  # empty arrays may have one address

    def new(self, make: Callable[..., Array], shape: tuple[int, ...], dtype: Any, zeros: bool) -> Array:
        """A new array, recorded."""
        array = make(shape, dtype)
        self._is_whole &= array.size > 0
        self._places[array.data.ptr] = 2 + len(self._given) + len(self._new)
        self._new.append(_New(array, zeros))
        return array

    def constants(self, arrays: Sequence[Array]) -> None:
        """Record `arrays`, which a replay keeps."""
        for array in arrays:
            self._constants.append(array)
            self._places[array.data.ptr] = -len(self._constants)
            self.constant_bytes += array.size * array.itemsize

    def computed(self) -> None:
        """Record that a result was computed without a launch."""
        self._is_whole = False

    def launched(self, plan: Plan, arrays: Sequence[Array | None]) -> bool:
        """Record a launch over `arrays`."""
        places = tuple([0 if array is None else self._places.get(array.data.ptr) for array in arrays])
        if None in places:
            self._is_whole = False
        else:
            self._steps.append(_Step(plan, cast(tuple[int, ...], places)))
        return True

    @property
    def is_final(self) -> bool:
        """Whether later calls launch the same programs: none is still compiled in the background."""
        return all(step.plan.function is not None for step in self._steps)

    def replay(self, result: Any) -> Replay | None:
        """A function that repeats the call for other arrays of the same form, with a result of the form of `result`."""
        runtime, steps, is_tuple = self._runtime, self._steps, isinstance(result, tuple)
        results = result if is_tuple else (result,)
        places = [self._place_of_result(each) for each in results]
        made = [place for place in places if place >= 2 + len(self._given)]
        if not self._is_whole or not steps or -1 in places or len(set(made)) < len(made):
            return None
        makers, moved = self._makers(dict(zip(places, results, strict=True)))
        constants = (*(plan.parameters for plan, _ in steps), *reversed(self._constants))  # the first one kept is at -1
        launches = []
        for at, (plan, places_before) in enumerate(steps, start=-len(constants)):  # parameters are at the end
            assert plan.function is not None  # since it was launched
            launch = runtime.here(plan.function, plan.shared_bytes)
            take = itemgetter(*[moved.get(place, place) for place in places_before], at)
            launches.append((launch, plan.grid, plan.block, take, plan.shared_bytes))
        places = [moved.get(place, place) for place in places]
        one_of_a_tuple = is_tuple and len(places) == 1
        answer = itemgetter(slice(places[0], places[0] + 1)) if one_of_a_tuple else itemgetter(*places)
        device = steps[0].plan.device
        null, index, current_device = runtime.null, device.index, runtime.current_device

        def replay(arrays: Sequence[Array]) -> Any:
            if current_device() != index:
                with runtime.using(device):
                    return replay(arrays)
            pool = (null, None, *arrays, *[make() for make in makers], *constants)
            for launch, grid, block, take, shared_bytes in launches:
                launch(grid, block, take(pool), shared_mem=shared_bytes)
            return answer(pool)

        return replay if self._out is None else Apart(replay, self._given, self._out, attrgetter("data.ptr"))

    def _makers(self, results: dict[int, Any]) -> tuple[list[Callable[[], Array]], dict[int, int]]:
        """Factories of the new arrays, in the forms of `results`, and the new index of each old one.

        A temporary reuses the memory of an earlier one that no later launch reads: a call needs no more memory than
        when its arrays were freed one by one.
        """
        begin = 2 + len(self._given)
        uses: dict[int, list[int]] = {}
        for index, step in enumerate(self._steps):
            for place in step.places:
                uses.setdefault(place, []).append(index)
        made: list[tuple[Any, bool]] = []
        ends: list[float] = []  # the last launch that reads each array made
        moved: dict[int, int] = {}
        wanted = [place for place in range(begin, begin + len(self._new)) if place in uses or place in results]
        for place in sorted(wanted, key=lambda place: uses.get(place, [0])[0]):
            array, zeros = self._new[place - begin]
            first, last = (uses[place][0], uses[place][-1]) if place in uses else (0, 0)
            is_lasting = zeros or place in results
            free = [at for at, end in enumerate(ends) if end < first and not is_lasting]
            if free:
                at = max(free, key=lambda at: _nbytes(made[at]))
                made[at] = max(made[at], (array, False), key=_nbytes)
                ends[at] = last
            else:
                at = len(made)
                made.append((results.get(place, array), zeros))
                ends.append(inf if is_lasting else last)
            moved[place] = begin + at
        makers = [
            self._runtime.maker(tuple(form.shape), tuple(form.strides), form.dtype, zeros) for form, zeros in made
        ]
        return makers, moved

    def _place_of_result(self, result: Array | None) -> int:
        if result is None:
            return 1
        place = self._places.get(result.data.ptr, -1)
        at = place - 2 - len(self._given)
        if at >= 0:
            new = self._new[at].array
            return place if (result.size, result.dtype) == (new.size, new.dtype) else -1
        return place if any(result is array for array in self._given) else -1


def _nbytes(made: tuple[Array, bool]) -> int:
    nbytes: int = made[0].size * made[0].itemsize
    return nbytes
