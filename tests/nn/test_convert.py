"""Linear layers as convolutions: maps are those of crops; convolutions as matrices; refusals that say why."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from hypothesis import given
from hypothesis import strategies as st
from sample import examples

import gpucnn.functional as F
from gpucnn import nn
from gpucnn.nn import models

Rng = np.random.Generator


def settled(model: nn.Module, rng: Rng) -> nn.Module:
    """`model` in evaluation mode, with running statistics and weights of norms that are not the first ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            size = module.num_features
            module.running_mean[:] = rng.normal(size=size)
            module.running_var[:] = rng.uniform(0.5, 2, size=size)
            module.weight.data[:] = rng.uniform(0.5, 2, size=size)
            module.bias.data[:] = rng.normal(size=size)
    return model.eval()


def plain(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, rng=rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(5, 6, (3, 2), rng=rng), nn.LeakyReLU(0.1), nn.Flatten(),
        nn.Linear(6 * 3 * 4, 8, rng=rng), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4, rng=rng),
    ), (2, 12, 12)  # fmt: skip


def strided(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    """Strides that do not divide sizes, dilation, groups, an average and an odd crop."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=(2, 3), groups=3, bias=False, rng=rng), nn.Tanh(),
        nn.Conv2d(6, 4, 2, dilation=2, rng=rng), nn.AvgPool2d(3, stride=2), nn.Flatten(),
        nn.Linear(4 * 2 * 1, 5, bias=False, rng=rng),
    ), (3, 17, 18)  # fmt: skip


def normalised(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    """Batch norms before and between the linear layers, which are nested, and probabilities at the end."""
    features = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False, rng=rng), nn.BatchNorm2d(4), nn.ReLU6(), nn.LPPool2d(2, 2))
    classifier = nn.Sequential(
        nn.Linear(4 * 16, 7, rng=rng), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3, rng=rng), nn.Softmax(dim=-1)
    )
    model = nn.Sequential({"features": features, "flatten": nn.Flatten(), "classifier": classifier})
    return settled(model, rng), (1, 10, 10)


def pooled(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    """Adaptive pools: to several windows, to one, and where there is nothing to do."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, rng=rng), nn.AdaptiveMaxPool2d((4, 6)), nn.Conv2d(4, 5, 3, rng=rng),
        nn.AdaptiveAvgPool2d((2, 4)), nn.AdaptiveAvgPool2d((None, 1)), nn.Flatten(), nn.Linear(10, 3, rng=rng),
    ), (1, 10, 14)  # fmt: skip


def branched(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    """Shortcuts and branches, of which the widest counts."""
    body = nn.Sequential(nn.Conv2d(4, 4, 1, rng=rng), nn.BatchNorm2d(4), nn.ReLU())
    branches = nn.Concat(
        nn.Sequential(nn.Conv2d(4, 2, 1, rng=rng), nn.MaxPool2d(3, 2)), nn.Conv2d(4, 3, 3, stride=2, rng=rng)
    )
    model = nn.Sequential(
        nn.Conv2d(1, 4, 2, rng=rng), nn.Residual(body, activation=nn.ReLU()), branches, nn.Flatten(),
        nn.Linear(5 * 9, 3, rng=rng),
    )  # fmt: skip
    return settled(model, rng), (1, 8, 8)


def signal(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3, rng=rng), nn.SumPool1d(2), nn.Flatten(), nn.Linear(4 * 5, 6, rng=rng), nn.BatchNorm1d(6),
        nn.Linear(6, 2, rng=rng),
    )  # fmt: skip
    return settled(model, rng), (2, 12)


