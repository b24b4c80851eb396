"""Schedules against ``torch.optim.lr_scheduler``, step by step, and their states."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
from refusals import refused, refuses

from gpucnn import nn

CASES: list[tuple[str, dict[str, Any], int]] = [
    ("StepLR", {"step_size": 3}, 20),
    ("StepLR", {"step_size": 1, "gamma": 0.7}, 20),
    ("MultiStepLR", {"milestones": [2, 5, 5, 11], "gamma": 0.3}, 20),
    ("ExponentialLR", {"gamma": 0.9}, 20),
    ("LinearLR", {}, 20),
    ("LinearLR", {"start_factor": 0.1, "end_factor": 0.6, "total_iters": 7}, 20),
    ("CosineAnnealingLR", {"T_max": 10}, 25),
    ("CosineAnnealingLR", {"T_max": 7, "eta_min": 0.01}, 20),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 20}, 19),
    ("OneCycleLR", {"max_lr": [0.5, 0.1], "epochs": 4, "steps_per_epoch": 5, "pct_start": 0.2}, 19),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 20, "three_phase": True, "anneal_strategy": "linear"}, 19),
    ("OneCycleLR", {"max_lr": 1.0, "total_steps": 9, "div_factor": 3.0, "final_div_factor": 7.0}, 8),
    ("OneCycleLR", {"max_lr": 1.0, "total_steps": 9, "pct_start": 1.0, "cycle_momentum": False}, 8),
    ("OneCycleLR", {"max_lr": 1.0, "total_steps": 9, "base_momentum": 0.5, "max_momentum": 0.6}, 8),
]


def pair(torch: Any, name: str, **options: Any) -> tuple[nn.Optimizer, Any]:
    """Our optimiser and PyTorch's with two groups."""
    ours = [{"params": nn.Parameter(np.ones(2)), "lr": 0.2}, {"params": nn.Parameter(np.ones(1))}]
    theirs = [{"params": torch.ones(2), "lr": 0.2}, {"params": torch.ones(1)}]
    return getattr(nn, name)(ours, lr=0.4, **options), getattr(torch.optim, name)(theirs, lr=0.4, **options)


def adam() -> nn.Optimizer:
    return nn.Adam([nn.Parameter(np.ones(2))], lr=0.4)


