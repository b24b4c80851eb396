"""The networks of the literature against PyTorch's: state dicts through files, results and gradients."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from layer_cases import NETWORKS

from gpucnn import nn
from gpucnn.nn import models

Host = np.ndarray[Any, Any]

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


class Run(NamedTuple):
    """A result, the gradient of the input, and those of the parameters."""

    output: Host
    grad_input: Host
    grads: dict[str, Host]


def _run_twin(torch: Any, twin: Any, x: Host, seed: int) -> Run:
    given = torch.from_numpy(x).requires_grad_()
    output = twin(given)
    output.backward(torch.from_numpy(_grad(output.shape, x.dtype, seed)))
    grads = {name: parameter.grad.numpy() for name, parameter in twin.named_parameters()}
    return Run(output.detach().numpy(), given.grad.numpy(), grads)


def _run(model: nn.Module, x: Host, seed: int) -> Run:
    output = model(x)
    grad_input = model.backward(_grad(output.shape, x.dtype, seed))
    return Run(output, grad_input, {name: parameter.grad for name, parameter in model.named_parameters()})


def _grad(shape: Any, dtype: Any, seed: int) -> Host:
    return np.random.default_rng(seed).standard_normal(tuple(shape)).astype(dtype)


def _assert_same(actual: Run, expected: Run, output: float, gradient: float) -> None:
    """Errors relative to the largest magnitude of each array; of gradients that cancel to nothing, of all of them."""
    _assert_near("the output", actual.output, expected.output, output)
    _assert_near("the input's gradient", actual.grad_input, expected.grad_input, gradient)
    assert list(actual.grads) == list(expected.grads)
    least = 1e-3 * max(float(abs(grad).max()) for grad in expected.grads.values())
    for name, grad in expected.grads.items():
        _assert_near(f"the gradient of {name}", actual.grads[name], grad, gradient, least)


def _assert_near(what: str, actual: Host, expected: Host, tolerance: float, least: float = 0.0) -> None:
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), what
    scale = max(float(abs(expected).max()), least)
    error = float(abs(actual - expected).max()) / scale
    assert error <= tolerance, f"{what} is off by {error:.2e} of its largest magnitude, expected at most {tolerance}"


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("name", TWINS)
def test_results_gradients_and_statistics(torch: Any, twins: Any, tmp_path: Path, name: str, training: bool) -> None:
    """In float64, where what is not rounding shows."""
    case = TWINS[name]
    twin = _twin(torch, lambda: case.twin(twins), "float64").train(training)
    model = case.make(np.float64).train(training)
    _load(twin, model, tmp_path)
    x = np.random.default_rng(2).standard_normal(case.shape)
    _assert_same(_run(model, x, 3), _run_twin(torch, twin, x, 3), 1e-9, 1e-8)
    state = model.state_dict()
    for key, values in twin.state_dict().items():  # the statistics of a training step too
        _assert_near(key, np.asarray(state[key]), values.numpy(), 1e-9, 1e-9)


@pytest.mark.parametrize("name", TWINS)
def test_pytorch_reads_what_is_saved(torch: Any, twins: Any, tmp_path: Path, name: str) -> None:
    case = TWINS[name]
    files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    model, twin = case.make(np.float32), case.twin(twins)
    nn.save_weights(model, tmp_path / "model.safetensors")
    twin.load_state_dict(files.load_file(tmp_path / "model.safetensors"), strict=True)
    assert list(model.state_dict()) == list(twin.state_dict())
    for key, values in twin.state_dict().items():
        np.testing.assert_array_equal(values.numpy(), model.state_dict()[key], err_msg=key)


# A rectifier's gradient jumps at 0, so two networks whose sums are rounded otherwise can differ by more than rounding.
# With this seed no rectifier's input comes nearer to 0 than a millionth of the largest: rounding is a tenth of that.
SEED = 62


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_resnet18(torch: Any, twins: Any, tmp_path: Path, training: bool) -> None:
    """At its full width and in float32."""
    twin = _twin(torch, lambda: twins.ResNet((2, 2, 2, 2), 1000, 64, False), "float32", SEED).train(training)
    model = models.resnet18(rng=1).train(training)
    _load(twin, model, tmp_path)
    x = np.random.default_rng(2).standard_normal((2, 3, 64, 64)).astype(np.float32)
    _assert_same(_run(model, x, 3), _run_twin(torch, twin, x, 3), 1e-4, 1e-3)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_resnet18_of_whole_images(torch: Any, twins: Any, tmp_path: Path, training: bool) -> None:
    twin = _twin(torch, lambda: twins.ResNet((2, 2, 2, 2), 1000, 64, False), "float32").train(training)
    model = models.resnet18(rng=1).train(training)
    _load(twin, model, tmp_path)
    x = np.random.default_rng(2).standard_normal((2, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        expected = twin(torch.from_numpy(x)).numpy()
    _assert_near("the output", model(x), expected, 1e-4)
