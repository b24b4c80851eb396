"""seq2col and its gradient as thinc's `Ops` have them: windows of words, which spaCy's networks convolve over.

A row of a sequence is a word, and its window the rows up to `nW` before and after it; rows that are not there, or
belong to another document, are zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.backends.dtypes import FLOATING, accumulator
from gpucnn.compat._arrays import Array, taken
from gpucnn.geometry.arguments import integer

__all__ = ["backprop_seq2col", "seq2col"]


def seq2col(seq: Array, nW: int, *, lengths: Any = None) -> Array:
    """Write the window of each word of a sequence as a row.

    Parameters
    ----------
    seq : array [words, features]
        Floating-point.
    nW : int
        Words of the window before and after its own, at least 1.
    lengths : array or sequence of int, optional
        Words of each document, of which there are one after the other in `seq`; one document where it is None.

    Returns
    -------
    array [words, (2 * nW + 1) * features]

    Raises
    ------
    TypeError
        The dtype is not supported, or `nW` or the lengths are not integers.
    ValueError
        Shapes do not fit, `nW` is out of range, or the lengths do not add up to the words.

    Examples
    --------
    >>> seq2col(np.array([[1.0], [2.0], [3.0]]), 1, lengths=[2, 1])
    array([[0., 1., 2.],
           [1., 2., 0.],
           [0., 3., 0.]])
    """
    backend, (words,), give_back = taken("seq2col", {"seq": seq}, FLOATING)
    if words.ndim != 2:
        raise ValueError(f"seq2col: seq has shape {tuple(words.shape)}, expected (words, features)")
    at = _neighbours("seq2col", len(words), nW, lengths)
    return give_back(_gathered(backend.xp, words, at).reshape(len(words), at.shape[1] * words.shape[1]))


def backprop_seq2col(dY: Array, nW: int, *, lengths: Any = None) -> Array:
    """Gradient of `seq2col`: each word's gradient is the sum over the windows that contain it.

    Parameters
    ----------
    dY : array [words, (2 * nW + 1) * features]
        Gradient of the loss with respect to the result.
    nW, lengths
        As they were given to `seq2col`.

    Returns
    -------
    array [words, features]
        Of 16 bits the sum is kept in float32.

    Raises
    ------
    TypeError, ValueError
        As `seq2col`.

    Examples
    --------
    >>> backprop_seq2col(np.ones((3, 3)), 1, lengths=[2, 1])
    array([[2.],
           [2.],
           [1.]])
    """
    backend, (grad,), give_back = taken("backprop_seq2col", {"dY": dY}, FLOATING)
    width = 2 * integer("backprop_seq2col", "nW", nW, 1) + 1
    if grad.ndim != 2 or grad.shape[1] % width:
        raise ValueError(
            f"backprop_seq2col: dY has shape {tuple(grad.shape)}, expected (words, {width} * features) for nW = {nW}"
        )
    at = _neighbours("backprop_seq2col", len(grad), nW, lengths)
    # word i is at the place of the step +s in the window of word i - s: of its neighbour at the mirrored place
    of_windows = np.where(at < 0, -1, at * width + np.arange(width)[::-1])
    terms = _gathered(backend.xp, grad.reshape(len(grad) * width, grad.shape[1] // width), of_windows)
    return give_back(terms.sum(axis=1, dtype=accumulator(grad.dtype)).astype(grad.dtype, copy=False))


def _neighbours(op: str, words: int, nW: int, lengths: Any) -> np.ndarray[Any, Any]:
    """The words [words, 2 * nW + 1] of each window, -1 for those that are not there."""
    reach = integer(op, "nW", nW, 1)
    own = np.arange(words)[:, None]
    counts = np.array([words]) if lengths is None else np.asarray(lengths.get() if hasattr(lengths, "get") else lengths)
    if counts.ndim != 1 or (counts.size and counts.dtype.kind not in "iu"):
        raise TypeError(f"{op}: lengths is {lengths!r}, expected an integer for each document")
    if counts.sum() != words or (counts < 0).any():
        raise ValueError(f"{op}: lengths add up to {counts.sum()}, expected {words} words, and none less than 0")
    ends = np.cumsum(counts, dtype=np.int64)
    document = np.searchsorted(ends, own, side="right")
    at = own + np.arange(-reach, reach + 1)
    last = ends[document] if words else own
    return np.where((at >= (last - counts[document] if words else own)) & (at < last), at, -1)


def _gathered(xp: Any, rows: Array, at: np.ndarray[Any, Any]) -> Array:
    """The rows at the places [words, window]; zeros at -1: [words, window, features]."""
    padded = xp.concatenate([rows, xp.zeros((1, rows.shape[1]), rows.dtype)])
    return padded[xp.asarray(at)]  # -1 is the last row
