"""im2col and col2im on the GPU."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from gpucnn.backends.cuda.convolution_fields import extents, residue_threads, unfold_fields
from gpucnn.backends.cuda.launching import Layout, Work, launch
from gpucnn.backends.cuda.runtime import Array
from gpucnn.backends.cuda.sources import Kernel
from gpucnn.geometry import ConvGeometry

if TYPE_CHECKING:
    from gpucnn.backends.cuda import CudaBackend

IM2COL = Kernel("im2col", "ConvParams")
COL2IM = Kernel("col2im", "ConvParams")


def im2col(backend: CudaBackend, x: Array, geometry: ConvGeometry) -> Array:
    """Columns [N, C * KD * KH * KW, OD * OH * OW] in C order."""
    n, c = x.shape[:2]
    columns = backend.xp.empty((n, c * geometry.taps, prod(geometry.output_size)), x.dtype)
    launch(backend.runtime, IM2COL, x.dtype, (x, columns), _im2col_work, geometry)
    return columns


def _im2col_work(x: Layout, columns: Layout, geometry: ConvGeometry) -> Work:
    return Work(unfold_fields(geometry, x, columns, written=columns), columns.size, extents=extents(geometry))


def col2im(backend: CudaBackend, columns: Array, geometry: ConvGeometry) -> Array:
    """Image [N, C, D, H, W] in C order: each input's sum over the entries that it was unfolded into."""
    n, c = columns.shape[0], geometry.channels.inputs
    x = backend.xp.empty((n, c, *geometry.input_size), columns.dtype)
    fold_into(backend, columns, x, geometry)
    return x


def fold_into(backend: CudaBackend, columns: Array, x: Array, geometry: ConvGeometry) -> None:
    """Write x [N, C, D, H, W], of any strides, as `col2im` of columns."""
    launch(backend.runtime, COL2IM, x.dtype, (columns, x), _col2im_work, geometry)


def _col2im_work(columns: Layout, x: Layout, geometry: ConvGeometry) -> Work:
    fields = unfold_fields(geometry, x, columns, written=x)
    return Work(fields, residue_threads(fields, x.shape[0] * x.shape[1]), extents=extents(geometry))
