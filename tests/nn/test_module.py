"""The base of all layers: parameters by name, modes, state, and where the arrays are."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from cupy_stub import NO_DEVICE, CupyStub
from layer_cases import keeps_nothing
from refusals import refused

import gpucnn.backends
from gpucnn import nn, simulator
from gpucnn.installing import install_command


class Net(nn.Module):
    """A network of someone's own."""

    def __init__(self) -> None:
        self.conv1 = nn.Conv2d(1, 2, 3, rng=0)
        self.bn1 = nn.BatchNorm2d(2)
        self.scale = nn.Parameter(np.ones(1, np.float32))
        self.fc = nn.Sequential(nn.Flatten(), nn.Linear(18, 3, rng=1))

    def forward(self, x: Any) -> Any:
        x = self.bn1(self.conv1(x))
        self.keep(x)
        return self.fc(x * self.scale.data)

    def backward(self, grad_output: Any) -> Any:
        (x,) = self.kept()
        grad = self.fc.backward(grad_output)
        self.scale.accumulate((grad * x).sum(keepdims=True).reshape(1))
        return self.conv1.backward(self.bn1.backward(grad * self.scale.data))


KEYS = ["scale", "conv1.weight", "conv1.bias", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var",
        "bn1.num_batches_tracked", "fc.1.weight", "fc.1.bias"]  # fmt: skip
LEARNED = [key for key in KEYS if not re.search("running|tracked", key)]


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def x(rng: np.random.Generator) -> Any:
    return rng.standard_normal((4, 1, 5, 5)).astype(np.float32)


def test_names(net: Net) -> None:
    assert [name for name, _ in net.named_modules()] == ["", "conv1", "bn1", "fc", "fc.0", "fc.1"]
    assert [name for name, _ in net.fc.named_modules("head.")] == ["head", "head.0", "head.1"]
    assert [name for name, _ in net.named_children()] == ["conv1", "bn1", "fc"]
    assert list(net.children()) == [net.conv1, net.bn1, net.fc]
    assert [name for name, _ in net.named_parameters()] == LEARNED
    assert list(net.state_dict()) == KEYS
    assert [name for name, _ in net.named_buffers()] == [key for key in KEYS if key not in LEARNED]
    assert [id(parameter) for parameter in net.parameters()] == [id(value) for _, value in net.named_parameters()]
    assert net.state_dict()["conv1.weight"] is net.conv1.weight.data


def test_a_network_of_ones_own_learns(net: Net, x: Any) -> None:
    y = net(x)
    before = net.scale.data.copy()
    grad = net.backward(y)  # the gradient of y**2 / 2
    assert grad.shape == x.shape
    assert all(parameter.grad is not None for parameter in net.parameters())
    (slope,) = net.scale.grad  # type: ignore[misc]
    step = np.float32(1e-2)
    net.bn1.momentum = 0.0
    losses = []
    for sign in (-1, 1):
        net.scale.data = before + sign * step
        losses.append(float((net(x) ** 2).sum() / 2))
    assert slope == pytest.approx((losses[1] - losses[0]) / (2 * step), rel=1e-2)


def test_modes(net: Net) -> None:
    assert all(module.training for module in net.modules())
    assert net.eval() is net
    assert not any(module.training for module in net.modules())
    net.bn1.train()
    assert [module.training for module in net.modules()] == [False, False, True, False, False, False]
    assert net.train() is net
    assert all(module.training for module in net.modules())


def test_freezing(net: Net) -> None:
    assert net.conv1.requires_grad_(False) is net.conv1
    frozen = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
    assert frozen == ["conv1.weight", "conv1.bias"]
    assert repr(net.conv1.weight) == "Parameter((2, 1, 3, 3), float32, frozen)"
    net.requires_grad_()
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert repr(net.scale) == "Parameter((1,), float32)"


def test_apply_comes_to_what_is_below_first(net: Net) -> None:
    seen: list[str] = []
    assert net.apply(lambda module: seen.append(type(module).__name__)) is net
    assert seen == ["Conv2d", "BatchNorm2d", "Flatten", "Linear", "Sequential", "Net"]


def test_the_base_has_neither_forward_nor_backward() -> None:
    refused(
        NotImplementedError,
        ("Module defines no forward", lambda: nn.Module()(np.ones(1))),
        ("Module defines no backward", lambda: nn.Module().backward(np.ones(1))),
    )


