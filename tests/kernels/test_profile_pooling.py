"""Memory profile of pooling and unpooling: what the benchmark's layers (test_profile_layers.py) do not show."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import pytest
from memory_traffic import expect_once, image, profiled

import gpucnn.functional as F

pytestmark = pytest.mark.usefixtures("compiler")

MOVED = 1.12  # bytes over the least possible; what two bands share is read twice
MAXIMA_LAST = {"float32": 1.20, "float16": 1.30}  # where channels are last bands are shorter
SECTORS = 1.02  # of the requests over those that their bytes fill

MAXIMA: dict[str, tuple[int, tuple[int, ...], dict[str, Any]]] = {  # channels, size, pooling
    "AlexNet pool1": (8, (55, 55), {"kernel_size": 3, "stride": 2}),
    "VGG pool1": (8, (224, 224), {"kernel_size": 2}),
    "ResNet max_pool": (16, (112, 112), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "GoogLeNet inception_pool": (32, (28, 28), {"kernel_size": 3, "stride": 1, "padding": 1}),
    "YOLO spp13": (32, (19, 19), {"kernel_size": 13, "stride": 1, "padding": 6}),
    "C3D pool2": (8, (16, 56, 56), {"kernel_size": 2}),
}


def once(call: Callable[[], Any], *given: Any, moved: float = MOVED, more: int = 0) -> Any:
    return expect_once(call, *given, moved=moved, sectors=SECTORS, more=more)


@pytest.mark.table(1)
@pytest.mark.parametrize("name", MAXIMA)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_maxima_and_their_indices_are_moved_once(name: str, dtype: str, order: str) -> None:
    c, size, options = MAXIMA[name]
    c, moved = (c, MOVED) if order == "contiguous" else (max(c, 16), MAXIMA_LAST[dtype])
    x = image(1, c, *size, dtype=dtype, order=order)
    once(lambda: getattr(F, f"max_pool{len(size)}d")(x, **options, return_indices=True), x, moved=moved)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("dtype", "options", "most"),
    [
        ("float32", {"kernel_size": 3, "stride": 2, "padding": 1}, 1.25),
        ("float16", {"kernel_size": 3, "stride": 2, "padding": 1}, 1.35),
        ("float32", {"kernel_size": (1, 3, 3), "stride": (1, 2, 2), "padding": (0, 1, 1)}, 1.12),
    ],
)
def test_averages_of_volumes_with_channels_last(dtype: str, options: dict[str, Any], most: float) -> None:
    """Bands of slices are cut along rows, too, for a slice of all channels does not fit."""
    x = image(1, 32, 8, 28, 28, dtype=dtype, order="channels_last")
    y = once(lambda: F.avg_pool3d(x, **options), x, moved=most)
    once(lambda: F.avg_pool3d_backward(y, x, **options), y)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["GoogLeNet inception_pool", "ResNet max_pool"])
def test_unpooling_of_windows_that_overlap(name: str) -> None:
    """Values whose indices are the same meet in one place: banks are not held to it."""
    c, size, options = MAXIMA[name]
    x = image(1, c, *size, order="channels_last")
    y, indices = F.max_pool2d(x, **options, return_indices=True)
    _, profile = profiled(lambda: F.max_unpool2d(y, indices, **options, output_size=size))
    unpool, anywhere = profile.launches
    assert unpool.moved_share <= 1.35
    assert unpool.sector_share <= SECTORS
    assert anywhere.moved_bytes <= 4 * c + 32  # no plane is made anew


# --- Wide accesses ------------------------------------------------------------------------------------------------


@pytest.mark.table(1)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8"])
def test_all_but_the_ends_of_runs_go_by_16_bytes(dtype: str) -> None:
    """Rows of 55 and of 27 values begin anywhere: a run of many rows is read and written by whole sectors still."""
    x = image(1, 8, 55, 55, dtype=dtype)
    (y, indices), profile = profiled(lambda: F.max_pool2d(x, 3, 2, return_indices=True))
    (launch,) = profile.launches
    lanes = {"read": 0, "write": 0}
    for access in launch.accesses:
        if access.space == "global" and access.bytes == 16:
            lanes[access.kind] += access.lanes
    values = 16 // x.itemsize
    assert lanes["read"] >= 0.98 * prod(x.shape) / values
    assert lanes["write"] >= 0.97 * (prod(y.shape) / values + indices.nbytes / 16)
