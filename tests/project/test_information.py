"""`gpucnn.info()`: its facts about a machine, and the printed form."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from cupy_stub import CupyStub

import gpucnn
from gpucnn import information
from gpucnn.backends.cuda.device import cupy_runtime, nvrtc
from gpucnn.information import blas_advice, render
from gpucnn.paths import cache_folder


def test_info_is_plain_and_says_what_is_here() -> None:
    facts = gpucnn.info()
    assert json.loads(json.dumps(facts)) == facts
    assert [name for name in facts if name != "cuda"] == [
        "gpucnn", "python", "platform", "packages", "backends", "cpu", "processor", "threads", "blas", "precision",
        "cache",
    ]  # fmt: skip
    assert facts["gpucnn"] == gpucnn.__version__
    assert facts["python"] == platform.python_version()
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["backends"] == gpucnn.backends.available()
    assert facts["threads"] == gpucnn.get_num_threads()
    assert facts["precision"].startswith("fp32")


def test_the_precision_is_that_of_the_open_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUPY_TF32", "1")  # CuPy's own
    assert gpucnn.info()["precision"] == "fp32"
    with gpucnn.precision("tf32"):
        assert gpucnn.info()["precision"] == "tf32"


def test_gpus_are_shown_where_they_can_be_used(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = cupy.cuda.runtime
    properties = [runtime.getDeviceProperties(index) for index in range(runtime.getDeviceCount())]
    monkeypatch.setattr(nvrtc, "load", lambda majors: SimpleNamespace(version=(12, 9), supported=(80,)))
    monkeypatch.setattr(cupy_runtime, "cublas_version", lambda major: f"{major}.6.3")
    monkeypatch.setattr(runtime, "runtimeGetVersion", lambda: 12060)
    monkeypatch.setattr(runtime, "driverGetVersion", lambda: 13010)
    facts = gpucnn.info()
    assert facts["backends"]["cuda"] == "available"
    assert facts["cuda"] == {
        "devices": [
            f"{each['name'].decode()} (compute capability {each['major']}.{each['minor']}, "
            f"{each['multiProcessorCount']} multiprocessors)"
            for each in properties
        ],
        "driver": "for CUDA 13.1",
        "runtime": "CUDA 12.6",
        "nvrtc": "12.9",
        "builds": os.environ.get("GPUCNN_BUILDS", "specialised"),
        "cublas": "12.6.3",
    }
    assert json.loads(json.dumps(facts)) == facts


def test_gpus_that_cannot_be_used_are_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    CupyStub(devices=0).install(monkeypatch)
    facts = gpucnn.info()
    assert facts["backends"]["cuda"].startswith("not available: ")
    assert "cuda" not in facts


def test_packages_that_are_not_installed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(information, "PEERS", ("numpy", "no-such-package"))
    assert gpucnn.info()["packages"] == {"numpy": metadata.version("numpy")}


# --- The processor ------------------------------------------------------------------------------------------------


def test_the_processor() -> None:
    processor = gpucnn.info()["processor"]
    assert processor["name"]
    assert 1 <= processor["cores"] <= (os.cpu_count() or 1)
    assert isinstance(processor["vector extensions"], list)


def test_the_threads_are_those_that_operations_take() -> None:
    before = gpucnn.get_num_threads()
    try:
        gpucnn.set_num_threads(before + 5)
        assert gpucnn.info()["threads"] == before + 5
    finally:
        gpucnn.set_num_threads(before)


@pytest.mark.parametrize(
    ("cpuinfo", "chip", "expected"),
    [
        ("processor : 0\nmodel name\t: Fast 9000: X\nmodel name : another\n", "", "Fast 9000: X"),
        ("Features : fp asimd\n", "", platform.machine()),
        (None, "some chip", "some chip"),
        (None, "", platform.machine()),
    ],
)
def test_the_processors_name(monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None, chip: str, expected: str) -> None:
    def read_text(path: Path, **_: Any) -> str:
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(information, "PEERS", ())  # whose versions are read from files too
    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: chip)
    assert gpucnn.info()["processor"]["name"] == expected


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
    assert gpucnn.info()["processor"]["cores"] == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, cores in ((7, 7), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert gpucnn.info()["processor"]["cores"] == cores


# --- BLAS ---------------------------------------------------------------------------------------------------------


OURS = {
    "user_api": "blas", "filepath": "numpy.libs/libopenblas.so", "architecture": "Zen", "num_threads": 4,
    "version": "0.3.99",
}  # fmt: skip
OTHER = {"user_api": "blas", "filepath": "lib/libmkl_rt.so", "architecture": "other", "num_threads": 9}
OPENMP = {"user_api": "openmp", "filepath": "numpy/libgomp.so", "num_threads": 8}
BUILT = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    ("pools", "facts"),
    [
        ([OPENMP, OTHER, OURS], {"kernels": "Zen", "threads": 4, "version": "0.3.99"}),  # the one that NumPy loaded
        ([OPENMP, OTHER], {"kernels": "other", "threads": 9}),
        (
            [{"user_api": "blas", "num_threads": 2, "version": None}],
            {"kernels": "unknown", "threads": 2, "version": BUILT["version"]},
        ),
        ([], {}),
        (None, {"kernels": "unknown: install threadpoolctl to see them"}),
    ],
)
def test_blas_is_that_of_numpy(monkeypatch: pytest.MonkeyPatch, pools: list[Any] | None, facts: dict[str, Any]) -> None:
    """Where threadpoolctl finds `pools`, or is not installed."""
    monkeypatch.setattr(information, "_vector_extensions", lambda: ["AVX2"])
    monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda: pools)
    if pools is None:
        monkeypatch.setattr(information, "find_spec", lambda name: None)
    assert gpucnn.info()["blas"] == {"name": BUILT["name"], "version": BUILT["version"], **facts}


def test_blas_as_it_was_built() -> None:
    assert all(gpucnn.info()["blas"][name] for name in ("name", "version", "kernels"))


def test_blas_that_numpy_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "show_config", lambda mode: {})
    monkeypatch.setattr(threadpoolctl, "threadpool_info", list)
    assert gpucnn.info()["blas"] == {"name": "unknown", "version": "unknown"}


def test_blas_with_narrow_kernels_comes_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(information, "_vector_extensions", lambda: ["AVX2", "X86_V4"])
    for architecture, advised in (("Zen", True), ("SkylakeX", False)):
        pool = {**OURS, "architecture": architecture}
        monkeypatch.setattr(threadpoolctl, "threadpool_info", lambda pool=pool: [pool])
        assert ("OPENBLAS_CORETYPE=SkylakeX" in gpucnn.info()["blas"].get("advice", "")) == advised


@pytest.mark.parametrize(
    ("extensions", "kernels", "advised"),
    [
        (["AVX2"], "Haswell", False),
        (["AVX2", "AVX512_SKX"], "Haswell", True),
        (["AVX2", "AVX512_SKX"], "haswell", True),
        (["X86_V3", "X86_V4"], "Zen", True),
        (["X86_V3", "X86_V4"], "Excavator", True),
        (["X86_V3", "X86_V4"], "SkylakeX", False),
        (["X86_V3", "X86_V4"], "Cooperlake", False),
        (["X86_V3", "X86_V4"], "unknown", False),
        (["X86_V3", "X86_V4"], "", False),
        (["ASIMD", "SVE"], "neoversev1", False),
        ([], "Zen", False),
    ],
)
def test_advice_about_blas(extensions: list[str], kernels: str, advised: bool) -> None:
    advice = blas_advice(extensions, kernels)
    assert (advice is not None) == advised
    assert advice is None or f"({kernels})" in advice


# --- The cache ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "home", "expected"),
    [
        ("/kernels", "elsewhere", Path("/kernels")),
        ("~/kernels", "elsewhere", Path.home() / "kernels"),
        (None, "/caches", Path("/caches/gpucnn")),
        ("", "/caches", Path("/caches/gpucnn")),
        ("", "", Path.home() / ".cache" / "gpucnn"),
        (None, None, Path.home() / ".cache" / "gpucnn"),
    ],
)
def test_the_cache_folder(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, home: str | None, expected: Path
) -> None:
    for name, value in (("GPUCNN_CACHE_DIR", chosen), ("XDG_CACHE_HOME", home)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert cache_folder() == expected
    assert gpucnn.info()["cache"] == str(expected)


def test_asking_for_the_cache_folder_makes_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path / "not" / "yet"))
    gpucnn.info()
    assert not (tmp_path / "not").exists()


# --- In print -----------------------------------------------------------------------------------------------------


def test_render_aligns_and_indents() -> None:
    facts = {"a": 1, "long name": "x y", "none": [], "part": {"b": ["p", "q"], "deeper": {"c": None}}, "empty": {}}
    assert render(facts).splitlines() == [
        "a          1",
        "long name  x y",
        "none",
        "part",
        "  b       p, q",
        "  deeper",
        "    c  None",
        "empty",
    ]
    assert render({}) == ""


def test_main_prints_the_facts(capsys: pytest.CaptureFixture[str]) -> None:
    information.main()
    assert capsys.readouterr().out == render(gpucnn.info()) + "\n"


def test_the_module_runs_as_a_command() -> None:
    environ = {**os.environ, "GPUCNN_NUM_THREADS": "3"}
    ran = subprocess.run([sys.executable, "-m", "gpucnn"], env=environ, capture_output=True, text=True, check=True)
    lines = ran.stdout.splitlines()
    assert lines[0].split() == ["gpucnn", gpucnn.__version__]
    assert any(line.split() == ["numpy", "available"] for line in lines)
    assert [line.split()[1] for line in lines if line.startswith("threads")] == ["3"]
    assert any(line.split()[:2] in (["cuda", "not"], ["cuda", "available"]) for line in lines)
    assert not any(line.endswith(" ") for line in lines)
    assert ran.stderr == ""
