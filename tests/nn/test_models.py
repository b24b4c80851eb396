"""The networks of the literature: names and sizes of their weights, gradients, errors, and what else they promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend

from gpucnn import nn
from gpucnn.nn import _family, models

Shapes = Iterator[tuple[str, tuple[int, ...]]]

# Small forms with an input each; `options` are dtype and rng.
SMALL: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "lenet": (lambda **o: models.LeNet(**o), (2, 1, 28, 28)),
    "alexnet": (lambda **o: models.alexnet(3, width=2, hidden=6, dropout=0.0, **o), (2, 3, 67, 63)),
    "vgg": (lambda **o: models.VGG((1, 1, 1, 1, 1), 3, width=2, hidden=6, dropout=0.0, **o), (2, 3, 32, 35)),
    "vgg_bn": (lambda **o: models.VGG((1, 1, 1, 1, 1), 3, True, width=2, hidden=6, dropout=0.0, **o), (3, 3, 64, 64)),
    "basic": (lambda **o: models.ResNet(models.BasicBlock, (1, 2, 1, 1), 3, width=2, **o), (2, 3, 64, 49)),
    "bottleneck": (lambda **o: models.ResNet(models.Bottleneck, (1, 2, 1, 1), 3, width=2, **o), (2, 3, 64, 49)),
    "mobilenet": (
        lambda **o: models.MobileNetV2(3, 0.25, [(1, 8, 2, 1), (2, 8, 1, 2)], 0.0, last_channels=8, **o),
        (2, 3, 19, 17),
    ),
    "unet": (lambda **o: models.UNet(2, 1, width=2, depth=2, **o), (2, 1, 11, 9)),
    "generator": (lambda **o: models.DCGANGenerator(5, width=2, image_size=16, **o), (3, 5, 1, 1)),
    "discriminator": (lambda **o: models.DCGANDiscriminator(width=2, image_size=16, **o), (3, 3, 16, 16)),
    "dcgan": (lambda **o: dcgan(**o), (3, 5, 1, 1)),
}


def dcgan(dtype: Any = np.float32, rng: Any = None) -> nn.Sequential:
    """The opponents one behind the other, as the generator is trained."""
    rng = np.random.default_rng(rng)
    options = {"width": 2, "image_size": 8, "dtype": dtype, "rng": rng}
    return nn.Sequential(models.DCGANGenerator(5, **options), models.DCGANDiscriminator(**options))


@pytest.fixture
def unfilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters are allocated and not written to: memory that no one writes costs none."""
    monkeypatch.setattr(_family, "uniform", lambda rng, shape, fan_in, dtype: nn.Parameter(np.empty(shape, dtype)))
    monkeypatch.setattr(nn.init, "_fill", lambda tensor, *draw: tensor)


# --- Names and shapes of weights ----------------------------------------------------------------------------------


def conv(name: str, outputs: int, inputs: int, kernel: int, bias: bool = False) -> Shapes:
    yield f"{name}.weight", (outputs, inputs, kernel, kernel)
    if bias:
        yield f"{name}.bias", (outputs,)


def norm(name: str, channels: int) -> Shapes:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def linear(name: str, outputs: int, inputs: int) -> Shapes:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def alexnet_shapes() -> Shapes:
    channels = 3
    for place, outputs, kernel in ((0, 64, 11), (3, 192, 5), (6, 384, 3), (8, 256, 3), (10, 256, 3)):
        yield from conv(f"features.{place}", outputs, channels, kernel, bias=True)
        channels = outputs
    for place, outputs, inputs in ((1, 4096, 256 * 36), (4, 4096, 4096), (6, 1000, 4096)):
        yield from linear(f"classifier.{place}", outputs, inputs)


