"""A graph as a list of calls, and its run.

Values are in slots. A value is let go after its last use, so that its memory serves the next ones. A node computes
where its arrays are: on the device as soon as one of them is there, else on the host, so that shapes stay there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, takewhile
from typing import Any

import numpy as np

from gpucnn.onnx.errors import ModelError, UnsupportedError
from gpucnn.onnx.graph import Graph, Node
from gpucnn.onnx.operators.registry import Operator, find

__all__ = ["EMPTY", "Device", "Program", "Step", "results_of"]

Array = Any
EMPTY = 0  # the slot of inputs that are left out
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
class Step:
    """One node as a call: slots in, slots out, and the slots that are not needed after it."""

    node: Node
    row: Operator
    function: Callable[..., Any]
    branches: dict[str, Program]
    inputs: list[int]
    captured: list[int]  # of all branches, one after the other
    outputs: list[int]
    released: list[int]

    def call(self, arguments: list[Any], outer: list[Any], device: Device | None, turns: Iterator[int]) -> Any:
        """What the operator returns for arguments, and for what its branches capture."""
        if device is not None:
            arguments = device.placed(arguments, self.row)
        bound = {
            name: partial(_branch, branch, self.captured_by(name, outer), device, turns)
            for name, branch in self.branches.items()
        }
        return self.function(*arguments, **bound)

    def captured_by(self, name: str, outer: list[Any]) -> list[Any]:
        """Of all that the branches capture, what one of them does."""
        before = takewhile(lambda other: other != name, self.branches)
        start = sum(len(self.branches[other].captured) for other in before)
        return outer[start : start + len(self.branches[name].captured)]


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
        self._slots: dict[str, int] = {"": EMPTY}
        self.start: list[Any] = [None]
        for name, array in graph.constants.items():
            array = array.view()
            array.flags.writeable = False
            self.start[self._slot(name)] = array
        self.inputs = [self._slot(name) for name in [*(value.name for value in graph.inputs), *self.captured]]
        self.steps = [self._step(node) for node in graph.nodes]
        self.outputs = [self._slot(value.name) for value in graph.outputs]
        self._release()

    def _slot(self, name: str) -> int:
        if name not in self._slots:
            self._slots[name] = len(self.start)
            self.start.append(None)
        return self._slots[name]

    def _step(self, node: Node) -> Step:
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
        return Step(node, row, function, branches, inputs, captured, outputs, [])

    def _release(self) -> None:
        """Enter the slots whose values no later step uses; constants stay."""
        kept = {EMPTY, *self.outputs, *(at for at, value in enumerate(self.start) if value is not None)}
        for step in reversed(self.steps):
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
        values, turns = self.start.copy(), count() if turns is None else turns
        for slot, value in zip(self.inputs, inputs, strict=True):
            values[slot] = value
        for step in self.steps:
            try:
                arguments, outer = ([values[slot] for slot in slots] for slots in (step.inputs, step.captured))
                results = results_of(step, step.call(arguments, outer, device, turns))
            except ModelError as error:
                raise type(error)(f"node {step.node}: {error}") from error.__cause__
            except Exception as error:  # of whatever the node's arrays provoke: a model is not trusted
                raise ModelError(f"node {step.node}: {_reason(error)} ({_shapes(step, values)})") from error
            for slot, result in zip(step.outputs, results, strict=True):
                values[slot] = result
            for slot in (*step.released, EMPTY):
                values[slot] = None
        return [values[slot] for slot in self.outputs]


def results_of(step: Step, returned: Any) -> list[Any]:
    """What an operator returned, as an array or None for each output of the node.

    Raises
    ------
    ModelError
        These are more outputs than the operator has.
    """
    results = returned if type(returned) is tuple else (returned,)
    if len(results) < len(step.outputs):
        raise ModelError(f"has {len(step.outputs)} outputs, expected at most {len(results)}")
    return [np.asarray(each) if isinstance(each, np.generic) else each for each in results[: len(step.outputs)]]


def _reason(error: Exception) -> str:
    return f"{error}" if isinstance(error, ValueError | TypeError) else f"{type(error).__name__}: {error}"


def _shapes(step: Step, values: Iterable[Any]) -> str:
    known = list(values)
    arrays = (known[slot] for slot in step.inputs)
    shown = ("none" if x is None else f"{getattr(x, 'dtype', '?')} {getattr(x, 'shape', '?')}" for x in arrays)
    return f"inputs: {', '.join(shown)}"
