"""Layers with forward and backward, containers, losses, optimisers and training: networks on top of the operations."""

from __future__ import annotations

from gpucnn.nn import initialization as init
from gpucnn.nn.losses import CrossEntropyLoss, Loss, MSELoss
from gpucnn.nn.module import LoadResult, Module, Parameter, inference

__all__ = [
    "CrossEntropyLoss",
    "LoadResult",
    "Loss",
    "MSELoss",
    "Module",
    "Parameter",
    "inference",
    "init",
]
