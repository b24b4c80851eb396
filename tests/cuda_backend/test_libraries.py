"""The search for NVIDIA's libraries: cuda-pathfinder first, then the system's loader."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpucnn.backends.cuda.device.libraries import cublas_version, places


def with_pathfinder(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    """Let cuda-pathfinder, where it is asked for a library, give the path `found` or raise it."""

    def load(library: str) -> Any:
        if isinstance(found, Exception):
            raise found
        return SimpleNamespace(abs_path=f"{found}/{library}")

    monkeypatch.setitem(sys.modules, "cuda.pathfinder", SimpleNamespace(load_nvidia_dynamic_lib=load))


def test_what_cuda_pathfinder_finds_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with_pathfinder(monkeypatch, "/site/nvidia")
    assert list(places("nvrtc", (13, 12))) == ["/site/nvidia/nvrtc", "libnvrtc.so.13", "libnvrtc.so.12"]
    assert list(places("cublas", (12,))) == ["/site/nvidia/cublas", "libcublas.so.12"]


def test_the_systems_own_is_taken_where_cuda_pathfinder_finds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with_pathfinder(monkeypatch, RuntimeError("Failure finding"))
    assert list(places("nvrtc", (12,))) == ["libnvrtc.so.12"]


@pytest.mark.parametrize(
    ("platform", "names"),
    [
        ("linux", ["libnvrtc.so.13", "libnvrtc.so.12", "libcublas.so.12"]),
        ("win32", ["nvrtc64_130_0.dll", "nvrtc64_120_0.dll", "cublas64_12.dll"]),
    ],
)
def test_the_systems_own_is_taken_without_cuda_pathfinder(
    monkeypatch: pytest.MonkeyPatch, platform: str, names: list[str]
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)  # what the import system takes for "not installed"
    assert [*places("nvrtc", (13, 12)), *places("cublas", (12,))] == names


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("code", "version"),
    [
        ('extern "C" int cublasGetProperty(int which, int* value) { *value = 12 - which; return 0; }', "12.11.10"),
        ('extern "C" int cublasGetProperty(int which, int* value) { return which == 2; }', "unknown"),
        ("int other;", "unknown"),
    ],
)
def test_cublas_says_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, version: str) -> None:
    command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(tmp_path / "cublas")]
    subprocess.run(command, input=code, text=True, check=True)
    with_pathfinder(monkeypatch, tmp_path)
    assert cublas_version(98) == version


def test_a_cublas_that_is_nowhere_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    with_pathfinder(monkeypatch, "/nowhere")
    assert cublas_version(98) == "unknown"
