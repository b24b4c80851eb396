"""The cost of a first run: every kernel of a ResNet-50 compiled, and none again in the next process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gpucnn.functional as F
from benchmarks.gpu_check.checks import Check
from benchmarks.gpu_check.machine import Machine, NotRun
from gpucnn.backends import backend_named

# of each stage: channels of its input, of its 3x3 convolutions and of its output, its size, the stride it begins with
STAGES = ((64, 64, 256, 56, 1), (256, 128, 512, 56, 2), (512, 256, 1024, 28, 2), (1024, 512, 2048, 14, 2))
Layer = tuple[int, int, int, int, int]  # channels in and out, size, kernel, stride


def resnet50_convolutions() -> list[Layer]:
    """The different convolutions of a ResNet-50, stride on the 3x3 ones."""
    layers: list[Layer] = [(3, 64, 224, 7, 2)]
    for given, middle, out, size, stride in STAGES:
        smaller = size // stride
        layers += [
            (given, middle, size, 1, 1),
            (middle, middle, size, 3, stride),
            (middle, out, smaller, 1, 1),
            (given, out, size, 1, stride),
            (out, middle, smaller, 1, 1),
            (middle, middle, smaller, 3, 1),
        ]
    return list(dict.fromkeys(layers))


def cold_start(machine: Machine) -> Iterator[Check]:
    """One check; its remark ends in the number of programs that were compiled."""
    yield Check("ResNet-50, each layer forward and backward", lambda: _compiled(machine))


def _compiled(machine: Machine) -> str:
    if machine.kind == "simulator":
        raise NotRun("the simulator has one generic build for all layers")
    runtime: Any = backend_named("cuda").runtime  # type: ignore[attr-defined]
    started = time.perf_counter()
    run_layers(machine.runtime.xp)
    machine.synchronise()
    return f"{time.perf_counter() - started:.1f} s, {runtime.compiler.compiled} compiled"


def run_layers(xp: Any) -> None:
    """Each layer of a ResNet-50, forward and backward, on arrays of `xp`."""
    for c, oc, size, kernel, stride in resnet50_convolutions():
        x, w = xp.zeros((2, c, size, size), "float32"), xp.zeros((oc, c, kernel, kernel), "float32")
        y = F.conv2d(x, w, None, stride, kernel // 2)
        F.conv2d_backward(y, x, w, None, stride, kernel // 2)
        norm = y, None, None, xp.ones(oc, "float32"), xp.ones(oc, "float32"), True
        F.batch_norm_backward(F.batch_norm(*norm), *norm)
    x = xp.zeros((2, 64, 112, 112), "float32")
    F.max_pool2d_backward(F.max_pool2d(x, 3, 2, 1), x, 3, 2, 1)
    x = xp.zeros((2, 2048, 7, 7), "float32")
    F.adaptive_avg_pool2d_backward(F.adaptive_avg_pool2d(x, 1), x, 1)