def volume(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    model = nn.Sequential(
        nn.Conv3d(1, 3, 2, rng=rng), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(3 * 8, 4, rng=rng), nn.BatchNorm1d(4)
    )
    return settled(model, rng), (1, 5, 5, 5)


def lenet(rng: Rng) -> tuple[nn.Module, tuple[int, ...]]:
    return models.LeNet(padding=0, rng=rng), (1, 32, 32)


NETWORKS = [plain, strided, normalised, pooled, branched, signal, volume, lenet]

MODELS: dict[str, tuple[Callable[[Rng], nn.Module], tuple[int, ...]]] = {
    # these pad: a map is not that of crops
    "resnet": (lambda rng: models.ResNet(models.BasicBlock, (1, 1, 1, 1), 5, width=4, rng=rng), (3, 64, 64)),
    "mobilenet": (lambda rng: models.MobileNetV2(5, width_mult=0.1, rng=rng), (3, 64, 64)),
    "lenet": (lambda rng: models.LeNet(rng=rng), (1, 28, 28)),
    "alexnet": (lambda rng: models.AlexNet(5, width=4, hidden=8, rng=rng), (3, 223, 223)),
    "vgg": (lambda rng: models.VGG((1,) * 5, 5, batch_norm=True, width=4, hidden=8, rng=rng), (3, 224, 224)),
}


def image_for(shape: tuple[int, ...], more: list[int], rng: Rng) -> np.ndarray[Any, Any]:
    space = [size + extra for size, extra in zip(shape[1:], more, strict=False)]
    return rng.normal(size=(shape[0], *space)).astype(np.float32)


def cut(scores: Any, like: Any) -> Any:
    """The positions of a map whose crops lie within the image."""
    return scores[tuple(slice(size) for size in like.shape)]


# --- Maps are those of crops --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@examples(8)
@given(data=st.data())
def test_the_map_is_that_of_the_crops(network: Any, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    model, shape = network(rng)
    image = image_for(shape, data.draw(st.lists(st.integers(0, 13), min_size=3, max_size=3)), rng)
    converted = nn.linear_to_conv(model, shape)
    where = nn.sliding_geometry(converted)
    assert where.exact
    crops = nn.crop_map(model, image, shape[1:], where.stride, batch_size=7)
    scores = nn.prediction_map(converted, image)
    assert all(have >= need for have, need in zip(scores.shape, crops.shape, strict=True))
    np.testing.assert_allclose(cut(scores, crops), crops, rtol=0, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_what_a_prediction_sees_is_its_field_and_no_more(network: Any, rng: Rng) -> None:
    model, shape = network(rng)
    converted = nn.linear_to_conv(model, shape)
    where = nn.sliding_geometry(converted)
    assert all(size <= crop for size, crop in zip(where.size, shape[1:], strict=True))
    image = rng.normal(size=(shape[0], *where.size)).astype(np.float32)
    scores = nn.prediction_map(converted, image)
    assert scores.shape[1:] == (1,) * len(where.size)
    larger = np.full((shape[0], *(size + 20 for size in where.size)), np.nan, np.float32)
    larger[(slice(None), *(slice(0, size) for size in where.size))] = image
    first = nn.prediction_map(converted, larger)[(slice(None), *(slice(0, 1),) * len(where.size))]
    np.testing.assert_allclose(first, scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("network", [*NETWORKS, *MODELS])
def test_of_the_size_that_it_was_made_for_it_gives_the_same(network: Any, rng: Rng) -> None:
    model, shape = (MODELS[network][0](rng), MODELS[network][1]) if network in MODELS else network(rng)
    settled(model, rng)
    x = rng.normal(size=(3, *shape)).astype(np.float32)
    converted = nn.linear_to_conv(model, shape)
    scores = converted(x)
    assert scores.shape[2:] == (1,) * (len(shape) - 1)
    np.testing.assert_allclose(scores.reshape(3, -1), model(x), rtol=0, atol=1e-4 if network in MODELS else 1e-5)
    assert list(converted.state_dict()) == list(model.state_dict())
    larger = [
        size + (axis + 1) * step
        for axis, (size, step) in enumerate(zip(shape[1:], nn.sliding_geometry(converted).stride, strict=True))
    ]
    assert nn.prediction_map(converted, np.zeros((shape[0], *larger), np.float32)).shape[1:] == (2, 3, 4)[: len(larger)]


@pytest.mark.parametrize("shifts", [1, 2, 4, (4, 1)])
@pytest.mark.parametrize("more", [(0, 0), (1, 6), (9, 5)])
def test_the_dense_map_is_that_of_crops_at_each_shift(shifts: Any, more: tuple[int, int], rng: Rng) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, rng=rng), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5, rng=rng)
    )
    image = image_for((1, 13, 13), list(more), rng)
    converted = nn.linear_to_conv(model, (1, 13, 13))
    each = (shifts, shifts) if isinstance(shifts, int) else shifts
    crops = nn.crop_map(model, image, (13, 13), [4 // part for part in each])
    dense = nn.dense_map(converted, image, shifts)
    np.testing.assert_allclose(cut(dense, crops), crops, rtol=0, atol=1e-5)
    coarse = nn.prediction_map(converted, image)
    np.testing.assert_allclose(dense[:, :: each[0], :: each[1]], coarse, rtol=0, atol=1e-6)
    together = nn.dense_map(converted, image[None], shifts)
    np.testing.assert_array_equal(together[0], dense)


def test_with_padding_only_an_image_of_the_size_is_equal(rng: Rng) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, rng=rng), nn.Flatten(), nn.Linear(4 * 64, 3, rng=rng))
    converted = nn.linear_to_conv(model, (1, 8, 8))
    assert nn.sliding_geometry(converted) == ((1, 1), (10, 10), False)
    image = rng.normal(size=(1, 12, 12)).astype(np.float32)
    scores = nn.prediction_map(converted, image)
    assert scores.shape == (3, 5, 5)
    assert np.abs(scores - nn.crop_map(model, image, (8, 8), (1, 1))).max() > 1e-3
    # what it is instead: the unpadded network's of crops with their surroundings
    wide = nn.Sequential(nn.Conv2d(1, 4, 3, rng=rng), nn.Flatten(), nn.Linear(4 * 64, 3, rng=rng))
    wide.load_state_dict(model.state_dict())
    crops = nn.crop_map(wide, image, (10, 10), (1, 1))
    np.testing.assert_allclose(scores[:, 1:-1, 1:-1], crops, rtol=0, atol=1e-5)
    small = image[:, :8, :8]
    np.testing.assert_allclose(nn.prediction_map(converted, small)[:, 0, 0], model(small[None])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "exact"),
    [
        (nn.Conv2d(1, 1, 3, padding="same"), False),
        (nn.Conv2d(1, 1, 1, padding="same"), True),
        (nn.Conv2d(1, 1, 3, padding="valid"), True),
        (nn.Conv2d(1, 1, 3, padding=[(0, 1), (0, 0)]), False),
        (nn.MaxPool2d(2, ceil_mode=True), False),
        (nn.MaxPool2d(3, padding=1), False),
        (nn.AvgPool2d(3, stride=1), True),
    ],
)
def test_what_reaches_over_a_border_is_not_exact(layer: nn.Module, exact: bool) -> None:
    assert nn.sliding_geometry(nn.Sequential(nn.Conv2d(1, 1, 1), layer)).exact is exact


