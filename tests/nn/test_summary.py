"""The table of a network: shapes, parameters, multiply-adds, and receptive fields against what gradients reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpucnn import nn, simulator
from gpucnn.geometry import ReceptiveField


def reached(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The widest extent, along each axis, of the inputs that an output's gradient reaches."""
    image = np.random.default_rng(0).standard_normal((1, *shape))
    space = model(image).shape[2:]
    y = model(np.repeat(image, np.prod(space), axis=0))
    grad = np.zeros_like(y)  # of each position in turn, in an image of its own
    for number, position in enumerate(np.ndindex(space)):
        grad[(number, slice(None), *position)] = 1
    seen = model.backward(grad).any(axis=1)
    widest = []
    for axis in range(1, seen.ndim):
        along = seen.any(axis=tuple(other for other in range(1, seen.ndim) if other != axis))
        ends = [np.flatnonzero(row) for row in along if row.any()]
        widest.append(max(int(end[-1] - end[0]) + 1 for end in ends))
    return tuple(widest)


def conv(inputs: int, outputs: int, *args: Any, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, *args, dtype=np.float64, rng=0, **options)


def up(inputs: int, outputs: int, *args: Any, **options: Any) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, *args, dtype=np.float64, rng=0, **options)


NETWORKS = {
    "strides": lambda: nn.Sequential(conv(1, 2, 3, 2, 1), nn.LeakyReLU(0.5), nn.AvgPool2d(2), conv(2, 1, (2, 1))),
    "dilation": lambda: nn.Sequential(conv(1, 2, 3, dilation=(2, 1)), conv(2, 1, 2, 3)),
    "same": lambda: nn.Sequential(conv(1, 1, 4, 2, "same"), conv(1, 1, 2, padding="same_lower"), nn.SumPool2d(2)),
    "same pools": lambda: nn.Sequential(nn.AvgPool2d(3, 2, "same"), conv(1, 1, 2), nn.SumPool2d(2, 1, "same_lower")),
    "nearest": lambda: nn.Sequential(nn.AvgPool2d(3), nn.Upsample(scale_factor=2), conv(1, 1, 2)),
    "bilinear 2": lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), conv(1, 1, 1)),
    "bicubic 2": lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bicubic"), conv(1, 1, 1)),
    "bicubic 3": lambda: nn.Sequential(nn.Upsample(scale_factor=3, mode="bicubic"), conv(1, 1, 2)),
    "bilinear 3": lambda: nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=3, mode="bilinear"), conv(1, 1, 2)),
    "transposed": lambda: nn.Sequential(nn.AvgPool2d(2), up(1, 1, 4, 2, 1), conv(1, 1, 3), up(1, 1, (2, 3), 2)),
    "transposed, dense": lambda: nn.Sequential(conv(1, 1, 3, 2), up(1, 1, 5, 2, "same"), up(1, 1, 3)),
    "nails": lambda: nn.Sequential(conv(1, 1, 3, 2), nn.BedOfNails2d((2, 3)), conv(1, 1, 4)),
    "residual": lambda: nn.Sequential(conv(1, 2, 2), nn.Residual(conv(2, 2, 3, padding=1)), conv(2, 1, 2, 2)),
    "skips": lambda: nn.Sequential(
        conv(1, 2, 3),
        nn.Concat(nn.Identity(), nn.Sequential(nn.AvgPool2d(2), conv(2, 2, 3, padding=1), nn.Upsample(scale_factor=2))),
        conv(4, 1, 2),
    ),
    "adaptive": lambda: nn.Sequential(conv(1, 1, 3, padding=1), nn.AdaptiveAvgPool2d((4, 3))),
    "local": lambda: nn.Sequential(
        conv(1, 1, 3, 2, 1), nn.LocallyConnected2d(1, 1, (6, 6), 3, 1, "same", dtype=np.float64)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_receptive_fields_are_what_gradients_reach(name: str) -> None:
    model, shape = NETWORKS[name](), (1, 12, 12)
    field = nn.summary(model, shape).rows[0].receptive_field
    assert field is not None
    assert field.size == reached(model, shape)


def test_paired_unpoolings() -> None:
    pool = nn.MaxPool2d(3, 2)
    summary = nn.summary(nn.Sequential(pool, conv(1, 1, 1), nn.MaxUnpool2d(pool), conv(1, 1, 2)), (1, 11, 11))
    assert [row.output_shape for row in summary.rows[1:]] == [(1, 5, 5), (1, 5, 5), (1, 11, 11), (1, 10, 10)]
    assert summary["2"].receptive_field == ReceptiveField((5, 5), (1, 1), (-2, -2), (0, 0))
    pool = nn.MaxPool1d(3, 2, "same")
    summary = nn.summary(nn.Sequential(pool, nn.MaxUnpool1d(pool)), (1, 8))
    assert [row.output_shape for row in summary.rows] == [(1, 8), (1, 4), (1, 8)]
    assert summary["1"].receptive_field.size == (5,)


UNKNOWN = {
    "no whole factor": lambda: nn.Sequential(nn.Upsample(scale_factor=1.5), conv(1, 1, 3)),
    "aligned corners": lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
    "windows of several sizes": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(3)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_fields_that_are_not_known(name: str) -> None:
    summary = nn.summary(UNKNOWN[name](), (1, 8, 8))
    assert all(row.receptive_field is None for row in summary.rows)
    assert str(summary).splitlines()[2].endswith("–")


# --- Shapes and costs ---------------------------------------------------------------------------------------------


def test_costs_of_layers() -> None:
    local = nn.LocallyConnected2d(2, 3, 6, 3, 2)
    for layer, shape, out, cost in [
        (nn.Conv2d(4, 6, 3, 2, 1, groups=2), (4, 8, 8), (6, 4, 4), 6 * 4 * 4 * 2 * 9),
        (nn.ConvTranspose2d(4, 6, 3, 2), (4, 5, 5), (6, 11, 11), 25 * 4 * 6 * 9),
        (local, (2, 6, 6), (3, 2, 2), 3 * 4 * 2 * 9),
        (nn.Linear(5, 3), (5,), (3,), 15),
        (nn.Linear(5, 3), (4, 2, 5), (4, 2, 3), 8 * 15),
        (nn.BatchNorm1d(3), (3, 4), (3, 4), 0),
        (nn.Conv1d(1, 1, 3, padding=1), (1, 9), (1, 9), 27),
        (nn.Conv3d(1, 2, 2), (1, 3, 3, 3), (2, 2, 2, 2), 2 * 8 * 8),
        (nn.MaxPool2d(2, return_indices=True), (1, 4, 4), (1, 2, 2), 0),
    ]:
        (row,) = nn.summary(layer, shape).rows  # type: ignore[arg-type]
        assert (row.output_shape, row.multiply_adds) == (out, cost)
        assert row.parameters == sum(parameter.size for parameter in layer.parameters())  # type: ignore[attr-defined]
        assert (row.name, row.kind, row.depth) == ("", type(layer).__name__, 0)


class Net(nn.Module):
    """Adds and flattens by itself, and runs one of its layers twice."""

    def __init__(self) -> None:
        self.conv1, self.conv2 = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.unused = nn.ReLU()
        self.fc = nn.Linear(50, 3)

    def forward(self, x: Any) -> Any:
        x = self.conv1(x)
        x = self.conv2(x) + x
        x = self.conv2(x) + x
        return self.fc(x.reshape(len(x), -1))


def test_a_network_of_ones_own() -> None:
    model = Net()
    model.conv1.requires_grad_(False)
    model.fc.eval()
    summary = model.summary((1, 5, 5))
    assert [row.name for row in summary.rows] == ["", "conv1", "conv2", "fc"]
    assert summary["conv2"].multiply_adds == 2 * 25 * 4 * 9  # it runs twice
    assert summary["conv2"].receptive_field.size == (7, 7)  # type: ignore[union-attr]
    assert summary["fc"].receptive_field.size == (11, 11)  # type: ignore[union-attr]
    assert summary.parameters == 20 + 38 + 153
    assert summary.trainable == 38 + 153
    assert summary.multiply_adds == 25 * 18 + 2 * 25 * 36 + 150
    assert str(summary).endswith("input 1 × 5 × 5: 211 parameters, 20 of them frozen, 2,400 multiply-adds")
    with pytest.raises(KeyError, match="no row is named 'unused'"):
        summary["unused"]


def test_the_network_is_as_before() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(rng=0), nn.Identity())
    model[3].eval()
    state = {name: array.copy() for name, array in model.state_dict().items()}
    generator = model[2].rng.bit_generator.state  # type: ignore[attr-defined]
    nn.summary(model, (1, 4, 4))
    assert all(np.array_equal(array, state[name]) for name, array in model.state_dict().items())
    assert [module.training for module in model] == [True, True, True, False]
    assert model[2].rng.bit_generator.state == generator  # type: ignore[attr-defined]
    assert all("forward" not in vars(module) for module in model.modules())
    with pytest.raises(ValueError, match=r"^conv2d: "):
        nn.summary(model, (3, 4, 4))
    assert all("forward" not in vars(module) for module in model.modules())
    assert model.training


@pytest.mark.usefixtures("compiler")
def test_where_its_arrays_are() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    expected = nn.summary(model, (1, 4, 4))
    model.map_arrays(simulator.asarray)
    assert nn.summary(model, (1, 4, 4)) == expected


def test_other_dtypes_and_no_parameters() -> None:
    assert nn.summary(nn.Linear(3, 2, dtype=np.float64), 3).rows[0].output_shape == (2,)
    summary = nn.summary(nn.ReLU(), [3, 4])
    assert summary.rows[0].output_shape == (3, 4)
    assert summary.rows[0].receptive_field == ReceptiveField((1,), (1,), (0,), (0,))
    assert nn.summary(nn.ReLU(), 4).rows[0].receptive_field is None
    assert nn.summary(nn.Sequential(nn.Linear(4, 4), nn.Residual(nn.Linear(4, 4))), 4).multiply_adds == 32


def test_what_it_refuses() -> None:
    with pytest.raises(TypeError, match=r"^summary: model is of type type, expected a Module$"):
        nn.summary(nn.ReLU, (1, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^summary: input_shape is 0, expected at least 1$"):
        nn.summary(nn.ReLU(), (1, 0))
    with pytest.raises(TypeError, match=r"^summary: input_shape is 2\.5, expected"):
        nn.summary(nn.ReLU(), (1, 2.5))  # type: ignore[arg-type]
