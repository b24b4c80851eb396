"""The distribution function and density of the normal distribution, for GELU, in arithmetic that every backend has."""

from __future__ import annotations

from math import pi, sqrt
from typing import Any

Array = Any

BOUND = 1000.0  # exp(-x) is 0 in float64 from 746 on, exp(-x**2 / 2) from 39 on: beyond it nothing changes
_CENTRE = 3.75

# (1 + 2 z) exp(z**2) erfc(z) as a polynomial of t = (z - 3.75) / (z + 3.75), lowest power first: for all z from 0 to
# infinity t is in [-1, 1), where the function is smooth. It is its series in Chebyshev polynomials, whose coefficients
# were computed with 50 digits, up to the first that the dtype does not see: degree 24 and 11. With the rounding of
# Horner's rule the relative error is below 2.5 units in the last place of float64 and 3 of float32.
# M. Shepherd, J. Laframboise, Chebyshev approximation of (1 + 2x) exp(x**2) erfc x in 0 <= x < infinity, Mathematics of
# Computation 36, 1981: the form.
_FLOAT64 = (
    1.2375126308378275, -0.14024059858554697, 0.0035854154854644293, 0.0822767384901452, -0.10880393014174886,
    0.09230432116037748, -0.05869339858963677, 0.028362277418956406, -0.009746579558029276, 0.0017556258528952954,
    0.0002937136655913448, -0.0002901540805408417, 5.164909889268241e-05, 2.238423915508223e-05,
    -1.1444146237700524e-05, -9.73559896736775e-07, 1.751637648849062e-06, -5.7218230603224086e-08,
    -2.5866850716155884e-07, 2.3263508708859124e-08, 3.8675334242222354e-08, -3.744210080962018e-09,
    -5.1739902140113095e-09, 3.1114333809799254e-10, 4.2514714447963895e-10,
)  # fmt: skip
_FLOAT32 = (
    1.23751262, -0.140240658, 0.00358627039, 0.08227842, -0.10881427, 0.0922907696, -0.0586468587, 0.0284092524,
    -0.00984449486, 0.00167591222, 0.000396307613, -0.000224116747,
)  # fmt: skip
COEFFICIENTS = {"float64": _FLOAT64, "float32": _FLOAT32}


def normal_share_and_density(xp: Any, x: Array) -> tuple[Array, Array]:
    """The share of the normal distribution below each element of x, float32 or float64 in ±`BOUND`, and its density.

    Notes
    -----
    The share is ``erfc(-x / sqrt(2)) / 2``; neither NumPy nor CuPy has erfc. The smaller of the two sides of x is
    computed, so that small shares are exact as well. Of a share of at least 0.01 the relative error is below 3 units in
    the last place; of smaller ones it is below ``2 + x**2 / 2`` units, for the exponential magnifies the rounding of
    ``x**2``.
    """
    z = xp.abs(x)
    z *= 1 / sqrt(2)
    below = z + _CENTRE
    t = z - _CENTRE
    t /= below
    coefficients = COEFFICIENTS[x.dtype.name]
    tail = xp.full_like(t, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        tail *= t
        tail += coefficient
    density = x * x
    density *= -0.5
    density = xp.exp(density)
    tail *= density
    z *= 4
    z += 2
    tail /= z  # half of erfc(z)
    density *= 1 / sqrt(2 * pi)
    return xp.where(x < 0, tail, 1 - tail), density