@pytest.mark.parametrize("size", range(9, 17))
def test_maps_of_layers_that_pad_interleave_too(size: int) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding="same"), nn.MaxPool2d(2, ceil_mode=True))
    image = np.zeros((1, size, size + 1), np.float32)
    dense = nn.dense_map(model, image, shifts=4)
    assert dense.shape == (2, size, size + 1)
    np.testing.assert_array_equal(dense[:, ::4, ::4], nn.prediction_map(model, image))


# --- What is shared and what is not -------------------------------------------------------------------------------


def test_names_and_arrays_are_those_of_the_network(rng: Rng) -> None:
    model, shape = normalised(rng)
    model.classifier.requires_grad_(False)
    model.features.train()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    converted = nn.linear_to_conv(model, shape)
    assert list(converted.state_dict()) == list(model.state_dict())
    assert all(np.shares_memory(array, model.state_dict()[name]) for name, array in converted.state_dict().items())
    assert converted.state_dict()["classifier.0.weight"].shape == (7, 4, 4, 4)
    assert [name for name, p in converted.named_parameters() if p.requires_grad] == [
        name for name, p in model.named_parameters() if p.requires_grad
    ]
    assert converted.features[1].training
    assert not converted.classifier[1].training
    assert converted.features[0] is not model.features[0]
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())


