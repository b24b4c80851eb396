"""One small valid call of every public operation, by name: arguments for tests to spoil, or to hand in otherwise.

An operation whose other arguments have defaults is called with these on an image, unless it is listed here.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import gpucnn
import gpucnn.functional as F
from gpucnn.geometry import resize_axis

ARRAYS = frozenset({
    "input", "weight", "bias", "grad_output", "grad_grad_input", "grad_grad_weight", "indices", "target",
    "running_mean", "running_var", "mean", "rstd", "output", "mask", "residual",
    "pos_weight", "grid", "theta",
})  # fmt: skip
"""Names of the parameters that are arrays."""

ALIASES = {"unfold": "im2col", "fold": "col2im"}


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    """Numbers of both signs, all different."""
    return np.sin(np.arange(1.0, 1 + np.prod(shape, dtype=int))).reshape(shape)


def _calls_of_rank(n: int) -> dict[str, dict[str, Any]]:
    """The families for n-d images with two channels, 6 long along the first axis and 5 along the others."""
    x = numbers(2, 2, *(6, 5, 5)[:n])
    filters = {"weight": numbers(4, 1, *(2,) * n), "bias": numbers(4)}
    windows: dict[str, Any] = {"stride": 2, "padding": 1, "dilation": 1}
    out = (4, 3, 3)[:n]
    grad = numbers(2, 4, *out)
    local = {"weight": numbers(4, *out, 2, *(2,) * n), "bias": numbers(4, *out)}
    transposed = {"weight": numbers(2, 2, *(2,) * n), "bias": numbers(4)}
    pool = {"input": x, "kernel_size": 2, **windows, "ceil_mode": False}
    y, indices = getattr(F, f"max_pool{n}d")(x, 2, return_indices=True)
    return {
        f"conv{n}d": {"input": x, **filters, **windows, "groups": 2},
        f"conv{n}d_activation": {
            "input": x, **filters, **windows, "groups": 2, "residual": grad[::-1], "activation": "leaky_relu",
            "negative_slope": 0.01,
        },
        f"conv{n}d_input": {
            "input_size": x.shape, "weight": filters["weight"], "grad_output": grad, **windows, "groups": 2
        },
        f"conv{n}d_weight": {
            "input": x, "weight_size": filters["weight"].shape, "grad_output": grad, **windows, "groups": 2
        },
        f"conv_transpose{n}d": {"input": x, **transposed, **windows, "output_padding": 1, "groups": 2},
        f"locally_connected{n}d": {"input": x, **local, **windows},
        f"max_pool{n}d": {**pool, "return_indices": False},
        f"avg_pool{n}d": {**pool, "count_include_pad": True, "divisor_override": None},
        f"sum_pool{n}d": pool,
        f"lp_pool{n}d": {**pool, "norm_type": 2.0},
        f"adaptive_max_pool{n}d": {"input": x, "output_size": 2, "return_indices": False},
        f"adaptive_avg_pool{n}d": {"input": x, "output_size": 2},
        f"max_unpool{n}d": {
            "input": y, "indices": indices, "kernel_size": 2, "stride": 2, "padding": 0, "output_size": x.shape[2:]
        },
        f"bed_of_nails{n}d": {"input": x, "scale_factor": 2},
    }  # fmt: skip


def _other_calls() -> dict[str, dict[str, Any]]:
    x = numbers(2, 4, 3, 3)
    affine = {"weight": numbers(4), "bias": numbers(4), "eps": 1e-5}
    running = {"running_mean": np.zeros(4), "running_var": np.ones(4)}
    finish = {"residual": numbers(2, 4, 3, 3)[::-1], "activation": "leaky_relu", "negative_slope": 0.01}
    unfolding = {"kernel_size": 2, "dilation": 1, "padding": 1, "stride": 2}
    return {
        "im2col": {"input": x, **unfolding},
        "col2im": {"input": numbers(2, 16, 4), "output_size": 3, **unfolding},
        "interpolate": {
            "input": x, "size": 5, "scale_factor": None, "mode": "nearest", "align_corners": None,
            "recompute_scale_factor": None, "antialias": False,
        },
        "resample": {"input": x, "axes": [resize_axis(3, 5, mode="cubic"), resize_axis(3, 2)]},
        "grid_sample": {
            "input": x, "grid": numbers(2, 2, 3, 2), "mode": "bilinear", "padding_mode": "zeros",
            "align_corners": False,
        },
        "affine_grid": {"theta": numbers(2, 2, 3), "size": (2, 4, 3, 2), "align_corners": False},
        "batch_norm": {"input": x, **running, **affine, "training": True, "momentum": 0.1, **finish},
        "instance_norm": {"input": x, **running, **affine, "use_input_stats": True, "momentum": 0.1, **finish},
        "layer_norm": {
            "input": x, "normalized_shape": (3, 3), "weight": numbers(3, 3), "bias": numbers(3, 3), "eps": 1e-5,
            **finish,
        },
        "rms_norm": {"input": x, "normalized_shape": (3, 3), "weight": numbers(3, 3), "eps": 1e-5, **finish},
        "local_response_norm": {"input": x, "size": 3, "alpha": 1e-4, "beta": 0.75, "k": 1.0},
        "group_norm": {"input": x, "num_groups": 2, **affine, **finish},
        "linear": {"input": numbers(2, 3), "weight": numbers(4, 3), "bias": numbers(4)},
        "bias_activation": {"input": x, "bias": numbers(4), **finish},
        "softmax": {"input": x, "dim": 1},
        "log_softmax": {"input": x, "dim": 1},
        "cross_entropy": {
            "input": numbers(3, 4),
            "target": np.array([0, 1, 3]),
            "weight": np.ones(4),
            "ignore_index": -100,
            "reduction": "mean",
            "label_smoothing": 0.0,
        },
        "binary_cross_entropy_with_logits": {
            "input": numbers(3, 4),
            "target": np.abs(numbers(3, 4)),
            "weight": np.abs(numbers(4)),
            "reduction": "mean",
            "pos_weight": np.abs(numbers(3, 1)),
        },
        "dropout": {"input": x, "p": 0.5, "training": True, "rng": 1},
        "pad": {"input": x, "pad": (1, 1), "mode": "constant", "value": None},
    }  # fmt: skip


def _calls_by_default() -> dict[str, dict[str, Any]]:
    """The operations that need an input alone: everything else is as it is by default."""
    calls = {}
    for name in F.__all__:
        input_, *others = inspect.signature(getattr(F, name)).parameters.values()
        if input_.name == "input" and not any(each.default is each.empty for each in others):
            given = {each.name: each.default for each in others if each.name != "out"}
            calls[name] = {"input": numbers(2, 4, 3, 3), **given}
    return calls


def _copied(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in arguments.items()}


def with_backward(name: str, arguments: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The call, and that of its backward with everything that the forward can hand over."""

    def run(**others: Any) -> Any:
        return getattr(F, name)(**_copied({**arguments, **others}))

    result = run()
    direction = name.rpartition("_")[2]
    upstream = f"grad_grad_{direction}" if direction in ("input", "weight") else "grad_output"
    handed: dict[str, Any] = {}
    if "max_pool" in name:
        handed = {"indices": run(return_indices=True)[1]}
    elif name.endswith("_norm") and name != "local_response_norm":
        names: tuple[str, ...] = ("rstd",) if name == "rms_norm" else ("mean", "rstd")
        handed = dict(zip(names, run(return_statistics=True)[1:], strict=True))
    elif "softmax" in name or name.endswith("_activation"):
        handed = {"output": result}
    elif name == "dropout":
        handed = {"mask": run(return_mask=True)[1]}
    return {name: arguments, f"{name}_backward": {upstream: numbers(*result.shape), **arguments, **handed}}


