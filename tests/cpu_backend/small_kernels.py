"""Two small files of kernels, which compile in no time, and what a process knows about its builds."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from gpucnn.backends.cpu import builds
from gpucnn.compilation import trust

_KERNEL = """#include "vectors.hpp"
extern "C" __attribute__((visibility("default"))) int64_t {name}() {{ return {value} * sizeof(SCALAR); }}
"""
VALUES = {("one", "float32"): 4, ("one", "float64"): 8, ("two", "float32"): 8, ("two", "float64"): 16}
FIRST_VALUES = {key: value for key, value in VALUES.items() if key[1] == "float32"}  # of what the first operation loads


def write_kernels(folder: Path) -> None:
    """The sources: ``one.cpp`` and ``two.cpp``."""
    folder.mkdir()
    (folder / "vectors.hpp").write_text("#include <cstdint>\n")
    for value, name in enumerate(("one", "two"), start=1):
        (folder / f"{name}.cpp").write_text(_KERNEL.format(name=name, value=value))


def values() -> dict[tuple[str, str], int]:
    """What the loaded kernels return, by file and dtype."""
    return {(file, dtype): getattr(library, file)() for (file, dtype), library in builds._libraries.items()}


def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what this process has read, loaded, decided and said."""
    forget_sources()
    for name, value in (("_libraries", {}), ("_failures", {}), ("_said", set()), ("_lock", threading.Lock())):
        monkeypatch.setattr(builds, name, value)
    monkeypatch.setattr(trust, "_warned", False)


def forget_sources() -> None:
    for function in (builds.folder, builds.text, builds._headers):
        function.cache_clear()
