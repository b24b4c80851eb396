"""Padding where something is particular to it: NumPy's modes, memory order, forms of its arguments."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from families import FAMILIES
from families.elementwise import MODES
from hypothesis import assume, given
from hypothesis import strategies as st
from sample import examples
from strategies import arranged, dtype_of, numbers

import gpucnn.functional as F
from gpucnn.backends.layout import is_channels_last

NUMPYS = {
    "constant": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
    "symmetric": "symmetric",
}


@pytest.mark.table(len(NUMPYS))
@pytest.mark.parametrize("mode", NUMPYS)
@examples(30)
@given(data=st.data())
def test_padding_is_that_of_numpy(backend: ArrayBackend, mode: str, data: st.DataObject) -> None:
    """Of what is left where it crops."""
    case = data.draw(FAMILIES[f"pad, {mode}"].cases())
    x, value = case.first, case.options["value"]
    pairs = reference.pad_pairs(x.ndim, case.options["pad"])
    assume(pairs)
    left = x[tuple(slice(max(-low, 0), size + min(high, 0)) for size, (low, high) in zip(x.shape, pairs, strict=True))]
    widths = [(max(low, 0), max(high, 0)) for low, high in pairs]
    fill = {"constant_values": 0 if value is None else value} if mode == "constant" else {}
    expected = np.pad(left, widths, NUMPYS[mode], **fill)  # type: ignore[call-overload]
    np.testing.assert_array_equal(backend.run(case.forward, **case.arguments), expected)


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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sizes", list(product((1, 3), (1, 4), (1, 5), (1, 6))))
def test_axes_of_size_1_keep_the_memory_order(
    backend: ArrayBackend, mode: str, sizes: tuple[int, ...], rng: np.random.Generator
) -> None:
    """Whether they are padded or left by cropping; of one channel or one pixel, both orders are C order."""
    for shape, order in product((sizes, (*sizes, 1), sizes[:-1]), ("contiguous", "channels_last")):
        x = arranged(numbers(rng, shape, "float32"), order)
        last = order == "channels_last" and is_channels_last(x)
        by_one = [int(mode != "reflect" or size > 1) for size in shape[::-1] for _ in range(2)]
        for pad in ((0, 1 - shape[-1], 0, 1 - shape[-2]), by_one):
            y = backend.run(F.pad, x, pad, mode)
            for result in (y, backend.run(F.pad_backward, y, x, pad, mode)[0]):
                assert (np.moveaxis(result, 1, -1) if last else result).flags.c_contiguous, (shape, order, pad)


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
