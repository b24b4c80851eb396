"""Memory profile of pooling and unpooling on layers of real networks, counted in the simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np
import pytest
from strategies import arranged, numbers

import gpucnn.functional as F
from gpucnn import simulator
from gpucnn.simulator import Profile

pytestmark = pytest.mark.usefixtures("compiler")

MOVED = 1.12  # bytes over the least possible; what two bands share is read twice
MOVED_LAST = {"float32": 1.20, "float16": 1.30}  # where channels are last bands are shorter
SECTORS = 1.02  # of the requests over those that their bytes fill
CONFLICT = 2  # words of one bank that a round of lanes wants
INDEX = 8  # bytes

MAXIMA: dict[str, tuple[int, tuple[int, ...], dict[str, Any]]] = {  # channels, size, pooling
    "AlexNet pool1": (8, (55, 55), {"kernel_size": 3, "stride": 2}),
    "VGG pool1": (8, (224, 224), {"kernel_size": 2}),
    "ResNet max_pool": (16, (112, 112), {"kernel_size": 3, "stride": 2, "padding": 1}),
    "GoogLeNet inception_pool": (32, (28, 28), {"kernel_size": 3, "stride": 1, "padding": 1}),
    "YOLO spp13": (32, (19, 19), {"kernel_size": 13, "stride": 1, "padding": 6}),
    "C3D pool2": (8, (16, 56, 56), {"kernel_size": 2}),
}
AVERAGES: dict[str, tuple[int, tuple[int, ...], dict[str, Any]]] = {
    "DenseNet transition1": (16, (56, 56), {"kernel_size": 2}),
    "Inception branch_pool": (32, (35, 35), {"kernel_size": 3, "stride": 1, "padding": 1}),
    "ResNet global_avg": (2048, (7, 7), {"output_size": 1}),
    "PSPNet pyramid6": (16, (60, 60), {"output_size": 6}),
}
each_maximum = pytest.mark.parametrize("name", MAXIMA)
each_average = pytest.mark.parametrize("name", AVERAGES)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float16"])


def image(c: int, size: tuple[int, ...], dtype: str = "float32", order: str = "contiguous") -> Any:
    values = numbers(np.random.default_rng(1), (1, c, *size), "float32").astype(dtype)
    return simulator.asarray(arranged(values, order))


def of_rank(name: str, size: tuple[int, ...], suffix: str = "") -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(F, f"{name}{len(size)}d{suffix}")
    return function


def profile_of(call: Callable[[], Any]) -> tuple[Any, Profile]:
    with simulator.profile() as profile:
        result = call()
    return result, profile


def excesses(profile: Profile, moved: float, sectors: float = SECTORS) -> list[str]:
    """What its launches exceed."""

    def found() -> Iterator[str]:
        for launch in profile.launches:
            if launch.moved_share > moved:
                yield f"{launch.kernel} moves {launch.moved_share:.3f} of the least, expected {moved}"
            if launch.sector_share > sectors:
                yield f"{launch.kernel} touches {launch.sector_share:.3f} of the ideal sectors, expected {sectors}"
            if launch.worst_conflict > CONFLICT:
                yield f"{launch.kernel} has bank conflicts of {launch.worst_conflict}, expected {CONFLICT}"

    return list(found())


def kernels(profile: Profile) -> list[str]:
    return [launch.kernel for launch in profile.launches]


def moved(profile: Profile) -> int:
    """Bytes that all launches move."""
    return sum(launch.moved_bytes for launch in profile.launches)


# --- Maxima -------------------------------------------------------------------------------------------------------


@pytest.mark.table(1)
@each_maximum
@each_dtype
def test_maxima_move_each_value_once(name: str, dtype: str) -> None:
    c, size, options = MAXIMA[name]
    x = image(c, size, dtype)
    y, profile = profile_of(lambda: of_rank("max_pool", size)(x, **options))
    assert kernels(profile) == ["max_pool"]
    assert excesses(profile, MOVED) == []
    assert moved(profile) <= MOVED * (x.nbytes + y.nbytes)

    (y, indices), profile = profile_of(lambda: of_rank("max_pool", size)(x, **options, return_indices=True))
    assert kernels(profile) == ["max_pool_with_indices"]
    assert excesses(profile, MOVED) == []
    assert moved(profile) <= MOVED * (x.nbytes + y.nbytes + indices.nbytes)


@pytest.mark.thorough
@each_maximum
@each_dtype
def test_gradients_of_maxima_and_their_indices_are_read_once(name: str, dtype: str) -> None:
    c, size, options = MAXIMA[name]
    x = image(c, size, dtype)
    y, indices = of_rank("max_pool", size)(x, **options, return_indices=True)
    backward = of_rank("max_pool", size, "_backward")
    _, profile = profile_of(lambda: backward(y, x, **options, indices=indices))
    assert kernels(profile) == ["max_pool_backward", "max_pool_backward_out_of_window"]
    assert excesses(profile, MOVED) == []
    assert moved(profile) <= MOVED * (x.nbytes + y.nbytes + indices.nbytes) + 4 * c + 32


@pytest.mark.thorough
@pytest.mark.parametrize("name", MAXIMA)
@each_dtype
def test_maxima_with_channels_last(name: str, dtype: str) -> None:
    c, size, options = MAXIMA[name]
    x = image(max(c, 16), size, dtype, order="channels_last")
    (y, indices), profile = profile_of(lambda: of_rank("max_pool", size)(x, **options, return_indices=True))
    assert excesses(profile, MOVED_LAST[dtype]) == []
    backward = of_rank("max_pool", size, "_backward")
    _, profile = profile_of(lambda: backward(y, x, **options, indices=indices))
    assert excesses(profile, MOVED_LAST[dtype]) == []


# --- Averages -----------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@each_average
@each_dtype
@pytest.mark.parametrize("order", ["contiguous", "channels_last"])
def test_averages_move_each_value_once(name: str, dtype: str, order: str) -> None:
    c, size, options = AVERAGES[name]
    operation = "adaptive_avg_pool" if "output_size" in options else "avg_pool"
    x = image(c, size, dtype, order)
    y, profile = profile_of(lambda: of_rank(operation, size)(x, **options))
    assert kernels(profile) == ["average_pool"]
    assert excesses(profile, MOVED) == []
    assert moved(profile) <= MOVED * (x.nbytes + y.nbytes)
    backward = of_rank(operation, size, "_backward")
    _, profile = profile_of(lambda: backward(y, x, **options))
    assert kernels(profile) == ["average_pool_backward"]
    assert excesses(profile, MOVED) == []
    assert moved(profile) <= MOVED * (x.nbytes + y.nbytes)


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
    x = image(32, (8, 28, 28), dtype, "channels_last")
    y, profile = profile_of(lambda: F.avg_pool3d(x, **options))
    assert excesses(profile, most) == []
    _, profile = profile_of(lambda: F.avg_pool3d_backward(y, x, **options))
    assert excesses(profile, MOVED) == []


# --- By index -----------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@each_dtype
def test_unpooling_moves_indices_values_and_planes_once(dtype: str) -> None:
    """SegNet unpool1, whose indices are those of 2 x 2 windows. A gather's sectors are the data's business."""
    size = (224, 224)
    x = image(8, size, dtype)
    y, indices = F.max_pool2d(x, 2, return_indices=True)
    planes, profile = profile_of(lambda: F.max_unpool2d(y, indices, 2))
    assert planes.shape == x.shape
    assert kernels(profile) == ["unpool", "unpool_anywhere"]
    assert excesses(profile, MOVED) == []
    assert moved(profile) <= MOVED * (planes.nbytes + y.nbytes + indices.nbytes)
    _, profile = profile_of(lambda: F.max_unpool2d_backward(planes, y, indices, 2))
    assert kernels(profile) == ["gather"]
    assert all(launch.moved_share <= 1.02 for launch in profile.launches)


@pytest.mark.thorough
@pytest.mark.parametrize(("dtype", "c", "most"), [("float32", 32, 1.16), ("float16", 32, 1.26)])
def test_unpooling_with_channels_last(dtype: str, c: int, most: float) -> None:
    """SegNet unpool1: the fewer channels a sector holds, the less the values around a block's places weigh."""
    x = image(c, (224, 224), dtype, order="channels_last")
    y, indices = F.max_pool2d(x, 2, return_indices=True)
    planes, profile = profile_of(lambda: F.max_unpool2d(y, indices, 2))
    assert excesses(profile, most) == []
    assert moved(profile) <= most * (planes.nbytes + y.nbytes + indices.nbytes)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["GoogLeNet inception_pool", "ResNet max_pool"])
