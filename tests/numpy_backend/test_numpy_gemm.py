"""Products of matrices in blocks: every shape, order and stack against float64, and how they are cut."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucnn.backends.numpy import gemm, threads

FORMS = list(gemm.FORMS.values())
SHAPES = [  # rows, terms, columns: within one block, whole blocks, with rests, long sums, thin ones
    (5, 7, 9),
    (64, 256, 128),
    (100, 100, 1000),
    (97, 385, 131),
    (3, 27, 20_000),
    (20_000, 27, 3),
    (33, 5000, 17),
    (300, 1, 5000),
    (0, 200, 9000),
    (200, 0, 9000),
]


@pytest.fixture(autouse=True, params=["blocks", "whole"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With blocks whatever the processor, and without."""
    monkeypatch.setattr(gemm, "_has_kernels", lambda: request.param == "blocks")
    return request.param == "blocks"


def ordered(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, transposed: bool) -> Any:
    """Numbers of this shape; the last two axes as they lie in memory, or the other way round."""
    shape = (*shape[:-2], *shape[:-3:-1]) if transposed else shape
    values = rng.standard_normal(shape).astype(dtype)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.standard_normal(shape).astype(dtype)
    return values.swapaxes(-1, -2) if transposed else values


def expect_product(a: Any, b: Any, out: Any) -> None:
    out[...] = np.nan
    gemm.multiply(a, b, out)
    wide = np.complex128 if out.dtype.kind == "c" else np.float64
    expected = a.astype(wide) @ b.astype(wide)
    sizes = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    bound = np.finfo(out.dtype).eps * min(a.shape[-1] + 1, 1000)
    assert (np.abs(out - expected) <= bound * sizes).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
@pytest.mark.parametrize(("m", "terms", "n"), SHAPES)
@pytest.mark.parametrize(("a_transposed", "b_transposed"), list(product([False, True], repeat=2)))
def test_products(m: int, terms: int, n: int, a_transposed: bool, b_transposed: bool, dtype: Any) -> None:
    rng = np.random.default_rng(m + terms + n)
    a, b = ordered(rng, (m, terms), dtype, a_transposed), ordered(rng, (terms, n), dtype, b_transposed)
    expect_product(a, b, np.empty((m, n), dtype))


def test_results_within_larger_rows() -> None:
    rng = np.random.default_rng(0)
    image = np.full((70, 5000), 7, np.float32)
    a, b = rng.standard_normal((70, 300)).astype(np.float32), rng.standard_normal((300, 4100)).astype(np.float32)
    expect_product(a, b[:, 50:4050], image[:, 500:4500])
    assert (image[:, :500] == 7).all()
    assert (image[:, 4500:] == 7).all()


@pytest.mark.parametrize("stacks", [((16,), (16,)), ((3, 1), (3, 2)), ((2, 1, 1), (3, 2, 1, 2)), ((), (4,))])
def test_stacks_are_broadcast(stacks: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    rng = np.random.default_rng(1)
    a = ordered(rng, (*stacks[0], 70, 90), np.float32, transposed=False)
    b = ordered(rng, (*stacks[1], 90, 330), np.float32, transposed=False)
    expect_product(a, b, np.empty((*np.broadcast_shapes(*stacks), 70, 330), np.float32))


def test_what_is_not_finite_stays_where_it_belongs() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((128, 800)).astype(np.float32), rng.standard_normal((800, 400)).astype(np.float32)
    a[5, 700], b[3, 77] = np.inf, np.nan
    out = np.empty((128, 400), np.float32)
    gemm.multiply(a, b, out)
    assert np.isnan(out[:, 77]).all()
    assert not np.isfinite(out[5]).any()
    assert np.isfinite(np.delete(np.delete(out, 5, 0), 77, 1)).all()


@given(m=st.integers(1, 3000), n=st.integers(1, 3000), terms=st.integers(1, 5000), form=st.sampled_from(FORMS))
def test_a_plan_covers_each_number_once(m: int, n: int, terms: int, form: Any) -> None:
    blocks, runs = gemm._plan(m, n, terms, form)
    covered = np.zeros((m, n), np.int8)
    for (rows, tall, height), (columns, wide, width) in blocks:
        assert rows.stop - rows.start == tall * height
        assert columns.stop - columns.start == wide * width
        covered[rows, columns] += 1
        assert height * width * max(run.stop - run.start for run in runs) <= gemm.WITHOUT_COPIES
    assert (covered == 1).all()
    assert len(blocks) <= 4
    assert [run.start for run in runs] == [0, *(run.stop for run in runs[:-1])]
    assert runs[-1].stop == terms
    assert max(run.stop - run.start for run in runs) <= form.terms


@pytest.mark.parametrize(
    ("libraries", "found"),
    [
        ([SimpleNamespace(internal_api="openblas", architecture="SkylakeX")], True),
        ([SimpleNamespace(internal_api="openblas", architecture="Haswell")], False),
        ([SimpleNamespace(internal_api="mkl")], False),
        ([SimpleNamespace(internal_api="openblas")], False),
        ([], False),
    ],
)
def test_blocks_are_for_the_processors_whose_kernels_take_them(
    monkeypatch: pytest.MonkeyPatch, libraries: list[Any], found: bool
) -> None:
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr(threads, "blas_libraries", lambda: libraries)
        gemm._has_kernels.cache_clear()
        assert gemm._has_kernels() is found
    gemm._has_kernels.cache_clear()
