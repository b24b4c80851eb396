"""Graphs that compute the same in less time: what is constant is computed once, and neighbours are joined."""

from __future__ import annotations

from gpucnn.onnx.graph import Graph
from gpucnn.onnx.optimising.folding import fold_constants
from gpucnn.onnx.optimising.fusing import fuse
from gpucnn.onnx.optimising.links import drop_unused

__all__ = ["optimize"]


def optimize(graph: Graph) -> None:
    """Change a graph in place: constants folded, nodes joined, and those left out whose values nothing uses."""
    fold_constants(graph)
    fuse(graph)
    drop_unused(graph)