def test_it_trains(rng: Rng) -> None:
    model, shape = plain(rng)
    model.eval()
    converted = copy.deepcopy(nn.linear_to_conv(model, shape))
    x, grad = rng.normal(size=(2, *shape)).astype(np.float32), rng.normal(size=(2, 4)).astype(np.float32)
    model(x)
    converted(x)
    expected = model.backward(grad)
    np.testing.assert_allclose(converted.backward(grad[..., None, None]), expected, rtol=0, atol=1e-5)
    for one, other in zip(model.parameters(), converted.parameters(), strict=True):
        np.testing.assert_allclose(other.grad.reshape(one.shape), one.grad, rtol=0, atol=1e-4)
        assert not np.shares_memory(one.data, other.data)


def test_maps_leave_modes_and_statistics(rng: Rng) -> None:
    model, shape = normalised(rng)
    converted = nn.linear_to_conv(model.train(), shape)
    before = {name: array.copy() for name, array in model.state_dict().items()}
    image = rng.normal(size=shape).astype(np.float32)
    nn.prediction_map(converted, image)
    nn.dense_map(converted, image)
    nn.crop_map(model, image, shape[1:], (1, 1))
    assert all(module.training for network in (model, converted) for module in network.modules())
    assert all(np.array_equal(array, before[name]) for name, array in model.state_dict().items())
    with pytest.raises(RuntimeError, match="no forward"):
        converted.backward(image)


def test_on_other_backends(backend: ArrayBackend, rng: Rng) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, rng=rng), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3, rng=rng)
    )
    image = rng.normal(size=(1, 12, 10)).astype(np.float32)
    expected = nn.crop_map(model, image, (10, 10), (4, 4))
    model.map_arrays(backend.asarray)
    converted = nn.linear_to_conv(model, (1, 10, 10))
    assert nn.sliding_geometry(converted).stride == (4, 4)
    there, near = backend.asarray(image), {"rtol": 0, "atol": 1e-5}
    np.testing.assert_allclose(backend.asnumpy(nn.prediction_map(converted, there)), expected, **near)
    np.testing.assert_allclose(backend.asnumpy(nn.crop_map(model, there, (10, 10), (4, 4))), expected, **near)
    dense = nn.dense_map(converted, there)
    assert dense.shape == (3, 2, 1)
    mean = backend.asnumpy(dense).mean(axis=(1, 2))
    np.testing.assert_allclose(backend.asnumpy(nn.average_map(dense)), mean, rtol=1e-5)
    assert float(backend.asnumpy(nn.vote_map(dense)).sum()) == pytest.approx(1)
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1, rng=rng).map_arrays(backend.asarray)
    linear = nn.conv_to_linear(conv, (2, 5, 4))
    x = backend.asarray(rng.normal(size=(2, 2, 5, 4)).astype(np.float32))
    y = backend.asnumpy(conv(x)).reshape(2, -1)
    np.testing.assert_allclose(backend.asnumpy(linear(x.reshape(2, 40))), y, **near)


# --- Averages and votes -------------------------------------------------------------------------------------------


