"""CrossEntropyLoss and MSELoss against PyTorch's, and what they refuse."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from array_backends import ArrayBackend
from strategies import arranged, numbers
from tolerances import assert_close

from gpucnn import nn
from gpucnn.backends.layout import is_channels_last

ENTROPIES = [
    {},
    {"reduction": "sum"},
    {"label_smoothing": 0.3},
    {"weighted": True, "ignore_index": 2},
    {"weighted": True, "label_smoothing": 0.1, "ignore_index": 0, "reduction": "sum"},
]


@pytest.mark.parametrize("options", ENTROPIES, ids=str)
@pytest.mark.parametrize("space", [(), (3, 2)])
def test_cross_entropy_is_pytorchs(
    backend: ArrayBackend, torch: Any, rng: np.random.Generator, options: dict[str, Any], space: tuple[int, ...]
) -> None:
    options = dict(options)
    weight = rng.uniform(0.5, 2, 5) if options.pop("weighted", False) else None
    x, y = rng.standard_normal((4, 5, *space)), rng.integers(0, 5, (4, *space))
    loss = nn.CrossEntropyLoss(None if weight is None else backend.asarray(weight), **options)
    theirs = torch.nn.CrossEntropyLoss(None if weight is None else torch.tensor(weight), **options)
    tx = torch.tensor(x, requires_grad=True)
    expected = theirs(tx, torch.tensor(y))
    expected.backward()
    assert_close(backend.asnumpy(loss(backend.asarray(x), backend.asarray(y))), expected.detach().numpy())
    assert_close(backend.asnumpy(loss.backward()), tx.grad.numpy())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_mean_squared_error_is_pytorchs(
    backend: ArrayBackend, torch: Any, rng: np.random.Generator, reduction: str
) -> None:
    x, y = rng.standard_normal((2, 3, 4, 5))
    loss, theirs = nn.MSELoss(reduction), torch.nn.MSELoss(reduction=reduction)
    tx = torch.tensor(x, requires_grad=True)
    expected = theirs(tx, torch.tensor(y))
    grad = rng.standard_normal(expected.shape)
    expected.backward(torch.tensor(grad))
    assert_close(backend.asnumpy(loss(backend.asarray(x), backend.asarray(y))), expected.detach().numpy())
    assert_close(backend.asnumpy(loss.backward(backend.asarray(grad))), tx.grad.numpy())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_binary_cross_entropy_is_pytorchs(
    backend: ArrayBackend, torch: Any, rng: np.random.Generator, reduction: str, weighted: bool
) -> None:
    x, y = rng.standard_normal((4, 3, 5)), rng.integers(0, 2, (4, 3, 5)).astype(float)
    weights = {"weight": rng.uniform(0.5, 2, 5), "pos_weight": rng.uniform(0.5, 9, (3, 1))} if weighted else {}
    loss = nn.BCEWithLogitsLoss(reduction=reduction, **weights).map_arrays(backend.asarray)
    assert list(loss.state_dict()) == list(weights)
    theirs = torch.nn.BCEWithLogitsLoss(
        reduction=reduction, **{name: torch.tensor(array) for name, array in weights.items()}
    )
    tx = torch.tensor(x, requires_grad=True)
    expected = theirs(tx, torch.tensor(y))
    grad = rng.standard_normal(expected.shape)
    expected.backward(torch.tensor(grad))
    assert_close(backend.asnumpy(loss(backend.asarray(x), backend.asarray(y))), expected.detach().numpy())
    assert_close(backend.asnumpy(loss.backward(backend.asarray(grad))), tx.grad.numpy())
    with pytest.raises(ValueError, match="BCEWithLogitsLoss: reduction is 'median'"):
        nn.BCEWithLogitsLoss(reduction="median")


def test_an_array_is_no_reduction() -> None:
    with pytest.raises(ValueError, match=r"MSELoss: reduction is array\(.*\), expected one of 'mean', 'sum', 'none'"):
        nn.MSELoss(np.ones(3))  # type: ignore[arg-type]


def test_without_an_argument_backward_starts_from_one(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((2, 3, 4))
    loss = nn.MSELoss()
    loss(x, y)
    np.testing.assert_array_equal(loss.backward(), (x - y) * (2 / 12))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_squares_of_16_bits_are_summed_in_32(dtype: Any) -> None:
    x = np.full(70_000, 0.5, dtype)
    loss = nn.MSELoss()
    value = loss(x, np.zeros_like(x))
    assert value.dtype == dtype
    assert float(value) == 0.25
    assert loss.backward().dtype == dtype


def test_the_mean_of_nothing_is_nan() -> None:
    loss = nn.MSELoss()
    assert np.isnan(loss(np.zeros((0, 3)), np.zeros((0, 3))))
    assert loss.backward().shape == (0, 3)


def test_tensors_of_pytorch_are_taken(torch: Any) -> None:
    loss = nn.MSELoss()
    assert isinstance(loss(torch.ones(3), torch.zeros(3)), torch.Tensor)
    assert isinstance(loss.backward(), torch.Tensor)


def test_a_loss_is_a_module(backend: ArrayBackend) -> None:
    loss = nn.CrossEntropyLoss(np.ones(3), ignore_index=1)
    assert list(loss.state_dict()) == ["weight"]
    loss.map_arrays(backend.asarray)
    assert isinstance(loss.weight, type(backend.asarray(np.ones(1))))
    assert repr(loss) == "CrossEntropyLoss(ignore_index=1)"
    assert repr(nn.MSELoss("sum")) == "MSELoss(reduction='sum')"
    assert repr(nn.MSELoss()) == "MSELoss()"
    assert nn.CrossEntropyLoss().state_dict() == {}


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss()])
def test_backward_needs_a_forward(loss: nn.Loss) -> None:
    x = np.zeros((2, 2))
    loss(x, x)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward has no forward"):
        loss.backward()
    with nn.inference():
        loss(x, x)
    with pytest.raises(RuntimeError, match="backward has no forward"):
        loss.backward()


def test_a_loss_of_ones_own_says_what_it_lacks() -> None:
    with pytest.raises(NotImplementedError, match="Loss defines no forward"):
        nn.Loss()(1, 2)
    with pytest.raises(NotImplementedError, match="Loss defines no backward"):
        nn.Loss().backward()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="CrossEntropyLoss: reduction is 'max', expected one of 'mean', 'sum', 'none'"):
        nn.CrossEntropyLoss(reduction="max")
    with pytest.raises(ValueError, match="MSELoss: reduction is None"):
        nn.MSELoss(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"label_smoothing is 1.5, expected a number in \[0, 1\]"):
        nn.CrossEntropyLoss(label_smoothing=1.5)
    with pytest.raises(ValueError, match=r"MSELoss: target has shape \(3,\), expected \(2,\) as output"):
        nn.MSELoss()(np.zeros(2), np.zeros(3))
    with pytest.raises(TypeError, match="MSELoss: target has dtype float32, expected float64 as output"):
        nn.MSELoss()(np.zeros(2), np.zeros(2, np.float32))
    with pytest.raises(TypeError, match="MSELoss: output has dtype int64, expected floating-point"):
        nn.MSELoss()(np.zeros(2, int), np.zeros(2, int))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_gradient_of_squared_differences_keeps_channels_last(
    backend: ArrayBackend, reduction: str, rng: np.random.Generator
) -> None:
    x, y = (backend.asarray(arranged(numbers(rng, (2, 3, 4, 5), "float32"), "channels_last")) for _ in range(2))
    loss = nn.MSELoss(reduction)
    losses = loss(x, y)
    assert reduction != "none" or is_channels_last(losses)
    assert is_channels_last(loss.backward())
