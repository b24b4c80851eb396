"""Branches and loops, whose graphs are functions of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.onnx.operators.arrays import ints, namespace
from gpucnn.onnx.operators.registry import Anywhere, Array, Branch, Host, operator, refuse


def is_true(condition: Any) -> bool:
    """Whether the one element of an array is true."""
    return bool(np.asarray(condition).ravel()[0])


@operator("If")
def if_(condition: Host, *, then_branch: Branch, else_branch: Branch) -> Any:
    """The outputs of one of two graphs."""
    return tuple((then_branch if is_true(condition) else else_branch)())


@operator("Loop")
def loop(limit: Host = None, condition: Host = None, *carried: Anywhere, body: Branch) -> Any:
    """The graph again and again: its last carried values, and what each turn gave besides, stacked."""
    most = None if limit is None or not limit.size else ints(limit)[0]
    going = condition is None or not condition.size or is_true(condition)
    state, turns, turn = list(carried), [], 0
    while going and (most is None or turn < most):
        again, *results = body(np.array(turn, np.int64), np.array(going), *state)
        going = is_true(_on_host(again))
        state = results[: len(state)]
        turns.append(results[len(state) :])
        turn += 1
    return (*state, *(namespace(items[0]).stack(items) for items in zip(*turns, strict=True)))


def _on_host(array: Array) -> Any:
    return array if isinstance(array, np.ndarray) else array.get()


@operator("Scan", 9)
def scan(
    *arrays: Anywhere,
    body: Branch,
    num_scan_inputs: int,
    scan_input_axes: list[int] | None = None,
    scan_input_directions: list[int] | None = None,
    scan_output_axes: list[int] | None = None,
    scan_output_directions: list[int] | None = None,
    count: int,
) -> Any:
    """The graph over slices of arrays: its last states, and what each turn gave besides, stacked."""
    states = list(arrays[: len(arrays) - num_scan_inputs])
    scanned = arrays[len(states) :]
    slices = [
        _turned(namespace(array).moveaxis(array, axis, 0), reverse)
        for array, axis, reverse in zip(
            scanned, scan_input_axes or [0] * len(scanned), scan_input_directions or [0] * len(scanned), strict=True
        )
    ]
    turns = []
    for turn in range(slices[0].shape[0]):
        results = body(*states, *(array[turn, ...] for array in slices))
        states = results[: len(states)]
        turns.append(results[len(states) :])
    others = count - len(states)
    if not turns and others:
        raise refuse("there is nothing to scan, expected at least one slice")
    stacked = [
        namespace(items[0]).stack(_turned(list(items), reverse), axis)
        for items, axis, reverse in zip(
            zip(*turns, strict=True), scan_output_axes or [0] * others, scan_output_directions or [0] * others,
            strict=True,
        )
    ]  # fmt: skip
    return (*states, *stacked)


def _turned(items: Any, reverse: int) -> Any:
    return items[::-1] if reverse else items