def test_averages_and_votes(rng: Rng) -> None:
    scores = rng.normal(size=(2, 5, 4, 3))
    np.testing.assert_allclose(nn.average_map(scores), scores.mean(axis=(2, 3)))
    np.testing.assert_allclose(nn.average_map(scores[0]), scores[0].mean(axis=(1, 2)))
    shares = nn.vote_map(scores)
    for image, winners in zip(shares, scores.argmax(axis=1).reshape(2, -1), strict=True):
        np.testing.assert_allclose(image, np.bincount(winners, minlength=5) / 12)
    np.testing.assert_array_equal(nn.vote_map(scores[0]), shares[0])
    np.testing.assert_array_equal(nn.vote_map(F.softmax(scores, dim=1)), shares)
    line = rng.normal(size=(5, 7))
    assert nn.average_map(line, rank=1).shape == nn.vote_map(line, rank=1).shape == (5,)
    np.testing.assert_array_equal(nn.vote_map(np.zeros((3, 2, 2))), [1, 0, 0])  # the first of equal ones


# --- A convolution as a matrix ------------------------------------------------------------------------------------

LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv1d(2, 3, 3, rng=0), (2, 7)),
    (nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=(1, 2), groups=2, rng=0), (4, 6, 7)),
    (nn.Conv2d(1, 2, 3, padding="same", padding_mode="circular", bias=False, rng=0), (1, 5, 5)),
    (nn.Conv3d(1, 2, 2, rng=0), (1, 3, 4, 3)),
    (nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1, rng=0), (2, 3, 4)),
    (nn.LocallyConnected2d(2, 3, (5, 4), 3, rng=0), (2, 5, 4)),
    (nn.LocallyConnected1d(1, 2, 6, 2, stride=2, bias=False, rng=0), (1, 6)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: getattr(type(value), "__name__", ""))
def test_a_convolution_is_a_linear_layer(layer: Any, shape: tuple[int, ...]) -> None:
    """Shown by images of a single 1, at each place."""
    x = np.eye(math.prod(shape), dtype=np.float32).reshape(-1, *shape)
    before = {name: array.copy() for name, array in layer.state_dict().items()}
    linear = nn.conv_to_linear(layer, shape)
    y = layer(x)
    assert linear.weight.shape == (y[0].size, x[0].size) == (linear.out_features, linear.in_features)
    assert (linear.bias is None) == (layer.bias is None)
    np.testing.assert_allclose(linear(x.reshape(len(x), -1)), y.reshape(len(x), -1), rtol=0, atol=1e-6)
    assert all(np.array_equal(array, before[name]) for name, array in layer.state_dict().items())
    assert not any(np.shares_memory(p.data, q.data) for p in linear.parameters() for q in layer.parameters())


def test_back_and_forth(rng: Rng) -> None:
    linear = nn.Linear(2 * 3 * 4, 5, rng=rng)
    conv = nn.linear_to_conv(nn.Sequential(nn.Flatten(), linear), (2, 3, 4))[0]
    np.testing.assert_array_equal(nn.conv_to_linear(conv, (2, 3, 4)).weight.data, linear.weight.data)


# --- What cannot be done ------------------------------------------------------------------------------------------


def ending(*layers: nn.Module, features: int) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 3))


