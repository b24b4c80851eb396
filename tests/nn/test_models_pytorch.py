"""The networks of the literature against PyTorch's: state dicts through files, results and gradients."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layer_cases import NETWORKS
from tolerances import assert_close
from torch_peers import compare

from gpucnn import nn
from gpucnn.nn import models

TWINS = {name: case for name, case in NETWORKS.items() if case.twin is not None}


@pytest.fixture(scope="module")
def twins(torch: Any) -> Any:
    return importlib.import_module("benchmarks.networks.pytorch")


def _twin(torch: Any, make: Callable[[], Any], dtype: str, seed: int = 0) -> Any:
    """PyTorch's network with its random weights, and norms whose statistics, weights and biases are random too."""
    torch.manual_seed(seed)
    twin = make().to(getattr(torch, dtype))
    for module in twin.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, (low, high) in (
                (module.weight, (0.5, 1.5)),
                (module.bias, (-0.5, 0.5)),
                (module.running_mean, (-0.5, 0.5)),
                (module.running_var, (0.5, 2.0)),
            ):
                torch.nn.init.uniform_(values, low, high)
    return twin


def _load(twin: Any, model: nn.Module, folder: Path) -> None:
    """Hand the weights over by a file that PyTorch's side of safetensors writes."""
    files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    files.save_file(twin.state_dict(), folder / "twin.safetensors")
    assert nn.load_weights(model, folder / "twin.safetensors") == ([], [])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("name", TWINS)
def test_results_gradients_and_statistics(torch: Any, twins: Any, tmp_path: Path, name: str, training: bool) -> None:
    """In float64, where what is not rounding shows."""
    case = TWINS[name]
    twin = _twin(torch, lambda: case.twin(twins), "float64").train(training)
    model = case.make(np.float64).train(training)
    _load(twin, model, tmp_path)
    x = np.random.default_rng(2).standard_normal(case.shape)
    compare(torch, model, twin, x, factor=10)


@pytest.mark.parametrize("name", TWINS)
def test_pytorch_reads_what_is_saved_by_torchvisions_names(torch: Any, twins: Any, tmp_path: Path, name: str) -> None:
    files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    model, twin = TWINS[name].make(np.float32), TWINS[name].twin(twins)
    nn.save_weights(model, tmp_path / "model.safetensors")
    twin.load_state_dict(files.load_file(tmp_path / "model.safetensors"), strict=True)
    assert list(model.state_dict()) == list(twin.state_dict())
    for key, values in twin.state_dict().items():
        np.testing.assert_array_equal(values.numpy(), model.state_dict()[key], err_msg=key)


# A rectifier's gradient jumps at 0, so two networks whose sums are rounded otherwise can differ by more than rounding.
# With this seed no rectifier's input comes nearer to 0 than a millionth of the largest: rounding is a tenth of that.
SEED = 62


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("size", [64, 224])
def test_resnet18(torch: Any, twins: Any, tmp_path: Path, size: int, training: bool) -> None:
    """At its full width and in float32."""
    twin = _twin(torch, lambda: twins.ResNet((2, 2, 2, 2), 1000, 64, False), "float32", SEED).train(training)
    model = models.resnet18(rng=1).train(training)
    _load(twin, model, tmp_path)
    x = np.random.default_rng(2).standard_normal((2, 3, size, size)).astype(np.float32)
    if size == 64:
        compare(torch, model, twin, x, 3, factor=10)
    else:
        with torch.no_grad():
            assert_close(model(x), twin(torch.from_numpy(x)).numpy(), factor=10)