def test_unpooling_of_windows_that_overlap(name: str) -> None:
    """Values whose indices are the same meet in one place: banks are not held to it."""
    c, size, options = MAXIMA[name]
    x = image(c, size, order="channels_last")
    y, indices = F.max_pool2d(x, **options, return_indices=True)
    _, profile = profile_of(lambda: F.max_unpool2d(y, indices, **options, output_size=size))
    unpool, anywhere = profile.launches
    assert unpool.moved_share <= 1.35
    assert unpool.sector_share <= SECTORS
    assert anywhere.moved_bytes <= 4 * c + 32  # no plane is made anew


# --- Wide accesses ------------------------------------------------------------------------------------------------


@pytest.mark.table(1)
@pytest.mark.parametrize(("itemsize", "dtype"), [(4, "float32"), (2, "float16"), (8, "float64"), (1, "int8")])
def test_all_but_the_ends_of_runs_go_by_16_bytes(itemsize: int, dtype: str) -> None:
    """Rows of 55 and of 27 values begin anywhere: a run of many rows is read and written by whole sectors still."""
    x = image(8, (55, 55), dtype)
    (y, indices), profile = profile_of(lambda: F.max_pool2d(x, 3, 2, return_indices=True))
    (launch,) = profile.launches
    lanes = {"read": 0, "write": 0}
    for access in launch.accesses:
        if access.space == "global" and access.bytes == 16:
            lanes[access.kind] += access.lanes
    values = 16 // itemsize
    assert lanes["read"] >= 0.98 * prod(x.shape) / values
    assert lanes["write"] >= 0.97 * (prod(y.shape) / values + indices.nbytes / 16)
