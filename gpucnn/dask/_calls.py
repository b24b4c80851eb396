"""The arguments of one call on Dask's arrays, checked as the operation itself checks them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize

import gpucnn.functional as F
from gpucnn.backends import backend_of, chosen, receive
from gpucnn.dask._tiles import Source, Tiles, in_one_chunk, parameter
from gpucnn.numerics import choices

Array = Any

IMAGES = frozenset({"input", "grad_output", "grad_grad_input", "residual", "output", "indices", "mask"})
"""Arguments with a batch axis, whose chunks are computed one by one."""

PARAMETERS = frozenset({
    "weight", "bias", "grad_grad_weight", "running_mean", "running_var", "mean", "rstd",
})  # fmt: skip
"""Arguments that each task reads as a whole."""

ARRAYS = IMAGES | PARAMETERS

SIZES = frozenset({"input_size"})
"""Arguments that are shapes of images."""


class DaskCall:
    """One call: its images as Dask's arrays with a batch axis, its parameters, and its other arguments.

    `trial` is what the operation itself returns for images without a batch: it has checked shapes, dtypes and all other
    arguments, and has the dtypes, the kinds and, but for the batch, the shapes of the results.
    """

    def __init__(self, op: str, given: Mapping[str, Any], per_image: Sequence[str] = ()) -> None:
        self.op, self.function = op, getattr(F, op)
        self.rank = _rank(op)
        images = IMAGES.union(per_image)
        arrays = {name: given[name] for name in given if name in ARRAYS}
        self.images = {name: array for name, array in arrays.items() if name in images and array is not None}
        self.parameters = {name: array for name, array in arrays.items() if name not in images and array is not None}
        self.options = {name: given[name] for name in given if name not in arrays}
        for name, array in (self.images | self.parameters).items():
            expect_usable(op, name, array)
        self.images = {name: self._of_dask(array) for name, array in self.images.items()}
        first = self.images.get("input", next(iter(self.images.values())))
        self.is_batched = first.ndim != _axes_of_one(op, given)
        if not self.is_batched:
            self.images = {name: array[None] for name, array in self.images.items()}
            self.options |= {name: (1, *self.options[name]) for name in SIZES & self.options.keys()}
        self._check_batch()
        try:
            self.trial = self.function(
                **{name: _empty(array) for name, array in self.images.items()},
                **{name: _in_memory(array) for name, array in self.parameters.items()},
                **{name: (0, *value[1:]) if name in SIZES else value for name, value in self.options.items()},
                **{name: None for name, array in arrays.items() if array is None},
            )
        except (TypeError, ValueError) as error:
            raise self._said_of_whole(given, error) from None

    def _of_dask(self, array: Array) -> Array:
        return array if isinstance(array, da.Array) else in_one_chunk(array)

    def _said_of_whole(self, given: Mapping[str, Any], error: Exception) -> Exception:
        """What the operation says of arrays of the caller's shapes: in the trial's error the batch is 0."""
        try:
            self.function(**{name: _of_shape(value) if name in ARRAYS else value for name, value in given.items()})
        except (TypeError, ValueError) as said:
            return said
        return error

    def _check_batch(self) -> None:
        """Raise unless all images have one batch size, which the trial does not see."""
        sizes = {name: array.shape[:1] for name, array in self.images.items()}
        sizes |= {name: tuple(self.options[name][:1]) for name in SIZES & self.options.keys()}
        (first, expected), *others = sizes.items()
        for name, size in others:
            if size != expected:
                raise ValueError(
                    f"{self.op}: {name} has shape {getattr(self.images.get(name), 'shape', self.options.get(name))}, "
                    f"expected N = {expected[0] if expected else 1} as {first} has"
                )

    def tiles(self) -> Tiles:
        """The graph of the results, named by all that they depend on."""
        return Tiles(self.op, tokenize(self.op, self.images, self.parameters, self.options, chosen(), choices()))

    def sources(self) -> dict[str, Source]:
        """The parameters, by name."""
        return {name: parameter(array) for name, array in self.parameters.items()}

    def give_back(self, result: Array) -> Array:
        """A result without the batch axis, where the caller's images had none."""
        return result if self.is_batched else result[0]


def expect_usable(op: str, name: str, array: Array) -> None:
    """Raise unless the sizes of an array's chunks are known, and their kind is one that operations take."""
    if not isinstance(array, da.Array):
        return
    if any(map(math.isnan, array.shape)):
        raise ValueError(
            f"{op}: {name} has chunks of unknown sizes, expected known ones, as .compute_chunk_sizes() finds"
        )
    if not isinstance(array._meta, np.generic):
        receive(op, {name: array._meta})


def _rank(op: str) -> int | None:
    """The number of spatial axes that the operation's name says."""
    found = re.search(r"([123])d", op)
    return int(found[1]) if found else None


def _axes_of_one(op: str, given: Mapping[str, Any]) -> int | None:
    """The number of axes of an image without a batch axis, where images may come so."""
    rank = _rank(op)
    if rank is not None:
        return rank + 1
    if "linear" in op:
        return 1
    if "normalized_shape" in given:  # all that shares a mean
        shape = given["normalized_shape"]
        return len(shape) if hasattr(shape, "__len__") else 1
    if "output_size" in given:
        return 2  # columns
    if "kernel_size" not in given:
        return None
    size = given["kernel_size"]
    if hasattr(size, "__len__"):
        return len(size) + 1
    return {2: 2, 3: 3, 4: 3, 5: 4}.get(given["input"].ndim)  # as `im2col` takes it


def _empty(array: Array) -> Array:
    """An array of the kind of a Dask array's chunks, without a batch."""
    shape = (0, *array.shape[1:]) if array.ndim else ()
    if isinstance(array._meta, np.ndarray):
        return np.empty(shape, array.dtype)
    return backend_of(array._meta).empty(shape, array.dtype, array._meta)


def _in_memory(array: Array) -> Array:
    """A parameter, or zeros in the place of one that is not computed yet."""
    if not isinstance(array, da.Array):
        return array
    return backend_of(array._meta).zeros(array.shape, array.dtype, array._meta)


def _of_shape(array: Array) -> Array:
    """Zeros of an array's shape and dtype, which take no memory."""
    return array if array is None else np.broadcast_to(np.zeros((), array.dtype), array.shape)
