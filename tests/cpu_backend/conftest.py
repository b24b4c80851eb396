"""Small kernels in place of the real ones, and a cache of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sanitized
from small_kernels import forget_sources, new_process, write_kernels

from gpucnn.backends.cpu import builds


@pytest.fixture(autouse=True)
def compiler_of_kernels(request: pytest.FixtureRequest) -> None:
    """The tests of the real kernels, ``test_cpu_*.py``, need a compiler."""
    if request.path.name.startswith("test_cpu_"):
        request.getfixturevalue("compiler")


@pytest.fixture(autouse=True, scope="session")
def sanitizer() -> None:
    sanitized.exact_buffers()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the builds, which is not made yet."""
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("CXX", "GPUCNN_CPU_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "cpu"


@pytest.fixture
def kernels(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of two small kernels, of which nothing is compiled yet."""
    folder = tmp_path / "kernels"
    write_kernels(folder)
    monkeypatch.setattr(builds, "_FOLDERS", (folder,))
    new_process(monkeypatch)
    yield folder
    forget_sources()
