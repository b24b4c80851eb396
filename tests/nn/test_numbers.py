"""Numbers as arguments of layers, optimisers and schedules: an array library's scalars are as Python's numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from layer_cases import CONFIGS as LAYERS
from layer_cases import Case, of
from test_optimizers import CASES as OPTIMIZERS
from test_schedules import KINDS as SCHEDULES

from gpucnn import nn

FORMS: tuple[Callable[[Any], Any], ...] = (
    lambda value: np.int64(value) if isinstance(value, int) else np.float64(value),
    lambda value: np.int8(value) if isinstance(value, int) else np.float32(value),
    lambda value: np.array(value) if isinstance(value, int) else ml_dtypes.bfloat16(value),
    np.array,
)
Read = Callable[[Any], Any]  # puts each of an argument's numbers in another form


def reshaped(value: Any, form: Callable[[Any], Any], back: bool = False) -> Any:
    """An argument with each of its numbers in another form, or as the number of Python's that this equals."""
    if isinstance(value, dict):
        return {name: reshaped(item, form, back) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(reshaped(item, form, back) for item in value)
    if type(value) not in (int, float):
        return value
    return type(value)(form(value)) if back else form(value)


# --- What follows from the numbers --------------------------------------------------------------------------------


def learned(name: str, options: dict[str, Any], read: Read) -> tuple[Any, ...]:
    """A parameter after three steps, the last ones at another rate, and what the optimiser says of itself."""
    parameter = nn.Parameter(np.linspace(-1, 1, 5, dtype=np.float32))
    optimizer = getattr(nn, name)([parameter], **read(options))
    said = repr(optimizer)
    for _ in range(3):
        parameter.grad = np.sin(parameter.data)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = read(0.0625)
    return parameter.data.dtype, parameter.data.tobytes(), said


def scheduled(name: str, options: dict[str, Any], read: Read) -> Any:
    """The rates and momenta of four steps with their types, and what the schedule says of itself."""
    optimizer = nn.SGD([nn.Parameter(np.zeros(1))], lr=0.3, momentum=0.5)
    schedule = getattr(nn, name)(optimizer, **read(options))
    seen = [repr(schedule)]
    for _ in range(4):
        schedule.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        group = optimizer.param_groups[0]
        seen += [(type(group[name]), group[name]) for name in ("lr", "momentum")]
    return seen


def attributes(case: Case, read: Read) -> Any:
    """The attributes of a layer that are no arrays, with their types."""
    made = getattr(nn, case.name)(*read(case.args), **read(case.options))
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


RESULTS: list[Callable[[Read], Any]] = [
    *(partial(learned, name, options) for name, options in OPTIMIZERS),
    *(partial(scheduled, name, options) for name, options in SCHEDULES.values()),
    *(
        partial(attributes, case)
        for case in (*LAYERS, of("LocallyConnected1d", (), 2, 3, 5, 2), of("Dropout", (), 0.3))
    ),
    *(partial(attributes, of(name, (), 2)) for name in ("MaxUnpool2d", "BedOfNails2d", "SumPool2d")),
    lost,
    drawn,
    clipped,
    dense,
]


@pytest.mark.table(28)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("result", RESULTS)
def test_numbers_may_be_an_array_librarys(result: Callable[[Read], Any], form: Callable[[Any], Any]) -> None:
    assert result(partial(reshaped, form=form)) == result(partial(reshaped, form=form, back=True))
