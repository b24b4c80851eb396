"""The norms of images and rows where something is particular to them: statistics handed over, many values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from families.norms import KINDS, norm
from properties import check_gradients, check_results
from strategies import FLOATS
from tolerances import assert_close

OPTIONS: dict[str, Any] = {"layer": (3, 2), "rms": (3, 2), "group": 2}
"""What layer, RMS and group norm take for images [N, 4, 3, 2]."""


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_handed_over_are_used(backend: ArrayBackend, kind: str) -> None:
    case = norm(kind, (2, 4, 3, 2), OPTIONS.get(kind), "float64")

    def gradients(**statistics: Any) -> Any:
        return backend.run(case.backward, case.grad, **case.arguments, **statistics)

    _, *means, rstd = case.expected()
    given = dict(zip(("mean",), means, strict=False))
    usual, steeper = gradients(), gradients(**given, rstd=2 * rstd)
    if kind == "rms":
        assert_close(steeper[1], 2 * usual[1])
        return
    moved = gradients(mean=means[0] + 1, rstd=rstd)
    gx, gw, gb = 0, -2, -1
    assert not np.allclose(steeper[gx], usual[gx], rtol=0.1)
    assert_close(steeper[gw], 2 * usual[gw])
    assert_close(steeper[gb], usual[gb])
    assert not np.allclose(moved[gw], usual[gw], rtol=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_many_values_are_normalised_as_few_are(backend: ArrayBackend, kind: str, order: str) -> None:
    """More than fit a tile of the CPU's, whose borders lie anywhere."""
    case = norm(
        kind, (3, 37, 96, 99), {"layer": (96, 99), "rms": (96, 99), "group": 1}.get(kind), "float64", order, mean=2
    )
    case = replace(case, factor=1, gradient_factor=1)
    check_results(backend, case)
    check_gradients(backend, case)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("layer", "rms")])
def test_memory_order_is_that_of_the_input(backend: ArrayBackend, kind: str, dtype: str) -> None:
    for order in ("contiguous", "channels_last"):
        case = norm(kind, (2, 4, 3, 2), OPTIONS.get(kind), dtype, order)
        y = backend.run(case.forward, **case.arguments)
        gx = backend.run(case.backward, case.grad, **case.arguments)[0]
        for result in (y, gx):
            assert result.strides == case.first.strides
