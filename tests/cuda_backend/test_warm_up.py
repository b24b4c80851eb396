"""Warming up: what is compiled and planned ahead, what is checked, and what is left as it was."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cupy_stub import NO_DEVICE, CupyStub
from cupy_watch import Watch

import gpucnn
import gpucnn.functional as F
from gpucnn import backends, nn, simulator
from gpucnn.backends.cuda.convolution import gemm as products
from gpucnn.backends.cuda.launch import plans as launching
from gpucnn.backends.cuda.resampling import resampling
from gpucnn.backends.numpy import NumpyBackend

CONV = ("conv2d", {"input": (2, 4, 8, 8), "weight": (8, 4, 3, 3), "bias": (8,), "padding": 1})
POOL = ("max_pool2d", {"input": (2, 4, 8, 8), "kernel_size": 2})
NORM = ("layer_norm", {"input": (3, 5), "normalized_shape": 5})
UNPOOL = ("max_unpool1d", {"input": (2, 4, 3), "indices": (2, 4, 3), "kernel_size": 2})


# --- On the simulator ---------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.usefixtures("compiler")
def test_what_was_warmed_up_decides_nothing_more() -> None:
    done = gpucnn.warmup([CONV, POOL, NORM, UNPOOL], backend="simulator", backward=True, progress=False)
    assert (done.cases, done.compiled + done.found > 4, done.seconds > 0) == (4, True, True)
    before = launching._plan.cache_info().misses
    x, w, b = (simulator.asarray(np.ones(shape, np.float32)) for shape in ((2, 4, 8, 8), (8, 4, 3, 3), (8,)))
    y = F.conv2d(x, w, b, padding=1)
    F.conv2d_backward(y, x, w, b, padding=1)
    F.max_pool2d(x, 2)
    assert launching._plan.cache_info().misses == before
    again = gpucnn.warmup([CONV, POOL, NORM, UNPOOL], backend="simulator", backward=True, progress=False)
    assert (again.compiled, again.found) == (0, done.compiled + done.found)


@pytest.mark.usefixtures("compiler")
def test_products_and_interpolations_are_planned_too() -> None:
    cases = [
        ("conv2d", {"input": (2, 16, 8, 8), "weight": (16, 16, 3, 3), "bias": (16,), "padding": 1}),
        ("interpolate", {"input": (2, 3, 4, 4), "size": 7, "mode": "bilinear"}),
    ]
    gpucnn.warmup(cases, backend="simulator", backward=True, progress=False)
    caches = (launching._plan, products._plan, resampling._tables)
    before = [cache.cache_info().misses for cache in caches]
    x, w, b, grad = (
        simulator.asarray(np.ones(shape, np.float32)) for shape in ((2, 16, 8, 8), (16, 16, 3, 3), (16,), (2, 16, 8, 8))
    )
    F.conv2d(x, w, b, padding=1)
    F.conv2d_backward(grad, x, w, b, padding=1)
    F.interpolate(simulator.asarray(np.ones((2, 3, 4, 4), np.float32)), 7, mode="bilinear")
    assert [cache.cache_info().misses for cache in caches] == before


@pytest.mark.thorough
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", ["float16", np.float64])
def test_dtype_and_memory_order(dtype: Any, channels_last: bool) -> None:
    gpucnn.warmup([POOL], backend="simulator", dtype=dtype, channels_last=channels_last, progress=False)
    before = launching._plan.cache_info().misses
    host = np.ones((2, 8, 8, 4) if channels_last else (2, 4, 8, 8), dtype)
    F.max_pool2d(simulator.asarray(np.moveaxis(host, -1, 1) if channels_last else host), 2)
    assert launching._plan.cache_info().misses == before


@pytest.mark.table(1)
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("backward", [False, True])
def test_a_model_is_left_as_it_was(backward: bool) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)).to("simulator")
    state = {name: simulator.asnumpy(array).copy() for name, array in model.state_dict().items()}
    done = gpucnn.warmup([(model, (2, 2, 8, 8))], backward=backward, backend="simulator", progress=False)
    assert done.compiled + done.found >= 3
    assert all((simulator.asnumpy(array) == state[name]).all() for name, array in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    before = launching._plan.cache_info().misses
    with contextlib.nullcontext() if backward else nn.inference():
        model.train(backward)(simulator.asarray(np.zeros((2, 2, 8, 8), model[0].weight.data.dtype)))
    assert launching._plan.cache_info().misses == before


# --- On NumPy -----------------------------------------------------------------------------------------------------


def test_numpy_checks_and_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NumpyBackend, "convolve", lambda *arguments: pytest.fail("computed"))
    monkeypatch.setattr(simulator, "available", lambda: "not available: no compiler")
    done = gpucnn.warmup([CONV, POOL, NORM], backend="numpy", backward=True, progress=False)
    assert (done.cases, done.compiled, done.found) == (3, 0, 0)
    big = ("conv2d", {"input": (512, 256, 224, 224), "weight": (256, 256, 3, 3)})  # 25 GB, that no one touches
    assert gpucnn.warmup([big], backend="numpy", dtype=np.float16, progress=False).cases == 1


def test_a_model_of_numpy_arrays_is_run() -> None:
    assert gpucnn.warmup([(nn.Linear(3, 2), (4, 3)), (nn.ReLU(), (4, 3))], backend="numpy", progress=False).cases == 2


# --- On CuPy ------------------------------------------------------------------------------------------------------


def test_programs_are_compiled_ahead_and_then_found(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path))
    with gpucnn.algorithm("direct"):
        done = gpucnn.warmup([CONV, POOL], progress=False)
        assert (done.cases, done.compiled, done.found) == (2, 2, 0)
        assert len(watch.launches) == 2
        again = gpucnn.warmup([CONV, POOL], progress=False)
        assert (again.compiled, again.found) == (0, 2)
        backends._cupy_backend.cache_clear()  # as in a new process
        later = gpucnn.warmup([CONV, POOL], progress=False)
        assert (later.compiled, later.found) == (0, 2)


def test_a_backend_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    CupyStub(devices=NO_DEVICE).install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    backends._cupy_backend.cache_clear()
    with pytest.raises(RuntimeError, match="the NVIDIA driver finds no GPU"):
        gpucnn.warmup([POOL])
    with pytest.raises(ValueError, match="backend_named: name is 'gpu', expected one of"):
        gpucnn.warmup([POOL], backend="gpu")


# --- What is refused ----------------------------------------------------------------------------------------------

WRONG: list[tuple[Any, type[Exception], str]] = [
    ("conv2d", ValueError, "warmup: case 0 is 'conv2d', expected an operation and its arguments, or a model and a"),
    (("conv2d",), ValueError, r"warmup: case 0 is \('conv2d',\), expected an operation"),
    (("conv4d", {}), ValueError, "warmup: case 0 is 'conv4d', expected the name of an operation of gpucnn.functional"),
    ((F.conv2d, {}), TypeError, "warmup: case 0 is of type function, expected the name of an operation or a Module"),
    (("relu", [(1, 2)]), TypeError, r"warmup: case 0, relu, has arguments \[\(1, 2\)\], expected a dict of them by"),
    (("relu", {"input": 5}), TypeError, "warmup: case 0, relu: input is 5, expected a shape"),
    (("relu", {"input": (2, 1.5)}), TypeError, r"warmup: case 0, relu: input is 1.5, expected a shape"),
    (("relu", {"x": (2,)}), TypeError, "warmup: case 0, relu: missing a required argument: 'input'"),
    (("relu", {"input": (2,), "y": 1}), TypeError, "warmup: case 0, relu: got an unexpected keyword argument 'y'"),
    ((nn.ReLU(), 5), TypeError, "warmup: case 0: the shape of the input is 5, expected a shape"),
]


@pytest.mark.parametrize(("case", "error", "message"), WRONG, ids=lambda item: None)
def test_wrong_cases(case: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gpucnn.warmup([case], backend="numpy", progress=False)


def test_errors_of_an_operation_say_which_case_it_was() -> None:
    wrong = ("conv2d", {"input": (2, 4, 8, 8), "weight": (8, 3, 3, 3)})
    with pytest.raises(ValueError, match="conv2d: input has shape") as caught:
        gpucnn.warmup([CONV, wrong], backend="numpy", progress=False)
    assert caught.value.__notes__ == [f"warmup: case 1 is conv2d with {wrong[1]}"]


# --- Progress -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("compiler")
def test_lines_of_progress(capsys: pytest.CaptureFixture[str]) -> None:
    done = gpucnn.warmup([POOL, POOL], backend="simulator")
    programs = done.compiled + done.found
    assert capsys.readouterr().err.splitlines()[-2:] == [
        f"warmup: programs ready {programs}/{programs}", "warmup: cases run 2/2"
    ]  # fmt: skip
    gpucnn.warmup([POOL], backend="simulator", progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("with_rich", [True, False])
def test_a_bar_where_there_is_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, with_rich: bool
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    if not with_rich:
        monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert gpucnn.warmup([POOL, CONV], backend="simulator").cases == 2
    assert ("warmup: cases run 2/2" in capsys.readouterr().err) is not with_rich
