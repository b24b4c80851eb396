"""The implementations that are compared; each is one small class.

Adding one: subclass `Provider` in a module here and name it in `PROVIDERS`. An implementation on a
GPU sets ``device = "gpu"``, keeps its arrays there and overrides `Provider.time` with device events
and a cache flush; cases then take their GPU batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from benchmarks.providers.base import Call, Provider
from benchmarks.providers.gpucnn import GpucnnNumpy
from benchmarks.providers.onnx_runtime import OnnxRuntime
from benchmarks.providers.pytorch import PyTorch, PyTorchChannelsLast

__all__ = ["PROVIDERS", "Call", "Provider", "installed"]

PROVIDERS: tuple[type[Provider], ...] = (GpucnnNumpy, PyTorch, PyTorchChannelsLast, OnnxRuntime)


def installed(threads: int, names: Iterable[str] = ()) -> tuple[list[Provider], dict[str, str]]:
    """The providers that can run here and, for the others, why not.

    `names` keeps those whose name contains one of them; none keeps all.
    """
    words = [word.lower() for word in names]
    present: list[Provider] = []
    absent: dict[str, str] = {}
    for kind in PROVIDERS:
        if words and not any(word in kind.name.lower() for word in words):
            continue
        missing = [module for module in kind.requires if find_spec(module) is None]
        if missing:
            absent[kind.name] = f"not installed: {', '.join(missing)}"
            continue
        try:
            present.append(kind(threads))
        except ImportError as error:  # a peer whose installation is broken
            if kind.ours:
                raise
            absent[kind.name] = str(error)
    return present, absent
