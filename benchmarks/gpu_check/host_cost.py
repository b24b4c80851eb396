"""The host cost of a call, compared with a bare launch through CuPy: microseconds until it returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import gpucnn
import gpucnn.functional as F
from benchmarks.gpu_check.checks import Check
from benchmarks.gpu_check.machine import Machine, NotRun

CALLS = 200  # in a row, fewer than what waits in a stream without blocking the host
ROWS = 25  # of which the median counts

NOTHING = 'extern "C" __global__ void nothing(const float* x, const float* w, const float* b, float* y) {}'


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
    cupy = machine.runtime.xp
    x, w, b, y = (cupy.zeros(shape, "float32") for shape in ((2, 32, 7, 7), (32, 1, 3, 3), (32,), (2, 32, 7, 7)))
    nothing = cupy.RawKernel(NOTHING, "nothing")
    with gpucnn.algorithm("direct"):
        whole = microseconds(lambda: call(x, w, b), machine.synchronise)
        into = microseconds(lambda: call(x, w, b, out=y), machine.synchronise)
    bare = microseconds(lambda: nothing((1,), (32,), (x, w, b, y)), machine.synchronise)
    return f"{whole:.1f} us, {into:.1f} us with out=; a bare launch {bare:.1f} us"


def microseconds(call: Callable[[], Any], synchronise: Callable[[], None]) -> float:
    """The median time in which `call` returns, of rows of calls between which the device is waited for."""
    for _ in range(CALLS):
        call()
    times = []
    for _ in range(ROWS):
        synchronise()
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - started) / CALLS)
    synchronise()
    return median(times) * 1e6
