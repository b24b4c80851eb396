"""Padding where something is particular to it: NumPy's modes, memory order, forms of its arguments."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from families import FAMILIES
from families.elementwise import MODES
from hypothesis import assume, given
from properties import Case
from sample import examples
from strategies import arranged, dtype_of, numbers

import gpucnn.functional as F


@pytest.mark.parametrize(
    ("mode", "name"),
    [("constant", "constant"), ("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")]
    + [("symmetric", "symmetric")],
)
@examples(30)
@given(case=FAMILIES["pad"].cases())
def test_padding_is_that_of_numpy(backend: ArrayBackend, mode: str, name: str, case: Case) -> None:
    x, pad = case.first, [max(size, 0) for size in case.options["pad"]]
    pairs = reference.pad_pairs(x.ndim, pad)
    limit = {"reflect": 1, "circular": 0, "symmetric": 0}.get(mode, -4)
    assume(pairs and all(max(pair) <= size - limit for size, pair in zip(x.shape, pairs, strict=True)))
    np.testing.assert_array_equal(backend.run(F.pad, x, pad, mode), np.pad(x, pairs, name))  # type: ignore[call-overload]


@pytest.mark.parametrize("pad", [(1, 2, 0, 3), (1, 2, 3, -1, 0, 1), (-1, -1), (0, 0), ()])
@pytest.mark.parametrize("mode", MODES)
def test_memory_order_is_that_of_the_input(
    backend: ArrayBackend, mode: str, pad: tuple[int, ...], rng: np.random.Generator
) -> None:
    for order in ("contiguous", "channels_last"):
        x = arranged(numbers(rng, (2, 4, 5, 6), "float32"), order)
        y = backend.run(F.pad, x, pad, mode)
        assert y.strides == arranged(y, order).strides
        assert backend.run(F.pad_backward, y, x, pad, mode)[0].strides == x.strides


def test_pad_is_any_sequence_of_integers(backend: ArrayBackend) -> None:
    x = np.arange(6.0).reshape(2, 3)
    expected = [[9, 9, 9, 9], [0, 1, 2, 9], [3, 4, 5, 9]]
    for pad in ((0, 1, 1, 0), [0, 1, 1, 0], np.array([0, 1, 1, 0]), tuple(map(np.int32, (0, 1, 1, 0)))):
        np.testing.assert_array_equal(backend.asnumpy(F.pad(backend.asarray(x), pad, value=9)), expected)
        np.testing.assert_array_equal(F.pad(x, pad, value=9), expected)


def test_the_value_comes_in_the_dtype_of_the_input(backend: ArrayBackend) -> None:
    for dtype, value in (("int64", 2**62 + 1), ("uint8", 255), ("int8", -128), ("int32", 2.0), ("float32", 1)):
        y = backend.run(F.pad, np.zeros(1, dtype), (0, 1), value=value)
        assert y.dtype == dtype
        assert y[1] == value
    y = backend.run(F.pad, np.zeros(1, dtype_of("bfloat16")), (0, 1), value=np.float32(1.5))
    assert y.tolist() == [0, 1.5]
