"""A machine with two GPUs for the CUDA backend's tests, on which nothing is computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_cupy import FakeCupy, FakeNvrtc

from gpucnn import backends
from gpucnn.backends import replaying
from gpucnn.backends.cuda.device import nvrtc


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCupy]:
    """A CuPy that writes down launches, as what is installed; caches are in a folder of the test's."""
    cupy = FakeCupy(devices=2)
    cupy.install(monkeypatch)
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(nvrtc, "load", lambda majors: FakeNvrtc())
    backends._cupy_backend.cache_clear()
    backends._cupy_backend()  # so that the first call is recorded
    yield cupy
    del replaying.REPLAYERS[cupy.ndarray]
    backends._cupy_backend.cache_clear()
