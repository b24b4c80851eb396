"""Summary of a network: shapes, parameters, multiply-adds and receptive fields, module by module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gpucnn.backends import backend_of
from gpucnn.geometry import ReceptiveField, TransposedWindow, Window, receptive_field
from gpucnn.geometry.arguments import integers, is_sequence
from gpucnn.nn._tracing import watched
from gpucnn.nn.keeping import evaluation

__all__ = ["Summary", "summary"]

Array = Any
Module = Any  # `gpucnn.nn.module`, whose modules have their summary as a method, imports this file

Field = (
    tuple[Window | TransposedWindow, ...] | None
)  # the windows from the network's input to an array, None where one has no such form


@dataclass(frozen=True)
class Row:
    """One module of a `Summary`.

    Attributes
    ----------
    name : str
        Its dotted name; empty for the whole network.
    kind : str
        Its class.
    depth : int
        The number of modules above it.
    output_shape : tuple of int
        Shape of its output, without the batch axis.
    parameters : int
        Numbers that it and all below it learn, frozen ones counted.
    trainable : int
        Of these, those that are not frozen.
    multiply_adds : int
        Of it and all below it, for one input.
    receptive_field : ReceptiveField or None
        The receptive field of one output position; None where it is not known, as after
        upsampling to a size that is no multiple.
    """

    name: str
    kind: str
    depth: int
    output_shape: tuple[int, ...]
    parameters: int
    trainable: int
    multiply_adds: int
    receptive_field: ReceptiveField | None


@dataclass(frozen=True)
class Summary:
    """A table of a network's modules, in the order in which they run; it prints as one.

    Attributes
    ----------
    input_shape : tuple of int
        Shape of one input, without the batch axis.
    rows : tuple of Row
        The first is the network itself.
    """

    input_shape: tuple[int, ...]
    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        """Numbers that the network learns."""
        return self.rows[0].parameters

    @property
    def trainable(self) -> int:
        """Learned numbers that are not frozen."""
        return self.rows[0].trainable

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds for one input."""
        return self.rows[0].multiply_adds

    def __getitem__(self, name: str) -> Row:
        """The row of the module of that name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"Summary: no row is named {name!r}")

    def __str__(self) -> str:
        head = ("module", "output", "parameters", "multiply-adds", "receptive field")
        cells = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
        lines = [_line(line, widths) for line in cells]
        rule = "─" * max(map(len, lines))
        frozen = self.parameters - self.trainable
        total = f"input {_sizes(self.input_shape)}: {self.parameters:,} parameters"
        total += f", {frozen:,} of them frozen" if frozen else ""
        return "\n".join([lines[0], rule, *lines[1:], rule, f"{total}, {self.multiply_adds:,} multiply-adds"])


def _cells(row: Row) -> tuple[str, ...]:
    name = row.name.rpartition(".")[2]
    label = "  " * row.depth + (f"{name}: {row.kind}" if name else row.kind)
    seen = "–" if row.receptive_field is None else _sizes(row.receptive_field.size)
    return label, _sizes(row.output_shape), _count(row.parameters), _count(row.multiply_adds), seen


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Words to the left, numbers to the right."""
    left = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join([*left, *right]).rstrip()


def _sizes(sizes: Any) -> str:
    return " × ".join(map(str, sizes)) if is_sequence(sizes) else str(sizes)


def _count(number: int) -> str:
    return f"{number:,}" if number else "–"


