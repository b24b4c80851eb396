"""Who makes and who uses each value of a graph."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from gpucnn.onnx.graph import Graph, Node

Array = Any


class Links:
    """The nodes around each value of a graph, kept while these are exchanged."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.made: dict[str, Node] = {}
        self.users: dict[str, list[Node]] = defaultdict(list)
        self._kept = {value.name for value in graph.outputs}
        for node in graph.nodes:
            self._enter(node)

    def _enter(self, node: Node) -> None:
        self.made.update((name, node) for name in node.outputs if name)
        for name in dict.fromkeys(used_by(node)):
            self.users[name].append(node)

    def maker(self, name: str, *operators: str) -> Node | None:
        """The node that makes a value, if it is of one of the operators and makes no other value."""
        node = self.made.get(name)
        return (
            node if node is not None and node.op in operators and not node.domain and len(node.outputs) == 1 else None
        )

    def only_user(self, node: Node) -> Node | None:
        """The node that alone uses what `node` makes, if that is a single value and no output of the graph."""
        if len(node.outputs) != 1:
            return None
        (name,) = node.outputs
        users = self.users[name]
        return users[0] if len(users) == 1 and name not in self._kept else None

    def constant(self, name: str) -> Array | None:
        """The array of a constant."""
        return self.graph.constants.get(name)

    def number(self, name: str) -> float | None:
        """The value of a constant that is one number."""
        array = self.graph.constants.get(name)
        return float(array.ravel()[0]) if array is not None and array.size == 1 and array.dtype.kind in "fiu" else None

    def new_constant(self, array: Array, like: str) -> str:
        """The name of a new constant, after that of a value."""
        number, name = 0, f"{like}/joined"
        while name in self.graph.constants or name in self.made or name in self.users:
            number, name = number + 1, f"{like}/joined{number}"
        self.graph.constants[name] = array
        return name

    def exchange(self, old: list[Node], new: Node) -> None:
        """Put a node in the place of the last of some; the others go."""
        for node in old:
            for name in dict.fromkeys(used_by(node)):
                self.users[name].remove(node)
            for name in node.outputs:
                self.made.pop(name, None)
        nodes = self.graph.nodes
        nodes[next(at for at, node in enumerate(nodes) if node is old[-1])] = new
        gone = {id(node) for node in old[:-1]}
        self.graph.nodes = [node for node in nodes if id(node) not in gone]
        self._enter(new)


def used_by(node: Node) -> list[str]:
    """The names that a node reads, those that graphs within it capture too."""
    return [*filter(None, node.inputs), *(name for graph in node.subgraphs() for name in graph.captured())]


def drop_unused(graph: Graph) -> None:
    """Leave out nodes and constants whose values nothing uses, in graphs within nodes too."""
    used = {value.name for value in graph.outputs}
    kept = []
    for node in reversed(graph.nodes):
        if used.isdisjoint(filter(None, node.outputs)):
            continue
        for inner in node.subgraphs():
            drop_unused(inner)
        used.update(used_by(node))
        kept.append(node)
    graph.nodes = kept[::-1]
    graph.constants = {name: array for name, array in graph.constants.items() if name in used}