def vgg_shapes(plan: str, batch_norm: bool) -> Shapes:
    """`plan` has a digit for each convolution, its channels in 64, and a dash for each pooling."""
    place, channels = 0, 3
    for entry in plan:
        if entry == "-":
            place += 1
            continue
        yield from conv(f"features.{place}", 64 * int(entry), channels, 3, bias=True)
        if batch_norm:
            yield from norm(f"features.{place + 1}", 64 * int(entry))
        place, channels = place + 2 + batch_norm, 64 * int(entry)
    for place, outputs, inputs in ((0, 4096, 512 * 49), (3, 4096, 4096), (6, 1000, 4096)):
        yield from linear(f"classifier.{place}", outputs, inputs)


def resnet_shapes(depths: tuple[int, ...], kernels: tuple[int, ...]) -> Shapes:
    """`kernels` are those of a block: 3, 3 or 1, 3, 1."""
    yield from conv("conv1", 64, 3, 7)
    yield from norm("bn1", 64)
    widening = 4 if len(kernels) == 3 else 1
    inputs = 64
    for stage, depth in enumerate(depths):
        channels = 64 * 2**stage
        for index in range(depth):
            name = f"layer{stage + 1}.{index}"
            before = inputs
            for number, kernel in enumerate(kernels, 1):
                after = channels * (widening if number == len(kernels) else 1)
                yield from conv(f"{name}.conv{number}", after, before, kernel)
                yield from norm(f"{name}.bn{number}", after)
                before = after
            if index == 0 and (stage > 0 or widening > 1):
                yield from conv(f"{name}.downsample.0", before, inputs, 1)
                yield from norm(f"{name}.downsample.1", before)
            inputs = before
    yield from linear("fc", 1000, inputs)


def mobilenet_shapes() -> Shapes:
    def both(name: str, outputs: int, inputs: int, kernel: int) -> Shapes:
        yield from conv(f"{name}.0", outputs, inputs, kernel)
        yield from norm(f"{name}.1", outputs)

    yield from both("features.0", 32, 3, 3)
    blocks = [(1, 16), *[(6, 24)] * 2, *[(6, 32)] * 3, *[(6, 64)] * 4, *[(6, 96)] * 3, *[(6, 160)] * 3, (6, 320)]
    inputs = 32
    for number, (widening, outputs) in enumerate(blocks, 1):
        name, middle, place = f"features.{number}.conv", inputs * widening, 0
        if widening > 1:
            yield from both(f"{name}.0", middle, inputs, 1)
            place = 1
        yield from both(f"{name}.{place}", middle, 1, 3)
        yield from conv(f"{name}.{place + 1}", outputs, middle, 1)
        yield from norm(f"{name}.{place + 2}", outputs)
        inputs = outputs
    yield from both(f"features.{len(blocks) + 1}", 1280, inputs, 1)
    yield from linear("classifier.1", 1000, 1280)


PLANS = {
    11: "1-2-44-88-88-",
    13: "11-22-44-88-88-",
    16: "11-22-444-888-888-",
    19: "11-22-4444-8888-8888-",
}

# The network, the names and shapes of torchvision's state, and the number of parameters that it documents.
PUBLISHED: dict[str, tuple[Shapes, int]] = {
    "alexnet": (alexnet_shapes(), 61_100_840),
    "vgg11": (vgg_shapes(PLANS[11], False), 132_863_336),
    "vgg13": (vgg_shapes(PLANS[13], False), 133_047_848),
    "vgg16": (vgg_shapes(PLANS[16], False), 138_357_544),
    "vgg19": (vgg_shapes(PLANS[19], False), 143_667_240),
    "vgg11_bn": (vgg_shapes(PLANS[11], True), 132_868_840),
    "vgg13_bn": (vgg_shapes(PLANS[13], True), 133_053_736),
    "vgg16_bn": (vgg_shapes(PLANS[16], True), 138_365_992),
    "vgg19_bn": (vgg_shapes(PLANS[19], True), 143_678_248),
    "resnet18": (resnet_shapes((2, 2, 2, 2), (3, 3)), 11_689_512),
    "resnet34": (resnet_shapes((3, 4, 6, 3), (3, 3)), 21_797_672),
    "resnet50": (resnet_shapes((3, 4, 6, 3), (1, 3, 1)), 25_557_032),
    "resnet101": (resnet_shapes((3, 4, 23, 3), (1, 3, 1)), 44_549_160),
    "mobilenet_v2": (mobilenet_shapes(), 3_504_872),
}


