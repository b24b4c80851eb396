"""Messages where no GPU can be used: one sentence for each reason. CuPy itself is never imported here."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from cupy_stub import INSUFFICIENT_DRIVER, NO_DEVICE, CUDARuntimeError, CupyStub

from gpucnn.backends.cuda.device import nvrtc
from gpucnn.backends.cuda.device.cupy_runtime import why_unavailable
from gpucnn.installing import install_command


def reason(monkeypatch: pytest.MonkeyPatch, cupy: Any, load: Any = lambda majors: None) -> str | None:
    """Why there is no GPU where `cupy` is installed, and `load` gives NVRTC; a sentence, in one line."""
    monkeypatch.setattr(nvrtc, "load", load)
    if isinstance(cupy, CupyStub):
        cupy.install(monkeypatch)
    else:
        monkeypatch.setitem(sys.modules, "cupy", cupy)
    said = why_unavailable()
    assert said is None or ("\n" not in said and not said.endswith("."))
    return said


INSTALL = install_command("cuda12")
OLD_DRIVER = "the NVIDIA driver is too old, it is for CUDA"
NO_GPU = "the NVIDIA driver finds no GPU: nvidia-smi should list one, and a container needs to be given it"
NO_CUBLAS = (
    "CuPy does not load the library cuBLAS of CUDA {}: pip install nvidia-cublas-cu12 for CUDA 12, "
    "nvidia-cublas for CUDA 13, or set CUDA_PATH"
)
CASES: dict[str, tuple[Any, str | None]] = {
    "nothing is lacking": (CupyStub(), None),
    "no CuPy": (  # None is what the import system takes for "not installed"
        None, f"CuPy is not installed: {INSTALL}; for a driver of CUDA 13, cuda13 instead of cuda12"
    ),
    **{
        f"old, {version}": (
            CupyStub(version=version), f"CuPy {version} is too old, expected 13.0 or later: {INSTALL}"
        ) for version in ("12.3.0", "9.0.0b1", "1.0")
    },
    **{f"new, {version}": (CupyStub(version=version), None) for version in ("13.0.0", "14.0.0a1", "15.1")},
    "for other GPUs": (
        CupyStub(is_hip=True),
        "this CuPy is built for AMD's GPUs, expected one for NVIDIA's: cupy-cuda12x or cupy-cuda13x",
    ),
    "no driver": (
        CupyStub(INSUFFICIENT_DRIVER, driver=0),
        "there is no NVIDIA driver: install one for CUDA 12, or where there is one give the container its GPUs "
        "(docker run --gpus all)",
    ),
    "an old driver for CUDA 13": (
        CupyStub(INSUFFICIENT_DRIVER, runtime=13000, driver=12040),
        f"{OLD_DRIVER} 12 and CuPy for CUDA 13: update it, or install cupy-cuda12x in place of this CuPy",
    ),
    "an old driver for CUDA 12": (
        CupyStub(INSUFFICIENT_DRIVER, runtime=12090, driver=11080), f"{OLD_DRIVER} 11 and CuPy for CUDA 12: update it"
    ),
    "no device": (CupyStub(0), NO_GPU),
    "no device, as an error": (CupyStub(NO_DEVICE), NO_GPU),
    "a CUDA that does not start": (
        CupyStub(CUDARuntimeError(802, "cudaErrorSystemNotReady: system not\nyet initialized")),
        "CUDA does not start on this machine: cudaErrorSystemNotReady: system not yet initialized",
    ),
    "no cuBLAS of CUDA 12": (CupyStub(runtime=12090, has_cublas=False), NO_CUBLAS.format(12)),
    "no cuBLAS of CUDA 13": (CupyStub(runtime=13000, has_cublas=False), NO_CUBLAS.format(13)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_lacking_is_told(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cupy, said = CASES[case]
    assert reason(monkeypatch, cupy) == said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ImportError("libcudart.so.12: cannot open\nshared object file"),
            "ImportError: libcudart.so.12: cannot open shared object file",
        ),
        (
            ModuleNotFoundError("No module named 'fastrlock'", name="fastrlock"),
            "ModuleNotFoundError: No module named 'fastrlock'",
        ),
    ],
)
def test_a_cupy_that_does_not_import(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def fail(name: str) -> Any:
        raise error

    monkeypatch.setattr("gpucnn.backends.cuda.device.cupy_runtime.import_module", fail)
    assert why_unavailable() == f"CuPy is installed but does not work, {said}"


def test_a_module_that_is_called_cupy_and_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    said = str(reason(monkeypatch, type(sys)("cupy")))
    assert said.startswith("CuPy is installed but does not work, AttributeError")


@pytest.mark.parametrize("devices", [0, NO_DEVICE])
@pytest.mark.parametrize("visible", ["", "-1", "7"])
def test_no_visible_device(monkeypatch: pytest.MonkeyPatch, devices: Any, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert reason(monkeypatch, CupyStub(devices)) == (
        f"no GPU is visible: CUDA_VISIBLE_DEVICES is {visible!r}, expected the number of a GPU, or not to be set"
    )


@pytest.mark.parametrize(
    ("runtime", "driver", "majors"), [(12090, 12020, (12,)), (12090, 13000, (12, 13)), (13000, 13000, (13, 12))]
)
def test_no_compiler(monkeypatch: pytest.MonkeyPatch, runtime: int, driver: int, majors: tuple[int, ...]) -> None:
    def load(wanted: tuple[int, ...]) -> Any:
        assert wanted == majors
        raise nvrtc.NvrtcNotFoundError(f"NVRTC {wanted} was not found: pip install it")

    said = reason(monkeypatch, CupyStub(runtime=runtime, driver=driver), load)
    assert said == f"NVRTC {majors} was not found: pip install it"
