"""Layers with forward and backward, containers, losses, optimisers and training: networks on top of the operations."""

from __future__ import annotations

from gpucnn.nn import initialization as init
from gpucnn.nn.losses import CrossEntropyLoss, Loss, MSELoss
from gpucnn.nn.module import LoadResult, Module, Parameter, inference
from gpucnn.nn.optimizers import SGD, Adam, AdamW, Optimizer, clip_grad_norm_

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CrossEntropyLoss",
    "LoadResult",
    "Loss",
    "MSELoss",
    "Module",
    "Optimizer",
    "Parameter",
    "clip_grad_norm_",
    "inference",
    "init",
]
