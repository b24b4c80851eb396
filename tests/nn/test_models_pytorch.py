"""Networks against PyTorch's: those of the literature by files, results and gradients, and random ones in training."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import NETWORKS
from sample import examples
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
    compare(torch, model, twin, x, factor=100, relative=True)


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
        compare(torch, model, twin, x, 3, factor=10, relative=True)
    else:
        with torch.no_grad():
            expected = twin(torch.from_numpy(x)).numpy()
        assert_close(model(x), expected, factor=10 * min(1.0, float(abs(expected).max())))


# --- Random networks ----------------------------------------------------------------------------------------------

Layers = list[tuple[str, tuple[Any, ...]]]

# Names and arguments of layers that take images of 4 channels and any size from 2 on, and make such ones.
LAYERS: Layers = [
    ("Conv2d", (4, 4, 3, 1, 1)), ("ConvTranspose2d", (4, 4, 3, 1, 1)), ("BatchNorm2d", (4,)), ("InstanceNorm2d", (4,)),
    ("GroupNorm", (1, 4)), ("ReLU", ()), ("LeakyReLU", ()), ("Tanh", ()), ("MaxPool2d", (2, 2, 1)),
    ("AvgPool2d", (2, 2, 1)), ("Upsample", (6,)),
]  # fmt: skip
FIRST, LAST = ("Conv2d", (3, 4, 3, 1, 1)), [("AdaptiveAvgPool2d", (1,)), ("Flatten", ()), ("Linear", (4, 2))]
networks = st.lists(st.sampled_from(LAYERS), max_size=5).map(lambda layers: [FIRST, *layers, *LAST])


def made(name: str, args: tuple[Any, ...]) -> nn.Module:
    typed = name.startswith(("Conv", "Linear", "Batch", "Group", "Instance"))
    layer: nn.Module = getattr(nn, name)(*args, **({"dtype": np.float64} if typed else {}))
    return layer


@examples(30)
@given(layers=networks, frozen=st.sets(st.integers(0, 7)), seed=st.integers(0, 99))
def test_descent_goes_the_same_way(torch: Any, layers: Layers, frozen: set[int], seed: int) -> None:
    ours = nn.Sequential(*(made(name, args) for name, args in layers))
    theirs = torch.nn.Sequential(*(getattr(torch.nn, name)(*args) for name, args in layers)).double()
    ours.load_state_dict({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    for at in frozen & set(range(len(layers))):
        ours[at].requires_grad_(False)
        theirs[at].requires_grad_(False)
    ours.needs_input_grad = False
    rng = np.random.default_rng(seed)
    for training in (True, True, False):
        ours.train(training)
        theirs.train(training)
        ours.zero_grad()
        theirs.zero_grad()
        x, target = rng.standard_normal((3, 3, 8, 8)), rng.standard_normal((3, 2))
        y, expected = ours(x), theirs(torch.from_numpy(x))
        assert_close(y, expected.detach().numpy(), factor=1e3)  # norms of few values amplify rounding, step by step
        assert ours.backward(y - target) is None
        if expected.requires_grad:
            expected.backward(expected.detach() - torch.from_numpy(target))
        for (name, parameter), peer in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            assert (parameter.grad is None) == (peer.grad is None), name
            if parameter.grad is not None:
                assert_close(parameter.grad, peer.grad.numpy(), factor=1e5)
                parameter.data -= 0.01 * parameter.grad
                peer.data -= 0.01 * peer.grad
        for name, tensor in theirs.state_dict().items():
            mine = ours.state_dict()[name]
            assert_close(mine, tensor.numpy(), mine.dtype, factor=1e4)
