"""The part of a large result that is checked.

Float64 arithmetic on the CPU is too slow for a GPU's batch. So a case is cut down to a self-contained one, whose
results are compared with `benchmarks.checking` as on a CPU: some images where images do not interact, some channels of
a normalisation over the batch or within groups, all of a layer norm. Convolutions are checked at sampled positions of
the whole. No timed implementation takes part. Values outside the cut must be finite, and the memory that results are
likely to be written to is filled with NaN before, so that little can be left out unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from benchmarks.cases import Case
from benchmarks.checking import Expectation, expect
from benchmarks.data import Arrays, IndexArray, needs_pool_indices, pool_maximum
from benchmarks.gpu.device import Array, Device
from benchmarks.layers import ConvLayer, Layer, NormLayer, PoolLayer, Shape
from gpucnn.backends.layout import is_channels_last

MAX_ELEMENTS = 4_000_000  # of one array of the cut, beyond its first two slices
MAX_SLICES = 8
PER_CHANNEL = ("weight", "bias", "running_mean", "running_var", "grad_weight", "grad_bias")


@dataclass(frozen=True)
class Cut:
    """The slices `chosen` along `axis` of a case's arrays, and the case that they are; `axis` None leaves all."""

    case: Case
    axis: int | None = None
    chosen: IndexArray | None = None

    def axis_of(self, name: str) -> int | None:
        """The axis that the array called `name` is cut along, if it is."""
        if name in PER_CHANNEL:
            return 0 if self.axis == 1 else None
        return self.axis

    def arrays(self, arrays: Arrays) -> Arrays:
        """The cut arrays, with those recomputed from them."""
        cut = {}
        for name, array in arrays.items():
            axis = self.axis_of(name)
            cut[name] = array if axis is None else array.take(self.chosen, axis=axis)
        if needs_pool_indices(self.case):
            assert isinstance(self.case.layer, PoolLayer)
            cut["indices"] = pool_maximum(cut["input"], self.case.layer)[1]
        return cut


def cut_of(case: Case) -> Cut:
    """The cut of a case."""
    layer = case.layer
    if isinstance(layer, ConvLayer) or (isinstance(layer, NormLayer) and layer.kind == "layer"):
        return Cut(case)
    if isinstance(layer, NormLayer):
        return _some_channels(case, layer)
    shapes = layer.input_shape(1), layer.output_shape(1)
    chosen = _spread(case.batch, max(map(prod, shapes)))
    return Cut(replace(case, batch=len(chosen)), 0, chosen)


def _some_channels(case: Case, layer: NormLayer) -> Cut:
    """Whole groups of channels: statistics are taken within them, independent of the others."""
    members = {"batch": 1, "instance": 1, "group": layer.channels // layer.groups}[layer.kind]
    groups = _spread(layer.channels // members, case.batch * members * prod(layer.size))
    chosen = (groups[:, None] * members + np.arange(members)).ravel()
    smaller: Layer = replace(layer, channels=len(chosen), groups=len(groups) if layer.kind == "group" else layer.groups)
    return Cut(replace(case, layer=smaller), 1, chosen)


def _spread(count: int, size: int) -> IndexArray:
    """The first, the last and some between of `count` slices of `size` elements."""
    wanted = min(count, MAX_SLICES, max(2, MAX_ELEMENTS // size))
    return np.unique(np.linspace(0, count - 1, wanted).round().astype(np.int64))


def expected(case: Case, arrays: Arrays, cut_of: Callable[[Case], Cut] = cut_of) -> tuple[Cut, list[Expectation]]:
    """The checked part of a case, and its expected values."""
    cut = cut_of(case)
    return cut, expect(cut.case, cut.arrays(arrays))


def fault_of(cut: Cut, case: Case, expectations: list[Expectation], results: list[Array], device: Device) -> str | None:
    """The first fault of results on a device, or None."""
    if len(results) != len(expectations):
        return f"{len(results)} arrays came back, expected {len(expectations)}"
    for expectation, result in zip(expectations, results, strict=True):
        fault = _fault(cut, case, expectation, result, device)
        if fault:
            return fault
    return None


def _fault(cut: Cut, case: Case, expectation: Expectation, result: Array, device: Device) -> str | None:
    name, axis = expectation.name, cut.axis_of(expectation.name)
    shape = whole_shape(cut, case, expectation)
    if tuple(result.shape) != shape:
        return f"{name} has shape {tuple(result.shape)}, expected {shape}"
    if str(result.dtype) != expectation.dtype:
        return f"{name} is {result.dtype}, expected {expectation.dtype}"
    if expectation.channels_last is not None and is_channels_last(result) != expectation.channels_last:
        order = "last" if expectation.channels_last else "first"
        return f"{name} has strides {result.strides}, expected channels {order}"
    if not device.finite(result):
        return f"{name} holds values that are not finite"
    if expectation.where is not None:
        return expectation.fault_of_values(device.at(result, expectation.where))
    return expectation.fault_of_values(device.taken(result, axis, cut.chosen))


def whole_shape(cut: Cut, case: Case, expectation: Expectation) -> Shape:
    """The shape of a result that was not cut."""
    shape, axis = list(expectation.shape), cut.axis_of(expectation.name)
    if axis is not None:
        shape[axis] = case.batch if cut.axis == 0 else case.layer.channels
    return tuple(shape)


def result_bytes(cut: Cut, case: Case, expectations: list[Expectation]) -> int:
    """The bytes of all results of a case."""
    return sum(prod(whole_shape(cut, case, one)) * np.dtype(one.dtype).itemsize for one in expectations)
