"""Layers with forward and backward, containers, losses, optimisers and training: networks on top of the operations."""

from __future__ import annotations

from gpucnn.nn.module import LoadResult, Module, Parameter, inference

__all__ = ["LoadResult", "Module", "Parameter", "inference"]
