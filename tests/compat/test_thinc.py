"""seq2col and its gradient, against thinc's own and against naive loops."""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gpucnn.compat import thinc

CASES = [
    (1, [4, 0, 3, 1]), (2, None), (3, [2, 6]), (1, [1] * 8), (5, [8]),
]  # fmt: skip


@pytest.fixture(scope="module")
def ops() -> Any:
    """thinc's operations; where GPUCNN_REQUIRE_THINC is set, as in a task of CI, their absence is an error."""
    if not os.environ.get("GPUCNN_REQUIRE_THINC"):
        pytest.importorskip("thinc", reason="thinc is not installed")
    from thinc.api import NumpyOps

    return NumpyOps()


def naive(seq: Any, reach: int, lengths: list[int] | None) -> Any:
    """A window for each word, one value after the other."""
    rows, start = [], 0
    for count in [len(seq)] if lengths is None else lengths:
        for word in range(start, start + count):
            window = range(word - reach, word + reach + 1)
            rows.append([seq[at] if start <= at < start + count else 0 * seq[0] for at in window])
        start += count
    return np.array(rows).reshape(len(seq), -1)


@pytest.mark.parametrize(("reach", "lengths"), CASES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_windows_and_their_adjoint(reach: int, lengths: list[int] | None, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    seq = rng.integers(-8, 9, (8, 3)).astype(dtype)
    grad = rng.integers(-8, 9, (8, 3 * (2 * reach + 1))).astype(dtype)
    columns, back = thinc.seq2col(seq, reach, lengths=lengths), thinc.backprop_seq2col(grad, reach, lengths=lengths)
    np.testing.assert_array_equal(columns, naive(seq, reach, lengths))
    assert columns.dtype == back.dtype == dtype
    products = (columns.astype(float) * grad.astype(float)).sum(), (seq.astype(float) * back.astype(float)).sum()
    assert products[0] == products[1]  # integers: exact


@pytest.mark.parametrize(("reach", "lengths"), CASES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_results_are_those_of_thinc(ops: Any, reach: int, lengths: list[int] | None, dtype: str) -> None:
    rng = np.random.default_rng(0)
    seq, grad = rng.standard_normal((8, 3)).astype(dtype), rng.standard_normal((8, 3 * (2 * reach + 1))).astype(dtype)
    counts = None if lengths is None else np.array(lengths, np.int32)
    columns = ops.seq2col(seq, reach, lengths=counts)
    np.testing.assert_array_equal(thinc.seq2col(seq, reach, lengths=counts), columns)
    expected = ops.backprop_seq2col(grad, reach, lengths=counts)
    np.testing.assert_allclose(thinc.backprop_seq2col(grad, reach, lengths=counts), expected, rtol=0, atol=1e-5)


def test_no_words() -> None:
    assert thinc.seq2col(np.zeros((0, 2)), 1).shape == (0, 6)
    assert thinc.backprop_seq2col(np.zeros((0, 6)), 1, lengths=[0, 0]).shape == (0, 2)


def test_wrong_arguments() -> None:
    seq = np.zeros((4, 2))
    for error, said, call in (
        (TypeError, "seq2col: seq is None", lambda: thinc.seq2col(None, 1)),
        (TypeError, "seq2col: seq has dtype int64", lambda: thinc.seq2col(seq.astype(int), 1)),
        (ValueError, r"seq2col: seq has shape \(8,\)", lambda: thinc.seq2col(seq.ravel(), 1)),
        (ValueError, "seq2col: nW is 0", lambda: thinc.seq2col(seq, 0)),
        (TypeError, "seq2col: lengths is", lambda: thinc.seq2col(seq, 1, lengths=[4.0])),
        (ValueError, "seq2col: lengths add up to 3, expected 4", lambda: thinc.seq2col(seq, 1, lengths=[1, 2])),
        (ValueError, "seq2col: lengths add up to 4, expected 4", lambda: thinc.seq2col(seq, 1, lengths=[5, -1])),
        (ValueError, r"backprop_seq2col: dY has shape \(4, 2\)", lambda: thinc.backprop_seq2col(seq, 1)),
    ):
        with pytest.raises(error, match=f"^{said}"):
            call()
