"""Families of operations: calls to draw of each, with their oracle and their peer in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st
from pooling_cases import INTEGERS, ORDERED
from properties import Case
from strategies import FLOATS

from families.convolution import (
    activated_convolutions,
    convolution_gradients,
    convolutions,
    local_layers,
    transposed_convolutions,
    unfoldings,
)
from families.drawing import ALL, LINEAR, Purpose
from families.elementwise import MODES, bias_activations, linear_layers, pads, unary_operations
from families.losses import binary_cross_entropies, cross_entropies
from families.norms import KINDS, norms, response_norms
from families.pooling import adaptive_poolings, interpolations, nails, poolings, unpoolings
from families.sampling import affine_grids, grid_samplings


@dataclass(frozen=True)
class Family:
    """How calls of a family are drawn, and in which dtypes it is compared with what."""

    draw: Callable[..., st.SearchStrategy[Case]]
    dtypes: tuple[str, ...]
    by_pytorch: tuple[str, ...] = ("float64", "float32")  # none where PyTorch has no such function
    by_slopes: tuple[str, ...] = ("float64",)  # none where the gradient is not the slope everywhere
    tolerance: float = 1e-6  # of slopes

    def cases(self, purpose: Purpose = "oracle") -> st.SearchStrategy[Case]:
        dtypes = {"oracle": self.dtypes, "pytorch": self.by_pytorch, "slopes": self.by_slopes}[purpose]
        return self.draw(dtypes, purpose)


SINGLE, COMPLEX_TOO = ("float64", "float32", "complex128", "complex64"), ("float64", "complex128")
slopes = st.sampled_from((None, 0.0, 0.2, 1, 3.5, -0.5, np.float32(0.25)))


def unary(name: str, dtypes: tuple[str, ...] = FLOATS, tolerance: float = 1e-6, **options: Any) -> Family:
    return Family(partial(unary_operations, name=name, **options), dtypes, tolerance=tolerance)


FAMILIES = {
    "conv": Family(convolutions, ALL, SINGLE, COMPLEX_TOO),
    "conv_activation": Family(activated_convolutions, SINGLE[:2], SINGLE[:2]),
    "conv_input": Family(partial(convolution_gradients, of="input"), ALL, SINGLE, COMPLEX_TOO),
    "conv_weight": Family(partial(convolution_gradients, of="weight"), ALL, SINGLE, COMPLEX_TOO),
    "conv_transpose": Family(transposed_convolutions, ALL, SINGLE, COMPLEX_TOO),
    "locally_connected": Family(local_layers, ALL, SINGLE[:3], COMPLEX_TOO),
    "unfold": Family(unfoldings, ALL, SINGLE[:3], COMPLEX_TOO),
    "max_pool": Family(partial(poolings, kind="max"), ORDERED),
    "avg_pool": Family(partial(poolings, kind="avg"), LINEAR, by_slopes=COMPLEX_TOO),
    "sum_pool": Family(partial(poolings, kind="sum"), ALL, (), COMPLEX_TOO),
    "lp_pool": Family(partial(poolings, kind="lp"), FLOATS),
    "adaptive_max_pool": Family(partial(adaptive_poolings, kind="max"), ORDERED),
    "adaptive_avg_pool": Family(partial(adaptive_poolings, kind="avg"), LINEAR, by_slopes=COMPLEX_TOO),
    "max_unpool": Family(unpoolings, ALL, by_slopes=()),  # of values with one index the last stays
    "bed_of_nails": Family(nails, ALL, (), COMPLEX_TOO),
    "nearest": Family(partial(interpolations, modes=("nearest", "nearest-exact")), ALL, by_slopes=COMPLEX_TOO),
    "interpolate": Family(partial(interpolations, modes=("linear", "cubic", "area")), LINEAR, by_slopes=COMPLEX_TOO),
    "grid_sample": Family(grid_samplings, FLOATS, tolerance=1e-5),
    "affine_grid": Family(affine_grids, FLOATS),
    **{f"{kind}_norm": Family(partial(norms, kind=kind), FLOATS, tolerance=1e-7) for kind in KINDS},
    **{f"{kind}_norm, finished": Family(partial(norms, kind=kind, finished=True), FLOATS) for kind in KINDS},
    "local_response_norm": Family(response_norms, FLOATS),
    "linear": Family(linear_layers, ALL, SINGLE, COMPLEX_TOO, 1e-7),
    "relu": unary("relu", (*FLOATS, *INTEGERS)),
    "leaky_relu": unary("leaky_relu", negative_slope=slopes),
    "sigmoid": unary("sigmoid"),
    "gelu": unary("gelu", approximate=st.sampled_from((None, "none", "tanh"))),
    "softmax": unary("softmax", tolerance=1e-8),
    "log_softmax": unary("log_softmax", tolerance=1e-8),
    "bias_activation": Family(bias_activations, FLOATS),
    "pad, constant": Family(partial(pads, mode="constant"), ALL, SINGLE[:3], COMPLEX_TOO, 1e-7),
    **{f"pad, {mode}": Family(partial(pads, mode=mode), ALL, SINGLE[:2], COMPLEX_TOO, 1e-7) for mode in MODES[1:-1]},
    "pad, symmetric": Family(partial(pads, mode="symmetric"), ALL, (), COMPLEX_TOO, 1e-7),
    "cross_entropy": Family(cross_entropies, FLOATS, tolerance=1e-8),
    "binary_cross_entropy_with_logits": Family(binary_cross_entropies, FLOATS, tolerance=1e-8),
}
