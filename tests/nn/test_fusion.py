"""Norms and convolutions that sum and activate in their pass: bits, states and gradients of modules one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from strategies import arranged, dtype_of

from gpucnn import nn
from gpucnn.nn import _fusion
from gpucnn.nn.models.mobilenet import InvertedResidual
from gpucnn.nn.models.resnet import BasicBlock, Bottleneck

Array = np.ndarray[Any, Any]
SHAPE = (3, 4, 5, 6)
NORMS: list[tuple[Callable[[], Any], tuple[int, ...]]] = [
    (lambda: nn.BatchNorm1d(4), (3, 4)),
    (lambda: nn.BatchNorm1d(4), (3, 4, 5)),
    (lambda: nn.BatchNorm2d(4, momentum=None), SHAPE),
    (lambda: nn.BatchNorm3d(4, affine=False), (3, 4, 2, 5, 6)),
    (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), SHAPE),
    (lambda: nn.InstanceNorm1d(4), (4, 6)),
    (lambda: nn.GroupNorm(2, 4), SHAPE),
    (lambda: nn.LayerNorm((5, 6)), SHAPE),
    (lambda: nn.RMSNorm((5, 6)), SHAPE),
]


class Plain(nn.ReLU):
    """An activation that no norm knows."""


class Clipped(nn.ReLU6):
    """As `Plain`."""


def separate(model: nn.Module) -> nn.Module:
    """The model, whose activations are left to themselves from now on."""
    for module in model.modules():
        if type(module) in (nn.ReLU, nn.ReLU6):
            module.__class__ = Plain if type(module) is nn.ReLU else Clipped
    return model


def run(backend: ArrayBackend, model: Any, x: Array, grad: Array) -> list[Array]:
    """The result, the gradient of the input, those of parameters, and the state after them."""
    model.map_arrays(backend.asarray)
    y = model(backend.asarray(x))
    grad_x = model.backward(backend.asarray(grad))
    grads = [parameter.grad for parameter in model.parameters()]
    return [backend.asnumpy(array) for array in (y, grad_x, *grads, *model.state_dict().values())]


def expect_same(backend: ArrayBackend, make: Callable[[], Any], x: Array, grad: Array, training: bool) -> None:
    """Fused and one after the other, the results of the model have the same bits."""
    fused, plain = (run(backend, model.train(training), x, grad) for model in (make(), separate(make())))
    for one, other in zip(fused, plain, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def drawn(shape: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> Array:
    return (3 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype_of(dtype))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.LeakyReLU])
@pytest.mark.parametrize(("norm", "shape"), NORMS, ids=str)
def test_bits_are_those_of_the_modules_one_after_the_other(
    backend: ArrayBackend, norm: Callable[[], Any], shape: tuple[int, ...], activation: type[nn.Module], training: bool
) -> None:
    def make() -> nn.Module:
        return nn.Sequential(norm(), activation(), norm(), norm(), activation(), activation(), norm())

    expect_same(backend, make, drawn(shape), drawn(shape, seed=1), training)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_bits_are_those_in_other_dtypes_and_orders(backend: ArrayBackend, dtype: str, order: str) -> None:
    of_parameters = "float64" if dtype == "float64" else "float32"

    def make() -> nn.Module:
        norms = nn.BatchNorm2d(4, dtype=of_parameters), nn.GroupNorm(2, 4, dtype=of_parameters)
        return nn.Sequential(norms[0], nn.ReLU(), norms[1], nn.ReLU6())

    expect_same(backend, make, arranged(drawn(SHAPE, dtype), order), arranged(drawn(SHAPE, dtype, 1), order), True)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize(("channels", "stride"), [(16, 1), (8, 2)])
def test_a_blocks_sum_is_in_its_last_norm(
    backend: ArrayBackend, block: Any, channels: int, stride: int, training: bool
) -> None:
    outputs = 16 // block.expansion if stride == 1 else 8
    x, grad = drawn((2, 16, 6, 7)), drawn((2, outputs * block.expansion, -(-6 // stride), -(-7 // stride)), seed=1)
    expect_same(backend, lambda: block(16, outputs, stride, rng=0), x, grad, training)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Tanh, None])
@pytest.mark.parametrize("shape", [SHAPE, (3, 4), (0, 4, 5, 6), (3, 4, 40, 50)], ids=str)
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_a_residual_sums_and_activates_in_one_pass(
    backend: ArrayBackend, activation: Any, shape: tuple[int, ...], order: str
) -> None:
    def make() -> nn.Module:
        return nn.Residual(nn.LeakyReLU(0.3), None, None if activation is None else activation())

    x, grad = (arranged(drawn(shape, seed=seed), order) if len(shape) > 2 else drawn(shape) for seed in (0, 1))
    expect_same(backend, make, x, grad, True)


CONVOLUTIONS: list[tuple[Callable[..., Any], tuple[int, ...]]] = [
    (nn.Conv1d, (2, 4, 30)), (nn.Conv2d, (2, 4, 9, 8)), (nn.Conv3d, (1, 4, 4, 5, 6)), (nn.Conv2d, (4, 9, 8)),
    (nn.Conv2d, (0, 4, 9, 8)),
]  # fmt: skip


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.LeakyReLU])
@pytest.mark.parametrize(("conv", "shape"), CONVOLUTIONS, ids=str)
def test_convolutions_finish_too(
    backend: ArrayBackend, conv: Callable[..., Any], shape: tuple[int, ...], activation: type[nn.Module]
) -> None:
    def make() -> nn.Module:
        return nn.Sequential(
            *(conv(4, 4, 3, padding=1, rng=0), nn.Identity(), activation()),
            nn.Sequential(conv(4, 4, 1, rng=1), conv(4, 4, 3, padding=1, padding_mode="reflect", rng=2)),
            activation(),
        )

    expect_same(backend, make, drawn(shape), drawn(shape, seed=1), True)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_inverted_residuals_sum_is_in_its_last_layer(backend: ArrayBackend, dtype: str, fused: bool) -> None:
    block: Any = InvertedResidual(16, 16, rng=0, dtype=dtype)
    if fused:
        block = nn.fused(block)
        nn.unfreeze(block)
    block.map_arrays(backend.asarray)
    x, grad = (backend.asarray(drawn((2, 16, 6, 7), dtype, seed)) for seed in (0, 1))
    results = []
    for forward in (block, lambda x: x + block.conv(x)):
        y = forward(x)
        grad_x = block.backward(grad) if forward is block else block.conv.backward(grad) + grad
        results.append([backend.asnumpy(each) for each in (y, grad_x)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def test_a_residual_takes_integers_and_tensors(torch: Any) -> None:
    x = np.arange(-6, 6).reshape(1, 2, 6)
    np.testing.assert_array_equal(nn.Residual(nn.Identity(), activation=nn.ReLU())(x), 2 * x.clip(0))
    block = nn.Residual(nn.LeakyReLU(), activation=nn.ReLU())
    y = block(torch.from_numpy(x.astype(np.float32)))
    assert isinstance(y, torch.Tensor)
    assert isinstance(block.backward(y), torch.Tensor)


def test_a_block_in_mixed_precision_sums_as_before() -> None:
    x = drawn((2, 16, 6, 7))
    results = []
    for prepare in (lambda model: model, separate):
        model: Any = prepare(BasicBlock(16, 16, rng=0))
        with nn.mixed_precision("float16"):
            y = model(x)
        results.append((y, model.backward(np.ones_like(y))))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def test_a_norm_is_told_of_what_comes_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    finished = nn.BatchNorm2d.finished

    def saying(self: Any, x: Array, residual: Any = None, activation: str | None = None) -> Array:
        said.append((residual is not None, activation))
        return finished(self, x, residual, activation)

    monkeypatch.setattr(nn.BatchNorm2d, "finished", saying)
    norm, x = nn.BatchNorm2d(4), drawn(SHAPE)
    nn.Sequential(norm, nn.ReLU(), nn.BatchNorm2d(4), nn.Tanh(), nn.BatchNorm2d(4), nn.ReLU6(), nn.BatchNorm2d(4))(x)
    assert said == [(False, "relu"), (False, None), (False, "relu6"), (False, None)]
    said.clear()
    BasicBlock(4, 4, rng=0)(x)
    assert said == [(False, "relu"), (True, "relu")]


class Doubled(nn.BatchNorm2d):
    """A norm of a program's own."""

    def forward(self, x: Array) -> Array:
        return 2 * super().forward(x)


