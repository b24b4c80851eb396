"""Sequential, Residual and Concat: what they compute, how they are taken apart, and what they leave out."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from layer_cases import keeps_nothing, outcome
from refusals import refused, refuses
from tolerances import assert_close

from gpucnn import nn


def linear(inputs: int = 3, outputs: int = 3, seed: int = 0) -> nn.Linear:
    return nn.Linear(inputs, outputs, dtype=np.float64, rng=seed)


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, seed: int = 0) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, dtype=np.float64, rng=seed)


class Watched(nn.Module):
    """A layer that says when it is gone through."""

    def __init__(self, name: str, said: list[str]) -> None:
        self.name, self.said = name, said

    def forward(self, x: Any) -> Any:
        self.keep()
        self.said.append(f"{self.name} forward")
        return x

    def backward(self, grad_output: Any) -> Any:
        self.kept()
        self.said.append(f"{self.name} backward")
        return grad_output


# --- Sequential ---------------------------------------------------------------------------------------------------


def test_a_sequence_and_its_backward_in_reverse() -> None:
    said: list[str] = []
    model = nn.Sequential(Watched("first", said), Watched("second", said))
    x = np.ones(3)
    assert model(x) is x
    assert model.backward(x) is x
    assert said == ["first forward", "second forward", "second backward", "first backward"]


def test_names() -> None:
    first, second, third = linear(), nn.ReLU(), linear()
    model = nn.Sequential(first, second, third)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for mapping in ({"in": first, "out": third}, OrderedDict([("in", first), ("out", third)])):
        named = nn.Sequential(mapping)
        assert list(named.state_dict()) == ["in.weight", "in.bias", "out.weight", "out.bias"]
        assert named[0] is first
        assert named.out is third
    assert len(nn.Sequential()) == 0
    assert nn.Sequential()(7) == 7


def test_it_is_like_a_list() -> None:
    layers = [linear(), nn.ReLU(), linear(3, 2), nn.Softmax(1)]
    model = nn.Sequential(*layers)
    assert len(model) == 4
    assert list(model) == layers
    assert [model[at] for at in (0, 1, -1, -4)] == [layers[at] for at in (0, 1, -1, -4)]
    assert list(model[1:3]) == layers[1:3]
    assert [name for name, _ in model[1:3].named_children()] == ["1", "2"]
    assert isinstance(model[:2], nn.Sequential)
    assert model[:0](5) == 5
    extra = nn.Identity()
    assert model.append(extra) is model
    assert model[4] is extra
    head = linear(3, 5)
    model[2] = head
    assert model[2] is head
    assert list(model) == [layers[0], layers[1], head, layers[3], extra]
    model[-1] = extra  # in its own place it may come again
    with pytest.raises(IndexError, match=r"^Sequential: got place 5, expected one of 5$"):
        model[5]
    with pytest.raises(IndexError, match=r"^Sequential: got place -6, expected one of 5$"):
        model[-6] = nn.ReLU()


def test_a_slice_shares_its_modules_and_nothing_else() -> None:
    model = nn.Sequential(linear(), linear(seed=1), linear(seed=2)).eval()
    part = model[1:]
    assert not part.training
    x = np.random.default_rng(0).standard_normal((2, 3))
    np.testing.assert_array_equal(part(x), model[2](model[1](x)))
    part.backward(np.ones((2, 3)))
    assert model[1].weight.grad is not None  # type: ignore[union-attr]
    assert model[0].weight.grad is None  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match=r"^Sequential: backward has no forward"):
        part.backward(x)
    assert [name for name, _ in part.append(nn.ReLU()).named_children()] == ["1", "2", "3"]
    assert len(model) == 3


test_names_and_numbers_of_modules_that_are_refused = refuses(
    ValueError,
    ("Sequential: 'a.b' is no name for a module…", lambda: nn.Sequential({"a.b": nn.ReLU()})),
    ("Sequential: '' is no name for a module…", lambda: nn.Sequential({"": nn.ReLU()})),
    ("Sequential: 'forward' is no name for a module…", lambda: nn.Sequential({"forward": nn.ReLU()})),
    ("Sequential: 0 is no name for a module…", lambda: nn.Sequential({0: nn.ReLU()})),
    ("Concat: got no branch, expected at least one…", lambda: nn.Concat()),
)

test_what_is_no_module_is_refused = refuses(
    TypeError,
    ("Sequential: 0 is of type ndarray, expected a Module…", lambda: nn.Sequential(np.ones(3))),
    ("Sequential: 0 is of type type, expected a Module…", lambda: nn.Sequential(nn.ReLU)),
    ("Concat: 0 is of type str, expected a Module…", lambda: nn.Concat("x")),
    ("Residual: body is of type NoneType, expected a Module…", lambda: nn.Residual(None)),
    ("Residual: shortcut is of type int, expected a Module…", lambda: nn.Residual(nn.ReLU(), 3)),
    ("Residual: activation is of type ufunc, expected…", lambda: nn.Residual(nn.ReLU(), None, np.tanh)),
)


def test_a_module_stands_for_one_place() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(relu, linear())
    twice = "Sequential: got the same ReLU twice, expected a module for each place, since it keeps…"
    refused(
        ValueError,
        (twice, lambda: nn.Sequential(relu, linear(), relu)),
        (twice, lambda: model.append(relu)),
        (twice, lambda: model.__setitem__(1, relu)),
    )
    refused(TypeError, ("Sequential: got int, expected a Module", lambda: model.__setitem__(1, 3)))


def test_backward_ends_where_nothing_before_learns() -> None:
    said: list[str] = []
    model = nn.Sequential(Watched("a", said), linear(), Watched("b", said), linear(seed=1), Watched("c", said))
    x = np.random.default_rng(0).standard_normal((2, 3))
    expected = outcome(model, x)
    model.zero_grad()
    model.needs_input_grad = False
    for frozen, gone_through in [((), ["c", "b"]), ((1,), ["c"]), ((1, 3), []), ((3,), ["c", "b"])]:
        model.zero_grad()
        model.requires_grad_()
        for at in frozen:
            model[at].requires_grad_(False)
        said.clear()
        found = outcome(model, x)
        assert [text[0] for text in said if text.endswith("backward")] == gone_through
        for name, grad in found.items():
            if name == "grad_input" or any(f"grad of {at}." in name for at in frozen):
                assert grad is None
            else:
                np.testing.assert_array_equal(grad, expected[name])
        assert all(module.needs_input_grad for module in model)
        assert keeps_nothing(model), "it waits for a backward that does not come"


def test_backward_ends_at_a_module_that_needs_no_input_gradient() -> None:
    said: list[str] = []
    model = nn.Sequential(Watched("a", said), linear(), linear(seed=1))
    model[1].needs_input_grad = False
    found = outcome(model, np.ones((2, 3)))
    assert found["grad_input"] is None
    assert said == ["a forward"]
    assert keeps_nothing(model)


def test_an_error_in_backward_leaves_the_modules_as_they_were() -> None:
    model = nn.Sequential(linear(), linear(seed=1))
    model.needs_input_grad = False
    model(np.ones((2, 3)))
    with pytest.raises(ValueError, match="grad_output"):
        model.backward(np.ones((2, 4)))
    model(np.ones((2, 3)))
    model[0].forget()
    with pytest.raises(RuntimeError, match="Linear: backward has no forward"):
        model.backward(np.ones((2, 3)))
    assert model[0].needs_input_grad


# --- Residual and Concat ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activated", [True, False])
@pytest.mark.parametrize("shortened", [True, False])
def test_residual_is_the_sum_of_its_ways(rng: np.random.Generator, shortened: bool, activated: bool) -> None:
    stride, outputs = (2, 5) if shortened else (1, 3)
    body, beside = conv(3, outputs, 3, stride), conv(3, outputs, 1, stride, seed=1) if shortened else nn.Identity()
    block = nn.Residual(
        copy.deepcopy(body), copy.deepcopy(beside) if shortened else None, nn.ReLU() if activated else None
    )
    x = rng.standard_normal((2, 3, 6, 6))
    expected = body(x) + beside(x)
    rises = expected > 0 if activated else np.ones_like(expected)
    y = block(x)
    np.testing.assert_array_equal(y, expected * rises)
    grad = rng.standard_normal(y.shape)
    expected = body.backward(grad * rises) + beside.backward(grad * rises)
    assert_close(block.backward(grad), expected)
    parts = nn.Sequential({"body": body, "shortcut": beside})
    assert list(block.state_dict()) == list(parts.state_dict())
    for parameter, peer in zip(block.parameters(), parts.parameters(), strict=True):
        assert_close(parameter.grad, peer.grad)


def test_a_way_that_needs_no_gradient_adds_none() -> None:
    block = nn.Residual(conv(3, 3), nn.LeakyReLU(0.5))
    block.body.needs_input_grad = False
    x = -np.ones((1, 3, 4, 4))
    block(x)
    np.testing.assert_array_equal(block.backward(x), x / 2)
    assert block.body.weight.grad is not None  # type: ignore[union-attr]


@pytest.mark.parametrize("dim", [1, -3, 2])
def test_concat_joins_its_branches(rng: np.random.Generator, dim: int) -> None:
    outputs = 4 if dim != 2 else 3
    branches = {"skip": nn.Identity(), "wide": conv(3, outputs), "narrow": conv(3, outputs, 1, seed=1)}
    block = nn.Concat(copy.deepcopy(branches), dim=dim)
    assert [name for name, _ in block.named_children()] == ["skip", "wide", "narrow"]
    assert ("dim" in repr(block)) == (dim != 1)
    x = rng.standard_normal((2, 3, 5, 5))
    results = [branch(x) for branch in branches.values()]
    y = block(x)
    np.testing.assert_array_equal(y, np.concatenate(results, dim))
    grad = rng.standard_normal(y.shape)
    grads = np.split(grad, np.cumsum([result.shape[dim] for result in results])[:-1], dim)
    expected = sum(branch.backward(part) for branch, part in zip(branches.values(), grads, strict=True))
    assert_close(block.backward(grad), expected)


def test_shapes_that_do_not_fit() -> None:
    x, both = np.ones((1, 3, 4, 4)), nn.Concat(nn.Identity(), nn.ReLU())
    both(x)
    refused(
        ValueError,
        (
            "Residual: body makes shape (1, 4, 4, 4) of it, expected the shortcut's (1, 3, 4, 4)",
            lambda: nn.Residual(conv(3, 4))(x),
        ),
        (
            "Concat: branches give shapes [(1, 3, 4, 4), (1, 3, 2, 2)], expected them to differ along dim = 1 only",
            lambda: nn.Concat(nn.Identity(), nn.MaxPool2d(2))(x),
        ),
        (
            "Concat: branches give shapes [(2, 3)], expected them to differ along…",
            lambda: nn.Concat(nn.Identity(), dim=2)(np.ones((2, 3))),
        ),
        ("Concat: grad_output has size 5 along axis 1, expected 6", lambda: both.backward(np.ones((1, 5, 4, 4)))),
    )


def test_a_network_with_skips_in_each_other(rng: np.random.Generator) -> None:
    """The gradient of a small U-Net against differences."""
    inner = nn.Sequential(
        nn.MaxPool2d(2), conv(2, 3, seed=1), nn.LeakyReLU(), nn.Upsample(scale_factor=2), conv(3, 2, 1, seed=2)
    )
    model = nn.Sequential(conv(1, 2), nn.Concat(nn.Identity(), inner), conv(4, 1, seed=3))
    x, direction = rng.standard_normal((2, 2, 1, 4, 6))
    y = model(x)
    grad = model.backward(y)
    step = 1e-5
    losses = [float((model(x + sign * step * direction) ** 2).sum() / 2) for sign in (-1, 1)]
    assert (grad * direction).sum() == pytest.approx((losses[1] - losses[0]) / (2 * step), rel=1e-6)


# --- Pooling and unpooling in pairs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "unpool", "shapes"),
    [
        (nn.MaxPool2d(3, stride=2, padding=1), nn.MaxUnpool2d, [(1, 2, 7, 8), (2, 1, 6, 5), (3, 9, 9)]),
        (nn.MaxPool1d(2, stride=3, dilation=2), nn.MaxUnpool1d, [(1, 1, 11)]),
    ],
)
def test_unpooling_takes_its_pools_indices(rng: np.random.Generator, pool: Any, unpool: Any, shapes: Any) -> None:
    layer = unpool(pool)
    for shape in shapes:
        x = rng.standard_normal(shape)
        up = layer(pool(x))
        assert up.shape == shape
        assert up.any()
        np.testing.assert_array_equal(up[up != 0], x[up != 0])
    assert "pool" not in dict(layer.named_children())
    assert set(layer.kernel_size) == {3}  # what a window spans


def test_unpooling_needs_a_forward_of_its_pool() -> None:
    pool, x = nn.MaxPool1d(2), np.arange(4.0).reshape(1, 1, 4)
    unpool = nn.MaxUnpool1d(pool)
    message = r"^MaxUnpool1d: its MaxPool1d has no forward whose maxima to put back$"
    with pytest.raises(RuntimeError, match=message):
        unpool(x)
    y = pool(x)
    unpool(y)
    with pytest.raises(RuntimeError, match=message):  # they were taken
        unpool(y)
    with nn.inference():
        np.testing.assert_array_equal(unpool(pool(x)), [[[0, 1, 0, 3]]])
    indices = np.array([[[0, 2]]])
    np.testing.assert_array_equal(unpool(y, indices), [[[1, 0, 3, 0]]])
    np.testing.assert_array_equal(unpool(y, indices, 5), [[[1, 0, 3, 0, 0]]])


def test_unpooling_without_its_pool_needs_indices() -> None:
    lacking = "MaxUnpool2d: indices is None, expected an array, or a layer made from its…"
    refused(TypeError, (lacking, lambda: nn.MaxUnpool2d(2)(np.ones((1, 1, 2, 2)))))
    twice = "MaxUnpool2d: got a pooling layer with stride or padding, expected that…"
    refused(
        ValueError,
        ("MaxUnpool2d: got MaxPool1d, expected MaxPool2d", lambda: nn.MaxUnpool2d(nn.MaxPool1d(2))),
        (twice, lambda: nn.MaxUnpool2d(nn.MaxPool2d(2), stride=2)),
    )


def test_a_pool_that_is_not_paired_keeps_no_indices_after_backward() -> None:
    pool = nn.MaxPool1d(2)
    pool.backward(pool(np.ones((1, 1, 4))))
    assert not [value for value in vars(pool).values() if isinstance(value, np.ndarray)]
    assert keeps_nothing(pool)
    assert not hasattr(pool, "_for_unpooling")