@pytest.mark.usefixtures("unfilled")
@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_have_torchvisions_names_shapes_and_number(name: str) -> None:
    model = getattr(models, name)()
    shapes, number = PUBLISHED[name]
    assert [(key, np.shape(array)) for key, array in model.state_dict().items()] == list(shapes)
    assert sum(parameter.size for parameter in model.parameters()) == number


def test_every_network_is_tested() -> None:
    functions = {name for name in models.__all__ if name.islower()}
    assert functions == set(PUBLISHED)


@pytest.mark.parametrize(
    ("model", "number"),
    [
        (lambda: models.LeNet(), 61_706),
        (lambda: models.DCGANGenerator(), 3_576_704),
        (lambda: models.DCGANDiscriminator(), 2_765_568),
    ],
    ids=["LeNet", "generator", "discriminator"],
)
@pytest.mark.usefixtures("unfilled")
def test_numbers_of_parameters(model: Callable[[], nn.Module], number: int) -> None:
    assert sum(parameter.size for parameter in model().parameters()) == number


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
    ("model", "multiply_adds", "layer", "field"),
    [
        (lambda: models.resnet18(rng=0), 1_814_073_344, "layer4", 435),
        (lambda: models.mobilenet_v2(rng=0), 300_774_272, "features", 491),
    ],
    ids=["resnet18", "mobilenet_v2"],
)
def test_summary(model: Callable[[], nn.Module], multiply_adds: int, layer: str, field: int) -> None:
    """Multiply-adds and receptive fields are those that are known."""
    summary = nn.summary(model(), (3, 224, 224))
    assert summary.multiply_adds == multiply_adds
    assert summary[layer].output_shape[1:] == (7, 7)
    assert summary[layer].receptive_field is not None
    assert summary[layer].receptive_field.size in (field, (field, field))
    assert layer in str(summary)


# --- Forward and backward -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("name", SMALL)
def test_gradients_are_the_slopes(name: str, training: bool) -> None:
    """Of a weighted sum of the result, along one direction through input and parameters together."""
    make, shape = SMALL[name]
    rng = np.random.default_rng(6)  # with 5 two maxima of a window are almost the same
    model = make(dtype=np.float64, rng=rng).train(training)
    for parameter in model.parameters():
        if parameter.data.ndim == 1:  # biases of 0 put rectifiers at their kink where all of a window is 0
            parameter.data += rng.uniform(-0.1, 0.1, parameter.shape)
    x = rng.standard_normal(shape)
    y = model(x)
    grad_output = rng.standard_normal(y.shape)
    arrays = [x, *(parameter.data for parameter in model.parameters())]
    grads = [model.backward(grad_output), *(parameter.grad for parameter in model.parameters())]
    direction = [rng.standard_normal(array.shape) for array in arrays]
    slope = sum(float((grad * along).sum()) for grad, along in zip(grads, direction, strict=True))
    step, sums = 1e-8, []
    for sign in (1, -1, -1):  # there, back, beyond
        for array, along in zip(arrays, direction, strict=True):
            array += sign * step * along
        sums.append(float((model(x) * grad_output).sum()))
    expected = (sums[0] - sums[2]) / (2 * step)
    assert slope == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_first_network_needs_no_gradient_of_its_input(name: str) -> None:
    make, shape = SMALL[name]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    whole, first = make(rng=3), make(rng=3)
    first.needs_input_grad = False
    grad_output = np.ones_like(whole(x))
    first(x)
    assert whole.backward(grad_output).shape == x.shape
    assert first.backward(grad_output) is None
    for (key, one), (_, other) in zip(whole.named_parameters(), first.named_parameters(), strict=True):
        np.testing.assert_array_equal(one.grad, other.grad, err_msg=key)


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.BasicBlock(3, 3, rng=0),
        lambda: models.BasicBlock(3, 4, stride=2, rng=0),
        lambda: models.Bottleneck(8, 2, rng=0),
        lambda: models.Bottleneck(3, 2, stride=2, rng=0),
        lambda: models.InvertedResidual(3, 3, rng=0),
        lambda: models.InvertedResidual(3, 4, stride=2, widening=1, rng=0),
    ],
)
def test_first_block_needs_no_gradient_of_its_input(make: Callable[[], nn.Module]) -> None:
    whole, first = make(), make()
    first.needs_input_grad = False
    channels = next(iter(whole.parameters())).shape[1]
    channels = 3 if channels == 1 else channels  # of one group
    x = np.random.default_rng(0).standard_normal((2, channels, 7, 6)).astype(np.float32)
    grad_output = np.random.default_rng(1).standard_normal(whole(x).shape).astype(np.float32)
    first(x)
    whole.backward(grad_output)
    assert first.backward(grad_output) is None
    for (key, one), (_, other) in zip(whole.named_parameters(), first.named_parameters(), strict=True):
        np.testing.assert_array_equal(one.grad, other.grad, err_msg=key)
    first.needs_input_grad = True  # and it can be asked for again
    first(x)
    assert first.backward(grad_output).shape == x.shape


