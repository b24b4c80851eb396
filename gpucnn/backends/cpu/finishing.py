"""Epilogues of convolutions, as the kernels in C++ take them."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from gpucnn.backends.base import Epilogue


class Finish(NamedTuple):
    """``struct Epilogue`` of epilogue.hpp: fields of ``Params``."""

    acts: int = 0
    smooth: int = 0
    least: float = -inf
    most: float = inf
    slope: float = 1.0


NOTHING = Finish()


def finish_of(epilogue: Epilogue) -> Finish:
    """What a kernel does with sums, and whether it does anything: adding a residual counts too."""
    name = epilogue.activation
    return Finish(
        acts=int(name != "none" or epilogue.residual is not None),
        smooth=epilogue.smooth,
        least=0.0 if name in ("relu", "relu6") else -inf,
        most=6.0 if name == "relu6" else inf,
        slope=epilogue.negative_slope if name == "leaky_relu" else 1.0,
    )
