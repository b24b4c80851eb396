"""Memory profile of norms with a residual and an activation; without them test_profile_layers.py has their layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from memory_traffic import MOVED, excesses, image, profiled, widths

import gpucnn.functional as F
from gpucnn import simulator
from gpucnn.simulator import Profile
from gpucnn.simulator.profiles import LaunchProfile

pytestmark = pytest.mark.usefixtures("compiler")

LAYERS = {  # the norm, and a batch that is small and shows what a large one does
    "ResNet-50 bn1": ("batch_norm", (1, 64, 112, 112)),
    "ResNet-50 bn5": ("batch_norm", (4, 2048, 7, 7)),
    "MobileNetV2 bn_144": ("batch_norm", (2, 144, 56, 56)),
    "DDPM group_norm": ("group_norm", (2, 128, 32, 32)),
    "CycleGAN instance_norm": ("instance_norm", (1, 256, 64, 64)),
    "ViT-B layer_norm": ("layer_norm", (1, 197, 768)),
    "ConvNeXt-T layer_norm": ("layer_norm", (1, 56, 56, 96)),
}


class Norm:
    """A layer's arrays on the simulator, and the norm's arguments after its input."""

    def __init__(self, name: str, order: str, dtype: str) -> None:
        self.name, shape = LAYERS[name]
        self.x, self.grad, self.residual = (image(*shape, dtype=dtype, order=order) for _ in range(3))
        channels = shape[-1] if self.name == "layer_norm" else shape[1]
        affine = image(1, channels)[0], image(1, channels)[0]
        self.in_one = self.name != "batch_norm" and order == "contiguous"  # a row fits into shared memory
        self.given: tuple[Any, ...] = {
            "batch_norm": (None, None, *affine, True),
            "instance_norm": (None, None, *affine),
            "group_norm": (32, *affine),
            "layer_norm": (shape[-1:], *affine),
        }[self.name]
        self.inference = (
            simulator.asarray(np.zeros(channels, "f4")),
            simulator.asarray(np.ones(channels, "f4")),
            *affine,
        )

    def forward(self, **named: Any) -> Any:
        return getattr(F, self.name)(self.x, *self.given, **named)

    def expect_passes(self, passes: int, profile: Profile) -> None:
        """All that a call launches moves what reading or writing the image `passes` times does, in whole sectors."""
        for launch in profile.launches:
            assert excesses(launch, moved=1.25 if weighs_planes(launch) else MOVED) == []
        assert profile.moved_bytes <= MOVED * sum(launch.least_bytes for launch in profile.launches)
        share = 1.10 if self.x.dtype == np.float32 else 1.20  # statistics and weights are float32 in any case
        assert profile.moved_bytes < share * passes * self.x.nbytes


def weighs_planes(launch: LaunchProfile) -> bool:
    """Whether sums of planes are weighed anew for each image: a few sectors of weight, read once an image."""
    return launch.kernel == "norm_backward_sums_combine" and any(a.array == "weight" for a in launch.accesses)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "order", "dtype"),
    [
        ("ResNet-50 bn5", "contiguous", "float32"),
        ("MobileNetV2 bn_144", "channels_last", "float32"),
        ("MobileNetV2 bn_144", "contiguous", "float16"),
        ("DDPM group_norm", "contiguous", "float32"),
        ("ViT-B layer_norm", "contiguous", "float16"),
    ],
)
def test_a_residual_and_an_activation_cost_a_read_of_the_residual(name: str, order: str, dtype: str) -> None:
    norm = Norm(name, order, dtype)
    if norm.name == "batch_norm":
        norm.given = norm.inference
    for passes, residual in ((2, None), (3, norm.residual)):
        _, profile = profiled(lambda residual=residual: norm.forward(residual=residual, activation="relu"))  # type: ignore[misc]
        assert len(profile.launches) == 1
        norm.expect_passes(passes, profile)


@pytest.mark.thorough
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize(
    ("name", "order", "dtype"),
    [
        ("ResNet-50 bn1", "contiguous", "float32"),
        ("ResNet-50 bn5", "contiguous", "float32"),
        ("MobileNetV2 bn_144", "channels_last", "float32"),
        ("MobileNetV2 bn_144", "contiguous", "float16"),
        ("ResNet-50 bn5", "channels_last", "float16"),
        ("DDPM group_norm", "contiguous", "float32"),
        ("CycleGAN instance_norm", "channels_last", "float32"),
        ("ViT-B layer_norm", "contiguous", "float32"),
        ("ConvNeXt-T layer_norm", "contiguous", "float32"),
    ],
)
def test_the_gradient_of_an_activation_is_one_pass(name: str, order: str, dtype: str, has_residual: bool) -> None:
    norm = Norm(name, order, dtype)
    named: dict[str, Any] = {"residual": norm.residual if has_residual else None, "activation": "relu"}
    _, mean, rstd = norm.forward(return_statistics=True, **named)
    backward = getattr(F, f"{norm.name}_backward")
    _, profile = profiled(lambda: backward(norm.grad, norm.x, *norm.given, mean=mean, rstd=rstd, **named))
    passes = 4 if has_residual else 3  # grad_y, x, the residual, and the gradient before the activation
    norm.expect_passes(passes + (3 if norm.in_one else 5), profile)
    first, *_ = profile.launches
    assert first.moved_bytes < MOVED * passes * norm.x.nbytes
    width = 4 if (name, order) == ("ResNet-50 bn5", "contiguous") else 16  # planes of 7 x 7 floats are not aligned
    assert set().union(*widths(first, of=("x", "grad_y", "residual", "z")).values()) == {width}
