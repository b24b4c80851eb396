"""Epilogues in the compiled convolutions: on all ways of sums to memory, the bits of one pass after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from strategies import arranged

import gpucnn.functional as F
from gpucnn.backends import backend
from gpucnn.functional.activation import FUSED

LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "Winograd": ((2, 64, 15, 14), (72, 64, 3, 3), {"padding": 1}),
    "Winograd, dilated": ((2, 32, 22, 21), (32, 32, 3, 3), {"padding": 2, "dilation": 2}),
    "products in steps": ((2, 64, 15, 14), (64, 64, 3, 3), {"padding": 1, "stride": 2}),
    "padding that is skipped": ((2, 64, 15, 14), (72, 64, 5, 5), {"padding": 2}),
    "slices of the channels": ((1, 1200, 7, 7), (64, 1200, 3, 3), {"padding": 1, "stride": 2}),
    "groups": ((2, 64, 9, 8), (128, 32, 3, 3), {"groups": 2}),
    "1 x 1": ((2, 48, 12, 13), (80, 48, 1, 1), {}),
    "1 x 1 in chunks": ((2, 1100, 12, 13), (64, 1100, 1, 1), {}),
    "1 x 1 of few positions": ((2, 48, 7, 7), (80, 48, 1, 1), {}),
    "1 x 1 to few filters": ((2, 37, 30, 31), (3, 37, 1, 1), {}),
    "1 x 1 of few channels": ((2, 3, 30, 31), (33, 3, 1, 1), {}),
    "1 x 1 of few channels to whole vectors": ((2, 2, 30, 31), (64, 2, 1, 1), {}),
    "1 x 1 of small groups": ((2, 24, 30, 31), (48, 4, 1, 1), {"groups": 6}),
    "few filters": ((2, 20, 37, 45), (3, 20, 5, 5), {"padding": 2}),
    "depthwise": ((2, 40, 12, 13), (40, 1, 3, 3), {"padding": 1, "groups": 40}),
    "depthwise, few channels in the last tile": ((1, 499, 4, 42), (499, 1, 3, 3), {"padding": 1, "groups": 499}),
    "depthwise with a stride": ((2, 40, 12, 13), (40, 1, 3, 3), {"stride": 2, "groups": 40}),
    "small groups in lanes": ((2, 64, 9, 8), (64, 8, 3, 3), {"padding": 1, "groups": 8}),
    "multiplier": ((2, 20, 9, 8), (60, 1, 3, 3), {"padding": 1, "groups": 20}),
}


@pytest.mark.table(18)
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", LAYERS)
def test_results_have_the_bits_of_one_pass_after_the_other(name: str, order: str) -> None:
    shape, weight, options = LAYERS[name]
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(each).astype(np.float32) for each in (shape, weight, weight[:1]))
    x = arranged(x, order)
    with backend("compiled"):
        sums = F.conv2d(x, w, b, **options)
        residual = arranged(20 * rng.standard_normal(sums.shape).astype(np.float32), order)
        for activation in FUSED:
            for beside in (None, residual, np.asfortranarray(residual)):
                y = F.conv2d_activation(x, w, b, **options, residual=beside, activation=activation, negative_slope=0.3)
                expected = F.bias_activation(sums, None, beside, activation, 0.3)
                np.testing.assert_array_equal(y.view(np.int32), expected.view(np.int32), err_msg=activation)
