"""Families of operations: calls to draw of each, with their oracle and their peer in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from pooling_cases import INTEGERS, ORDERED
from properties import Case
from strategies import FLOATS

from families.convolution import (
    convolution_gradients,
    convolutions,
    local_layers,
    transposed_convolutions,
    unfoldings,
)
from families.drawing import ALL, LINEAR, Purpose
from families.elementwise import bias_activations, linear_layers, pads, unary_operations
from families.losses import binary_cross_entropies, cross_entropies
from families.norms import KINDS, norms
from families.pooling import adaptive_poolings, interpolations, nails, poolings, unpoolings


@dataclass(frozen=True)
class Family:
    """How calls of a family are drawn, and in which dtypes it is compared with what."""

    draw: Callable[..., st.SearchStrategy[Case]]
    dtypes: tuple[str, ...]
    by_pytorch: tuple[str, ...] = ("float64", "float32")  # none where PyTorch has no such function
    by_slopes: tuple[str, ...] = ("float64",)  # none where the gradient is not the slope everywhere
    tolerance: float = 1e-6  # of slopes
    drawn: tuple[tuple[str, Any], ...] = ()  # what else to draw by

    def cases(self, purpose: Purpose = "oracle") -> st.SearchStrategy[Case]:
        dtypes = {"oracle": self.dtypes, "pytorch": self.by_pytorch, "slopes": self.by_slopes}[purpose]
        return self.draw(dtypes, purpose, **dict(self.drawn))


SINGLE, COMPLEX_TOO = ("float64", "float32", "complex128", "complex64"), ("float64", "complex128")
slopes = st.sampled_from((None, 0.0, 0.2, 1, 3.5, -0.5, np.float32(0.25)))


def _unary(name: str, dtypes: tuple[str, ...] = FLOATS, **options: st.SearchStrategy[Any]) -> Family:
    tolerance = 1e-8 if "softmax" in name else 1e-6
    return Family(unary_operations, dtypes, tolerance=tolerance, drawn=(("name", name), *options.items()))


FAMILIES = {
    "conv": Family(convolutions, ALL, SINGLE, COMPLEX_TOO),
    "conv_input": Family(convolution_gradients, ALL, SINGLE, COMPLEX_TOO, drawn=(("of", "input"),)),
    "conv_weight": Family(convolution_gradients, ALL, SINGLE, COMPLEX_TOO, drawn=(("of", "weight"),)),
    "conv_transpose": Family(transposed_convolutions, ALL, SINGLE, COMPLEX_TOO),
    "locally_connected": Family(local_layers, ALL, SINGLE[:3], COMPLEX_TOO),
    "unfold": Family(unfoldings, ALL, SINGLE[:3], COMPLEX_TOO),
    "max_pool": Family(poolings, ORDERED, drawn=(("kind", "max"),)),
    "avg_pool": Family(poolings, LINEAR, by_slopes=COMPLEX_TOO, drawn=(("kind", "avg"),)),
    "sum_pool": Family(poolings, ALL, (), COMPLEX_TOO, drawn=(("kind", "sum"),)),
    "lp_pool": Family(poolings, FLOATS, drawn=(("kind", "lp"),)),
    "adaptive_max_pool": Family(adaptive_poolings, ORDERED, drawn=(("kind", "max"),)),
    "adaptive_avg_pool": Family(adaptive_poolings, LINEAR, by_slopes=COMPLEX_TOO, drawn=(("kind", "avg"),)),
    "max_unpool": Family(unpoolings, ALL, by_slopes=()),  # of values with one index the last stays
    "bed_of_nails": Family(nails, ALL, (), COMPLEX_TOO),
    "nearest": Family(interpolations, ALL, by_slopes=COMPLEX_TOO, drawn=(("modes", ("nearest", "nearest-exact")),)),
    "interpolate": Family(interpolations, LINEAR, by_slopes=COMPLEX_TOO, drawn=(("modes", ("linear", "area")),)),
    **{f"{kind}_norm": Family(norms, FLOATS, tolerance=1e-7, drawn=(("kind", kind),)) for kind in KINDS},
    **{f"{kind}_norm, finished": Family(norms, FLOATS, drawn=(("kind", kind), ("finished", True))) for kind in KINDS},
    "linear": Family(linear_layers, ALL, SINGLE, COMPLEX_TOO, 1e-7),
    "relu": _unary("relu", (*FLOATS, *INTEGERS)),
    "leaky_relu": _unary("leaky_relu", negative_slope=slopes),
    "sigmoid": _unary("sigmoid"),
    "gelu": _unary("gelu", approximate=st.sampled_from((None, "none", "tanh"))),
    "softmax": _unary("softmax"),
    "log_softmax": _unary("log_softmax"),
    "bias_activation": Family(bias_activations, FLOATS),
    "pad": Family(pads, ALL, SINGLE[:3], COMPLEX_TOO, 1e-7),
    "cross_entropy": Family(cross_entropies, FLOATS, tolerance=1e-8),
    "binary_cross_entropy_with_logits": Family(binary_cross_entropies, FLOATS, tolerance=1e-8),
}
