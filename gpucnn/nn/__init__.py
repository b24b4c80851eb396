"""Layers with forward and backward, containers, losses, optimisers and training: networks on top of the operations."""

from __future__ import annotations

from gpucnn.nn import initialization as init
from gpucnn.nn.losses import CrossEntropyLoss, Loss, MSELoss
from gpucnn.nn.module import LoadResult, Module, Parameter, inference
from gpucnn.nn.optimizers import SGD, Adam, AdamW, Optimizer, clip_grad_norm_
from gpucnn.nn.schedules import (
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    Schedule,
    StepLR,
)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "CrossEntropyLoss",
    "ExponentialLR",
    "LinearLR",
    "LoadResult",
    "Loss",
    "MSELoss",
    "Module",
    "MultiStepLR",
    "OneCycleLR",
    "Optimizer",
    "Parameter",
    "ReduceLROnPlateau",
    "Schedule",
    "StepLR",
    "clip_grad_norm_",
    "inference",
    "init",
]
