"""The simulated CUDA libraries under the real CuPy, for the tests that need them."""

from __future__ import annotations

import importlib.util
import os

import pytest

REASON = "the simulated CUDA is not installed here (python -m gpucnn.simulator.cupy makes an environment that has it)"


def is_installed() -> bool:
    """Whether this Python's CuPy runs over the simulated CUDA libraries."""
    forced = os.environ.get("GPUCNN_TEST_SIMULATED_CUDA") == "1"
    return importlib.util.find_spec("cupy") is not None and (
        forced or importlib.util.find_spec("gpucnn_cuda") is not None
    )


needs_simulated_cuda = pytest.mark.skipif(not is_installed(), reason=REASON)
