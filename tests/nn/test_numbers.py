"""Numbers as arguments of layers, optimisers and schedules: an array library's scalars are as Python's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gpucnn import nn

FORMS: tuple[Callable[[Any], Any], ...] = (
    lambda value: np.int64(value) if isinstance(value, int) else np.float64(value),
    lambda value: np.int8(value) if isinstance(value, int) else np.float32(value),
    lambda value: np.array(value) if isinstance(value, int) else ml_dtypes.bfloat16(value),
    np.array,
)


def reshaped(value: Any, form: Callable[[Any], Any]) -> Any:
    """An argument with each of its numbers in another form."""
    if isinstance(value, tuple | list):
        return type(value)(reshaped(item, form) for item in value)
    return form(value) if type(value) in (int, float) else value


OPTIMIZERS: list[tuple[type[nn.Optimizer], dict[str, Any]]] = [
    (nn.SGD, {"lr": 0.25, "momentum": 0.5, "dampening": 0.25, "weight_decay": 0.125}),
    (nn.Adam, {"lr": 0.25, "betas": (0.5, 0.75), "eps": 0.125, "weight_decay": 0.125}),
    (nn.AdamW, {"lr": 0.25, "betas": (0.5, 0.75), "eps": 0.125, "weight_decay": 0.125}),
]


def learned(kind: type[nn.Optimizer], options: dict[str, Any], later: Any = None) -> tuple[Any, ...]:
    """A parameter after three steps, the last ones at another rate, and what the optimiser says of itself."""
    parameter = nn.Parameter(np.linspace(-1, 1, 5, dtype=np.float32))
    optimizer = kind([parameter], **options)
    said = repr(optimizer)
    for _ in range(3):
        parameter.grad = np.sin(parameter.data)
        optimizer.step()
        if later is not None:
            optimizer.param_groups[0]["lr"] = later
    return parameter.data.dtype, parameter.data.tobytes(), said


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
@pytest.mark.parametrize("form", FORMS)
def test_options_of_optimizers(kind: type[nn.Optimizer], options: dict[str, Any], form: Any) -> None:
    other = {name: reshaped(value, form) for name, value in options.items()}
    assert learned(kind, other) == learned(kind, options)
    assert learned(kind, options, later=form(0.0625)) == learned(kind, options, later=0.0625)


SCHEDULES: list[tuple[type[nn.Schedule], dict[str, Any]]] = [
    (nn.StepLR, {"step_size": 2, "gamma": 0.75}),
    (nn.MultiStepLR, {"milestones": [1, 3], "gamma": 0.75}),
    (nn.ExponentialLR, {"gamma": 0.75}),
    (nn.LinearLR, {"start_factor": 0.25, "end_factor": 0.75, "total_iters": 3}),
    (nn.CosineAnnealingLR, {"T_max": 3, "eta_min": 0.125}),
    (
        nn.OneCycleLR,
        {"max_lr": 0.5, "epochs": 2, "steps_per_epoch": 2, "pct_start": 0.25, "div_factor": 3.0, "max_momentum": 0.75},
    ),
    (nn.ReduceLROnPlateau, {"factor": 0.75, "patience": 0, "threshold": 0.125, "min_lr": 0.0625, "eps": 0.0}),
]


def scheduled(kind: type[nn.Schedule], options: dict[str, Any]) -> Any:
    """The rates and momenta of four steps with their types, and what the schedule says of itself."""
    optimizer = nn.SGD([nn.Parameter(np.zeros(1))], lr=0.3, momentum=0.5)
    schedule = kind(optimizer, **options)
    seen = [repr(schedule)]
    for _ in range(4):
        schedule.step(*([1.0] if kind is nn.ReduceLROnPlateau else []))
        group = optimizer.param_groups[0]
        seen += [(type(group[name]), group[name]) for name in ("lr", "momentum")]
    return seen


@pytest.mark.parametrize(("kind", "options"), SCHEDULES)
@pytest.mark.parametrize("form", FORMS)
def test_options_of_schedules(kind: type[nn.Schedule], options: dict[str, Any], form: Any) -> None:
    other = {name: reshaped(value, form) for name, value in options.items()}
    assert scheduled(kind, other) == scheduled(kind, options)


LAYERS: list[tuple[Callable[..., nn.Module], tuple[Any, ...]]] = [
    (nn.Conv2d, (2, 4, 3, 2, 1, 1, 2)),
    (nn.ConvTranspose2d, (2, 4, 3, (2, 2), ((1, 0), (0, 1)), 1)),
    (nn.LocallyConnected1d, (2, 3, 5, 2)),
    (nn.Linear, (3, 4)),
    (nn.MaxPool2d, (3, 2, 1, 1)),
    (nn.AvgPool2d, (3, 2, 1, False, True, 3.0)),
    (nn.LPPool2d, (3.0, 2)),
    (nn.AdaptiveAvgPool2d, (3,)),
    (nn.AdaptiveMaxPool2d, ((3, None),)),
    (nn.MaxUnpool2d, (2,)),
    (nn.BedOfNails2d, (2,)),
    (nn.Upsample, (None, (2.0, 1.5))),
    (nn.Upsample, (4,)),
    (nn.BatchNorm2d, (4, 0.125, 0.25)),
    (nn.InstanceNorm2d, (4, 0.125, 0.25)),
    (nn.LayerNorm, ((3, 4), 0.125)),
    (nn.GroupNorm, (2, 4, 0.125)),
    (nn.LeakyReLU, (0.125,)),
    (nn.Softmax, (1,)),
    (nn.Dropout, (0.5,)),
    (nn.Flatten, (1, 2)),
]


def numbers_of(layer: nn.Module) -> Any:
    """The attributes of a layer that are no arrays, with their types."""
    own = {
        name: value for name, value in vars(layer).items() if not isinstance(value, nn.Parameter | np.random.Generator)
    }
    return repr(own), repr(layer)


@pytest.mark.parametrize(("layer", "arguments"), LAYERS)
@pytest.mark.parametrize("form", FORMS)
def test_arguments_of_layers(layer: Callable[..., nn.Module], arguments: tuple[Any, ...], form: Any) -> None:
    assert numbers_of(layer(*reshaped(arguments, form))) == numbers_of(layer(*arguments))


@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_a_loss(form: Any) -> None:
    x, target = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), np.array([0, 2])
    plain = nn.CrossEntropyLoss(ignore_index=1, label_smoothing=0.25)
    other = nn.CrossEntropyLoss(ignore_index=form(1), label_smoothing=form(0.25))
    assert repr(other) == repr(plain)
    assert other(x, target).tobytes() == plain(x, target).tobytes()


@pytest.mark.parametrize("form", FORMS)
def test_initial_values(form: Any) -> None:
    def drawn(read: Callable[[Any], Any]) -> list[bytes]:
        tensors = [np.empty((3, 4), np.float32) for _ in range(5)]
        nn.init.uniform_(tensors[0], read(-0.5), read(0.25), rng=1)
        nn.init.normal_(tensors[1], read(0.5), read(0.25), rng=1)
        nn.init.xavier_uniform_(tensors[2], read(3.0), rng=1)
        nn.init.kaiming_normal_(tensors[3], read(0.75), rng=1)
        nn.init.constant_(tensors[4], read(0.75))
        return [tensor.tobytes() for tensor in tensors]

    assert drawn(form) == drawn(lambda value: value)


@pytest.mark.parametrize("form", FORMS)
def test_a_clipped_gradient_keeps_its_dtype(form: Any) -> None:
    def clipped(max_norm: Any, norm_type: Any) -> tuple[Any, ...]:
        parameter = nn.Parameter(np.zeros(2, np.float32))
        parameter.grad = np.array([3, 4], np.float32)
        norm = nn.clip_grad_norm_([parameter], max_norm, norm_type)
        return type(norm), norm, parameter.grad.dtype, parameter.grad.tobytes()

    assert clipped(form(1.0), form(2.0)) == clipped(1.0, 2.0)


@pytest.mark.parametrize("form", FORMS)
def test_shifts_of_a_dense_map(form: Any) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, rng=0), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 10, rng=1))
    converted = nn.linear_to_conv(network, (1, 8, 8))
    image = np.linspace(0, 1, 12 * 16, dtype=np.float32).reshape(1, 12, 16)
    expected = nn.dense_map(converted, image, shifts=2)
    for shifts in (2, (2, 2)):
        np.testing.assert_array_equal(nn.dense_map(converted, image, shifts=reshaped(shifts, form)), expected)
