"""im2col and col2im of the books: the order of rows and columns, against naive loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import reference
from array_backends import ArrayBackend
from covering import Covering, coverings
from hypothesis import given
from refusals import refuses
from sample import examples
from strategies import numbers
from tolerances import assert_close

from gpucnn.compat import from_scratch

Array = np.ndarray[Any, Any]


def rows_of(x: Array, case: Covering) -> Array:
    """A row for each image and position, of all taps of all channels, one value after the other."""
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in case.pad)])
    rows = []
    for n, oy, ox in np.ndindex(len(x), *case.outs):
        y, left = oy * case.stride[0], ox * case.stride[1]
        rows.append([padded[n, c, y + ky, left + kx] for c, ky, kx in np.ndindex(x.shape[1], *case.kernel)])
    return np.array(rows, x.dtype)


def undilated(case: Covering) -> Covering:
    """Windows of the same sizes without dilation, those that fit."""
    return Covering(case.sizes, case.kernel, case.stride, case.pad, (1, 1), cover_all=False)


@examples(150)
@given(case=coverings(rank=2).map(undilated))
def test_dezero_s(backend: ArrayBackend, case: Covering) -> None:
    rng = np.random.default_rng(1)
    x = numbers(rng, (2, 3, *case.sizes), "float32")
    window, rows = (case.kernel, case.stride, case.pad), rows_of(x, case)
    assert_close(backend.run(from_scratch.im2col_array, x, *window), rows, "float32")
    apart = rows.reshape(2, *case.outs, 3, *case.kernel).transpose(0, 3, 4, 5, 1, 2)
    assert_close(backend.run(from_scratch.im2col_array, x, *window, to_matrix=False), apart, "float32")

    grad = numbers(rng, rows.shape, "float32")
    apart = grad.reshape(2, *case.outs, 3, *case.kernel).transpose(0, 3, 4, 5, 1, 2)
    expected = reference.col2im(
        apart.reshape(2, 3 * int(np.prod(case.kernel)), -1), case.sizes, case.kernel, *case.loops
    )
    assert_close(backend.run(from_scratch.col2im_array, grad, x.shape, *window), expected, "float32")
    image = backend.run(from_scratch.col2im_array, apart, x.shape, *window, to_matrix=False)
    assert_close(image, expected, "float32")


@examples(100)
@given(case=coverings(rank=2).map(undilated))
def test_the_books(backend: ArrayBackend, case: Covering) -> None:
    case = Covering(case.sizes, case.kernel, (case.stride[0],) * 2, (min(case.pad),) * 2, (1, 1), cover_all=False)
    if min(case.outs) < 1:
        return
    x = numbers(np.random.default_rng(2), (2, 3, *case.sizes), "float64")
    rows = backend.run(from_scratch.im2col, x, *case.kernel, case.stride[0], case.pad[0])
    assert_close(rows, rows_of(x, case))
    image = backend.run(from_scratch.col2im, rows, x.shape, *case.kernel, case.stride[0], case.pad[0])
    counts = np.zeros_like(x)
    for _, pos in reference.pool_windows(case.sizes, case.outs, case.kernel, *case.loops):
        counts[(..., *pos)] += 1
    assert_close(image, x * counts)


def test_a_convolution_by_the_book(backend: ArrayBackend, rng: np.random.Generator) -> None:
    """`np.dot(im2col(x), W.reshape(FN, -1).T)`, as the first book has it."""
    x, w = numbers(rng, (2, 3, 6, 5), "float64"), numbers(rng, (4, 3, 3, 2), "float64")
    rows = backend.run(from_scratch.im2col, x, 3, 2, 1, 1)
    y = (rows @ w.reshape(4, -1).T).reshape(2, 6, 6, 4).transpose(0, 3, 1, 2)
    assert_close(y, reference.conv(x, w, None, (1, 1), [(1, 1)] * 2, (1, 1)))


X = np.ones((2, 3, 4, 4))

test_wrong_values = refuses(
    ValueError,
    ("im2col: images have shape (3, 4, 4), expected (N, C, H, W)", lambda: from_scratch.im2col(X[0], 2, 2)),
    (
        "im2col: the output has size (0, 3), expected at least 1 along each axis",
        lambda: from_scratch.im2col(X, 5, 2),
    ),
    ("im2col_array: pad is -1, expected at least 0", lambda: from_scratch.im2col_array(X, 2, 1, -1)),
    (
        "col2im_array: col has shape (18, 12), expected (N, C, *kernel, *out)",
        lambda: from_scratch.col2im_array(np.ones((18, 12)), X.shape, 2, 1, 0, to_matrix=False),
    ),
    (
        "col2im: col has shape (18, 11), expected (18, 12)",
        lambda: from_scratch.col2im(np.ones((18, 11)), X.shape, 2, 2),
    ),
    ("col2im: input_shape is (3, 4, 4), expected (N, C, H, W)", lambda: from_scratch.col2im(X, (3, 4, 4), 2, 2)),
)

test_wrong_types = refuses(
    TypeError,
    (
        "im2col_array: kernel_size is 2.0, expected an integer or 2 of them",
        lambda: from_scratch.im2col_array(X, 2.0, 1, 0),
    ),  # type: ignore[arg-type]
)
