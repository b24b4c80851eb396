"""Planned runs on NumPy arrays: steps between arrays that have fixed places in memory.

A model that runs again on inputs of the same shapes, dtypes and memory orders computes arrays of the same forms. Its
plan is made while such a run is computed step by step. It keeps memory for the values, which share it as their
lifetimes allow. What depends on constants and shapes alone is computed once; views, and branches that were taken, cost
nothing; kernels are launched at fixed addresses; NumPy writes into arrays that are there.

Where a value could change the form of a result, or which branch is taken, the run compares with the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property, partial
from itertools import count
from math import prod
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends.cpu.library import Launch, Launches, Place
from gpucnn.backends.listening import listening
from gpucnn.numerics import choices
from gpucnn.onnx.execution import EMPTY, Program, Step, results_of
from gpucnn.onnx.operators.control import is_true

__all__ = ["PlannedRuns"]

Array = np.ndarray[Any, Any]

MOST_FORMS = 64  # of inputs; beyond it all are forgotten, for programs whose sizes never recur
MOST_BYTES = 64 << 20  # of a model's plans; with larger arrays, what a plan saves is a small part of the time
LINE = 64  # bytes of a cache line
_OF_FORMS = ("Shape", "Size")  # operators whose results depend on the form of their input alone


class _UnplannedError(Exception):
    """The run differs from the planned one, or none can be planned."""


class _Plan(NamedTuple):
    """The places of inputs and outputs, and the steps between them."""

    inputs: list[Array]
    steps: list[Callable[[], None]]
    outputs: list[Any]
    nbytes: int

    def run(self, inputs: Sequence[Array]) -> list[Any]:
        for place, array in zip(self.inputs, inputs, strict=True):
            place[...] = array
        for step in self.steps:
            step()
        return self.results()

    def results(self) -> list[Any]:
        """Copies of the outputs."""
        return [None if array is None else array.copy("K") for array in self.outputs]


class PlannedRuns:
    """The runs of a program: of inputs of one form the first one step by step, while the second one a plan is made."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._plans: dict[Hashable, _Plan | None] = {}  # None: to be made
        self._unplanned: set[Hashable] = set()  # forms whose runs differ in more than values, or need too much memory
        self._lock = Lock()

    def run(self, inputs: Sequence[Array], backend: str) -> list[Any]:
        """The outputs, computed by the backend of that name.

        Raises
        ------
        ModelError
            As `Program.run`.
        """
        form = (backend, choices(), *((array.shape, array.strides, array.dtype) for array in inputs))
        if form not in self._unplanned and self._lock.acquire(blocking=False):  # else another thread uses the places
            try:
                if form in self._plans:
                    return self._planned(form, inputs)
                self._remember(form)
            except Exception:  # a run step by step says what is wrong, if anything is
                self._plans.pop(form, None)
                self._unplanned.add(form)
            finally:
                self._lock.release()
        return self._program.run(inputs, None)

    def _remember(self, form: Hashable) -> None:
        """Have a plan made for the next inputs of this form."""
        if len(self._plans) + len(self._unplanned) >= MOST_FORMS:
            self._plans.clear()
            self._unplanned.clear()
        self._plans[form] = None

    def _planned(self, form: Hashable, inputs: Sequence[Array]) -> list[Any]:
        plan = self._plans[form]
        if plan is not None:
            return plan.run(inputs)
        plan = _Planner().plan(self._program, inputs)
        if plan.nbytes + sum(other.nbytes for other in self._plans.values() if other) > MOST_BYTES:
            self._plans.clear()
        self._plans[form] = plan
        return plan.results()


# --- Memory -----------------------------------------------------------------------------------------------------------


class _Block:
    """Memory of a plan, which is free for others when the last value in it has been let go."""

    def __init__(self, memory: Array, free: list[Array]) -> None:
        self.memory, self._free = memory, free

    def __del__(self) -> None:
        self._free.append(self.memory)


class _Memory:
    """All blocks of a plan."""

    def __init__(self) -> None:
        self._free: list[Array] = []
        self.nbytes = 0

    def block(self, nbytes: int) -> _Block:
        """The smallest free block that is at most twice as large, of equal ones the last freed; else a new one."""
        fitting = [
            (block.size, -at) for at, block in enumerate(self._free) if nbytes <= block.size <= 2 * nbytes + LINE
        ]
        if fitting:
            return _Block(self._free.pop(-min(fitting)[1]), self._free)
        self.count(nbytes)
        memory = np.empty(nbytes + LINE, np.uint8)
        return _Block(memory[-memory.ctypes.data % LINE :][:nbytes], self._free)

    def count(self, nbytes: int) -> None:
        """Add bytes to those of the plan."""
        self.nbytes += nbytes
        if self.nbytes > MOST_BYTES:
            raise _UnplannedError


class _Value(NamedTuple):
    """An array in its place, the block that this is in, and whether it is the same in all runs."""

    array: Any
    block: _Block | None = None
    is_known: bool = False


