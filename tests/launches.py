"""Launches of the public operations, recorded without a GPU: NumPy arrays in, sources out."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import ml_dtypes  # noqa: F401  NumPy knows bfloat16 by name from here on
import numpy as np
import pytest
from calls import ALIASES, ARRAYS, CALLS, fresh, numbers

import gpucnn
import gpucnn.functional as F
from gpucnn import backends
from gpucnn.backends.cuda import CudaBackend
from gpucnn.backends.cuda.device.runtime import Array, Device, Function
from gpucnn.backends.cuda.device.sources import Source
from gpucnn.backends.cuda.launch import plans as launching
from gpucnn.backends.replaying import REPLAYERS
from gpucnn.numerics import PRECISIONS, algorithm, precision

Shape = tuple[int, ...]
WAYS = ((None, "fp32"), ("direct", "fp32"), ("im2col", "fp32"), *(("implicit_gemm", each) for each in PRECISIONS))
"""Algorithms, None for the one chosen by itself, and precisions of float32."""
SMOOTH = ("silu", "gelu")
"""Activations with an exponential, and with an error function: others take no more of a thread."""


class ZeroedNumpy:
    """NumPy, whose new arrays are zeros: nothing is computed, and no result may depend on what memory held."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, {"empty": "zeros", "empty_like": "zeros_like"}.get(name, name))


SM_75, SM_80 = (7, 5), (8, 0)


@dataclass(frozen=True)
class Launch:
    """A program, and the largest block and dynamic shared memory of one launch of its kernel."""

    source: Source
    threads: int
    shared_mem: int


@dataclass(eq=False)
class Recorder:
    """A runtime that computes nothing and writes down what it is asked to launch."""

    specialises: bool
    name: str = "recorder"
    xp: Any = field(default_factory=ZeroedNumpy)
    launches: dict[str, Launch] = field(default_factory=dict)
    null: None = None
    background: None = None
    capability: tuple[int, int] = SM_80

    def device(self, array: Array) -> Device:
        return Device(0, "recorder", self.capability, 4)

    def using(self, device: Device) -> AbstractContextManager[Any]:
        return nullcontext()

    def constant(self, host: Any, device: Device) -> Array:
        return host

    def product(self, factors: np.dtype[Any], result: np.dtype[Any], precision: str, device: Device) -> Function:
        return lambda grid, block, args, shared_mem=0: None

    def by_value(self, structure: np.ndarray[Any, Any]) -> Any:
        return structure

    def function(self, source: Source, device: Device) -> Function:
        def launch(grid: Shape, block: Shape, args: tuple[Any, ...], shared_mem: int = 0) -> None:
            key = f"{source.kernel}\n{source.text}"  # a program may hold several kernels
            threads = int(np.prod(block))
            before = self.launches.get(key)
            if before is not None:
                threads, shared_mem = max(threads, before.threads), max(shared_mem, before.shared_mem)
            self.launches[key] = Launch(source, threads, shared_mem)

        return launch


@contextlib.contextmanager
def by(chosen: str | None, mode: str) -> Iterator[None]:
    """Within the block convolutions are computed by this algorithm, if any is requested, and at this precision."""
    with nullcontext() if chosen is None else algorithm(chosen), precision(mode):
        yield


@contextlib.contextmanager
def recording(specialises: bool, wide: bool = False, capability: tuple[int, int] = SM_80) -> Iterator[Recorder]:
    """Within the block NumPy arrays go to the CUDA backend, launching nothing; `wide` asks for 64-bit indices."""
    recorder = Recorder(specialises, capability=capability)
    backend = CudaBackend(recorder)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # zeros where a result should be are not sound numbers
        patch.setattr(backends, "_cpu_backend", lambda: backend)
        patch.delitem(REPLAYERS, np.ndarray, raising=False)
        if wide:
            patch.setattr(launching, "needs_int64", lambda arrays, extents: True)
        yield recorder


@cache
def launches_of_calls(
    dtype: str, specialises: bool, wide: bool, capability: tuple[int, int] = SM_80
) -> tuple[Launch, ...]:
    """What the small calls of `calls` launch with their arrays as `dtype`, by every algorithm that takes it."""
    with recording(specialises, wide, capability) as recorder:
        for name in sorted(CALLS.keys() - ALIASES):
            if dtype != "float32" and specialises and ("1d" in name or "3d" in name):
                continue  # of a specialised build a dtype exchanges no more than the types
            arguments = fresh(name)
            for parameter, value in arguments.items():
                if parameter in ARRAYS and isinstance(value, np.ndarray) and value.dtype.kind == "f":
                    arguments[parameter] = value.astype(dtype)
            others = [{"residual": None}] if "norm" in name else []  # by programs of their own
            if name in ("bias_activation", "conv2d_activation"):
                others = [{"activation": activation} for activation in SMOOTH]
            for way in (*WAYS, ("winograd", "fp32")):
                for each in (arguments, *(arguments | other for other in others)):
                    with by(*way), contextlib.suppress(TypeError, ValueError):  # not of this dtype
                        getattr(F, name)(**each)
        with contextlib.suppress(TypeError):  # by another kernel, for a tile does not fit
            x, grad = np.zeros((1, 1, 3), dtype), np.zeros((1, 1, 9000), dtype)
            F.interpolate_backward(grad, x, 9000, mode="linear", align_corners=False)
        x, grid = np.zeros((1, 1, 2, 2), dtype), np.zeros((1, 1, 1, 2), dtype)
        for mode in ("nearest", "bicubic"):  # of other numbers of taps
            with contextlib.suppress(TypeError):
                F.grid_sample(x, grid, mode)
                F.grid_sample_backward(x[..., :1, :1], x, grid, mode)
    return tuple(recorder.launches.values())