def test_a_forward_of_ones_own_is_called() -> None:
    x = drawn(SHAPE)
    np.testing.assert_array_equal(nn.Sequential(Doubled(4), nn.ReLU())(x), 2 * nn.BatchNorm2d(4)(x).clip(0))
    model: Any = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
    for place in (0, 1):
        seen: list[Array] = []
        forward = model[place].forward
        vars(model[place])["forward"] = lambda x, forward=forward, seen=seen: seen.append(x) or forward(x)
        model(x)
        assert len(seen) == 1
        del vars(model[place])["forward"]
    assert _fusion.through([], x) is x


SMOOTH: list[tuple[Callable[[], Any], str]] = [
    *((nn.Sigmoid, "sigmoid"), (nn.Hardsigmoid, "hard_sigmoid"), (nn.SiLU, "silu"), (nn.Hardswish, "hard_swish")),
    *((nn.GELU, "gelu"), (lambda: nn.GELU("tanh"), "gelu_tanh")),
]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("activation", "kind"), SMOOTH)
def test_smooth_activations_are_those_of_a_convolution_where_no_backward_follows(
    backend: ArrayBackend, activation: Callable[[], Any], kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.fused(nn.Sequential(nn.Conv2d(4, 6, 3, rng=0), nn.BatchNorm2d(6), activation(), nn.Conv2d(6, 5, 1)))
    model.map_arrays(lambda array: backend.asarray(array.astype(dtype)))
    x, asked = backend.asarray(drawn((2, 4, 9, 8), dtype)), []
    finished = nn.Conv2d.finished

    def noting(layer: Any, x: Array, **finish: Any) -> Array:
        asked.append(finish)
        return finished(layer, x, **finish)

    monkeypatch.setattr(nn.Conv2d, "finished", noting)
    y = model(x)
    assert not asked
    assert model.backward(y) is not None  # whose activation kept what it needs
    with nn.inference():
        joined = model(x)
    assert asked == [{"activation": kind}]
    first, second = backend.asnumpy(y), backend.asnumpy(joined)
    if backend.name == "simulator":  # the module's function is CuPy's
        unit = 2.0**-10 if dtype == "float16" else 2.0**-23
        np.testing.assert_allclose(first.astype(float), second.astype(float), rtol=0, atol=8 * unit * abs(first).max())
    else:
        np.testing.assert_array_equal(first, second, strict=True)
