"""Memory profile of norms with a residual and an activation; without them test_profile_layers.py has their layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from memory_traffic import MOVED, excesses, profiled, widths
from strategies import arranged

import gpucnn.functional as F
from gpucnn import simulator
from gpucnn.simulator import Profile
from gpucnn.simulator.profiles import LaunchProfile

pytestmark = pytest.mark.usefixtures("compiler")


class Layer(NamedTuple):
    """A norm of a network, with a batch that is small and shows what a large one does."""

    norm: str
    shape: tuple[int, ...]
    options: tuple[Any, ...] = ()


LAYERS = {
    "ResNet-50 bn1": Layer("batch_norm", (1, 64, 112, 112)),
    "ResNet-50 bn5": Layer("batch_norm", (4, 2048, 7, 7)),
    "MobileNetV2 bn_144": Layer("batch_norm", (2, 144, 56, 56)),
    "DDPM group_norm": Layer("group_norm", (2, 128, 32, 32), (32,)),
    "CycleGAN instance_norm": Layer("instance_norm", (1, 256, 64, 64)),
    "ViT-B layer_norm": Layer("layer_norm", (1, 197, 768), ((768,),)),
    "ConvNeXt-T layer_norm": Layer("layer_norm", (1, 56, 56, 96), ((96,),)),
}
IN_ONE = {"DDPM group_norm", "CycleGAN instance_norm", "ViT-B layer_norm", "ConvNeXt-T layer_norm"}


class Arrays:
    """The arrays of a layer on the simulator."""

    def __init__(self, name: str, order: str, dtype: str) -> None:
        rng = np.random.default_rng(1)
        self.layer = LAYERS[name]
        shape = self.layer.shape
        channels = shape[-1] if self.layer.norm == "layer_norm" else shape[1]

        def image() -> Any:
            return simulator.asarray(arranged(rng.standard_normal(shape).astype(dtype), order))

        def parameter() -> Any:
            return simulator.asarray((rng.random(channels) + 0.5).astype(np.float32))

        self.x, self.grad = image(), image()
        self.in_one = name in IN_ONE and order == "contiguous"
        self.running = (parameter(), parameter()) if self.layer.norm in ("batch_norm", "instance_norm") else ()
        self.affine = (parameter(), parameter())

    def forward(self, *, own: bool = True, **named: Any) -> Any:
        """The norm by its own statistics, or by running ones."""
        running = (None, None) if own and self.running else self.running
        flag = (own,) if self.layer.norm == "batch_norm" else ()
        return getattr(F, self.layer.norm)(self.x, *self.layer.options, *running, *self.affine, *flag, **named)

    def backward(self, mean: Any, rstd: Any, **named: Any) -> Any:
        """All gradients, by statistics that the forward has returned."""
        flag = (True,) if self.layer.norm == "batch_norm" else ()
        running = (None, None) if self.running else ()
        arguments = (self.grad, self.x, *self.layer.options, *running, *self.affine, *flag)
        return getattr(F, f"{self.layer.norm}_backward")(*arguments, mean=mean, rstd=rstd, **named)

    def expect_passes(self, passes: int, profile: Profile) -> None:
        """All that a call launches moves what reading or writing the image `passes` times does, in whole sectors."""
        for launch in profile.launches:
            assert excesses(launch, moved=1.25 if weighs_planes(launch) else MOVED) == []
        assert profile.moved_bytes <= MOVED * sum(launch.least_bytes for launch in profile.launches)
        share = 1.10 if self.x.dtype == np.float32 else 1.20  # statistics and weights are float32 in any case
        assert profile.moved_bytes < share * passes * self.x.nbytes

    @property
    def width(self) -> int:
        """Bytes that one access takes: planes of 7 x 7 floats are not aligned."""
        return 4 if self.x.shape[-2:] == (7, 7) and self.x.dtype == np.float32 and self.x.flags.c_contiguous else 16


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
    arrays = Arrays(name, order, dtype)
    for passes, residual in ((2, None), (3, arrays.grad)):
        options: dict[str, Any] = {"own": arrays.in_one, "residual": residual, "activation": "relu"}
        _, profile = profiled(lambda options=options: arrays.forward(**options))  # type: ignore[misc]
        assert len(profile.launches) == 1
        arrays.expect_passes(passes, profile)


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
    arrays = Arrays(name, order, dtype)
    residual = simulator.asarray(arranged(simulator.asnumpy(arrays.grad)[::-1].copy(), order)) if has_residual else None
    named: dict[str, Any] = {"residual": residual, "activation": "relu"}
    _, mean, rstd = arrays.forward(return_statistics=True, **named)
    _, profile = profiled(lambda: arrays.backward(mean, rstd, **named))
    passes = 4 if has_residual else 3  # grad_y, x, the residual, and the gradient before the activation
    arrays.expect_passes(passes + (3 if arrays.in_one else 5), profile)
    first, *_ = profile.launches
    assert first.moved_bytes < MOVED * passes * arrays.x.nbytes
    assert set().union(*widths(first, of=("x", "grad_y", "residual", "z")).values()) == {arrays.width}