@cache
def launches_of_layers(specialises: bool = True, capability: tuple[int, int] = SM_80) -> tuple[Launch, ...]:
    """What layers of real networks launch in float32, forward and backward, channels first and last."""
    with recording(specialises, capability=capability) as recorder:
        for channels_last in (False, True):
            _run_layers(channels_last)
    return tuple(recorder.launches.values())


def _run_layers(channels_last: bool) -> None:
    def image(*shape: int) -> np.ndarray[Any, Any]:
        if channels_last:
            return np.moveaxis(np.zeros((shape[0], *shape[2:], shape[1]), np.float32), -1, 1)
        return np.zeros(shape, np.float32)

    def run(operation: Any, x: np.ndarray[Any, Any], *args: Any, **options: Any) -> None:
        backward = getattr(F, f"{operation.__name__}_backward")
        y = operation(x, *args, **options)
        backward(np.asarray(y), x, *args, **options)

    def weight(*shape: int) -> np.ndarray[Any, Any]:
        return np.zeros(shape, np.float32)

    for way in () if channels_last else WAYS[1:]:
        with by(*way), contextlib.suppress(ValueError):  # not of this capability
            run(F.conv2d, image(1, 3, 224, 224), weight(64, 3, 7, 7), None, stride=2, padding=3)  # ResNet's stem
            run(F.conv2d, image(2, 64, 56, 56), weight(64, 64, 3, 3), weight(64), padding=1)
            run(F.conv2d, image(2, 128, 28, 28), weight(256, 128, 1, 1), None, stride=2)
            run(F.conv2d, image(2, 128, 28, 28), weight(128, 4, 3, 3), None, padding=1, groups=32)  # ResNeXt
            run(F.conv2d, image(2, 32, 14, 14), weight(32, 1, 5, 5), None, padding=2, groups=32)  # EfficientNet
            run(F.conv2d, image(1, 64, 33, 33), weight(64, 64, 3, 3), None, padding=12, dilation=12)  # DeepLab
            run(F.conv_transpose2d, image(1, 64, 16, 16), weight(64, 32, 4, 4), None, stride=2, padding=1)  # DCGAN
            run(F.conv3d, image(1, 8, 8, 28, 28), weight(8, 8, 3, 3, 3), None, padding=1)
            run(F.conv1d, image(1, 16, 1000), weight(32, 16, 9), None, stride=3, padding=4)
    run(F.conv2d, image(2, 64, 28, 28), weight(64, 64, 3, 3), None, padding=1)
    run(F.conv2d, image(2, 256, 14, 14), weight(256, 256, 3, 3), None, padding=1)  # by Winograd's filtering
    run(F.conv2d, image(2, 96, 112, 112), weight(96, 1, 3, 3), None, stride=2, padding=1, groups=96)  # MobileNetV2
    run(F.conv2d, image(2, 240, 28, 28), weight(240, 1, 5, 5), None, padding=2, groups=240)  # EfficientNet
    run(F.conv2d, image(2, 96, 56, 56), weight(96, 1, 7, 7), weight(96), padding=3, groups=96)  # ConvNeXt
    run(F.im2col, image(2, 3, 227, 227), 11, stride=4)  # AlexNet
    (gpucnn.channels_first if channels_last else gpucnn.channels_last)(image(2, 64, 56, 56), np.float16)
    run(F.bias_activation, image(2, 64, 56, 56), weight(64), image(2, 64, 56, 56))
    for activation in SMOOTH:
        run(F.bias_activation, image(2, 64, 56, 56), weight(64), image(2, 64, 56, 56), activation)
        run(F.conv2d_activation, image(2, 64, 56, 56), weight(96, 64, 1, 1), weight(96), activation=activation)
    run(F.max_pool2d, image(2, 64, 112, 112), 3, 2, padding=1)
    run(F.avg_pool2d, image(2, 64, 112, 112), 3, 2, padding=1)
    run(F.adaptive_avg_pool2d, image(2, 512, 7, 7), 1)
    run(F.interpolate, image(1, 64, 28, 28), scale_factor=2, mode="bilinear", align_corners=False)
    run(F.batch_norm, image(8, 64, 56, 56), None, None, weight(64), weight(64), training=True)
    shortcut = {"residual": image(8, 64, 56, 56), "activation": "relu"}
    run(F.batch_norm, image(8, 64, 56, 56), None, None, weight(64), weight(64), training=True, **shortcut)
    run(F.layer_norm, numbers(8, 196, 768).astype(np.float32), (768,), weight(768), weight(768))
    tokens = numbers(8, 196, 768).astype(np.float32)
    run(F.layer_norm, tokens, (768,), weight(768), weight(768), residual=tokens)
    run(F.group_norm, image(2, 64, 56, 56), 32, weight(64), weight(64))
