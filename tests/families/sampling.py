"""Sampling at the positions of a grid, and affine grids: calls to draw."""

from __future__ import annotations

import numpy as np
import reference
from hypothesis import strategies as st
from properties import Case
from strategies import ORDERS, arranged, dtype_of, numbers

from families.drawing import Purpose, seeds, sizes_of

MODES, PADDINGS = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")


@st.composite
def grid_samplings(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    """Samples of small images and volumes, within them and around them."""
    rank = draw(st.integers(2, 3))
    most = 3 if rank == 3 or purpose == "slopes" else 6
    size, out = draw(sizes_of(rank, most)), draw(sizes_of(rank, most))
    options = {
        "mode": draw(st.sampled_from(MODES if rank == 2 else MODES[:2])),
        "padding_mode": draw(st.sampled_from(PADDINGS)),
        "align_corners": draw(st.booleans()),
    }
    leads = [(2, 3), (1, 11), (2, 1)] if purpose != "slopes" else [(2, 2)]
    lead = draw(st.sampled_from(leads + [(0, 2)] * (purpose == "oracle")))
    rng, dtype, order = np.random.default_rng(draw(seeds)), draw(st.sampled_from(dtypes)), draw(st.sampled_from(ORDERS))
    x, grad = (arranged(numbers(rng, (*lead, *space), dtype), order) for space in (size, out))
    grid = rng.uniform(-1.7, 1.7, (lead[0], *out, rank)).astype(dtype_of(dtype))
    grid = arranged(grid, "strided" if order == "strided" else "contiguous")
    rounding = 8.0 * max(size)  # of a position, which moves by `size` while the coordinate moves by 2
    return Case(
        "grid_sample",
        {"input": x, "grid": grid},
        options,
        grad,
        lambda: reference.grid_sample(x, grid, **options),
        lambda: reference.grid_sample_backward(grad, x, grid, **options),
        rank=rank,
        factor=rounding if x.itemsize > 2 else 1.0,
        gradient_factor=rounding * max(size) if x.itemsize > 2 else 2.0,
    )


@st.composite
def affine_grids(draw: st.DrawFn, dtypes: tuple[str, ...], purpose: Purpose) -> Case:
    """Grids of images and volumes."""
    rank, n = draw(st.integers(2, 3)), draw(st.integers(0 if purpose == "oracle" else 1, 3))
    size = (n, draw(st.integers(1, 3)), *draw(sizes_of(rank, 3 if purpose == "slopes" else 5)))
    rng, dtype = np.random.default_rng(draw(seeds)), draw(st.sampled_from(dtypes))
    order = draw(st.sampled_from(ORDERS))
    theta = arranged(numbers(rng, (n, rank, rank + 1), dtype), "strided" if order == "strided" else "contiguous")
    grad = arranged(numbers(rng, (n, *size[2:], rank), dtype), order)
    options = {"size": size, "align_corners": draw(st.booleans())}
    if purpose == "pytorch" and options["align_corners"] and 1 in size[2:]:
        options["align_corners"] = False  # PyTorch warns of axes of one value
    return Case(
        "affine_grid",
        {"theta": theta},
        options,
        grad,
        lambda: reference.affine_grid(theta, **options),
        lambda: (reference.affine_grid_backward(grad, theta, **options),),
        factor=4.0,
        gradient_factor=8.0,
    )
