"""The simulated CUDA libraries under the real CuPy, for the tests that need them."""

from __future__ import annotations

import importlib.util

REASON = "the simulated CUDA is not installed here (python -m gpucnn.simulator.cupy makes an environment that has it)"


def is_installed() -> bool:
    """Whether this Python's CuPy runs over the simulated CUDA libraries."""
    return all(importlib.util.find_spec(name) is not None for name in ("cupy", "gpucnn_cuda"))
