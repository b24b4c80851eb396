"""A convolution of slabs is that of the whole images, forward and back, and sends what windows reach over, once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from rank_threads import on_ranks

import gpucnn.functional as F
from gpucnn.distributed import conv2d, conv2d_backward

HEIGHTS = [[9], [5, 4], [1, 7, 1], [4, 0, 5], [0, 9, 0], [2, 2, 2, 3], [1] * 9]
OPTIONS: list[tuple[tuple[int, int], dict[str, Any]]] = [
    ((3, 3), {"padding": 1}),
    ((3, 2), {}),
    ((1, 1), {"stride": 2}),
    ((4, 3), {"stride": (3, 2), "padding": ((2, 1), (0, 3))}),
    ((3, 3), {"dilation": (3, 2), "padding": "same"}),
    ((2, 3), {"stride": 2, "padding": "same_lower", "groups": 2}),
    ((2, 2), {"padding": 4, "stride": (1, 3)}),
    ((9, 1), {"padding": (2, 0)}),
    ((5, 5), {"stride": 4, "padding": 2, "dilation": 2}),
]


def slabs(array: Any, heights: list[int]) -> list[Any]:
    return np.split(array, np.cumsum(heights)[:-1], axis=2)


def reached(rows: int, heights: list[int], kernel: int, options: dict[str, Any], outputs: list[int]) -> list[int]:
    """The number of rows that each rank sends, by going through all taps of all windows."""
    padding = options.get("padding", 0)
    low = padding if isinstance(padding, int) else padding[0] if isinstance(padding[0], int) else padding[0][0]
    step, spread = (
        value if isinstance(value, int) else value[0]
        for value in (options.get(name, 1) for name in ("stride", "dilation"))
    )
    owner = np.repeat(np.arange(len(heights)), heights)
    sent, start = [0] * len(heights), 0
    for reader, count in enumerate(outputs):
        taps = [(start + i) * step - low + tap * spread for i in range(count) for tap in range(kernel)]
        read = range(min(taps), max(taps) + 1) if taps else range(0)
        for row in read:
            if 0 <= row < rows and owner[row] != reader:
                sent[owner[row]] += 1
        start += count
    return sent


@pytest.mark.table(12)
@pytest.mark.parametrize(("kernel", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize("heights", HEIGHTS, ids=str)
def test_it_is_the_convolution_of_the_whole(
    backend: ArrayBackend, heights: list[int], kernel: tuple[int, int], options: dict[str, Any]
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 4, 9, 10))
    w = rng.standard_normal((6, 4 // options.get("groups", 1), *kernel))
    b = rng.standard_normal(6)
    y = F.conv2d(x, w, b, **options)
    grad = rng.standard_normal(y.shape)
    grads = F.conv2d_backward(grad, x, w, b, **options)
    parts = slabs(x, heights)

    def forward(communicator: Any) -> Any:
        arrays = (backend.asarray(np.ascontiguousarray(each)) for each in (parts[communicator.rank], w, b))
        part, weight, bias = arrays
        before = communicator.bytes_sent
        found = conv2d(part, weight, communicator, bias, **options)
        return backend.asnumpy(found), communicator.bytes_sent - before

    results = on_ranks(len(heights), forward)
    np.testing.assert_allclose(np.concatenate([found for found, _ in results], axis=2), y, rtol=0, atol=1e-12)
    outputs = [found.shape[2] for found, _ in results]
    grad_parts = slabs(grad, outputs)
    if not isinstance(options.get("padding", 0), str):
        rows = reached(9, heights, kernel[0], options, outputs)
        expected = [each * 2 * 4 * 10 * 8 + 8 * (len(heights) - 1) for each in rows]  # and each the number of its rows
        assert [sent for _, sent in results] == expected

    def backward(communicator: Any) -> Any:
        arrays = (grad_parts[communicator.rank], parts[communicator.rank], w)
        part, *others = (backend.asarray(np.ascontiguousarray(each)) for each in arrays)
        found = conv2d_backward(part, *others, communicator, backend.asarray(b), **options)
        return [backend.asnumpy(each) for each in found]

    found = on_ranks(len(heights), backward)
    np.testing.assert_allclose(np.concatenate([each[0] for each in found], axis=2), grads[0], rtol=0, atol=1e-12)
    for at in (1, 2):
        assert len({each[at].tobytes() for each in found}) == 1
        np.testing.assert_allclose(found[0][at], grads[at], rtol=0, atol=1e-11)


def test_a_convolution_that_keeps_the_size_keeps_the_slabs() -> None:
    heights = [3, 1, 5]
    x, w = np.ones((1, 1, 9, 4)), np.ones((1, 1, 5, 1))
    found = on_ranks(3, lambda each: conv2d(slabs(x, heights)[each.rank], w, each, padding=(2, 0)))
    assert [part.shape[2] for part in found] == heights


def test_gradients_that_are_not_needed() -> None:
    x, w = np.ones((1, 1, 6, 4)), np.ones((1, 1, 3, 1))

    def work(communicator: Any) -> Any:
        part = slabs(x, [6, 0])[communicator.rank]
        grad = conv2d(part, w, communicator)
        return [
            [each is None for each in conv2d_backward(grad, part, w, communicator, needs=needs)]
            for needs in ((True, False, True), (False, True, False))
        ]

    assert on_ranks(2, work) == [[[False, True, True], [True, False, True]]] * 2


def test_errors() -> None:
    x, w = np.ones((1, 1, 6, 4)), np.ones((1, 1, 3, 1))

    def work(communicator: Any) -> None:
        part = slabs(x, [3, 3])[communicator.rank]
        with pytest.raises(ValueError, match="input has 3 dimensions, expected 4"):
            conv2d(part[0], w, communicator)
        with pytest.raises(ValueError, match="weight has 2 dimensions, expected 4"):
            conv2d(part, w[0, 0], communicator)
        with pytest.raises(ValueError, match=r"images of \(6, 4\) are smaller than the window \(7, 1\)"):
            conv2d(part, w, communicator, dilation=3)
        with pytest.raises(ValueError, match="grad_output has shape"):
            conv2d_backward(part, part, w, communicator)
        with pytest.raises(ValueError, match="stride"):
            conv2d(part, w, communicator, stride=0)

    on_ranks(2, work)
