"""Networks whose batch norms are part of the layers before them: results, and what is folded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend

from gpucnn import nn
from gpucnn.nn import models

Array = np.ndarray[Any, Any]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def with_statistics(model: Any) -> Any:
    """The model with norms that change their input, and biases that are not 0."""
    rng = np.random.default_rng(0)
    for module in model.modules():
        for array in (getattr(module, "running_mean", None), *(each.data for each in module.parameters())):
            if isinstance(module, NORMS) and array is not None:
                array[...] = rng.uniform(-1, 1, array.shape)
        if isinstance(module, NORMS) and module.running_var is not None:
            module.running_var[...] = rng.uniform(0.5, 2, module.running_var.shape)
    return model


def norms_of(model: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in model.modules())


LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "convolution": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ReLU6()), (2, 4, 7, 8)),
    "smooth activations": (
        lambda: nn.Sequential(
            *(nn.Conv2d(4, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.Hardswish()),
            *(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 3, 1), nn.GELU()),
        ),
        (2, 4, 7, 8),
    ),
    "without a bias": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6)), (2, 4, 7)),
    "norm without parameters": (
        lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3, affine=False), nn.ReLU()), (2, 2, 3, 4, 5)
    ),
    "norm that does not shift": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3, bias=False)), (2, 2, 4, 5)
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6)), (2, 4, 5, 4)
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU()), (3, 5)),
    "depthwise": (
        lambda: nn.Sequential(nn.Conv2d(20, 20, 3, padding="same", groups=20), nn.BatchNorm2d(20)), (2, 20, 6, 6)
    ),
    "circular padding": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(3)), (2, 2, 6, 5)
    ),
    "basic block": (lambda: models.BasicBlock(4, 8, stride=2, rng=0), (2, 4, 9, 9)),
    "block that adds its input": (lambda: models.BasicBlock(8, 8, rng=0), (2, 8, 9, 9)),
    "bottleneck": (lambda: models.Bottleneck(4, 2, rng=0), (2, 4, 9, 9)),
    "inverted residual": (lambda: models.InvertedResidual(8, 8, rng=0), (2, 8, 9, 9)),
    "inverted residual with a stride": (lambda: models.InvertedResidual(8, 4, 2, rng=0), (2, 8, 9, 9)),
    "residual": (
        lambda: nn.Residual(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), activation=nn.ReLU()), (2, 4, 5, 5)
    ),
    "U-Net": (lambda: models.UNet(3, 1, width=4, depth=2, rng=0), (1, 1, 20, 18)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_results_are_those_of_the_model_within_rounding(backend: ArrayBackend, name: str, dtype: str) -> None:
    make, shape = LAYERS[name]
    model = with_statistics(make()).eval().map_arrays(lambda a: a.astype(dtype) if a.dtype.kind == "f" else a)
    before = {name: array.copy() for name, array in model.state_dict().items()}
    x = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    expected = model(x)
    fused = nn.fused(model)
    fused.map_arrays(backend.asarray)
    with nn.inference():
        within = fused(backend.asarray(x))
    for y in map(backend.asnumpy, (fused(backend.asarray(x)), within)):
        assert y.dtype == expected.dtype
        np.testing.assert_allclose(y, expected, rtol=0, atol=30 * np.finfo(dtype).eps * abs(expected).max())
    assert norms_of(fused) == 0
    for key, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[key])


def test_the_copy_is_for_inference() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    model(np.ones((1, 2, 4, 4), np.float32))
    fused = nn.fused(model)
    assert model.training
    assert not any(module.training or not module.frozen for module in fused.modules())
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    assert not fused.train().training
    assert not {id(p.data) for p in model.parameters()} & {id(p.data) for p in fused.parameters()}


class Doubled(nn.BatchNorm2d):
    """A norm of a program's own."""

    def forward(self, x: Array) -> Array:
        return 2 * super().forward(x)


class AfterTheSum(nn.Module):
    """A block whose norm is that of a sum."""

    def __init__(self) -> None:
        self.one, self.other, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Array) -> Array:
        return self.norm(self.one(x) + self.other(x))

    def branches(self) -> Any:
        return (self.one, self.norm), (self.other, self.norm)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), Doubled(4)),
        AfterTheSum,
    ],
)
def test_other_norms_stay(make: Callable[[], Any]) -> None:
    model = with_statistics(make()).eval()
    fused = nn.fused(model)
    x = np.random.default_rng(1).standard_normal((2, 4, 3, 3)).astype(np.float32)
    assert norms_of(fused) == 1
    np.testing.assert_array_equal(fused(x), model(x))


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match="fused: model is the class Conv2d, expected a Module"):
        nn.fused(nn.Conv2d)  # type: ignore[type-var]
