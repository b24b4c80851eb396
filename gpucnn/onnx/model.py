"""A loaded model: what it takes and gives, and its run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpucnn.backends import receive
from gpucnn.onnx.errors import ModelError
from gpucnn.onnx.execution import Device, Program
from gpucnn.onnx.graph import Graph, Value
from gpucnn.onnx.optimising import optimize as rewrite
from gpucnn.onnx.planning import PlannedRuns
from gpucnn.onnx.reader import Description, read

__all__ = ["Model", "load"]

Array = Any


def load(source: Any, *, optimize: bool = True) -> Model:
    """Load an ONNX model.

    Parameters
    ----------
    source : path or bytes
        A file, whose external data lie beside it, or its content.
    optimize : bool
        Compute what is constant once, join normalisation and activations with the convolutions before them.

    Returns
    -------
    Model

    Raises
    ------
    ModelError
        The file is damaged, or uses operators, attributes, operator sets or dtypes that are not supported; all of them
        are listed.
    OSError
        The file cannot be read.
    ModuleNotFoundError
        The package onnx is not installed; the message has the command that installs it.

    Notes
    -----
    A file need not be trusted: nothing in it is executed, its arrays are of the size of their data, and external data
    lie in the folder of the model.
    """
    graph, description = read(source)
    if optimize:
        try:
            rewrite(graph)
        except Exception as error:  # of whatever a damaged graph provokes: a model is not trusted
            raise ModelError(
                f"{description.source}: cannot be optimised, which optimize=False omits: {error}"
            ) from error
    return Model(graph, description)


class Model:
    """A loaded ONNX model.

    Attributes
    ----------
    inputs, outputs : tuple of Value
        Name, dtype and shape of each. In a shape a name, or None, stands for a size that the file leaves open.
    metadata : dict of str to str
        What the file says of itself: a list of classes or characters, perhaps.
    """

    def __init__(self, graph: Graph, description: Description) -> None:
        self.inputs: tuple[Value, ...] = tuple(graph.inputs)
        self.outputs: tuple[Value, ...] = tuple(graph.outputs)
        self.metadata = dict(description.metadata)
        self._graph = graph
        self._description = description
        self._program = Program(graph)
        self._planned = PlannedRuns(self._program)
        self._devices: dict[Any, Device] = {}

    # --- Running ----------------------------------------------------------------------------------------------------

    def run(self, inputs: Mapping[str, Any] | Sequence[Any], outputs: Sequence[str] | None = None) -> Any:
        """Compute the model's outputs.

        Parameters
        ----------
        inputs : dict of arrays by name, or sequence of arrays in the order of `inputs`
            Arrays of one kind; numbers, and NumPy's arrays without axes, may be among arrays of any kind.
        outputs : sequence of str, optional
            Which outputs to return, all by default.

        Returns
        -------
        dict or list of arrays
            A dict by name for a dict, a list for a sequence, of the kind of the inputs. What describes shapes is
            computed on the host, and is returned as a NumPy array where a model returns it.

        Raises
        ------
        ValueError
            An input is missing, is not one of the model's, or its shape does not fit; there is no such output; or the
            model cannot compute the arrays (`ModelError`, which names the node).
        TypeError
            An input is of another dtype than the model's, or arrays are of two kinds.
        """
        given = self._by_name(inputs)
        names = [value.name for value in self.outputs]
        wanted = names if outputs is None else list(outputs)
        unknown = next((name for name in wanted if name not in names), None)
        if unknown is not None:
            raise ValueError(f"run: there is no output {unknown!r}, expected some of {names}")
        arrays, run, give_back = self._taken(given)
        with np.errstate(all="ignore"):  # as other runtimes: infinities and NaN are results
            try:
                values = dict(zip(names, run(arrays), strict=True))
            except ModelError as error:
                raise type(error)(f"{self._description.source}: {error}") from error.__cause__
        results = {name: give_back(values[name]) for name in wanted}
        return results if isinstance(inputs, Mapping) else list(results.values())

    def _by_name(self, inputs: Any) -> dict[str, Any]:
        names = [value.name for value in self.inputs]
        if isinstance(inputs, Mapping):
            given = dict(inputs)
        elif isinstance(inputs, list | tuple):
            if len(inputs) != len(names):
                raise ValueError(f"run: got {len(inputs)} inputs, expected {len(names)}: {names}")
            given = dict(zip(names, inputs, strict=True))
        else:
            raise TypeError(f"run: inputs are of type {type(inputs).__name__}, expected a dict or a sequence of arrays")
        if set(given) != set(names):
            raise ValueError(f"run: got the inputs {list(given)}, expected {names}")
        return {name: given[name] for name in names}

    def _taken(self, given: dict[str, Any]) -> tuple[list[Any], Callable[[list[Any]], list[Any]], Any]:
        """The inputs as arrays that a backend computes on, the run of the program on them, and the way back."""
        arrays = {value.name: _as_array(given[value.name], value) for value in self.inputs}
        away = {name: array for name, array in arrays.items() if not isinstance(array, np.ndarray) or array.ndim}
        if not away:
            return list(arrays.values()), partial(self._program.run, device=None), lambda result: result
        backend, taken, give_back = receive("run", away)
        arrays.update(zip(away, taken, strict=True))
        for value in self.inputs:
            _expect(value, arrays[value.name])
        if backend.host:
            return list(arrays.values()), partial(self._planned.run, backend=backend.name), give_back
        at = next(array for array in taken if array is not None).device.id
        device = self._devices.setdefault((backend.name, at), Device(backend.xp))
        run = partial(self._program.run, device=device)
        return list(arrays.values()), run, lambda result: result if _is_host(result) else give_back(result)

    # --- What it is -------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        """A table of the model's inputs, outputs and operators."""
        counts = Counter(node.op for node in self._graph.walk())
        held = sum(array.nbytes for array in self._graph.constants.values())
        versions = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in self._description.opsets.items())
        lines = [f"{self._description.source}: {self._graph.name}".rstrip(": ")]
        lines += [f"  made by    {self._description.producer or 'unknown'}, operator sets {versions}"]
        lines += [f"  input      {value}" for value in self.inputs]
        lines += [f"  output     {value}" for value in self.outputs]
        lines += [f"  constants  {held / 2**20:.1f} MiB in {len(self._graph.constants)} arrays"]
        lines += [f"  nodes      {counts.total()}"]
        lines += [f"    {number:5d}  {name}" for name, number in counts.most_common()]
        return "\n".join(lines)


def _is_host(array: Any) -> bool:
    return isinstance(array, np.ndarray)


def _as_array(given: Any, value: Value) -> Any:
    """A number or a list as a NumPy array of the model's dtype; arrays as they are."""
    if isinstance(given, bool | int | float | complex | list | tuple | np.generic):
        return np.asarray(given, value.dtype)
    return given


def _expect(value: Value, array: Any) -> None:
    """Raise unless an array fits the model's description of an input."""
    if value.dtype is not None and array.dtype != value.dtype:
        raise TypeError(f"run: input {value.name!r} has dtype {array.dtype}, expected {value.dtype}")
    if value.shape is None:
        return
    fits = len(array.shape) == len(value.shape) and all(
        not isinstance(expected, int) or size == expected
        for size, expected in zip(array.shape, value.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"run: input {value.name!r} has shape {tuple(array.shape)}, expected {value}")