class Odd(nn.Sequential):
    def forward(self, x: Any) -> Any:
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (ending(nn.GroupNorm(1, 1), features=64), TypeError, r"0, a GroupNorm, cannot slide: it normalises by stat"),
        (ending(nn.InstanceNorm2d(1), features=64), TypeError, "InstanceNorm2d, cannot slide"),
        (ending(nn.LayerNorm((1, 8, 8)), features=64), TypeError, "LayerNorm, cannot slide"),
        (ending(nn.LocallyConnected2d(1, 1, 8, 1), features=64), TypeError, "weights of its own for each position"),
        (ending(nn.ConvTranspose2d(1, 1, 1), features=64), TypeError, "what the neighbours would add"),
        (ending(nn.Upsample(scale_factor=2), features=256), TypeError, "makes images larger"),
        (ending(nn.MaxPool2d(2, return_indices=True), features=16), TypeError, "returns indices"),
        (ending(nn.AdaptiveMaxPool2d(2, return_indices=True), features=4), TypeError, "returns indices"),
        (ending(nn.BatchNorm2d(1, track_running_stats=False), features=64), TypeError, "no running statistics"),
        (ending(nn.Softmax(-1), features=64), TypeError, "its dim is -1, expected 1"),
        (ending(nn.Concat(nn.ReLU(), nn.Tanh(), dim=2), features=128), TypeError, "its dim is 2, expected 1"),
        (ending(nn.Residual(nn.AdaptiveAvgPool2d(8)), features=64), TypeError, "0.body, a AdaptiveAvgPool2d, .*branch"),
        (Odd(nn.Flatten(), nn.Linear(64, 3)), TypeError, "model is a Odd, expected a Sequential"),
        (nn.Linear(64, 3), TypeError, "model is a Linear, expected a Sequential"),
        (ending(nn.AdaptiveAvgPool2d(3), features=9), ValueError, "makes 3 windows of 8 values, expected a divisor"),
        (nn.Sequential(nn.Linear(8, 3)), ValueError, "expected Flatten before it"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(64, 3)), ValueError, "start_dim=0, end_dim=-1, expected 1 and -1"),
        (ending(features=65), ValueError, "takes 65 features, expected 64 of the feature map"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), ValueError, "ends with features .* flattened"),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3)), ValueError, "normalises each value"),
        (nn.Sequential(nn.Flatten(), nn.MaxPool2d(2)), ValueError, "follows Flatten, expected a Linear"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_says_why(model: nn.Module, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"linear_to_conv: .*{message}"):
        nn.linear_to_conv(model, (1, 8, 8))


def test_arguments_that_do_not_fit(rng: Rng) -> None:
    converted = nn.linear_to_conv(ending(nn.Conv2d(1, 2, 3, stride=2), features=2 * 9), (1, 8, 8))
    with pytest.raises(ValueError, match=r"linear_to_conv: input_shape is \(8,\), expected"):
        nn.linear_to_conv(converted, (8,))
    with pytest.raises(ValueError, match="expected positive sizes"):
        nn.linear_to_conv(converted, (1, 8, 0))
    with pytest.raises(ValueError, match=r"prediction_map: image is \(6, 9\), expected at least \(7, 7\)"):
        nn.prediction_map(converted, np.zeros((1, 6, 9), np.float32))
    with pytest.raises(ValueError, match=r"dense_map: image has shape \(8, 8\), expected \[C, \*space\]"):
        nn.dense_map(converted, np.zeros((8, 8), np.float32))
    for shifts in (3, 0, (2, 2, 2), (2,)):
        with pytest.raises(ValueError, match=r"dense_map: shifts is .*, expected divisors of the stride \(2, 2\)"):
            nn.dense_map(converted, np.zeros((1, 8, 8), np.float32), shifts)
    with pytest.raises(TypeError, match="sliding_geometry: model has neither convolution nor pool"):
        nn.sliding_geometry(nn.Sequential(nn.ReLU()))
    with pytest.raises(TypeError, match="sliding_geometry: 1, a Flatten, cannot slide: it takes inputs of one size"):
        nn.sliding_geometry(ending(nn.Conv2d(1, 2, 3), features=2 * 36))
    for size, stride in (((9, 8), (1, 1)), ((8,), (1, 1)), ((8, 8), (1,))):
        with pytest.raises(ValueError, match="crop_map: image is"):
            nn.crop_map(nn.Flatten(), np.zeros((1, 8, 8), np.float32), size, stride)


def test_matrices_that_are_refused() -> None:
    with pytest.raises(TypeError, match="conv_to_linear: conv is a MaxPool2d, expected a layer that convolves"):
        nn.conv_to_linear(nn.MaxPool2d(2), (1, 4, 4))
    with pytest.raises(ValueError, match="expected at most 67108864: it is for small cases"):
        nn.conv_to_linear(nn.Conv2d(3, 8, 3), (3, 128, 128))
    with pytest.raises(ValueError, match=r"conv_to_linear: input_shape is \(2, 8, 8\), expected .* C = 3"):
        nn.conv_to_linear(nn.Conv2d(3, 8, 3), (2, 8, 8))
