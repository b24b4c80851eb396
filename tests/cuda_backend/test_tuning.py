"""Picks of algorithms: timed, kept, read and gone by where that is asked for, and nowhere else."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpucnn
import gpucnn.functional as F
from gpucnn import simulator, tuning
from gpucnn.backends.cuda.convolution.select import algorithm
from gpucnn.backends.cuda.device import autotune_cache as picks_module
from gpucnn.backends.cuda.device.autotune_cache import AutotuneCache
from gpucnn.backends.cuda.device.runtime import Device
from gpucnn.backends.cuda.launch.plans import dense
from gpucnn.geometry.geometries import Channels, conv_geometry
from gpucnn.numerics import choices
from gpucnn.simulator import namespace

DEVICE = Device(0, "A GPU", (9, 0), 132)
GEOMETRY = conv_geometry("conv2d", (8, 8), Channels(4, 8), 3, 1, 1, 1)
OTHER = conv_geometry("conv2d", (8, 8), Channels(4, 8), 3, 2, 1, 1)
TIMES = {"direct": 2.0, "im2col": 1.0}


# --- On disk ------------------------------------------------------------------------------------------------------


def test_a_pick_is_found_by_another_process(tmp_path: Path) -> None:
    assert AutotuneCache(DEVICE, 12090, tmp_path).keep("forward", GEOMETRY, "float32", TIMES) == "im2col"
    later = AutotuneCache(DEVICE, 12090, tmp_path)
    assert later.algorithm("forward", GEOMETRY, "float32") == "im2col"
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    assert (content["device"], content["milliseconds"]) == ("A GPU", TIMES)
    file.unlink()
    assert later.algorithm("forward", GEOMETRY, "float32") == "im2col"  # it was read


@pytest.mark.parametrize(
    ("device", "driver", "case"),
    [
        (Device(0, "Another", (9, 0), 132), 12090, ("forward", GEOMETRY, "float32")),
        (Device(0, "A GPU", (8, 0), 132), 12090, ("forward", GEOMETRY, "float32")),
        (DEVICE, 13000, ("forward", GEOMETRY, "float32")),
        (DEVICE, 12090, ("backward_input", GEOMETRY, "float32")),
        (DEVICE, 12090, ("forward", OTHER, "float32")),
        (DEVICE, 12090, ("forward", GEOMETRY, "float64")),
    ],
)
def test_a_pick_is_for_what_was_timed(tmp_path: Path, device: Device, driver: int, case: Any) -> None:
    AutotuneCache(DEVICE, 12090, tmp_path).keep("forward", GEOMETRY, "float32", TIMES)
    assert AutotuneCache(device, driver, tmp_path).algorithm(*case) is None


def test_a_pick_of_another_version_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AutotuneCache(DEVICE, 12090, tmp_path).keep("forward", GEOMETRY, "float32", TIMES)
    monkeypatch.setattr(picks_module, "__version__", "9.9")
    assert AutotuneCache(DEVICE, 12090, tmp_path).algorithm("forward", GEOMETRY, "float32") is None


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"algorithm": "direct"}', "null", "\udcff"])
def test_spoiled_files_are_ignored_with_one_warning(tmp_path: Path, content: str) -> None:
    stored = AutotuneCache(DEVICE, 12090, tmp_path)
    for geometry in (GEOMETRY, OTHER):
        stored.keep("forward", geometry, "float32", TIMES)
    for file in tmp_path.iterdir():
        file.write_bytes(content.encode("utf-8", "surrogateescape"))
    later = AutotuneCache(DEVICE, 12090, tmp_path)
    with pytest.warns(RuntimeWarning, match="holds no pick and is ignored") as caught:
        assert [later.algorithm("forward", geometry, "float32") for geometry in (GEOMETRY, OTHER)] == [None, None]
    assert len(caught) == 1


def test_several_may_keep_at_once(tmp_path: Path) -> None:
    def keep(number: int) -> None:
        AutotuneCache(DEVICE, 12090, tmp_path).keep("forward", GEOMETRY, "float32", {"direct": 1.0 + number})

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(keep, range(40)))
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["algorithm"] == "direct"


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "picks").write_text("")
    stored = AutotuneCache(DEVICE, 12090, tmp_path / "picks")
    with pytest.raises(OSError, match="picks"):
        stored.keep("forward", GEOMETRY, "float32", TIMES)


def test_the_folder_is_the_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path))
    AutotuneCache(DEVICE, 12090).keep("forward", GEOMETRY, "float32", TIMES)
    assert len(list((tmp_path / "autotune").iterdir())) == 1


# --- Timed by a clock that is told --------------------------------------------------------------------------------


class TimedBackend:
    """The simulator as if it were a GPU on which each algorithm takes as long as it is told."""

    xp = namespace

    def device(self, array: Any) -> Device:
        return DEVICE

    def __init__(self, folder: Path, times: dict[str, float]) -> None:
        self.runtime = self
        self.folder, self.times = folder, times
        self.kept = AutotuneCache(DEVICE, 12090, folder)
        self.timed: list[str] = []

    def autotune_cache(self, anew: bool = False) -> AutotuneCache:
        if anew:
            self.kept = AutotuneCache(DEVICE, 12090, self.folder)
        return self.kept

    def milliseconds(self, call: Callable[[], object], runs: int) -> float:
        assert runs >= 10
        call()
        probe: Any = choices().picks
        (name,) = probe._told.values()
        self.timed.append(name)
        return self.times[name]


@pytest.fixture
def timed(compiler: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TimedBackend:
    backend = TimedBackend(tmp_path, dict.fromkeys(TIMED, 2.0) | {"im2col": 1.0})
    monkeypatch.setattr(tuning, "backend_named", lambda name: {"cuda": backend}[name])
    return backend


TIMED = ("direct", "im2col", "implicit_gemm", "winograd")  # algorithms of 3 x 3 taps in float32, in their order
CASE = ("conv2d", {"input": (2, 4, 8, 8), "weight": (8, 4, 3, 3), "padding": 1})


def selected(direction: str = "forward", dtype: str = "float32") -> str:
    x, y = (
        dense((2, channels, *size), np.dtype(dtype).itemsize)
        for channels, size in zip(GEOMETRY.channels[:2], (GEOMETRY.input_size, GEOMETRY.output_size), strict=True)
    )
    return algorithm(direction, GEOMETRY, dtype, x, y, (8, 0))


@pytest.mark.parametrize("quicker", TIMED)
def test_the_quicker_one_is_picked_and_gone_by_where_that_is_asked_for(timed: TimedBackend, quicker: str) -> None:
    timed.times = {name: 1.0 if name == quicker else 2.0 for name in TIMED}
    before = selected()
    (pick,) = gpucnn.tune([CASE], progress=False)
    assert (pick.operation, pick.direction, pick.algorithm, pick.milliseconds) == (
        "conv2d", "forward", quicker, timed.times
    )  # fmt: skip
    assert tuple(timed.timed) == TIMED
    assert selected() == before  # nothing depends on a device outside
    x, w = (
        simulator.asarray(np.random.default_rng(1).standard_normal(shape, np.float32))
        for shape in ((2, 4, 8, 8), (8, 4, 3, 3))
    )
    with gpucnn.algorithm(quicker):
        expected = simulator.asnumpy(F.conv2d(x, w, padding=1)).tobytes()
    with gpucnn.tuned():
        assert selected() == quicker
        for _ in range(2):
            assert simulator.asnumpy(F.conv2d(x, w, padding=1)).tobytes() == expected
        with gpucnn.algorithm("direct"):
            assert selected() == "direct"
        assert selected("backward_weight") == before  # which was not timed
    assert choices().picks is None


def test_a_backward_has_picks_of_its_own(timed: TimedBackend) -> None:
    picks = gpucnn.tune([CASE], backward=True, progress=False)
    assert [pick.direction for pick in picks] == ["forward", "backward_input", "backward_weight"]


def test_tuning_again_takes_the_place_of_a_pick(timed: TimedBackend) -> None:
    for quicker in ("direct", "im2col"):
        timed.times = {name: 1.0 if name == quicker else 2.0 for name in TIMED}
        gpucnn.tune([CASE], progress=False)
        with gpucnn.tuned():
            assert selected() == quicker
            with gpucnn.precision("tf32"):
                assert selected() == "implicit_gemm"  # which was not timed at this precision


@pytest.mark.thorough
def test_what_has_one_algorithm_is_not_timed(timed: TimedBackend) -> None:
    cases = [CASE, ("max_pool2d", {"input": (1, 1, 4, 4), "kernel_size": 2})]
    assert gpucnn.tune(cases, dtype="int32", progress=False) == []
    assert not timed.timed


def test_a_pick_that_computes_nothing_is_passed_over(timed: TimedBackend) -> None:
    timed.kept.keep("forward", GEOMETRY, "int32", {"im2col": 1.0})
    timed.kept.keep("forward", GEOMETRY, "float32", {"wgmma": 1.0})
    with gpucnn.tuned():
        assert selected(dtype="int32") == "direct"
        assert selected() in TIMED


def test_wrong_cases(timed: TimedBackend) -> None:
    with pytest.raises(ValueError, match="tune: case 0 is 'conv9d', expected the name of an operation"):
        gpucnn.tune([("conv9d", {})])
    with pytest.raises(TypeError, match="tune: case 0, relu: input is 5, expected a shape"):
        gpucnn.tune([("relu", {"input": 5})])
    with pytest.raises(ValueError, match=r"tune: case 0 is ReLU.*, expected the name of an operation"):
        gpucnn.tune([(gpucnn.nn.ReLU(), (1, 2))])


def test_without_a_gpu_it_says_so() -> None:
    if gpucnn.backends.available()["cuda"] == "available":
        pytest.skip("there is a GPU")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in (lambda: gpucnn.tune([CASE]), lambda: gpucnn.tuned().__enter__()):
            with pytest.raises(RuntimeError, match=r"CuPy|GPU|driver"):
                call()
