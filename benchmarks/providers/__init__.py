"""The implementations that are compared; each is one small class.

Adding one: subclass `Provider` in a module here and name it in `PROVIDERS`, or in `GPU_PROVIDERS` if it sets
``device = "gpu"``: it is then handed arrays of CuPy, and gives back such arrays; `benchmarks.gpu` times its calls.
"""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.layers import Device
from benchmarks.providers.base import Call, Provider
from benchmarks.providers.gpucnn import (
    GpucnnCompiled,
    GpucnnCompiledChannelsLast,
    GpucnnGpu,
    GpucnnGpuChannelsLast,
    GpucnnNumpy,
)
from benchmarks.providers.onnx_runtime import OnnxRuntime
from benchmarks.providers.plain_cupy import CupyxScipy, PlainCupy
from benchmarks.providers.pytorch import PyTorch, PyTorchChannelsLast
from benchmarks.providers.pytorch_gpu import (
    PyTorchCompiled,
    PyTorchCudnnSearch,
    PyTorchCudnnSearchChannelsLast,
    PyTorchGpu,
    PyTorchGpuChannelsLast,
)

__all__ = ["GPU_PROVIDERS", "PROVIDERS", "Call", "Provider", "installed", "kinds"]

PROVIDERS: tuple[type[Provider], ...] = (
    GpucnnCompiled,
    GpucnnCompiledChannelsLast,
    GpucnnNumpy,
    PyTorch,
    PyTorchChannelsLast,
    OnnxRuntime,
)
GPU_PROVIDERS: tuple[type[Provider], ...] = (
    GpucnnGpu,
    GpucnnGpuChannelsLast,
    PyTorchGpu,
    PyTorchGpuChannelsLast,
    PyTorchCudnnSearch,
    PyTorchCudnnSearchChannelsLast,
    PyTorchCompiled,
    PlainCupy,
    CupyxScipy,
)


def kinds(device: Device = "cpu") -> tuple[type[Provider], ...]:
    """The implementations for a device, whether installed or not."""
    return PROVIDERS if device == "cpu" else GPU_PROVIDERS


def installed(threads: int, names: Iterable[str] = (), device: Device = "cpu") -> tuple[list[Provider], dict[str, str]]:
    """The providers that can run here and, for the others, why not.

    `names` keeps those whose name contains one of them; none keeps all.
    """
    words = [word.lower() for word in names]
    present: list[Provider] = []
    absent: dict[str, str] = {}
    for kind in kinds(device):
        if words and not any(word in kind.name.lower() for word in words):
            continue
        reason = kind.why_absent()
        if reason is not None:
            absent[kind.name] = reason
            continue
        try:
            present.append(kind(threads))
        except ImportError as error:  # a peer whose installation is broken
            if kind.ours:
                raise
            absent[kind.name] = str(error)
    return present, absent