class _Launches:
    """A listener to the launches of a step, whose arrays get places; then the step itself, and others after it."""

    def __init__(self, memory: _Memory, arrays: Sequence[Any]) -> None:
        self._memory = memory
        self._places = [array for array in arrays if array is not None]
        self._is_whole = all(array.size for array in self._places)
        self._calls: list[tuple[Launch, list[Place]]] = []
        self._blocks: list[_Block] = []

    def new(self, make: Callable[..., Array], shape: tuple[int, ...], dtype: Any, zeros: bool) -> Array:
        nbytes = prod(shape) * np.dtype(dtype).itemsize
        self._is_whole &= nbytes > 0
        self._blocks.append(self._memory.block(nbytes))
        self._places.append(self._blocks[-1].memory)
        return np.ndarray(shape, dtype, self._places[-1])

    def constants(self, arrays: Sequence[Array]) -> None:
        self._places += arrays

    def computed(self) -> None:
        self._is_whole = False

    def launched(self, plan: Launch, arrays: Sequence[Array | None]) -> bool:
        given = [array for array in arrays if array is not None]
        self._is_whole &= all(any(np.may_share_memory(array, place) for place in self._places) for array in given)
        self._calls.append((plan, [(0, 0 if array is None else array.ctypes.data) for array in arrays]))
        return True

    def values(self, results: Sequence[Any]) -> list[_Value] | None:
        """The results of the step in their blocks; None where launches are not all that it does. Other blocks go."""
        blocks, self._blocks = self._blocks, []
        values = [
            _Value(result, block)
            for result in results
            for block in blocks
            if isinstance(result, np.ndarray) and np.may_share_memory(result, block.memory)
        ]
        return values if self._is_whole and self._calls and len(values) == len(results) else None

    def follow(self, before: _Launches) -> None:
        """Add the launches to those of the step before."""
        before._calls += self._calls
        before._places += self._places

    @cached_property
    def _again(self) -> Launches:
        return Launches(self._calls, 1, self._places)

    def __call__(self) -> None:
        """Launch all again."""
        self._again([None])


# --- Planning ---------------------------------------------------------------------------------------------------------


class _Planner:
    """A run step by step that writes down how to repeat it."""

    def __init__(self) -> None:
        self._memory = _Memory()
        self._steps: list[Callable[[], None]] = []

    def plan(self, program: Program, inputs: Sequence[Array]) -> _Plan:
        values = [self._placed(array) for array in inputs]
        places = [value.array for value in values]
        outputs = [value.array for value in self._through(program, values)]
        return _Plan(places, self._steps, outputs, self._memory.nbytes)

    def _placed(self, array: Any) -> _Value:
        """A copy of an array, in a place; a value that is left out."""
        if array is None:
            return _Value(None, None, is_known=True)
        block = self._memory.block(array.nbytes)
        place = np.ndarray(array.shape, array.dtype, block.memory, strides=np.empty_like(array).strides)
        place[...] = array
        return _Value(place, block)

    def _known(self, result: Any) -> _Value:
        """A result that is the same in all runs, in memory that no other takes."""
        if result is not None:
            self._memory.count(result.nbytes)
            result = np.array(result, order="K")
        return _Value(result, None, is_known=True)

    def _through(self, program: Program, inputs: Sequence[_Value]) -> list[_Value]:
        """The outputs of a graph."""
        values = [_Value(array, None, is_known=True) for array in program.start]
        for slot, value in zip(program.inputs, inputs, strict=True):
            values[slot] = value
        for step in program.steps:
            arguments, outer = ([values[slot] for slot in slots] for slots in (step.inputs, step.captured))
            follow = self._branch if step.row.name == "If" else self._results
            results = follow(step, arguments, outer)
            for slot, value in zip(step.outputs, results, strict=False):
                values[slot] = value
            del arguments, outer, results
            for slot in (*step.released, EMPTY):
                values[slot] = _Value(None, None, is_known=True)
        return [values[slot] for slot in program.outputs]

    def _branch(self, step: Step, arguments: list[_Value], outer: list[_Value]) -> list[_Value]:
        """The outputs of the branch that is taken."""
        (condition,) = arguments
        taken = is_true(condition.array)
        if not condition.is_known:
            self._steps.append(partial(_expect, condition.array, taken))
        name = "then_branch" if taken else "else_branch"
        return self._through(step.branches[name], step.captured_by(name, outer))

    def _results(self, step: Step, arguments: list[_Value], outer: list[_Value]) -> list[_Value]:
        arrays = [value.array for value in arguments]
        call = partial(step.call, arrays, [value.array for value in outer], None)
        launches = _Launches(self._memory, arrays)
        with listening(launches if step.row.launches else None):
            results = results_of(step, call(count()))
        if step.row.name in _OF_FORMS or all(value.is_known for value in (*arguments, *outer)):
            return [self._known(result) for result in results]
        views = [view for result in results for view in _views(result, arguments)]
        if len(views) == len(results) and not step.branches:
            return views
        launched = launches.values(results)
        if launched is not None:
            if self._steps and isinstance(self._steps[-1], _Launches):
                launches.follow(self._steps[-1])
            else:
                self._steps.append(launches)
            return launched
        values = [self._placed(result) for result in results]
        if step.row.writes:
            self._steps.append(partial(step.function, *arrays, out=values[0].array))
        else:
            places = [value.array for value in values]
            self._steps.append(partial(_compute, step, call, places))
        return values


def _views(result: Any, arguments: list[_Value]) -> list[_Value]:
    """The result as a view of an argument whose place in this depends on no value, if it is one."""
    unknown = [value for value in arguments if not value.is_known]
    if result is None or len(unknown) != 1 or not np.may_share_memory(result, unknown[0].array):
        return []
    return [_Value(result, unknown[0].block)]


# --- Steps ------------------------------------------------------------------------------------------------------------


def _expect(condition: Array, taken: bool) -> None:
    if is_true(condition) != taken:
        raise _UnplannedError


def _compute(step: Step, call: Callable[..., Any], places: Sequence[Any]) -> None:
    """Compute the results of a step, of the forms that they had, and put them into their places."""
    for place, result in zip(places, results_of(step, call(count())), strict=True):
        if place is None and result is None:
            continue
        if result.shape != place.shape or result.dtype != place.dtype:
            raise _UnplannedError
        place[...] = result