def rates(optimizer: Any) -> list[float]:
    return [value for group in optimizer.param_groups for value in (group["lr"], *group.get("betas", ()))] + [
        group["momentum"] for group in optimizer.param_groups if "momentum" in group
    ]


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize(("name", "options", "steps"), CASES, ids=str)
def test_rates_are_pytorchs(torch: Any, name: str, options: dict[str, Any], steps: int, optimizer: str) -> None:
    ours, theirs = pair(torch, optimizer, **({"momentum": 0.8} if optimizer == "SGD" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch wants steps of its optimiser in between
        expected = getattr(torch.optim.lr_scheduler, name)(theirs, **options)
        schedule = getattr(nn, name)(ours, **options)
        for step in range(steps + 1):
            assert rates(ours) == pytest.approx(rates(theirs), rel=1e-10, abs=1e-15), step
            assert schedule.get_last_lr() == [group["lr"] for group in ours.param_groups]
            expected.step()
            schedule.step()
            if step == steps - 1 and name == "OneCycleLR":
                break


@pytest.mark.parametrize(
    "options",
    [
        {"patience": 2},
        {"patience": 0, "cooldown": 3, "factor": 0.5},
        {"patience": 1, "mode": "max", "threshold": 0.3, "threshold_mode": "abs"},
        {"patience": 1, "threshold": 0.2, "min_lr": [0.1, 0.002]},
        {"patience": 0, "mode": "max", "eps": 0.01},
    ],
    ids=str,
)
def test_a_plateau_is_pytorchs(torch: Any, options: dict[str, Any]) -> None:
    ours, theirs = pair(torch, "SGD")
    schedule, expected = (
        nn.ReduceLROnPlateau(ours, **options),
        torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options),
    )
    measures = np.abs(np.sin(np.arange(40) * 0.9)) + np.linspace(2, 1, 40)
    for measure in [*measures, float("nan"), 0.5]:
        schedule.step(measure)
        expected.step(measure)
        assert rates(ours) == pytest.approx(rates(theirs), rel=1e-12)
    assert rates(ours) != [0.2, 0.4, 0.0, 0.0]


KINDS = {
    **{
        f"{name} {options}": (name, options | ({"max_lr": 0.5} if "max_lr" in options else {}))
        for name, options, _ in CASES
    },
    "ReduceLROnPlateau": ("ReduceLROnPlateau", {"patience": 0}),
}
MEASURES = (3.0, 2.0, 2.5, 2.4, 1.0, 1.1, 1.2, 0.9)


def made(kind: str, optimizer: nn.Optimizer) -> nn.Schedule:
    name, options = KINDS[kind]
    schedule: nn.Schedule = getattr(nn, name)(optimizer, **options)
    return schedule


def step(schedule: nn.Schedule, measure: float) -> None:
    schedule.step(*([measure] if isinstance(schedule, nn.ReduceLROnPlateau) else []))


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_goes_on(kind: str) -> None:
    whole, first, second = (made(kind, adam()) for _ in range(3))
    for measure in MEASURES:
        step(whole, measure)
    for measure in MEASURES[:3]:
        step(first, measure)
    second.optimizer.load_state_dict(json.loads(json.dumps(first.optimizer.state_dict())))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for measure in MEASURES[3:]:
        step(second, measure)
    assert rates(second.optimizer) == rates(whole.optimizer)
    assert second.state_dict() == whole.state_dict()
    assert second.last_epoch == 8


@pytest.mark.parametrize("kind", KINDS)
def test_groups_added_later_follow_from_the_next_step_on_as_if_they_had_been_there(kind: str) -> None:
    def optimizer(*groups: dict[str, Any]) -> nn.SGD:
        return nn.SGD([{"params": nn.Parameter(np.ones(1)), **group} for group in groups], lr=0.4, momentum=0.9)

    late, whole = made(kind, optimizer({})), made(kind, optimizer({}, {"lr": 0.3}))
    for schedule in (late, whole):
        step(schedule, 1.0)
    late.optimizer.add_param_group({"params": nn.Parameter(np.ones(1)), "lr": 0.3})
    for measure in (2.0, 2.5, 2.4, 2.0, 3.0):
        for schedule in (late, whole):
            step(schedule, measure)
        assert rates(late.optimizer) == rates(whole.optimizer)
    assert late.state_dict() == whole.state_dict()


def test_a_group_added_later_that_no_rate_was_given_for_is_refused() -> None:
    optimizer = nn.SGD([{"params": nn.Parameter(np.ones(1))} for _ in range(2)], lr=1.0, momentum=0.9)
    cycle = nn.OneCycleLR(optimizer, [1.0, 2.0], 9)
    plateau = nn.ReduceLROnPlateau(optimizer, min_lr=[0.0, 0.1], patience=0)
    optimizer.add_param_group({"params": nn.Parameter(np.ones(1))})
    refused(
        ValueError,
        ("OneCycleLR: max_lrs is […1 groups more, expected a new schedule after add_…", cycle.step),
        ("ReduceLROnPlateau: min_lrs is […1 groups more, expected …", lambda: plateau.step(math.nan)),
    )


def test_a_nan_is_no_improvement() -> None:
    optimizer = adam()
    schedule = nn.ReduceLROnPlateau(optimizer, patience=1, factor=0.5)
    for measure in (math.nan, 3.0, math.nan, math.nan):
        schedule.step(measure)
    assert schedule.best == 3.0
    assert rates(optimizer)[0] == 0.2


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"gamma": "0.5"}, TypeError, "MultiStepLR.load_state_dict: gamma is '0.5', expected a number such as 0.1"),
        ({"milestones": 3}, TypeError, "milestones is 3, expected a list of numbers such as"),
        ({"base_lrs": [1.0, None]}, TypeError, "base_lrs is .*, expected a list of numbers"),
        ({"base_lrs": [1.0, 1.0]}, ValueError, "base_lrs has 2 rates, expected at most 1, one a group"),
        ({"other": 1}, KeyError, "MultiStepLR.load_state_dict: got"),
    ],
)
def test_a_state_is_loaded_whole_or_not_at_all(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    schedule, other = nn.MultiStepLR(adam(), [1, 3]), nn.MultiStepLR(adam(), [2], gamma=0.9)
    other.step()
    before = schedule.state_dict()
    with pytest.raises(error, match=message):
        schedule.load_state_dict({**other.state_dict(), **wrong})
    assert schedule.state_dict() == before


def test_states_share_no_lists() -> None:
    first, second = nn.StepLR(adam(), 1), nn.StepLR(adam(), 1)
    second.load_state_dict(state := first.state_dict())
    first.optimizer.add_param_group({"params": nn.Parameter(np.ones(1))})
    first.step()
    assert len(first.base_lrs) == 2
    assert len(second.base_lrs) == len(state["base_lrs"]) == 1


def test_one_cycle_ends_with_its_last_step() -> None:
    optimizer = adam()
    schedule = nn.OneCycleLR(optimizer, 1.0, total_steps=3)
    assert schedule.per_batch
    for _ in range(2):
        schedule.step()
    last = rates(optimizer)
    schedule.step()
    assert rates(optimizer) == last
    with pytest.raises(ValueError, match="OneCycleLR: step 4 of 3, expected total_steps to be the number of batches"):
        schedule.step()


def test_a_schedule_shows_its_numbers() -> None:
    assert repr(nn.ExponentialLR(adam(), 0.5)) == "ExponentialLR(gamma=0.5, base_lrs=[0.4], last_epoch=0)"


test_options_out_of_range_are_refused = refuses(
    ValueError,
    ("StepLR: step_size is 0, expected at least 1…", lambda: nn.StepLR(adam(), 0)),
    ("LinearLR: start_factor is 0…", lambda: nn.LinearLR(adam(), start_factor=0)),
    ("LinearLR: end_factor is 2…", lambda: nn.LinearLR(adam(), end_factor=2)),
    ("LinearLR: total_iters is 0…", lambda: nn.LinearLR(adam(), total_iters=0)),
    ("CosineAnnealingLR: T_max is 0…", lambda: nn.CosineAnnealingLR(adam(), 0)),
    ("OneCycleLR: total_steps is None, expected it, or epochs and steps_per_epoch…", lambda: nn.OneCycleLR(adam(), 1)),
    ("OneCycleLR: total_steps is 0…", lambda: nn.OneCycleLR(adam(), 1, 0)),
    ("OneCycleLR: pct_start is 2…", lambda: nn.OneCycleLR(adam(), 1, 9, pct_start=2)),
    ("…anneal_strategy is exp…", lambda: nn.OneCycleLR(adam(), 1, 9, anneal_strategy="exp")),
    ("…max_lr is [1, 2], expected 1 rates, one a group…", lambda: nn.OneCycleLR(adam(), [1, 2], 9)),
    (
        "…cycle_momentum is True, expected an optimizer with a momentum or with betas…",
        lambda: nn.OneCycleLR(Plain(), 1, 9),
    ),
    ("ReduceLROnPlateau: mode is low, expected 'min' or 'max'…", lambda: nn.ReduceLROnPlateau(adam(), "low")),
    ("ReduceLROnPlateau: factor is 1.0…", lambda: nn.ReduceLROnPlateau(adam(), factor=1.0)),
    ("…threshold_mode is x…", lambda: nn.ReduceLROnPlateau(adam(), threshold_mode="x")),
    ("…min_lr is [0, 0], expected one rate a group…", lambda: nn.ReduceLROnPlateau(adam(), min_lr=[0, 0])),
)


class Plain(nn.Optimizer):
    def __init__(self) -> None:
        super().__init__([nn.Parameter(np.ones(1))], {"lr": 1.0, "weight_decay": 0.0})


def test_what_else_is_refused() -> None:
    refused(
        TypeError,
        ("StepLR: optimizer is a list, expected an nn.Optimizer…", lambda: nn.StepLR([], 1)),
        ("…step() has no metrics…", lambda: nn.ReduceLROnPlateau(adam()).step()),
    )
    lacking = "…StepLR.load_state_dict: got ['gamma'], expected…"
    refused(KeyError, (lacking, lambda: nn.StepLR(adam(), 1).load_state_dict({"gamma": 1})))
    refused(NotImplementedError, ("Schedule defines no rate…", lambda: nn.Schedule(adam())))
