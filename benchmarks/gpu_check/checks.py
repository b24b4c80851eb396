"""The checks of a machine, run by a worker process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import gpucnn
import gpucnn.functional as F
from benchmarks.gpu_check.machine import Machine, NotRun
from benchmarks.primitives import Call, Results, Scale, agree, calls, placed, run
from gpucnn.backends import Backend
from gpucnn.backends.numpy import NumpyBackend

RUNS = 3  # of one call, that must agree bit for bit


@dataclass(frozen=True)
class Check:
    """`run` returns a remark, raises AssertionError for a wrong result, NotRun where it cannot be run."""

    name: str
    run: Callable[[], str]


def results_of(function: Callable[..., Any], arguments: Iterable[Any]) -> tuple[Any, ...]:
    results = function(*arguments)
    return results if isinstance(results, tuple) else (results,)


def same_bits(results: Sequence[Any], others: Sequence[Any]) -> bool:
    return all(
        (one.shape, one.dtype) == (other.shape, other.dtype) and one.tobytes() == other.tobytes()
        for one, other in zip(results, others, strict=True)
    )


def expect(truth: bool, otherwise: str) -> None:
    if not truth:
        raise AssertionError(otherwise)


# --- Repeatability ------------------------------------------------------------------------------------------------


def repeatability(machine: Machine) -> Iterator[Check]:
    """Layers that fill the device: three runs, both builds, two algorithms, and the NumPy backend."""
    scale: Scale = "odd" if machine.kind == "simulator" else "layers"
    for call in calls(scale):
        yield Check(call.name, lambda call=call: _repeats(machine, call))  # type: ignore[misc]


def odd_shapes(machine: Machine) -> Iterator[Check]:
    """Each primitive once at small, odd sizes in the generic and the specialised build, for a sanitizer."""
    for call in calls("odd"):
        yield Check(call.name, lambda call=call: _agrees(machine, call))  # type: ignore[misc]


def _repeats(machine: Machine, call: Call) -> str:
    host = call.arguments()
    given = placed(host, machine.put)
    first = _computed(machine, machine.backends["specialised"], call, given)
    for number in range(1, RUNS):
        again = _computed(machine, machine.backends["specialised"], call, given)
        expect(same_bits(first, again), f"run {number + 1} has other bits than run 1")
    generic = _computed(machine, machine.backends["generic"], call, given)
    expect(same_bits(first, generic), "the generic build has other bits than the specialised one")
    said = agree(first, run(NumpyBackend(), call.primitive, *host))
    expect(not said, f"against the NumPy backend: {said}")
    if call.algorithm != "direct":
        direct = replace(call, algorithm="direct")
        said = agree(first, _computed(machine, machine.backends["specialised"], direct, given))
        expect(not said, f"{call.algorithm or 'as chosen'} against direct: {said}")
    return ""


def _agrees(machine: Machine, call: Call) -> str:
    host = call.arguments()
    given = placed(host, machine.put)
    expected = run(NumpyBackend(), call.primitive, *host)
    for build, backend in machine.backends.items():
        said = agree(_computed(machine, backend, call, given), expected)
        expect(not said, f"{build} build against the NumPy backend: {said}")
    return ""


def _computed(machine: Machine, backend: Backend, call: Call, given: tuple[Any, ...]) -> Results:
    return tuple(map(machine.get, call.of(backend, given)))


# --- CUDA graphs --------------------------------------------------------------------------------------------------


def graphs(machine: Machine) -> Iterator[Check]:
    """Public calls, warmed up and captured: replays on other values give the bits of plain calls."""
    for name, shapes, function in _GRAPHED:
        yield Check(name, lambda shapes=shapes, function=function: _replays(machine, shapes, function))  # type: ignore[misc]


def _conv_block(x: Any, w: Any) -> tuple[Any, ...]:
    """A convolution and a pooling, and the way back through both."""
    y = F.conv2d(x, w, padding=1)
    pooled, indices = F.max_pool2d(y, 2, return_indices=True)
    grad_y = F.max_unpool2d(pooled, indices, 2)
    return pooled, *F.conv2d_backward(grad_y, x, w, padding=1)[:2]


def _depthwise_into(x: Any, w: Any, y: Any) -> tuple[Any, ...]:
    """A depthwise convolution and a pooling, both to existing arrays."""
    F.conv2d(x, w, padding=1, groups=x.shape[1], out=y)
    return y, F.avg_pool2d(y, 2, out=x[:, :, ::2, ::2])  # with gaps: by a copy


def _layer_norm(x: Any, weight: Any) -> tuple[Any, ...]:
    y = F.layer_norm(x, x.shape[-1:], weight)
    return y, *F.layer_norm_backward(y, x, x.shape[-1:], weight)[:2]


def _resampled(x: Any, weight: Any) -> tuple[Any, ...]:
    y = F.interpolate(x, scale_factor=2, mode="bilinear")
    return y, F.avg_pool2d(y * weight, 3, 2, 1)


_GRAPHED: tuple[tuple[str, tuple[tuple[int, ...], ...], Callable[..., tuple[Any, ...]]], ...] = (
    ("convolution and max pooling, forward and backward", ((8, 32, 56, 56), (64, 32, 3, 3)), _conv_block),
    ("depthwise convolution and pooling, out=", ((8, 32, 56, 56), (32, 1, 3, 3), (8, 32, 56, 56)), _depthwise_into),
    ("layer norm", ((512, 768), (768,)), _layer_norm),
    ("interpolation and average pooling", ((8, 32, 28, 28), (1,)), _resampled),
)


def _replays(machine: Machine, shapes: Sequence[tuple[int, ...]], function: Callable[..., tuple[Any, ...]]) -> str:
    if machine.kind == "simulator":
        raise NotRun("the simulator has no streams to capture")
    cupy = machine.runtime.xp
    rng = np.random.default_rng(11)
    values, others = ([rng.standard_normal(shape, np.float32) for shape in shapes] for _ in range(2))
    stream = cupy.cuda.Stream(non_blocking=True)
    replayed: list[list[Any]] = []
    # cuBLAS may not be captured through CuPy, so the direct kernels are used
    with gpucnn.algorithm("direct"), stream:
        given = [cupy.asarray(value) for value in values]
        function(*given)  # compiles, loads, and leaves its memory in the stream's pool
        stream.synchronize()
        stream.begin_capture()
        try:
            captured = function(*given)
        finally:
            graph = stream.end_capture()
        for _ in range(2):
            for array, value in zip(given, others, strict=True):
                array.set(value)
            graph.launch(stream)
            stream.synchronize()
            replayed.append([array.get() for array in captured])
        for array, value in zip(given, others, strict=True):
            array.set(value)
        plain = [array.get() for array in function(*given)]
        stream.synchronize()
    for time, results in zip(("first", "second"), replayed, strict=True):
        expect(same_bits(results, plain), f"the {time} replay has other bits than a plain call on the same values")
    return ""
