"""Parts of the drawing that all families share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st
from pooling_cases import INTEGERS
from properties import Array
from strategies import COMPLEX, FLOATS

ALL = (*FLOATS, *COMPLEX, *INTEGERS)
LINEAR = (*FLOATS, *COMPLEX)
Ints = tuple[int, ...]
Purpose = str
"""What calls are drawn for: "oracle", "pytorch" for what PyTorch takes too, or "slopes", which are small and smooth."""
PYTORCH = 20.0  # times our tolerance is what PyTorch's own sums, in another order, may differ by
SMOOTH = ("sigmoid", "silu", "gelu", "gelu_tanh", "hard_swish", "hard_sigmoid")
seeds = st.integers(0, 2**16)


def sizes_of(rank: int, most: int) -> st.SearchStrategy[Ints]:
    return st.tuples(*[st.integers(1, most)] * rank)


def rounding(purpose: Purpose) -> dict[str, float]:
    """What differences to a peer are allowed."""
    return {"factor": PYTORCH, "gradient_factor": PYTORCH} if purpose == "pytorch" else {}


def smooth_for(purpose: Purpose) -> tuple[str, ...]:
    """The activations of `SMOOTH`; for slopes those without corners.

    PyTorch's gradient of a hard sigmoid has float32's sixth in float64 too.
    """
    return SMOOTH[: {"slopes": 4, "pytorch": 5}.get(purpose, 6)]


def smooth_peer(torch: Any, activation: str) -> Callable[[Any], Any]:
    """PyTorch's function for one of `SMOOTH`."""
    if activation == "gelu_tanh":
        return partial(torch.nn.functional.gelu, approximate="tanh")
    return getattr(torch.nn.functional, activation.replace("hard_", "hard"))  # type: ignore[no-any-return]


def bias_of(draw: st.DrawFn, bias: Array) -> Array:
    """The bias of 16-bit images: of their dtype, or of float32."""
    is_half = bias.itemsize == 2 and bias.dtype.kind in "fV"
    return bias.astype(np.float32) if is_half and draw(st.booleans()) else bias


def over_all_integers(draw: st.DrawFn, *arrays: Array) -> None:
    """Now and then the numbers of integer arrays are of their dtype's whole range: sums of them wrap around."""
    if arrays[0].dtype.kind in "iu" and draw(st.booleans()):
        rng = np.random.default_rng(3)
        for array in arrays:
            range_ = np.iinfo(array.dtype)
            array[...] = rng.integers(range_.min, range_.max, array.shape, array.dtype, endpoint=True)
