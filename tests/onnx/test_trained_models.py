"""Trained models of packages: `gpucnn.onnx` computes what ONNX Runtime does, on NumPy, compiled and simulated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn.backends import available, backend_named

pytest.importorskip("onnx.checker", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

from benchmarks.trained_models import MODELS, PITCH, given, session
from gpucnn.onnx import load

Host = np.ndarray[Any, Any]
TOLERANCE = 1e-3  # of chances and features about 1 in size


def expected(path: Path, inputs: dict[str, Host]) -> dict[str, Host]:
    peer = session(path, threads=1)
    names = [output.name for output in peer.get_outputs()]
    return dict(zip(names, peer.run(names, inputs), strict=True))


def assert_close(found: dict[str, Any], right: dict[str, Host]) -> None:
    assert list(found) == list(right)
    for name, array in right.items():
        assert found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("backend", ["numpy", "compiled"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.table(1000)
def test_results_are_those_of_onnx_runtime(name: str, backend: str, model_file: Callable[..., Path]) -> None:
    if available()[backend] != "available":
        pytest.skip(available()[backend])
    path, inputs = model_file(*MODELS[name].file), given(MODELS[name].inputs)
    with gpucnn.backend(backend):
        found = load(path).run(inputs)
    assert_close(found, expected(path, inputs))


@pytest.mark.parametrize(
    ("name", "inputs"),
    [("ocr, turning", {"x": (1, 3, 48, 32)}), ("swift-f0", {"audio": (1, 2048), **PITCH})],
    ids=["ocr, turning", "swift-f0"],
)
def test_results_on_the_simulator(
    name: str, inputs: dict[str, Any], model_file: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    path, arrays = model_file(*MODELS[name].file), given(inputs)
    request.getfixturevalue("compiler")
    xp: Any = backend_named("simulator").xp
    moved = {key: xp.asarray(array) if array.ndim else array for key, array in arrays.items()}
    found = load(path).run(moved)
    assert_close({key: xp.asnumpy(array) for key, array in found.items()}, expected(path, arrays))
