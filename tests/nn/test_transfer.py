"""Features, new heads, frozen parts, and a linear classifier on top."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from runs import bits
from strategies import dtype_of

from gpucnn import nn
from gpucnn.nn import models

Rng = np.random.Generator


def network(rng: Rng) -> nn.Sequential:
    features = nn.Sequential(
        nn.Conv2d(1, 4, 3, rng=rng), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5, rng=rng), nn.MaxPool2d(2)
    )
    classifier = nn.Sequential(nn.Linear(36, 8, rng=rng), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5, rng=rng))
    return nn.Sequential({"features": features, "flatten": nn.Flatten(), "classifier": classifier})


def batches(rng: Rng, classes: int = 3) -> list[tuple[Any, Any]]:
    return [(rng.normal(size=(6, 1, 8, 8)).astype(np.float32), rng.integers(classes, size=6)) for _ in range(3)]


def train(model: nn.Module, params: Any, data: list[tuple[Any, Any]], lr: float = 0.1) -> None:
    optimizer = nn.SGD(params, lr=lr, momentum=0.9, weight_decay=0.01)
    nn.fit(model.train(), data, loss=nn.CrossEntropyLoss(), optimizer=optimizer, epochs=2, progress=False)


# --- Features -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("upto", "number"),
    [("features", 5), ("features.0", 1), ("flatten", 6), ("classifier.2", 9), (0, 5), (1, 6), (-2, 6), (-1, 10)],
)
def test_features_are_the_first_layers(upto: str | int, number: int, rng: Rng) -> None:
    model = network(rng).eval()
    part = nn.features(model, upto)
    x = rng.normal(size=(2, 1, 8, 8)).astype(np.float32)
    expected = x
    for layer in [layer for layer in model.modules() if not isinstance(layer, nn.Sequential)][:number]:
        expected = layer(expected)
    np.testing.assert_array_equal(part(x), expected)
    assert {id(parameter) for parameter in part.parameters()} <= {id(parameter) for parameter in model.parameters()}
    assert set(part.state_dict()) <= set(model.state_dict())


def test_features_of_models() -> None:
    model = models.AlexNet(5, width=2, hidden=8, rng=0).eval()
    x = np.zeros((1, 3, 63, 63), np.float32)
    assert nn.features(model, "classifier.4")(x).shape == (1, 8)
    assert nn.features(model, "avgpool")(x).shape == (1, 8, 6, 6)
    resnet = models.resnet18(5, width=2, rng=0).eval()
    assert nn.features(resnet, "layer4")(np.zeros((1, 3, 64, 64), np.float32)).shape == (1, 16, 2, 2)


def test_features_that_are_not_there(rng: Rng) -> None:
    model = network(rng)
    with pytest.raises(ValueError, match=r"features: upto is 'head', .* no layer 'head'; expected one of \['features"):
        nn.features(model, "head")
    with pytest.raises(TypeError, match=r"features: upto is 2.0, expected the name or the index of a layer"):
        nn.features(model, 2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there is no layer '7'"):
        nn.features(model, "classifier.7")
    with pytest.raises(ValueError, match="features: upto is 3, expected an index of one of 3 layers"):
        nn.features(model, 3)
    with pytest.raises(TypeError, match="features: model is a Linear, expected a Sequential"):
        nn.features(model, "classifier.0.weight")
    with pytest.raises(TypeError, match="features: model is a UNet, expected a Sequential"):
        nn.features(models.UNet(1, 2, width=2), 0)


# --- New heads ----------------------------------------------------------------------------------------------------


def test_a_new_head_changes_nothing_else(rng: Rng) -> None:
    model = network(rng)
    before = bits(model)
    head = nn.replace_head(model, 3, rng=1)
    assert model.classifier[-1] is head
    assert (head.in_features, head.out_features) == (8, 3)
    after = bits(model)
    assert list(after) == list(before)
    assert {name for name in after if after[name] != before[name]} == {"classifier.3.weight", "classifier.3.bias"}
    again = nn.replace_head(copy.deepcopy(model), 3, rng=1)
    np.testing.assert_array_equal(again.weight.data, head.weight.data)


@pytest.mark.parametrize("bias", [True, False])
def test_a_new_head_is_like_the_old_one(bias: bool) -> None:
    old = nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, bias=bias, padding_mode="reflect", dtype="f8")
    model = nn.Sequential(nn.Linear(3, 3), old, nn.ReLU()).requires_grad_(False).eval()
    head: Any = nn.replace_head(model, 8, rng=0)
    assert repr(head) == repr(old).replace("(4, 6", "(4, 8")
    assert head.weight.data.dtype == np.float64
    assert all(parameter.requires_grad for parameter in head.parameters())
    assert not head.training
    assert len(list(model.children())) == 3


def test_heads_that_cannot_be(rng: Rng) -> None:
    for count in (0, -1, 2.5, True, "3"):
        with pytest.raises((ValueError, TypeError), match="replace_head: num_classes is"):
            nn.replace_head(network(rng), count)
    with pytest.raises(ValueError, match="replace_head: Sequential has no Linear layer or convolution below it"):
        nn.replace_head(nn.Sequential(nn.ReLU()), 3)


# --- What learns --------------------------------------------------------------------------------------------------


def test_only_the_head_learns_then_all_does(rng: Rng) -> None:
    model, data = network(rng), batches(rng)
    head = nn.replace_head(model, 3, rng=rng)
    nn.freeze(model, but=head)
    before = bits(model)
    train(model, model.parameters(), data)
    changed = {name for name, now in bits(model).items() if now != before[name]}
    assert changed == {"classifier.3.weight", "classifier.3.bias"}  # bit for bit: no running statistics either
    assert [name for name, module in model.named_modules() if not module.training] == [
        "features", *(f"features.{number}" for number in range(5)), "flatten",
        *(f"classifier.{number}" for number in range(3)),
    ]  # fmt: skip

    nn.unfreeze(model)
    assert all(module.training and not module.frozen for module in model.modules())
    groups = nn.parameter_groups(model, head, lr=0.1)
    before = bits(model)
    train(model, groups, data)
    assert all(now != before[name] for name, now in bits(model).items())


def test_groups_learn_at_their_rates(rng: Rng) -> None:
    model, data = network(rng).eval(), batches(rng)
    head = nn.replace_head(model, 3, rng=rng)
    groups = nn.parameter_groups(model, [head], lr=0.5, body=0.2)
    assert [group["lr"] for group in groups] == [0.5, 0.1]
    assert groups[0]["params"] == list(head.parameters())
    assert len(groups[1]["params"]) == len(list(model.parameters())) - 2
    before = {name: parameter.data.copy() for name, parameter in model.named_parameters()}
    loss, optimizer = nn.CrossEntropyLoss(), nn.SGD(groups)
    x, y = data[0]
    loss(model(x), y)
    model.backward(loss.backward())
    optimizer.step()
    for name, parameter in model.named_parameters():
        rate = 0.5 if name.startswith("classifier.3") else 0.1
        np.testing.assert_allclose(parameter.data, before[name] - rate * parameter.grad, rtol=1e-5, atol=1e-7)


def test_parts_of_another_network(rng: Rng) -> None:
    with pytest.raises(ValueError, match="freeze: a Linear is no part of the model"):
        nn.freeze(network(rng), but=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="parameter_groups: a ReLU is no part of the model"):
        nn.parameter_groups(network(rng), [nn.ReLU()], lr=0.1)


def test_all_frozen(rng: Rng) -> None:
    model = network(rng)
    nn.freeze(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.train().modules())
    nn.unfreeze(model)
    assert all(module.training for module in model.train().modules())


# --- A linear classifier on top -----------------------------------------------------------------------------------


def separable(rng: Rng, count: int) -> tuple[Any, Any]:
    y = rng.integers(3, size=count)
    x = 0.3 * rng.normal(size=(count, 1, 8, 8)) + 100  # far from 0, and with scales far apart
    x[np.arange(count), 0, y, y] += 2
    x[:, 0, 7, 7] *= 1e3
    return x.astype(np.float32), y


def test_a_linear_classifier_learns_on_features(rng: Rng) -> None:
    features = nn.Sequential(nn.Conv2d(1, 2, 1, rng=rng), nn.BatchNorm2d(2)).train()
    before = bits(features)
    x, y = separable(rng, 240)
    data = [(x[at : at + 50], y[at : at + 50]) for at in range(0, 240, 50)]
    model = nn.linear_classifier(features, data, rng=0)
    assert bits(features) == before
    assert all(module.training for module in features.modules())
    assert [name for name, _ in model.named_children()] == ["features", "flatten", "classifier"]
    assert model.features is features
    test, labels = separable(rng, 200)
    accuracy = nn.evaluate(model, [(test, labels)], nn.CrossEntropyLoss()).accuracy
    assert accuracy is not None
    assert accuracy > 0.95
    again = nn.linear_classifier(features, data, rng=0)
    np.testing.assert_array_equal(again.classifier.weight.data, model.classifier.weight.data)


def test_the_images_are_gone_through_once(rng: Rng) -> None:
    seen = []

    def once() -> Any:
        for x, y in batches(rng):
            seen.append(len(y))
            yield x, y

    model = nn.linear_classifier(nn.features(network(rng), "features"), once(), num_classes=7, epochs=3, rng=0)
    assert seen == [6, 6, 6]
    assert model.classifier.weight.shape == (7, 36)


def test_features_that_never_change_say_nothing(rng: Rng) -> None:
    x = np.concatenate([np.full((20, 1), 5.0), rng.normal(size=(20, 1))], axis=1).astype(np.float32)
    model = nn.linear_classifier(nn.Identity(), [(x, (x[:, 1] > 0).astype(int))], rng=0)
    assert np.all(model.classifier.weight.data[:, 0] == 0)
    assert np.isfinite(model.classifier.weight.data).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_linear_classifier_learns_on_features_of_16_bits(backend: ArrayBackend, dtype: str, rng: Rng) -> None:
    y = rng.integers(2, size=60)
    x = backend.asarray((rng.normal(size=(60, 5)) + 3 * y[:, None]).astype(dtype_of(dtype)))
    model = nn.linear_classifier(nn.Identity(), [(x, backend.asarray(y))], rng=0)
    assert model.classifier.weight.data.dtype == model.classifier.bias.data.dtype == x.dtype
    assert (backend.asnumpy(model(x)).argmax(axis=1) == y).mean() > 0.95


def test_on_other_backends(backend: ArrayBackend, rng: Rng) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, rng=rng), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4, rng=rng))
    model.map_arrays(backend.asarray)
    x = backend.asarray(rng.normal(size=(6, 1, 4, 4)).astype(np.float32))
    y = backend.asarray(np.array([0, 1, 2, 0, 1, 2]))
    head: Any = nn.replace_head(model, 3, rng=0)
    assert type(head.weight.data) is type(model[0].weight.data)
    assert model(x).shape == (6, 3)
    probe = nn.linear_classifier(nn.features(model, -2), [(x, y)], epochs=2, rng=0)
    assert backend.asnumpy(probe(x)).shape == (6, 3)


def test_what_a_linear_classifier_cannot_be_trained_on(rng: Rng) -> None:
    x = np.zeros((4, 2), np.float32)
    with pytest.raises(ValueError, match="cached_features: loader has no batch"):
        nn.linear_classifier(nn.Identity(), [])
    with pytest.raises(ValueError, match=r"labels are from 0 to 3, expected ints in \[0, 3\)"):
        nn.linear_classifier(nn.Identity(), [(x, np.arange(4))], num_classes=3)
    with pytest.raises(ValueError, match="labels are from -1 to 2"):
        nn.linear_classifier(nn.Identity(), [(x, np.arange(4) - 1)])
    with pytest.raises(ValueError, match="epochs is 0, batch_size 256, expected positive ints"):
        nn.linear_classifier(nn.Identity(), [(x, np.arange(4))], epochs=0)
