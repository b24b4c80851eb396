"""The networks of the literature: names and sizes of their weights, gradients, errors, and what else they promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from layer_cases import NETWORKS
from refusals import refused, refuses

from gpucnn import nn
from gpucnn.nn import _family, models


@pytest.fixture
def unfilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters are allocated and not written to: memory that no one writes costs none."""
    monkeypatch.setattr(_family, "uniform", lambda rng, shape, fan_in, dtype: nn.Parameter(np.empty(shape, dtype)))
    monkeypatch.setattr(nn.init, "_fill", lambda tensor, *draw: tensor)


# --- Names and shapes of weights ----------------------------------------------------------------------------------

# The numbers of parameters that torchvision documents; with the names and shapes in test_models_pytorch.py they
# determine its states.
PUBLISHED = {
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "mobilenet_v2": 3_504_872,
    "efficientnet_lite0": 4_652_008,
    "LeNet": 61_706,
    "DCGANGenerator": 3_576_704,
    "DCGANDiscriminator": 2_765_568,
}


@pytest.mark.usefixtures("unfilled")
@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_of_parameters(name: str) -> None:
    model = getattr(models, name)()
    assert sum(parameter.size for parameter in model.parameters()) == PUBLISHED[name]


def test_every_network_is_tested() -> None:
    assert {name for name in models.__all__ if name.islower()} <= set(PUBLISHED)


@pytest.mark.usefixtures("unfilled")
@pytest.mark.parametrize(("width_mult", "first", "last"), [(0.5, 16, 1280), (1.0, 32, 1280), (1.4, 48, 1792)])
def test_mobilenet_widths(width_mult: float, first: int, last: int) -> None:
    """The last layer is widened but never narrowed."""
    state = models.mobilenet_v2(2, width_mult=width_mult).state_dict()
    assert state["features.0.0.weight"].shape == (first, 3, 3, 3)
    assert state["classifier.1.weight"].shape == (2, last)


def test_summary_of_a_unet() -> None:
    """Receptive fields reach through the level below, also where a size is odd."""
    for size in ((32, 32), (37, 33)):
        summary = nn.summary(models.UNet(2, 1, width=2, depth=2, rng=0), (1, *size))
        below, across = (summary[name].receptive_field for name in ("encoder.2.conv", "decoder.0.conv"))
        assert below is not None
        assert across is not None
        assert np.min(across.size) > np.max(below.size)


@pytest.mark.parametrize(
    ("name", "multiply_adds", "layer", "field"),
    [("resnet18", 1_814_073_344, "layer4", 435), ("mobilenet_v2", 300_774_272, "features", 491)],
)
def test_summary(name: str, multiply_adds: int, layer: str, field: int) -> None:
    """Multiply-adds and receptive fields are those that are known."""
    summary = nn.summary(getattr(models, name)(rng=0), (3, 224, 224))
    assert (summary.parameters, summary.multiply_adds) == (PUBLISHED[name], multiply_adds)
    assert summary[layer].output_shape[1:] == (7, 7)
    assert summary[layer].receptive_field.size in (field, (field, field))
    assert summary[layer].receptive_field.stride == (32, 32)
    assert layer in str(summary)


