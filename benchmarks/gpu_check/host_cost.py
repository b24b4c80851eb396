"""The host cost of a call, compared with a bare launch through CuPy: microseconds until it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gpucnn
import gpucnn.functional as F
from benchmarks.gpu.sampling import host_time
from benchmarks.gpu_check.checks import Check
from benchmarks.gpu_check.machine import Machine, NotRun


def host_cost(machine: Machine) -> Iterator[Check]:
    """Small layers: the call, the call with ``out=``, and an empty kernel with as many arguments."""
    for name, call in _CALLS.items():
        yield Check(name, lambda call=call: _told(machine, call))  # type: ignore[misc]


_CALLS: dict[str, Callable[..., Any]] = {
    "depthwise convolution": lambda x, w, b, **named: F.conv2d(x, w, b, 1, 1, 1, 32, **named),
    "max pooling": lambda x, w, b, **named: F.max_pool2d(x, 3, 1, 1, **named),
    "average pooling": lambda x, w, b, **named: F.avg_pool2d(x, 3, 1, 1, **named),
    "bias and activation": lambda x, w, b, **named: F.bias_activation(x, b, **named),
    "layer norm": lambda x, w, b, **named: F.layer_norm(x, (7, 7), **named),
}


def _told(machine: Machine, call: Callable[..., Any]) -> str:
    if machine.kind == "simulator":
        raise NotRun("the simulator's host is its device")
    zeros, device = machine.runtime.xp.zeros, machine.device
    x, w, b, y = (zeros(shape, "float32") for shape in ((2, 32, 7, 7), (32, 1, 3, 3), (32,), (2, 32, 7, 7)))
    timed = (lambda: call(x, w, b)), (lambda: call(x, w, b, out=y)), device.raw_launch(4)
    with gpucnn.algorithm("direct"):
        whole, into, bare = (1e6 * host_time(device, each).median for each in timed)
    return f"{whole:.1f} us, {into:.1f} us with out=; a bare launch {bare:.1f} us"
