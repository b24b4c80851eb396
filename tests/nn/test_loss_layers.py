"""Losses against PyTorch's, and what they refuse."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from array_backends import ArrayBackend
from refusals import refused, refuses
from strategies import arranged, numbers
from tolerances import assert_close

from gpucnn import nn
from gpucnn.backends.layout import is_channels_last

REDUCTIONS = ("mean", "sum", "none")
LOSSES: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    # the class, the shape of its input, and options, among which weights stand as their shapes
    *(
        ("CrossEntropyLoss", shape, options)
        for shape in ((4, 5), (4, 5, 3, 2))
        for options in (
            {},
            {"reduction": "sum"},
            {"label_smoothing": 0.3},
            {"weight": 5, "ignore_index": 2},
            {"weight": 5, "label_smoothing": 0.1, "ignore_index": 0, "reduction": "sum"},
        )
    ),
    *(("MSELoss", (3, 4, 5), {"reduction": reduction}) for reduction in REDUCTIONS),
    *(("BCEWithLogitsLoss", (4, 3, 5), {"reduction": reduction}) for reduction in REDUCTIONS),
    *(
        ("BCEWithLogitsLoss", (4, 3, 5), {"reduction": reduction, "weight": 5, "pos_weight": (3, 1)})
        for reduction in REDUCTIONS
    ),
]


@pytest.mark.parametrize(("name", "shape", "options"), LOSSES, ids=str)
def test_losses_are_pytorchs(
    backend: ArrayBackend,
    torch: Any,
    rng: np.random.Generator,
    name: str,
    shape: tuple[int, ...],
    options: dict[str, Any],
) -> None:
    weights = {key: rng.uniform(0.5, 9, size) for key, size in options.items() if "weight" in key}
    others = {key: value for key, value in options.items() if key not in weights}
    loss = getattr(nn, name)(**weights, **others).map_arrays(backend.asarray)
    assert list(loss.state_dict()) == list(weights)
    theirs = getattr(torch.nn, name)(**{key: torch.tensor(weight) for key, weight in weights.items()}, **others)
    x = rng.standard_normal(shape)
    target = {
        "CrossEntropyLoss": rng.integers(0, 5, (shape[0], *shape[2:])),
        "MSELoss": rng.standard_normal(shape),
        "BCEWithLogitsLoss": rng.integers(0, 2, shape).astype(float),
    }[name]
    tx = torch.tensor(x, requires_grad=True)
    expected = theirs(tx, torch.tensor(target))
    grad = np.asarray(rng.standard_normal(tuple(expected.shape)))
    expected.backward(torch.tensor(grad))
    assert_close(backend.asnumpy(loss(backend.asarray(x), backend.asarray(target))), expected.detach().numpy())
    assert_close(backend.asnumpy(loss.backward(backend.asarray(grad))), tx.grad.numpy())


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
    refused(
        NotImplementedError,
        ("Loss defines no forward…", lambda: nn.Loss()(1, 2)),
        ("Loss defines no backward…", lambda: nn.Loss().backward()),
    )


test_values_that_are_refused = refuses(
    ValueError,
    (
        "CrossEntropyLoss: reduction is 'max', expected one of 'mean', 'sum', 'none'",
        lambda: nn.CrossEntropyLoss(reduction="max"),
    ),
    ("BCEWithLogitsLoss: reduction is 'median'…", lambda: nn.BCEWithLogitsLoss(reduction="median")),
    ("MSELoss: reduction is None…", lambda: nn.MSELoss(None)),
    ("MSELoss: reduction is array(…), expected one of 'mean', 'sum', 'none'", lambda: nn.MSELoss(np.ones(3))),
    ("…label_smoothing is 1.5, expected a number in [0, 1]", lambda: nn.CrossEntropyLoss(label_smoothing=1.5)),
    ("MSELoss: target has shape (3,), expected (2,) as output…", lambda: nn.MSELoss()(np.zeros(2), np.zeros(3))),
)

test_dtypes_that_are_refused = refuses(
    TypeError,
    ("…target has dtype float32, expected float64 …", lambda: nn.MSELoss()(np.zeros(2), np.zeros(2, np.float32))),
    ("MSELoss: output has dtype int64, …", lambda: nn.MSELoss()(np.zeros(2, int), np.zeros(2, int))),
)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_gradient_of_squared_differences_keeps_channels_last(
    backend: ArrayBackend, reduction: str, rng: np.random.Generator
) -> None:
    x, y = (backend.asarray(arranged(numbers(rng, (2, 3, 4, 5), "float32"), "channels_last")) for _ in range(2))
    loss = nn.MSELoss(reduction)
    losses = loss(x, y)
    assert reduction != "none" or is_channels_last(losses)
    assert is_channels_last(loss.backward())
