"""gpucnn: the primitives of convolutional networks for NumPy and CuPy arrays, and their gradients.

``gpucnn.functional`` holds the operations, ``gpucnn.geometry`` sizes and receptive fields, ``gpucnn.backends`` the
backends, ``gpucnn.nn`` and ``gpucnn.data`` build and train networks on them, ``gpucnn.onnx`` runs ONNX models,
``gpucnn.distributed`` trains networks on many devices, ``gpucnn.compat`` has the functions of CuPy's cuDNN and of
Chainer, ``gpucnn.simulator`` runs the CUDA kernels on a CPU,
``gpucnn.channels_last`` and ``channels_first`` copy images from one memory order or dtype to another, ``gpucnn.info()``
reports what this machine offers, ``gpucnn.backend`` chooses between the two CPU backends, ``gpucnn.explain`` says which
algorithm a call takes, ``gpucnn.warmup`` compiles ahead, ``gpucnn.wait_for_builds`` waits for what is compiled in the
background, ``gpucnn.tune`` times algorithms, ``gpucnn.set_num_threads`` sets how many of a CPU's cores the operations
use, and ``gpucnn.release_memory`` frees what is kept for their next results.
Importing gpucnn imports none of that: each part is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "__version__", "algorithm", "backend", "backends", "channels_first", "channels_last", "compat", "data",
    "distributed", "explain", "functional", "geometry", "get_num_threads", "info", "nn", "onnx", "precision",
    "release_memory", "set_num_threads", "simulator", "tune", "tuned", "wait_for_builds", "warmup", "workspace_limit",
]  # fmt: skip

if TYPE_CHECKING:
    from gpucnn import backends, compat, data, distributed, functional, geometry, nn, onnx, simulator
    from gpucnn.backends import backend
    from gpucnn.backends.numpy.pool import release_memory
    from gpucnn.backends.numpy.threads import get_num_threads, set_num_threads
    from gpucnn.explaining import explain
    from gpucnn.information import info
    from gpucnn.memory_format import channels_first, channels_last
    from gpucnn.numerics import algorithm, precision, workspace_limit
    from gpucnn.tuning import tune, tuned
    from gpucnn.warm_up import wait_for_builds, warmup

_MODULES = ("backends", "compat", "data", "distributed", "functional", "geometry", "nn", "onnx", "simulator")
_HOMES = {
    "algorithm": "gpucnn.numerics",
    "backend": "gpucnn.backends",
    "channels_first": "gpucnn.memory_format",
    "channels_last": "gpucnn.memory_format",
    "explain": "gpucnn.explaining",
    "get_num_threads": "gpucnn.backends.numpy.threads",
    "info": "gpucnn.information",
    "precision": "gpucnn.numerics",
    "release_memory": "gpucnn.backends.numpy.pool",
    "set_num_threads": "gpucnn.backends.numpy.threads",
    "tune": "gpucnn.tuning",
    "tuned": "gpucnn.tuning",
    "wait_for_builds": "gpucnn.warm_up",
    "warmup": "gpucnn.warm_up",
    "workspace_limit": "gpucnn.numerics",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"gpucnn.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gpucnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