# --- Forward and backward -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [models.BasicBlock, models.Bottleneck])
def test_first_block_leaves_work_out(block: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    first = block(3, 4, stride=2, rng=0)
    first.needs_input_grad = False
    results = []
    for part in (first.conv1, first.downsample):
        monkeypatch.setattr(part, "backward", lambda grad, own=part.backward: results.append(own(grad)))
    first.backward(np.ones_like(first(np.ones((2, 3, 6, 6), np.float32))))
    assert results == [None, None]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_seed_means_the_same_weights(name: str) -> None:
    one, same, other = (NETWORKS[name].make(np.float32, seed).state_dict() for seed in (1, 1, 2))
    assert all(np.array_equal(array, same[key]) for key, array in one.items())
    assert any(not np.array_equal(array, other[key]) for key, array in one.items())
    assert {array.dtype for key, array in one.items() if "num_batches" not in key} == {np.dtype(np.float32)}


# --- First weights ------------------------------------------------------------------------------------------------


def test_rectified_networks_start_with_the_fan_out() -> None:
    model = models.vgg11(width=16, hidden=64, rng=0)
    weight = dict(model.named_parameters())["features.6.weight"].data  # [64, 32, 3, 3]
    assert weight.std() == pytest.approx(np.sqrt(2 / (64 * 9)), rel=0.02)
    linear = dict(model.named_parameters())["classifier.3.weight"].data
    assert linear.std() == pytest.approx(0.01, rel=0.05)
    assert not dict(model.named_parameters())["features.6.bias"].data.any()


def test_dcgan_starts_small() -> None:
    model = models.DCGANGenerator(width=8, rng=0)
    parameters = dict(model.named_parameters())
    assert parameters["main.3.weight"].data.std() == pytest.approx(0.02, rel=0.05)
    assert abs(parameters["main.1.weight"].data - 1).max() < 0.1


# --- Sizes that fit, and errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(16, 16), (17, 31), (23, 18)])
def test_unet_keeps_every_size(depth: int, size: tuple[int, int]) -> None:
    model = models.UNet(3, 1, width=2, depth=depth, rng=0)
    x = np.ones((2, 1, *size), np.float32)
    y = model(x)
    assert y.shape == (2, 3, *size)
    assert model.backward(np.ones_like(y)).shape == x.shape


@pytest.mark.parametrize("image_size", [8, 16, 32, 64])
def test_dcgan_sizes(image_size: int) -> None:
    images = models.DCGANGenerator(6, 2, 2, image_size, rng=0)(np.ones((2, 6, 1, 1), np.float32))
    assert images.shape == (2, 2, image_size, image_size)
    assert abs(images).max() < 1
    assert models.DCGANDiscriminator(2, 2, image_size, rng=0)(images).shape == (2, 1, 1, 1)


@pytest.mark.parametrize(
    "model",
    [
        lambda: models.UNet(1, 1, width=2, depth=1, rng=0),
        lambda: models.DCGANDiscriminator(1, width=2, image_size=8, rng=0),
    ],
    ids=["unet", "discriminator"],
)
def test_networks_with_logits_learn_yes_and_no(backend: ArrayBackend, model: Callable[[], nn.Module]) -> None:
    x = np.random.default_rng(0).standard_normal((8, 1, 8, 8)).astype(np.float32)
    network = model()
    of_pixels = network(x).shape == x.shape
    target = ((x if of_pixels else x.mean((1, 2, 3), keepdims=True)) > 0).astype(np.float32)
    network.map_arrays(backend.asarray)
    options: dict[str, Any] = {"loss": nn.BCEWithLogitsLoss(), "progress": False, "epochs": 30}
    history = nn.fit(network, [(x, target)], optimizer=nn.Adam(network.parameters(), 0.02), **options)
    assert history.losses[-1] < 0.8 * history.losses[0]
    shares = backend.asnumpy(nn.Sigmoid()(network.eval()(backend.asarray(x))))
    assert ((shares >= 0) & (shares <= 1)).all()


def test_lenet_takes_both_sizes() -> None:
    assert models.LeNet(padding=0)(np.zeros((1, 1, 32, 32), np.float32)).shape == (1, 10)


test_arguments_that_do_not_fit = refuses(
    ValueError,
    ("LeNet: num_classes is 0, expected at least 1", lambda: models.LeNet(0)),
    ("AlexNet: width is 0, expected at least 1", lambda: models.alexnet(width=0)),
    ("Dropout: p is 2.0…", lambda: models.alexnet(2, width=1, hidden=1, dropout=2.0)),
    ("VGG: hidden is -1, expected at least 1", lambda: models.vgg11(hidden=-1)),
    ("VGG: depths is (1, 2), expected 5 numbers of at least 1", lambda: models.VGG((1, 2))),
    ("ResNet: depths is …, expected 4 numbers…", lambda: models.ResNet(models.BasicBlock, (1, 0, 1, 1))),
    ("MobileNetV2: width_mult is 0.0, expected more than 0", lambda: models.mobilenet_v2(width_mult=0.0)),
    ("UNet: depth is 0, expected at least 1", lambda: models.UNet(depth=0)),
    (
        "UNet: input has spatial size (9, 7), expected at least 2**depth = 8 along each axis",
        lambda: models.UNet(width=2, depth=3, rng=0)(np.zeros((1, 3, 9, 7), np.float32)),
    ),
    ("DCGANGenerator: image_size is 24, expected a power of two…", lambda: models.DCGANGenerator(image_size=24)),
    ("DCGANDiscriminator: image_size is 4, expected a power…", lambda: models.DCGANDiscriminator(image_size=4)),
)


def test_randomness_of_another_kind() -> None:
    message = "ResNet: rng is 'seed', expected None, a seed or a numpy.random.Generator"
    refused(TypeError, (message, lambda: models.resnet18(rng="seed")))
