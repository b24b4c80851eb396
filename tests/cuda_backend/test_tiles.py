"""Tiles of pooling and unpooling: pure choices, by table."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gpucnn.backends.cuda.launch.plans import Layout, Work, layout
from gpucnn.backends.cuda.pooling import pooling, tiles
from gpucnn.geometry import PoolGeometry
from gpucnn.geometry.geometries import adaptive_geometry, pool_geometry


def image(*shape: int, dtype: Any = np.float32, channels_last: bool = False) -> Layout:
    """The layout of an array [N, C, D, H, W] that is not looked at."""
    if channels_last:
        n, c, *space = shape
        return layout(np.moveaxis(np.zeros((n, *space, c), dtype), -1, 1))
    return layout(np.zeros(shape, dtype))


def average(geometry: PoolGeometry, n: int, c: int, dtype: Any = np.float32, channels_last: bool = False) -> Work:
    x = image(n, c, *geometry.input_size, dtype=dtype, channels_last=channels_last)
    y = image(n, c, *geometry.output_size, dtype=dtype, channels_last=channels_last)
    return pooling._forward_work(x, y, geometry, is_max=False)


def pool(size: tuple[int, ...], kernel: int, stride: int, padding: int = 0) -> PoolGeometry:
    return pool_geometry("pool", size, kernel, stride, padding, 1, False, "valid")


def unstaged(geometry: PoolGeometry, c: int) -> Work:
    """The work of a view, whose rows lie apart."""
    x = layout(np.zeros((1, c, *geometry.input_size[:-1], geometry.input_size[-1] + 1), np.float32)[..., 1:])
    return pooling._forward_work(x, image(1, c, *geometry.output_size), geometry, is_max=False)


def max_backward(geometry: PoolGeometry, n: int, c: int, dtype: Any = np.float32) -> Work:
    """The work of a gradient with channels last."""
    y, at = (image(n, c, *geometry.output_size, dtype=kind, channels_last=True) for kind in (dtype, np.int64))
    return pooling._max_backward_work(
        y, at, image(n, c, *geometry.input_size, dtype=dtype, channels_last=True), geometry
    )


GLOBALLY = adaptive_geometry("pool", (7, 7), 1, "valid")
UNEVEN = pool_geometry("pool", (13, 173), (3, 2), (4, 1), (2, 1), (3, 1), False, "none")
WORKS: dict[str, tuple[Work, dict[str, int]]] = {  # and fields of it
    "small planes go together": (average(GLOBALLY, 1, 8), {"tile_planes": 8}),
    "but leave blocks for the whole device": (average(GLOBALLY, 1, 2048), {"tile_planes": 8}),
    "few large windows have several threads each": (average(GLOBALLY, 1, 8), {"lanes": 16}),
    "larger ones more": (average(adaptive_geometry("pool", (28, 28), 1, "valid"), 1, 8), {"lanes": 32}),
    "small windows one": (average(pool((56, 56), 3, 2, 1), 1, 8), {"lanes": 1}),
    "bands of slices": (average(pool((16, 56, 56), 2, 2), 1, 2), {"band_axis": 0}),
    "bands of rows": (average(pool((224, 224), 2, 2), 1, 2), {"band_axis": 1}),
    "bands of a signal": (average(pool((40_000,), 2, 2), 1, 2), {"band_axis": 2}),
    "channels that fill no sectors stay together": (
        average(pool((28, 28), 3, 2, 1), 2, 3, channels_last=True), {"inner": 3, "channels_last": 1}
    ),
    "what does not fit is not staged": (
        average(adaptive_geometry("pool", (300, 300), 1, "valid"), 1, 4), {"tile_planes": 0, "lanes": 32}
    ),
    "a view is not staged": (unstaged(pool((8, 8), 2, 2), 2), {"tile_planes": 0}),
    "slices that do not fit": (max_backward(pool((16, 56, 56), 2, 2), 1, 128), {"band_axis": 0}),
    "channels that fill no sectors are not parted": (max_backward(pool((16, 56, 56), 2, 2), 1, 27), {"tile_planes": 0}),
    "even bands that read more than those that fit": (max_backward(UNEVEN, 8, 17, np.int8), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", WORKS)
def test_tiles_fit_into_shared_memory(name: str) -> None:
    work, fields = WORKS[name]
    assert fields.items() <= work.fields.items()
    assert (work.shared_bytes > 0) == (work.fields["tile_planes"] > 0)
    assert work.shared_bytes <= tiles.MAX_SHARED_BYTES


def test_planes_that_go_together_fill_sectors_and_leave_blocks() -> None:
    assert average(GLOBALLY, 1, 2048).blocks == 256
    many = average(GLOBALLY, 32, 2048)
    assert many.fields["tile_planes"] % 8 == 0  # whole sectors
    assert 16 < many.fields["tile_planes"] < 128
    assert many.shared_bytes <= tiles.WHOLE_SHARED


def test_large_planes_are_cut_into_even_bands() -> None:
    work = average(pool((224, 224), 3, 2, 1), 1, 4)
    assert 1 < work.fields["bands"] == -(-112 // work.fields["tile"])
    assert work.blocks == 4 * work.fields["bands"]
    assert WORKS["even bands that read more than those that fit"][0].fields["bands"] > 1


def test_bands_of_inputs_end_where_windows_do() -> None:
    geometry = pool((16, 56, 56), 2, 2)
    grad_y, grad_x = image(1, 2, *geometry.output_size), image(1, 2, *geometry.input_size)
    assert pooling._average_backward_work(grad_y, grad_x, geometry).fields["tile"] % 2 == 0
    work = WORKS["slices that do not fit"][0]
    assert (work.fields["tile"] % 2, work.fields["row_tile"] % 2) == (0, 0)
    assert work.fields["row_bands"] == -(-56 // work.fields["row_tile"]) > 1
    assert work.shared_bytes <= tiles.WANTED_SHARED  # windows of two blocks share nothing: small ones do


@pytest.mark.parametrize("c", [64, 96])
def test_channels_last_are_parted_by_whole_sectors(c: int) -> None:
    work = average(pool((112, 112), 3, 2, 1), 1, c, channels_last=True)
    inner = work.fields["inner"]
    assert c % inner == 0
    assert inner * 4 % tiles.SECTOR_BYTES == 0
    assert work.blocks == work.fields["bands"] * c // inner


@pytest.mark.parametrize(
    ("dtype", "pack"), [(np.float32, 4), (np.float16, 8), (ml_dtypes.bfloat16, 8), (np.complex128, 1), (np.int8, 16)]
)
def test_an_access_takes_16_bytes_where_arrays_are_aligned(dtype: Any, pack: int) -> None:
    aligned = Layout((1, 1, 1, 1, 32), (0, 0, 0, 0, np.dtype(dtype).itemsize), np.dtype(dtype).itemsize)
    assert tiles.pack_of(aligned) == pack
    assert tiles.pack_of(aligned, aligned._replace(alignment=8)) == 1


def test_maxima_are_sought_by_rows_where_that_halves_the_comparisons() -> None:
    assert pooling._by_rows(pool((19, 19), 13, 1, 6))
    assert pooling._by_rows(pool((19, 19), 5, 1, 2))
    assert not pooling._by_rows(pool((28, 28), 3, 1, 1))
    assert not pooling._by_rows(pool((112, 112), 3, 2, 1))
    assert not pooling._by_rows(pool((64,), 13, 1, 6))  # one row
    assert not pooling._by_rows(adaptive_geometry("pool", (40, 40), 3, "none"))


def test_bands_of_planes_take_in_the_values_next_to_theirs() -> None:
    values, planes = image(1, 2, 1, 112, 112), image(1, 2, 1, 224, 224)
    tile = pooling._unpool_tile(values, image(1, 2, 1, 112, 112, dtype=np.int64), planes)
    assert tile is not None
    assert tile.bands > 1
    assert tile.tile % 2 == 0
    assert tile.read == (tile.tile // 2 + 2) * 112
    assert tile.written == tile.tile * 224
    assert tile.row_bands == 1


def test_planes_of_many_channels_are_cut_into_parts_of_rows() -> None:
    shapes = ((1, 64, 1, 112, 112), (1, 64, 1, 112, 112), (1, 64, 1, 224, 224))
    values, indices, planes = (
        image(*shape, dtype=dtype, channels_last=True)
        for shape, dtype in zip(shapes, (np.float16, np.int64, np.float16), strict=True)
    )
    tile = pooling._unpool_tile(values, indices, planes)
    assert tile is not None
    assert tile.inner * 2 % tiles.SECTOR_BYTES == 0
    assert tile.row_bands == -(-224 // tile.row_tile) > 1
    assert tile.tile % 2 == tile.row_tile % 2 == 0
    assert tile.read == (tile.tile // 2 + 2) * (tile.row_tile // 2 + 2) * tile.inner
    assert tile.written == tile.tile * tile.row_tile * tile.inner
    assert tile.blocks == tile.bands * tile.row_bands * 64 // tile.inner
    assert tile.shared_bytes <= tiles.MAX_SHARED_BYTES
    assert tile.columns(224) == tile.row_tile * tile.inner
