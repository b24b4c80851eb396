"""Numbers as arguments of layers, optimisers and schedules: an array library's scalars are as Python's numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
Read = Callable[[Any], Any]  # puts each of an argument's numbers in another form, or leaves it


def reshaped(value: Any, form: Callable[[Any], Any]) -> Any:
    """An argument with each of its numbers in another form."""
    if isinstance(value, dict):
        return {name: reshaped(item, form) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(reshaped(item, form) for item in value)
    return form(value) if type(value) in (int, float) else value


# --- What follows from the numbers --------------------------------------------------------------------------------


def learned(kind: type[nn.Optimizer], options: dict[str, Any], read: Read) -> tuple[Any, ...]:
    """A parameter after three steps, the last ones at another rate, and what the optimiser says of itself."""
    parameter = nn.Parameter(np.linspace(-1, 1, 5, dtype=np.float32))
    optimizer = kind([parameter], **read(options))
    said = repr(optimizer)
    for _ in range(3):
        parameter.grad = np.sin(parameter.data)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = read(0.0625)
    return parameter.data.dtype, parameter.data.tobytes(), said


def scheduled(kind: type[nn.Schedule], options: dict[str, Any], read: Read) -> Any:
    """The rates and momenta of four steps with their types, and what the schedule says of itself."""
    optimizer = nn.SGD([nn.Parameter(np.zeros(1))], lr=0.3, momentum=0.5)
    schedule = kind(optimizer, **read(options))
    seen = [repr(schedule)]
    for _ in range(4):
        schedule.step(*([1.0] if kind is nn.ReduceLROnPlateau else []))
        group = optimizer.param_groups[0]
        seen += [(type(group[name]), group[name]) for name in ("lr", "momentum")]
    return seen


def attributes(layer: Callable[..., nn.Module], arguments: tuple[Any, ...], read: Read) -> Any:
    """The attributes of a layer that are no arrays, with their types."""
    made = layer(*read(arguments))
    return repr(made), repr(
        {name: value for name, value in vars(made).items() if not isinstance(value, nn.Parameter | np.random.Generator)}
    )


def lost(read: Read) -> Any:
    x, target = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), np.array([0, 2])
    loss = nn.CrossEntropyLoss(ignore_index=read(1), label_smoothing=read(0.25))
    return repr(loss), loss(x, target).tobytes()


def drawn(read: Read) -> Any:
    tensors = [np.empty((3, 4), np.float32) for _ in range(5)]
    nn.init.uniform_(tensors[0], read(-0.5), read(0.25), rng=1)
    nn.init.normal_(tensors[1], read(0.5), read(0.25), rng=1)
    nn.init.xavier_uniform_(tensors[2], read(3.0), rng=1)
    nn.init.kaiming_normal_(tensors[3], read(0.75), rng=1)
    nn.init.constant_(tensors[4], read(0.75))
    return [tensor.tobytes() for tensor in tensors]


def clipped(read: Read) -> Any:
    parameter = nn.Parameter(np.zeros(2, np.float32))
    parameter.grad = np.array([3, 4], np.float32)
    norm = nn.clip_grad_norm_([parameter], read(1.0), read(2.0))
    return type(norm), norm, parameter.grad.dtype, parameter.grad.tobytes()


def dense(read: Read) -> Any:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, rng=0), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 10, rng=1))
    converted = nn.linear_to_conv(network, (1, 8, 8))
    image = np.linspace(0, 1, 12 * 16, dtype=np.float32).reshape(1, 12, 16)
    return [nn.dense_map(converted, image, shifts=read(shifts)).tobytes() for shifts in (2, (2, 2))]


ADAM = {"lr": 0.25, "betas": (0.5, 0.75), "eps": 0.125, "weight_decay": 0.125}
CYCLE = {"max_lr": 0.5, "epochs": 2, "steps_per_epoch": 2, "pct_start": 0.25, "div_factor": 3.0, "max_momentum": 0.75}
PLATEAU = {"factor": 0.75, "patience": 0, "threshold": 0.125, "min_lr": 0.0625, "eps": 0.0}
RESULTS: list[Callable[[Read], Any]] = [
    partial(learned, nn.SGD, {"lr": 0.25, "momentum": 0.5, "dampening": 0.25, "weight_decay": 0.125}),
    partial(learned, nn.Adam, ADAM),
    partial(learned, nn.AdamW, ADAM),
    partial(scheduled, nn.StepLR, {"step_size": 2, "gamma": 0.75}),
    partial(scheduled, nn.MultiStepLR, {"milestones": [1, 3], "gamma": 0.75}),
    partial(scheduled, nn.ExponentialLR, {"gamma": 0.75}),
    partial(scheduled, nn.LinearLR, {"start_factor": 0.25, "end_factor": 0.75, "total_iters": 3}),
    partial(scheduled, nn.CosineAnnealingLR, {"T_max": 3, "eta_min": 0.125}),
    partial(scheduled, nn.OneCycleLR, CYCLE),
    partial(scheduled, nn.ReduceLROnPlateau, PLATEAU),
    partial(attributes, nn.Conv2d, (2, 4, 3, 2, 1, 1, 2)),
    partial(attributes, nn.ConvTranspose2d, (2, 4, 3, (2, 2), ((1, 0), (0, 1)), 1)),
    partial(attributes, nn.LocallyConnected1d, (2, 3, 5, 2)),
    partial(attributes, nn.Linear, (3, 4)),
    partial(attributes, nn.MaxPool2d, (3, 2, 1, 1)),
    partial(attributes, nn.AvgPool2d, (3, 2, 1, False, True, 3.0)),
    partial(attributes, nn.LPPool2d, (3.0, 2)),
    partial(attributes, nn.AdaptiveAvgPool2d, (3,)),
    partial(attributes, nn.AdaptiveMaxPool2d, ((3, None),)),
    partial(attributes, nn.MaxUnpool2d, (2,)),
    partial(attributes, nn.BedOfNails2d, (2,)),
    partial(attributes, nn.Upsample, (None, (2.0, 1.5))),
    partial(attributes, nn.Upsample, (4,)),
    partial(attributes, nn.BatchNorm2d, (4, 0.125, 0.25)),
    partial(attributes, nn.InstanceNorm2d, (4, 0.125, 0.25)),
    partial(attributes, nn.LayerNorm, ((3, 4), 0.125)),
    partial(attributes, nn.GroupNorm, (2, 4, 0.125)),
    partial(attributes, nn.LeakyReLU, (0.125,)),
    partial(attributes, nn.Softmax, (1,)),
    partial(attributes, nn.Dropout, (0.5,)),
    partial(attributes, nn.Flatten, (1, 2)),
    lost,
    drawn,
    clipped,
    dense,
]


@pytest.mark.table(28)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("result", RESULTS)
def test_numbers_may_be_an_array_librarys(result: Callable[[Read], Any], form: Callable[[Any], Any]) -> None:
    assert result(partial(reshaped, form=form)) == result(lambda value: value)
