"""A model as a graph of nodes, apart from ONNX's protocol buffers: what the checks, the optimiser and the run read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = Any
Dimension = int | str | None


@dataclass(frozen=True)
class Value:
    """A named input or output: its dtype, and its shape, with a name or None for a size that the file leaves open."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[Dimension, ...] | None

    def __str__(self) -> str:
        dtype = "?" if self.dtype is None else self.dtype.name
        sizes = "?" if self.shape is None else ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {dtype} [{sizes}]"


@dataclass(eq=False)
class Node:
    """One operation: names of its inputs and outputs, "" for one that is left out, and its attributes.

    `version` is that of the operator set that the model imports for the domain. An attribute is an int, a float, a
    str, a list of them, an array or a `Graph`.
    """

    op: str
    domain: str
    version: int
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)

    def subgraphs(self) -> Iterator[Graph]:
        """The graphs among the attributes: branches and loop bodies."""
        return (value for value in self.attributes.values() if isinstance(value, Graph))

    def __str__(self) -> str:
        operator = self.op if not self.domain else f"{self.domain}.{self.op}"
        return f"{operator} {self.name!r}" if self.name else f"{operator} of {', '.join(filter(None, self.outputs))!r}"


@dataclass(eq=False)
class Graph:
    """Nodes in the order in which they run, with the arrays that the file holds by name."""

    name: str
    inputs: list[Value]
    outputs: list[Value]
    nodes: list[Node]
    constants: dict[str, Array]

    def captured(self) -> list[str]:
        """Names that the graph, or one within it, reads of the graphs around it, in the order of their first use."""
        known = {*self.constants, *(value.name for value in self.inputs), ""}
        names: dict[str, None] = {}
        for node in self.nodes:
            used = [*node.inputs, *(name for graph in node.subgraphs() for name in graph.captured())]
            names.update(dict.fromkeys(name for name in used if name not in known))
            known.update(node.outputs)
        names.update(dict.fromkeys(value.name for value in self.outputs if value.name not in known))
        return list(names)

    def walk(self) -> Iterator[Node]:
        """All nodes, those of graphs within nodes too."""
        for node in self.nodes:
            yield node
            for graph in node.subgraphs():
                yield from graph.walk()