def _all_calls() -> dict[str, dict[str, Any]]:
    calls: dict[str, dict[str, Any]] = {}
    for forwards in (*map(_calls_of_rank, (1, 2, 3)), _calls_by_default() | _other_calls()):
        for name, arguments in forwards.items():
            calls |= with_backward(name, arguments)
    for alias, name in ALIASES.items():
        calls |= {alias: calls[name], f"{alias}_backward": calls[f"{name}_backward"]}
    return calls


CALLS = _all_calls()
"""Keyword arguments of a valid call of each name in ``gpucnn.functional.__all__``."""


def fresh(name: str, **others: Any) -> dict[str, Any]:
    """The arguments of a valid call, with copies of the arrays, and with some exchanged for `others`."""
    return _copied({**CALLS[name], **others})


def said_name(name: str) -> str:
    """The name that an operation gives itself in its messages, where it has two."""
    forward = name.removesuffix("_backward")
    return ALIASES.get(forward, forward) + name[len(forward) :]


def peer_of(torch: Any, name: str) -> Any:
    """PyTorch's function of this name, over tensors."""
    if re.search("d_(input|weight)$", name):
        return getattr(torch.nn.grad, name)
    names = {other: alias for alias, other in ALIASES.items()}
    return getattr(torch.nn.functional, names.get(name, name))


def has_peer(torch: Any, name: str) -> bool:
    """Whether PyTorch has a function of this name."""
    try:
        peer_of(torch, name)
    except AttributeError:
        return False
    return True


def as_tensors(torch: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with copies of the arrays as PyTorch's tensors."""
    return {
        key: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
        for key, value in arguments.items()
    }


def rank_of(name: str) -> int:
    """The spatial rank of the arrays in the call of this name, 2 where that is open."""
    return next((n for n in (1, 2, 3) if f"{n}d" in name), 2)


def entered(call: Callable[[], Any]) -> list[tuple[str, str]]:
    """The files and functions of gpucnn that a call enters in this thread, each time that it does."""
    package = Path(gpucnn.__file__).parent
    found: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and Path(code.co_filename).is_relative_to(package):
            found.append((code.co_filename, code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    return found
