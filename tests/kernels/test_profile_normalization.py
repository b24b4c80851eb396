"""Memory profile of the norms' kernels on layers of real networks: each array once, by whole sectors."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from strategies import arranged

import gpucnn.functional as F
from gpucnn import simulator

pytestmark = pytest.mark.usefixtures("compiler")
MOVED, SECTORS, CONFLICT = 1.10, 1.05, 2


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
    "Mask R-CNN group_norm": Layer("group_norm", (1, 256, 56, 56), (32,)),
    "CycleGAN instance_norm": Layer("instance_norm", (1, 256, 64, 64)),
    "ViT-B layer_norm": Layer("layer_norm", (1, 197, 768), ((768,),)),
    "ConvNeXt-T layer_norm": Layer("layer_norm", (1, 56, 56, 96), ((96,),)),
}
CASES = [
    (name, order, "float32")
    for name, layer in LAYERS.items()
    for order in (("contiguous",) if layer.norm == "layer_norm" else ("contiguous", "channels_last"))
] + [
    ("ResNet-50 bn5", "channels_last", "float16"),
    ("MobileNetV2 bn_144", "contiguous", "float16"),
    ("DDPM group_norm", "contiguous", "float16"),
    ("ViT-B layer_norm", "contiguous", "float16"),
]
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


def complaints(profile: Any) -> list[str]:
    """What the launches of one operation do beyond the limits."""
    found = []
    for launch in profile.launches:
        # sums of planes are weighed anew for each image: a few sectors of weight, read once an image
        weighed = launch.kernel == "norm_backward_sums_combine" and any(a.array == "weight" for a in launch.accesses)
        if launch.moved_bytes > (1.25 if weighed else MOVED) * launch.least_bytes:
            found.append(f"{launch.kernel} moves {launch.moved_bytes} bytes, the least is {launch.least_bytes}")
        if launch.sectors > SECTORS * launch.ideal_sectors:
            found.append(f"{launch.kernel} asks for {launch.sectors} sectors, {launch.ideal_sectors} would do")
        if launch.worst_conflict > CONFLICT:
            found.append(f"{launch.kernel} has a bank conflict of {launch.worst_conflict}")
    if sum(launch.moved_bytes for launch in profile.launches) > MOVED * sum(
        each.least_bytes for each in profile.launches
    ):
        found.append("all launches together move too much")
    return found


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "order", "dtype"), CASES)
def test_each_array_is_moved_once_by_whole_sectors(name: str, order: str, dtype: str) -> None:
    arrays = Arrays(name, order, dtype)
    size = arrays.x.nbytes
    with simulator.profile() as forward:
        _, mean, rstd = arrays.forward(return_statistics=True)
    with simulator.profile() as backward:
        arrays.backward(mean, rstd)
    assert complaints(forward) + complaints(backward) == []
    in_one = name in IN_ONE and order == "contiguous"
    passes = (
        (2, 3) if in_one else (3, 5)
    )  # x, y; grad_y, x, grad_x: of rows. Else x, and again; grad_y and x, and again
    for profile, count in zip((forward, backward), passes, strict=True):
        # statistics and weights are float32 in any case
        assert (
            sum(launch.moved_bytes for launch in profile.launches)
            < (1.10 if dtype == "float32" else 1.20) * count * size
        )
    assert {launch.kernel for launch in forward.launches if launch.moved_bytes > size} == (
        {"norm_rows"} if in_one else {"norm_statistics", "norm_apply"}
    )
    widths = {
        access.bytes
        for launch in (*forward.launches, *backward.launches)
        for access in launch.accesses
        if access.space == "global" and access.array in ("x", "grad_y", "z")
    }
    assert widths == ({4} if (name, order) == ("ResNet-50 bn5", "contiguous") else {16})  # planes of 7 x 7 floats


@pytest.mark.table(1)
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["ResNet-50 bn1", "ResNet-50 bn5", "MobileNetV2 bn_144"])
def test_inference_is_one_launch(name: str, order: str) -> None:
    arrays = Arrays(name, order, "float32")
    with simulator.profile() as profile:
        arrays.forward(own=False)
    assert [launch.kernel for launch in profile.launches] == ["norm_apply"]
    assert complaints(profile) == []


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
    own = name in IN_ONE
    with simulator.profile() as profile:
        arrays.forward(own=own, residual=arrays.grad, activation="relu")
    (launch,) = profile.launches
    assert launch.kernel == ("norm_rows" if own else "norm_apply")
    assert complaints(profile) == []
    assert launch.moved_bytes < (1.10 if dtype == "float32" else 1.20) * 3 * arrays.x.nbytes
    with simulator.profile() as alone:
        arrays.forward(own=own, activation="relu")
    assert [launch.kernel for launch in alone.launches] == [launch.kernel]
    assert alone.launches[0].moved_bytes < (1.10 if dtype == "float32" else 1.20) * 2 * arrays.x.nbytes


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
    residual = simulator.asarray(simulator.asnumpy(arrays.grad)[::-1].copy()) if has_residual else None
    if residual is not None and order == "channels_last":
        residual = simulator.asarray(arranged(simulator.asnumpy(residual), order))
    named: dict[str, Any] = {"residual": residual, "activation": "relu"}
    _, mean, rstd = arrays.forward(return_statistics=True, **named)
    with simulator.profile() as profile:
        arrays.backward(mean, rstd, **named)
    assert complaints(profile) == []
    first, *_ = profile.launches
    assert first.kernel == "norm_activation_backward"
    assert first.moved_bytes < MOVED * (4 if has_residual else 3) * arrays.x.nbytes
    in_one = name in IN_ONE and order == "contiguous"
    total = (4 if has_residual else 3) + (3 if in_one else 5)
    moved = sum(launch.moved_bytes for launch in profile.launches)
    assert moved < (1.10 if dtype == "float32" else 1.20) * total * arrays.x.nbytes
    widths = {access.bytes for access in first.accesses if access.array in ("x", "grad_y", "residual", "z")}
    assert widths == ({4} if (name, order) == ("ResNet-50 bn5", "contiguous") else {16})
