"""Messages where no GPU can be used: one sentence for each reason. CuPy itself is never imported here."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from fake_cupy import INSUFFICIENT_DRIVER, NO_DEVICE, CUDARuntimeError, FakeCupy

from gpucnn.backends.cuda.device import nvrtc
from gpucnn.backends.cuda.device.cupy_runtime import why_unavailable
from gpucnn.installing import install_command


@pytest.fixture(autouse=True)
def nvrtc_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that these tests say the same where it is not installed."""
    monkeypatch.setattr(nvrtc, "load", lambda majors: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def installed(monkeypatch: pytest.MonkeyPatch, cupy: Any) -> None:
    """Let `cupy` be what is installed: a fake, something else, or None for nothing."""
    if isinstance(cupy, FakeCupy):
        cupy.install(monkeypatch)
    else:
        monkeypatch.setitem(sys.modules, "cupy", cupy)


def reason(monkeypatch: pytest.MonkeyPatch, cupy: Any) -> str:
    """Why there is no GPU where `cupy` is what is installed; a sentence, in one line."""
    installed(monkeypatch, cupy)
    said = why_unavailable()
    assert said is not None
    assert "\n" not in said
    assert not said.endswith(".")
    return said


def test_nothing_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, FakeCupy())
    assert why_unavailable() is None


def test_no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    said = reason(monkeypatch, None)  # what the import system takes for "not installed"
    assert (
        said == f"CuPy is not installed: {install_command('cuda12')}; for a driver of CUDA 13, cuda13 instead of cuda12"
    )


@pytest.mark.parametrize("version", ["12.3.0", "9.0.0b1", "1.0"])
def test_an_old_cupy(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    said = reason(monkeypatch, FakeCupy(version=version))
    assert said == f"CuPy {version} is too old, expected 13.0 or later: {install_command('cuda12')}"


@pytest.mark.parametrize("version", ["13.0.0", "14.0.0a1", "15.1"])
def test_a_cupy_that_is_new_enough(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    installed(monkeypatch, FakeCupy(version=version))
    assert why_unavailable() is None


def test_a_cupy_for_other_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    said = reason(monkeypatch, FakeCupy(is_hip=True))
    assert said == "this CuPy is built for AMD's GPUs, expected one for NVIDIA's: cupy-cuda12x or cupy-cuda13x"


def test_a_cupy_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ImportError("libcudart.so.12: cannot open\nshared object file")

    monkeypatch.setattr("gpucnn.backends.cuda.device.cupy_runtime.import_module", fail)
    assert why_unavailable() == (
        "CuPy is installed but does not work, ImportError: libcudart.so.12: cannot open shared object file"
    )


def test_a_module_that_cupy_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'fastrlock'", name="fastrlock")

    monkeypatch.setattr("gpucnn.backends.cuda.device.cupy_runtime.import_module", fail)
    assert why_unavailable() == (
        "CuPy is installed but does not work, ModuleNotFoundError: No module named 'fastrlock'"
    )


def test_a_module_that_is_called_cupy_and_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reason(monkeypatch, type(sys)("cupy")).startswith("CuPy is installed but does not work, AttributeError")


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    said = reason(monkeypatch, FakeCupy(INSUFFICIENT_DRIVER, driver=0))
    assert said == (
        "there is no NVIDIA driver: install one for CUDA 12, or where there is one give the container its GPUs "
        "(docker run --gpus all)"
    )


@pytest.mark.parametrize(
    ("runtime", "driver", "expected"),
    [
        (13000, 12040, "12 and CuPy for CUDA 13: update it, or install cupy-cuda12x in place of this CuPy"),
        (12090, 11080, "11 and CuPy for CUDA 12: update it"),
    ],
)
def test_an_old_driver(monkeypatch: pytest.MonkeyPatch, runtime: int, driver: int, expected: str) -> None:
    said = reason(monkeypatch, FakeCupy(INSUFFICIENT_DRIVER, runtime=runtime, driver=driver))
    assert said == f"the NVIDIA driver is too old, it is for CUDA {expected}"


@pytest.mark.parametrize("devices", [0, NO_DEVICE])
@pytest.mark.parametrize("visible", ["", "-1", "7"])
def test_no_visible_device(monkeypatch: pytest.MonkeyPatch, devices: Any, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    said = reason(monkeypatch, FakeCupy(devices))
    assert said == (
        f"no GPU is visible: CUDA_VISIBLE_DEVICES is {visible!r}, expected the number of a GPU, or not to be set"
    )


@pytest.mark.parametrize("devices", [0, NO_DEVICE])
def test_no_device(monkeypatch: pytest.MonkeyPatch, devices: Any) -> None:
    said = reason(monkeypatch, FakeCupy(devices))
    assert said == "the NVIDIA driver finds no GPU: nvidia-smi should list one, and a container needs to be given it"


def test_a_cuda_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    said = reason(monkeypatch, FakeCupy(CUDARuntimeError(802, "cudaErrorSystemNotReady: system not\nyet initialized")))
    assert said == "CUDA does not start on this machine: cudaErrorSystemNotReady: system not yet initialized"


@pytest.mark.parametrize(
    ("runtime", "driver", "majors"), [(12090, 12020, (12,)), (12090, 13000, (12, 13)), (13000, 13000, (13, 12))]
)
def test_no_compiler(monkeypatch: pytest.MonkeyPatch, runtime: int, driver: int, majors: tuple[int, ...]) -> None:
    def load(wanted: tuple[int, ...]) -> Any:
        assert wanted == majors
        raise nvrtc.NvrtcNotFoundError(f"NVRTC {wanted} was not found: pip install it")

    monkeypatch.setattr(nvrtc, "load", load)
    said = reason(monkeypatch, FakeCupy(runtime=runtime, driver=driver))
    assert said == f"NVRTC {majors} was not found: pip install it"


@pytest.mark.parametrize(("runtime", "major"), [(12090, 12), (13000, 13)])
def test_no_cublas(monkeypatch: pytest.MonkeyPatch, runtime: int, major: int) -> None:
    said = reason(monkeypatch, FakeCupy(runtime=runtime, has_cublas=False))
    assert said == (
        f"CuPy does not load the library cuBLAS of CUDA {major}: pip install nvidia-cublas-cu12 for CUDA 12, "
        "nvidia-cublas for CUDA 13, or set CUDA_PATH"
    )