@pytest.mark.parametrize("block", [models.BasicBlock, models.Bottleneck])
def test_first_block_leaves_work_out(block: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    first = block(3, 4, stride=2, rng=0)
    first.needs_input_grad = False
    results = []
    for part in (first.conv1, first.downsample):
        monkeypatch.setattr(part, "backward", lambda grad, own=part.backward: results.append(own(grad)))
    first.backward(np.ones_like(first(np.ones((2, 3, 6, 6), np.float32))))
    assert results == [None, None]


@pytest.mark.parametrize("name", SMALL)
def test_frozen_parameters_get_no_gradient(name: str) -> None:
    make, shape = SMALL[name]
    model, free = make(rng=3), make(rng=3)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    parameters = list(model.parameters())
    for parameter in parameters[::2]:
        parameter.requires_grad = False
    grad_output = np.ones_like(model(x))
    free(x)
    np.testing.assert_array_equal(model.backward(grad_output), free.backward(grad_output))
    for number, (parameter, other) in enumerate(zip(parameters, free.parameters(), strict=True)):
        if number % 2 == 0:
            assert parameter.grad is None
        else:
            np.testing.assert_array_equal(parameter.grad, other.grad)


@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_kept(name: str) -> None:
    """After a backward, or under `inference`, there is nothing to go back through, in any module."""
    make, shape = SMALL[name]
    model = make(rng=3)
    x = np.zeros(shape, np.float32)
    grad_output = np.ones_like(model(x))
    model.backward(grad_output)
    assert all(module._kept is None for module in model.modules() if "_kept" in vars(module))
    with nn.inference():
        model(x)
    assert all(module._kept is None for module in model.modules() if "_kept" in vars(module))
    with pytest.raises(RuntimeError, match="backward has no forward"):
        model.backward(grad_output)


@pytest.mark.parametrize("name", SMALL)
def test_a_seed_means_the_same_weights(name: str) -> None:
    make, _ = SMALL[name]
    one, same, other = (make(rng=seed).state_dict() for seed in (1, 1, 2))
    assert all(np.array_equal(array, same[key]) for key, array in one.items())
    assert any(not np.array_equal(array, other[key]) for key, array in one.items())
    assert {array.dtype for key, array in one.items() if "num_batches" not in key} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["lenet", "basic", "bottleneck", "mobilenet", "unet", "generator"])
