"""The comparison of two implementations' results of a network, before either is timed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.checking import EPS
from benchmarks.networks.subject import Array

OUTPUT_TOLERANCE = 1e-4
# A rectifier's gradient jumps at 0. Where two implementations round a sum to different sides of 0, gradients differ by
# more than rounding, and norms amplify that: by 5 % between PyTorch's two memory orders in ResNet-50 and MobileNetV2.
# What lacks a term or is scaled wrongly differs by much of its norm.
GRADIENT_TOLERANCE = 0.2
MIN_SHARE = 1e-3  # of the largest norm of a gradient: smaller ones are residues of cancelling terms


def find_difference(
    actual: Mapping[str, Array], expected: Mapping[str, Array], start: Mapping[str, Array]
) -> str | None:
    """The first array in which two implementations differ by more than its tolerance, or None.

    Differences are Euclidean norms over a whole array. `start` is the state before the training
    step: for arrays in it, the change is compared.
    """
    if list(actual) != list(expected):
        names = sorted(set(actual) ^ set(expected))
        return f"names differ: {', '.join(names[:5]) or 'another order'}"
    largest = max((_norm(array) for name, array in expected.items() if _is_gradient(name)), default=0.0)
    for name, array in actual.items():
        if array.shape != expected[name].shape:
            return f"{name} has shape {array.shape}, expected {expected[name].shape}"
        if array.dtype not in (np.float32, np.int64):
            return f"{name} has dtype {array.dtype}, expected float32"
        if not np.isfinite(array).all():
            return f"{name} is not finite"
        before = start.get(name)
        scale = _norm(expected[name] if before is None else expected[name] - before)
        if before is not None:
            allowed = GRADIENT_TOLERANCE * scale + 2 * EPS * _norm(before)
        elif _is_gradient(name):
            allowed = GRADIENT_TOLERANCE * max(scale, MIN_SHARE * largest)
        else:
            allowed = OUTPUT_TOLERANCE * scale
        difference = _norm(array - expected[name])
        if not difference <= allowed:
            what = name if before is None else f"the change of {name}"
            return f"{what} differs by {difference:.3g} of norm {scale:.3g}, at most {allowed:.3g} is expected"
    return None


def _is_gradient(name: str) -> bool:
    return name.startswith("gradient of ")


def _norm(array: Array) -> float:
    return float(np.linalg.norm(np.asarray(array, np.float32).ravel()))
