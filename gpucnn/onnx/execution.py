"""A graph as a list of calls, and its run.

Values are in slots. A value is let go after its last use, so that its memory serves the next ones. A node computes
where its arrays are: on the device as soon as one of them is there, else on the host, so that shapes stay there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from gpucnn.onnx.errors import ModelError, UnsupportedError
from gpucnn.onnx.graph import Graph, Node
from gpucnn.onnx.operators.registry import Operator, find

__all__ = ["Device", "Program"]

Array = Any
_EMPTY = 0  # the slot of inputs that are left out
MOST_TURNS = 1 << 18  # of branches and bodies of loops in one run: a loop may have no end


class Device:
    """A library of arrays beside NumPy, and the constants that were moved to it."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self._moved: dict[int, tuple[Array, Array]] = {}  # by the id of the constant, which is kept alive

    def holds(self, array: Any) -> bool:
        """Whether an array is on the device."""
        return isinstance(array, self._xp.ndarray)

    def moved(self, array: Array) -> Array:
        """A NumPy array on the device; a constant, which is read-only, is moved once."""
        if array.flags.writeable:
            return self._copied(array)
        if id(array) not in self._moved:
            self._moved[id(array)] = array, self._copied(array)
        return self._moved[id(array)][1]

    def _copied(self, array: Array) -> Array:
        if array.dtype.kind not in "biufc" and array.dtype.name != "bfloat16":
            raise UnsupportedError(f"computes with {array.dtype} on a device, which has no arrays of it")
        return self._xp.asarray(array)

    def placed(self, arguments: list[Any], row: Operator) -> list[Any]:
        """The arguments where an operator needs them."""
        free = row.hosts.union(range(len(arguments)) if -1 in row.anywhere else row.anywhere)
        computed = [at for at in range(len(arguments)) if at not in free]
        to_device = any(self.holds(arguments[at]) for at in computed)
        for at in row.hosts:
            if at < len(arguments) and self.holds(arguments[at]):
                arguments[at] = arguments[at].get()
        if to_device:
            for at in computed:
                if isinstance(arguments[at], np.ndarray):
                    arguments[at] = self.moved(arguments[at])
        return arguments


@dataclass
class _Step:
    """One node as a call: slots in, slots out, and the slots that are not needed after it."""

    node: Node
    row: Operator
    function: Callable[..., Any]
    branches: dict[str, Program]
    inputs: list[int]
    captured: list[int]  # of all branches, one after the other
    outputs: list[int]
    released: list[int]

    def call(self, values: list[Any], device: Device | None, turns: Iterator[int]) -> Any:
        arguments = [values[slot] for slot in self.inputs]
        if device is not None:
            arguments = device.placed(arguments, self.row)
        if not self.branches:
            return self.function(*arguments)
        outer = iter([values[slot] for slot in self.captured])
        bound = {
            name: partial(_branch, branch, [next(outer) for _ in branch.captured], device, turns)
            for name, branch in self.branches.items()
        }
        return self.function(*arguments, **bound)


def _branch(
    program: Program, outer: list[Any], device: Device | None, turns: Iterator[int], *arguments: Any
) -> list[Any]:
    if next(turns) >= MOST_TURNS:
        raise ModelError(f"its loops have more than {MOST_TURNS} turns in one run")
    return program.run([*arguments, *outer], device, turns)


class Program:
    """A graph that can run: its inputs are those of the graph, then the values that it reads of graphs around it."""

    def __init__(self, graph: Graph) -> None:
        self.captured = graph.captured()
        self._slots: dict[str, int] = {"": _EMPTY}
        self._start: list[Any] = [None]
        for name, array in graph.constants.items():
            array = array.view()
            array.flags.writeable = False
            self._start[self._slot(name)] = array
        self._inputs = [self._slot(name) for name in [*(value.name for value in graph.inputs), *self.captured]]
        self._steps = [self._step(node) for node in graph.nodes]
        self._outputs = [self._slot(value.name) for value in graph.outputs]
        self._release()

    def _slot(self, name: str) -> int:
        if name not in self._slots:
            self._slots[name] = len(self._start)
            self._start.append(None)
        return self._slots[name]

    def _step(self, node: Node) -> _Step:
        row = find(node.domain, node.op, node.version)
        assert row is not None, node  # the reader refuses such models
        branches = {name: Program(value) for name, value in node.attributes.items() if isinstance(value, Graph)}
        plain = {name: value for name, value in node.attributes.items() if name not in branches}
        if row.counts:
            plain["count"] = len(node.outputs)
        inputs = [self._slot(name) for name in node.inputs]
        captured = [self._slot(name) for branch in branches.values() for name in branch.captured]
        outputs = [self._slot(name) for name in node.outputs]
        function = partial(row.function, **plain) if plain else row.function
        return _Step(node, row, function, branches, inputs, captured, outputs, [])

    def _release(self) -> None:
        """Enter the slots whose values no later step uses; constants stay."""
        kept = {_EMPTY, *self._outputs, *(at for at, value in enumerate(self._start) if value is not None)}
        for step in reversed(self._steps):
            used = {*step.inputs, *step.captured, *step.outputs} - kept
            step.released = sorted(used)
            kept |= used

    def run(self, inputs: Sequence[Any], device: Device | None, turns: Iterator[int] | None = None) -> list[Any]:
        """The outputs, by the values of the inputs and of what is captured; `turns` counts those of loops around it.

        Raises
        ------
        ModelError
            A node cannot compute its arrays; the message names it and says why.
        """
        values, turns = self._start.copy(), count() if turns is None else turns
        for slot, value in zip(self._inputs, inputs, strict=True):
            values[slot] = value
        for step in self._steps:
            try:
                results = step.call(values, device, turns)
                _store(values, step.outputs, results)
            except ModelError as error:
                raise type(error)(f"node {step.node}: {error}") from error.__cause__
            except Exception as error:  # of whatever the node's arrays provoke: a model is not trusted
                raise ModelError(f"node {step.node}: {_reason(error)} ({_shapes(step, values)})") from error
            for slot in step.released:
                values[slot] = None
        return [values[slot] for slot in self._outputs]


def _store(values: list[Any], slots: list[int], results: Any) -> None:
    if type(results) is not tuple:
        results = (results,)
    if len(results) < len(slots):
        raise ModelError(f"has {len(slots)} outputs, expected at most {len(results)}")
    for slot, result in zip(slots, results, strict=False):
        values[slot] = np.asarray(result) if isinstance(result, np.generic) else result
    values[_EMPTY] = None


def _reason(error: Exception) -> str:
    return f"{error}" if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {error}"


def _shapes(step: _Step, values: Iterable[Any]) -> str:
    known = list(values)
    arrays = (known[slot] for slot in step.inputs)
    shown = ("none" if x is None else f"{getattr(x, 'dtype', '?')} {getattr(x, 'shape', '?')}" for x in arrays)
    return f"inputs: {', '.join(shown)}"
