"""The cost of a first run: every kernel of a ResNet-50 compiled, and none again in the next process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_check.checks import Check
from benchmarks.gpu_check.machine import Machine, NotRun
from benchmarks.primitives import run

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
    """One check; what it says ends in the number of programs that were compiled."""
    yield Check("ResNet-50, each layer forward and backward", lambda: _compiled(machine))


def _compiled(machine: Machine) -> str:
    if machine.kind == "simulator":
        raise NotRun("the simulator has one generic build for all layers")
    runtime: Any = machine.runtime
    backend: Any = machine.backends["specialised"]
    started = time.perf_counter()
    for c, oc, size, kernel, stride in resnet50_convolutions():
        _layer(backend, c, oc, size, kernel, stride)
    _others(backend)
    machine.synchronise()
    return f"{time.perf_counter() - started:.1f} s, {runtime.compiler.compiled} compiled"


def _layer(backend: Any, c: int, oc: int, size: int, kernel: int, stride: int) -> None:
    from gpucnn.geometry.geometries import Channels, conv_geometry

    geometry = conv_geometry("conv2d", (size, size), Channels(c, oc), kernel, stride, kernel // 2, 1)
    x = backend.xp.zeros((2, c, 1, size, size), "float32")
    w = backend.xp.zeros((oc, c, 1, kernel, kernel), "float32")
    (y,) = run(backend, "convolve", x, w, None, geometry)
    run(backend, "convolve_backward_input", y, w, None, geometry)
    run(backend, "convolve_backward_weight", x, y, geometry)
    _batch_norm(backend, y)


def _batch_norm(backend: Any, y: Any) -> None:
    from gpucnn.geometry import NormGeometry

    rows = y.reshape(*y.shape[:2], 1, -1)
    geometry = NormGeometry(rows.shape, (0, 2, 3))
    mean, var, rstd = run(backend, "norm_statistics", rows, geometry, 1e-5)
    weight = backend.xp.ones((1, y.shape[1], 1, 1), "float32")
    run(backend, "norm_apply", rows, mean, var, weight, weight, 1e-5, None, "none", 0.0)
    run(backend, "norm_backward_affine", rows, rows, mean, rstd, geometry)
    run(backend, "norm_backward_input", rows, rows, mean, rstd, weight, geometry)


def _others(backend: Any) -> None:
    from gpucnn.geometry.geometries import adaptive_geometry, pool_geometry

    pool = pool_geometry("max_pool2d", (112, 112), 3, 2, 1)
    x = backend.xp.zeros((2, 64, 1, 112, 112), "float32")
    y, indices = run(backend, "max_pool_with_indices", x, pool)
    run(backend, "max_pool_backward", y, indices, pool)
    whole = adaptive_geometry("adaptive_avg_pool2d", (7, 7), 1, "valid")
    (means,) = run(backend, "average_pool", backend.xp.zeros((2, 2048, 1, 7, 7), "float32"), whole)
    run(backend, "average_pool_backward", means, whole)