def test_inference_keeps_nothing(x: Any) -> None:
    layer = nn.ReLU()
    with nn.inference():
        layer(x)
        with nn.inference():
            pass
        layer(x)
        assert keeps_nothing(layer)
    with pytest.raises(ZeroDivisionError), nn.inference():
        raise ZeroDivisionError
    layer(x)
    layer.backward(x)


# --- State --------------------------------------------------------------------------------------------------------


def test_loading_copies_and_takes_over_neither_dtype_nor_device(backend: ArrayBackend, net: Net, x: Any) -> None:
    net(x)
    state = {name: array.astype(np.float64) for name, array in net.state_dict().items()}
    other = Net().map_arrays(backend.asarray)
    held = other.state_dict()
    assert other.load_state_dict(state) == ([], [])
    for array in state.values():
        array[...] = 7
    assert int(net.bn1.num_batches_tracked) == 1
    for name, array in other.state_dict().items():
        assert array is held[name]
        assert array.dtype == net.state_dict()[name].dtype
        np.testing.assert_array_equal(backend.asnumpy(array), net.state_dict()[name])


def test_keys_that_do_not_fit(net: Net) -> None:
    state = {name: np.full_like(array, 9) for name, array in net.state_dict().items()}
    del state["bn1.weight"]
    state["other"] = np.ones(1)
    refused(
        KeyError,
        ("…missing bn1.weight, unexpected other…", lambda: net.load_state_dict(state)),
        ("…missing scale, conv1.weight, … and 5 more, unexpected none…", lambda: net.load_state_dict({})),
    )
    assert not (net.conv1.weight.data == 9).any()
    assert net.load_state_dict(state, strict=False) == (["bn1.weight"], ["other"])
    assert (net.conv1.weight.data == 9).all()


# --- Where the arrays are -----------------------------------------------------------------------------------------


def test_to_the_cpu_changes_nothing(net: Net) -> None:
    before = net.state_dict()
    assert net.to("cpu") is net
    assert all(array is before[name] for name, array in net.state_dict().items())


@pytest.mark.usefixtures("compiler")
def test_there_and_back(net: Net, x: Any) -> None:
    expected = net.eval()(x)
    state = {name: array.copy() for name, array in net.state_dict().items()}
    net.to("simulator")
    assert all(isinstance(array, simulator.Array) for array in net.state_dict().values())
    np.testing.assert_allclose(simulator.asnumpy(net(simulator.asarray(x))), expected, rtol=1e-4, atol=1e-5)
    net.to("cpu")
    assert all(np.array_equal(array, state[name]) for name, array in net.state_dict().items())


def test_buffers_that_are_not_there_are_left_out() -> None:
    layer = nn.BatchNorm2d(2, track_running_stats=False).map_arrays(lambda array: array + 1)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert list(layer.named_buffers()) == []
    assert (layer.weight.data == 2).all()  # type: ignore[union-attr]


def test_gradients_stay_behind(net: Net, x: Any) -> None:
    net.backward(net(x))
    net.to("cpu")
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("device", ["gpu", "cuda:0", "numpy", "", None, 0])
def test_no_such_device(net: Net, device: Any) -> None:
    message = f"Net.to: device is {device!r}, expected one of ('cpu', 'cuda', 'simulator')"
    refused(ValueError, (message, lambda: net.to(device)))


@pytest.mark.parametrize("lacking", ["CuPy", "GPU"])
def test_to_cuda_without_a_gpu_says_why(net: Net, monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    gpucnn.backends._cupy_backend.cache_clear()
    cupy = None if lacking == "CuPy" else CupyStub(devices=NO_DEVICE)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    says = {
        "CuPy": f"CuPy is not installed: {install_command('cuda12')}; "
        "for a driver of CUDA 13, cuda13 instead of cuda12",
        "GPU": "the NVIDIA driver finds no GPU: nvidia-smi should list one, and a container needs to be given it",
    }[lacking]
    before = net.state_dict()
    refused(RuntimeError, (f"Net.to: 'cuda' is not available: {says}", lambda: net.to("cuda")))
    assert all(array is before[name] for name, array in net.state_dict().items())


def test_backends_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpucnn.backends.backend_named("numpy") is gpucnn.backends.backend_of(np.ones(1))
    unknown = "backend_named: name is 'cpu', expected one of ('numpy', 'compiled', 'cuda', 'sim…"
    refused(ValueError, (unknown, lambda: gpucnn.backends.backend_named("cpu")))
    monkeypatch.setattr(simulator, "available", lambda: "there is no C++ compiler")
    refused(RuntimeError, ("there is no C++ compiler", lambda: gpucnn.backends.backend_named("simulator")))