def summary(model: Module, input_shape: Sequence[int] | int) -> Summary:
    """Run a network once, on zeros, and list its modules and their cost.

    Parameters
    ----------
    model : Module
        It is run in evaluation mode; its modes are restored afterwards.
    input_shape : int or sequence of int
        Shape of one input, without the batch axis, such as (3, 224, 224).

    Returns
    -------
    Summary
        With a row for each module that ran; ``print(summary(…))`` shows the table.

    Raises
    ------
    TypeError, ValueError
        The shape is none, or the network does not take it.

    Notes
    -----
    Multiply-adds are those of convolutions and linear layers, for one input, taps on padding counted. A receptive
    field is the one of the longest way through the network; `gpucnn.geometry.receptive_field` folds the windows of
    the layers on that way. Where a module works on an array that no other module made, such as the sum of two, the
    field is the largest among the arrays of that spatial size so far.

    Examples
    --------
    >>> from gpucnn import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2))
    >>> print(summary(model, (3, 33, 33)))
    module          output       parameters  multiply-adds  receptive field
    ───────────────────────────────────────────────────────────────────────
    Sequential      8 × 8 × 8           224         55,296            5 × 5
      0: Conv2d     8 × 16 × 16         224         55,296            3 × 3
      1: ReLU       8 × 16 × 16           –              –            3 × 3
      2: MaxPool2d  8 × 8 × 8             –              –            5 × 5
    ───────────────────────────────────────────────────────────────────────
    input 3 × 33 × 33: 224 parameters, 55,296 multiply-adds
    >>> summary(model, (3, 33, 33))["2"].receptive_field.stride
    (4, 4)
    """
    sizes = tuple(input_shape) if isinstance(input_shape, Sequence) else (input_shape,)
    shape = integers("summary", "input_shape", sizes, len(sizes), 1)
    if isinstance(model, type) or not hasattr(model, "multiply_adds"):
        raise TypeError(f"summary: model is of type {type(model).__name__}, expected a Module")
    record = _Record(model, shape)
    with evaluation(model), watched(model, partial(_recording, record)):
        model(record.first)
    return Summary(shape, tuple(record.rows()))


@dataclass
class _Run:
    """A module that ran: the shape of its output, its multiply-adds, and the windows up to its output."""

    module: Module
    shape: tuple[int, ...] = ()
    cost: int = 0
    field: Field = None


class _Record:
    """The record of a network's run."""

    def __init__(self, model: Module, shape: tuple[int, ...]) -> None:
        self.model = model
        self.first = _input_like(model, shape)
        self.runs: dict[int, _Run] = {}  # by module, in the order in which they began
        # arrays, which stay alive so that none takes the place of another
        self.seen: list[tuple[Array, Field]] = [(self.first, ())]

    def begin(self, module: Module) -> None:
        self.runs.setdefault(id(module), _Run(module))

    def end(self, module: Module, x: Array, result: Any) -> None:
        run, y = self.runs[id(module)], result[0] if isinstance(result, tuple) else result
        run.shape = tuple(y.shape[1:])
        if any(True for _ in module.children()):
            run.field = self.field_of(y)
            return
        run.cost += module.multiply_adds(tuple(x.shape), tuple(y.shape))
        field, window = self.field_of(x), module.window(tuple(x.shape))
        run.field = None if field is None or window is None else (*field, window)
        self.seen.append((y, run.field))

    def field_of(self, array: Array) -> Field:
        """The field of an array: its module's, or the largest among arrays of its spatial size."""
        for known, field in reversed(self.seen):
            if known is array:
                return field
        alike = [field for known, field in self.seen if known.shape[2:] == array.shape[2:]]
        last, field = self.seen[-1]
        if not alike and array.ndim == 2 and field is not None:  # the last one, flattened
            return (*field, Window(last.shape[2:]))
        if not alike or any(field is None for field in alike):
            return None
        return max((field for field in alike if field is not None), key=_extent)

    def rows(self) -> Iterator[Row]:
        names = {id(module): name for name, module in self.model.named_modules()}
        for run in self.runs.values():
            name, parts, learned = names[id(run.module)], run.module.modules(), list(run.module.parameters())
            yield Row(
                name,
                type(run.module).__name__,
                name.count(".") + 1 if name else 0,
                run.shape,
                sum(parameter.size for parameter in learned),
                sum(parameter.size for parameter in learned if parameter.requires_grad),
                sum(self.runs[id(part)].cost for part in parts if id(part) in self.runs),
                self.whole(run.field),
            )

    def whole(self, field: Field) -> ReceptiveField | None:
        """The field as text, with one size for each axis."""
        rank = self.first.ndim - 2
        if field is None or rank < 1:
            return None
        return receptive_field([Window((1,) * rank), *field])


def _extent(field: tuple[Window | TransposedWindow, ...]) -> int:
    size = receptive_field(field).size if field else 1
    return int(np.prod(size))


def _input_like(model: Module, shape: tuple[int, ...]) -> Array:
    """One input of zeros, in the dtype and on the device of the network."""
    array = next((parameter.data for parameter in model.parameters()), np.zeros(1, np.float32))
    return backend_of(array).xp.zeros((1, *shape), array.dtype)


def _recording(record: _Record, module: Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def recorded(x: Array, *others: Any, **options: Any) -> Any:
        record.begin(module)
        result = forward(x, *others, **options)
        record.end(module, x, result)
        return result

    return recorded
