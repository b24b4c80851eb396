"""Precision, algorithm and workspace of convolutions, where there is a choice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

PRECISIONS = ("fp32", "tf32", "fp32x3")
ALGORITHMS = ("direct", "im2col", "winograd", "implicit_gemm")


class Picks(Protocol):
    """Algorithms that were measured to be the fastest, see `gpucnn.tuned`."""

    def algorithm(self, direction: str, geometry: Any, dtype: str) -> str | None:
        """The algorithm for a convolution in that direction; None where there is no pick."""


class Choices(NamedTuple):
    """The choices in force: those of the open blocks, else the defaults."""

    algorithm: str | None = None  # None: by the convolution's size
    picks: Picks | None = None
    precision: str = "fp32"
    workspace_bytes: int = 256 << 20


_choices: ContextVar[Choices] = ContextVar("gpucnn_choices", default=Choices())  # noqa: B039  a tuple


@contextmanager
def _choosing(**fields: Any) -> Iterator[None]:
    token = _choices.set(_choices.get()._replace(**fields))
    try:
        yield
    finally:
        _choices.reset(token)


choices = _choices.get
"""Function that returns the choices in force."""


@contextmanager
def precision(mode: str) -> Iterator[None]:
    """Within the block, compute float32 convolutions at a chosen precision.

    Parameters
    ----------
    mode : "fp32", "tf32" or "fp32x3"
        "fp32", the default, is full float32. With "tf32", matrix products on a GPU read their factors at the 10-bit
        mantissa of tensor cores and sum in float32. With "fp32x3" the implicit GEMM splits each factor into two such
        numbers and adds three products of them, which leaves out some 2⁻²¹ of a product. What is no matrix product,
        and all on a CPU, stays in full float32.

    Raises
    ------
    ValueError
        There is no such mode.

    Notes
    -----
    CuPy's variable ``CUPY_TF32`` has no effect here. With "fp32x3" a factor that is infinite, or from
    2¹²⁸ (1 - 2⁻¹²) on, gives NaN, for one of its two numbers is infinity minus infinity.

    Examples
    --------
    >>> with precision("tf32"):
    ...     choices().precision
    'tf32'
    """
    if mode not in PRECISIONS:
        raise ValueError(f"precision: mode is {mode!r}, expected 'fp32', 'tf32' or 'fp32x3'")
    with _choosing(precision=mode):
        yield


@contextmanager
def workspace_limit(nbytes: int) -> Iterator[None]:
    """Within the block, bound the workspace of a convolution by im2col on a GPU.

    Parameters
    ----------
    nbytes : int
        Bytes of columns or partial sums per call, 256 MiB by default. As many images as fit are multiplied at once, at
        least one, whatever it takes.

    Raises
    ------
    ValueError
        `nbytes` is negative.

    Notes
    -----
    Results do not depend on it, but for the rounding of the weight's gradient, which is summed over the parts of a
    batch in their order.

    Examples
    --------
    >>> with workspace_limit(64 << 20):
    ...     choices().workspace_bytes
    67108864
    """
    if nbytes < 0:
        raise ValueError(f"workspace_limit: nbytes is {nbytes}, expected at least 0")
    with _choosing(workspace_bytes=int(nbytes)):
        yield


def in_force(chosen: Choices) -> AbstractContextManager[None]:
    """Within the block, let the choices be those that were in force elsewhere."""
    return _choosing(**chosen._asdict())


def picking(picks: Picks) -> AbstractContextManager[None]:
    """Within the block, let convolutions on a GPU use `picks` where no algorithm is requested."""
    return _choosing(picks=picks)


@contextmanager
def algorithm(name: str) -> Iterator[None]:
    """Within the block, compute convolutions by one algorithm, in place of the one chosen by their size.

    Parameters
    ----------
    name : "direct", "im2col", "winograd" or "implicit_gemm"
        On the CPU: tap by tap; columns and a matrix product, or for the gradient of the input a product and a fold
        where that costs less; and of the compiled kernels alone, Winograd's minimal filtering and a product that
        gathers its columns as it goes. On a GPU: one kernel that sums each result; columns and a matrix product, which
        takes workspace; Winograd's filtering of float32, which takes workspace; a product that gathers its columns as
        it goes, of 16-bit floats on tensor cores and of float32 as `precision` says.

    Raises
    ------
    ValueError
        There is no such algorithm. Within the block, a convolution that it does not compute raises ValueError too.
        ``"winograd"`` computes the output, and the gradient of the input but not of the weight, of 3 x 3 taps at
        stride 1 in float32, on the CPU in 16 bits as well and of at least 16 channels, on a GPU ungrouped ones. In
        NumPy, which computes other dtypes on the CPU, and all where there is no compiler, there are ``"direct"`` and
        ``"im2col"``. On a GPU ``"im2col"`` computes no convolution of integers, among others, and ``"implicit_gemm"``
        and ``"winograd"`` need compute capability 8.0, or 7.5 in float16 and in float32 at full precision.

    See Also
    --------
    gpucnn.explain : The algorithm of a call, and why.

    Notes
    -----
    Results of two algorithms differ by rounding; each repeats bit for bit.

    Depthwise and grouped convolutions have separate algorithms on both backends, and follow the name as all others do.
    Results of ``"winograd"`` that are infinite or NaN are computed anew without its transforms, which mix a tile.

    Examples
    --------
    >>> with algorithm("direct"):
    ...     choices().algorithm
    'direct'
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm: name is {name!r}, expected one of {ALGORITHMS}")
    with _choosing(algorithm=name):
        yield