def test_other_backends(backend: ArrayBackend, name: str) -> None:
    make, shape = SMALL[name]
    host, device = make(rng=3), make(rng=3).map_arrays(backend.asarray)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    y = host(x)
    grad_output = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    near = {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(backend.asnumpy(device(backend.asarray(x))), y, **near)
    grad = backend.asnumpy(device.backward(backend.asarray(grad_output)))
    expected = host.backward(grad_output)
    np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=1e-3 * abs(expected).max())
    least = 1e-3 * max(abs(parameter.grad).max() for parameter in host.parameters())  # some cancel to nothing
    for (key, one), (_, other) in zip(device.named_parameters(), host.named_parameters(), strict=True):
        atol = 1e-3 * max(abs(other.grad).max(), least)
        np.testing.assert_allclose(backend.asnumpy(one.grad), other.grad, rtol=1e-3, atol=atol, err_msg=key)


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
    ("model", "x", "target"),
    [
        (
            lambda: models.UNet(1, 1, width=2, depth=1, rng=0),
            np.random.default_rng(0).standard_normal((4, 1, 8, 8)).astype(np.float32),
            lambda x: (x > 0).astype(np.float32),
        ),
        (
            lambda: models.DCGANDiscriminator(1, width=2, image_size=8, rng=0),
            np.random.default_rng(0).standard_normal((8, 1, 8, 8)).astype(np.float32),
            lambda x: (x.mean((1, 2, 3), keepdims=True) > 0).astype(np.float32),
        ),
    ],
    ids=["unet", "discriminator"],
)
def test_networks_with_logits_learn_yes_and_no(
    backend: ArrayBackend, model: Callable[[], nn.Module], x: Any, target: Callable[[Any], Any]
) -> None:
    network, batches = model().map_arrays(backend.asarray), [(x, target(x))]
    options: dict[str, Any] = {"loss": nn.BCEWithLogitsLoss(), "progress": False, "epochs": 30}
    history = nn.fit(network, batches, optimizer=nn.Adam(network.parameters(), 0.02), **options)
    assert history.losses[-1] < 0.8 * history.losses[0]
    shares = backend.asnumpy(nn.Sigmoid()(network.eval()(backend.asarray(x))))
    assert ((shares >= 0) & (shares <= 1)).all()


def test_lenet_takes_both_sizes() -> None:
    assert models.LeNet(padding=0)(np.zeros((1, 1, 32, 32), np.float32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.LeNet(0), "LeNet: num_classes is 0, expected at least 1"),
        (lambda: models.alexnet(width=0), "AlexNet: width is 0, expected at least 1"),
        (lambda: models.alexnet(2, width=1, hidden=1, dropout=2.0), "Dropout: p is 2.0"),
        (lambda: models.vgg11(hidden=-1), "VGG: hidden is -1, expected at least 1"),
        (lambda: models.VGG((1, 2)), r"VGG: depths is \(1, 2\), expected 5 numbers of at least 1"),
        (lambda: models.ResNet(models.BasicBlock, (1, 0, 1, 1)), r"ResNet: depths is .*, expected 4 numbers"),
        (lambda: models.mobilenet_v2(width_mult=0.0), "MobileNetV2: width_mult is 0.0, expected more than 0"),
        (lambda: models.UNet(depth=0), "UNet: depth is 0, expected at least 1"),
        (
            lambda: models.UNet(width=2, depth=3, rng=0)(np.zeros((1, 3, 9, 7), np.float32)),
            r"UNet: input has spatial size \(9, 7\), expected at least 2\*\*depth = 8 along each axis",
        ),
        (lambda: models.DCGANGenerator(image_size=24), "DCGANGenerator: image_size is 24, expected a power of two"),
        (lambda: models.DCGANDiscriminator(image_size=4), "DCGANDiscriminator: image_size is 4, expected a power"),
    ],
)
def test_arguments_that_do_not_fit(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_randomness_of_another_kind() -> None:
    with pytest.raises(TypeError, match=r"ResNet: rng is 'seed', expected None, a seed or a numpy.random.Generator"):
        models.resnet18(rng="seed")
