"""Memory profile of the kernels on the benchmark's layers, counted in the simulator: each value is moved about once."""

from __future__ import annotations

from operator import ge

import ml_dtypes  # noqa: F401  NumPy knows bfloat16 by name from here on
import numpy as np
import pytest
from memory_traffic import excesses

from benchmarks import kernel_profile
from benchmarks.cases import Case
from benchmarks.layers import NormLayer, PoolLayer
from benchmarks.providers import Provider
from benchmarks.providers.gpucnn import GpucnnGpu, GpucnnGpuChannelsLast
from gpucnn.simulator.profiles import LaunchProfile

pytestmark = pytest.mark.usefixtures("compiler")

MOVED = {"depthwise convolution": 1.20, "pooling": 1.12, "resampling": 1.20}  # others 1.06: no tiles that overlap
IMAGES = {"x", "y", "z", "grad_x", "grad_y", "residual"}
SECTORS = {"pooling": 1.02}  # others 1.03
BEYOND = ("resnet-50/bn5/", "yolov3-spp/spp13/forward")  # float16 as yet: planes of 98 bytes, windows of 13 x 13
ROWS = [
    pytest.param(case, kind, id=f"{case.id}, {kind.name}")
    for case in kernel_profile.cases_of([], ("float32", "float16"))
    for kind in (GpucnnGpu, GpucnnGpuChannelsLast)
    if kind(1).refuses(case) is None and not (case.dtype == "float16" and case.id.startswith(BEYOND))
]


def arrays_moved(case: Case, kernels: list[str]) -> float:
    """How often a case's arrays are read and written, over once each."""
    if case.family == "normalization" and "norm_rows" not in kernels[0]:  # sums first, then x and grad_y again
        return {"backward": 5 / 3, "inference": 1.0}.get(case.operation, 3 / 2)
    if case.family == "depthwise convolution" and "pack" in kernels:  # tiles of large filters hold no channels last
        return 3.0
    return 1.0


def is_narrow(case: Case, kind: type[Provider]) -> bool:
    """Whether images are not read and written 16 bytes at a time: planes of 7 x 7 numbers, and two of channels last.

    Windows that share no input are pooled plainly, by half of the instructions of staging; groups of few channels have
    fewer bytes.
    """
    layer = case.layer
    if kind is GpucnnGpu:
        return case.id.startswith("resnet-50/bn5")
    if isinstance(layer, PoolLayer):
        return case.operation == "forward" and all(map(ge, layer.stride, layer.kernel))
    is_group = isinstance(layer, NormLayer) and layer.kind == "group"
    return is_group and layer.channels // layer.groups * np.dtype(case.dtype).itemsize < 16


def wide_share(launch: LaunchProfile) -> float:
    """Of the sectors of images that are moved, those of accesses of 16 bytes a lane; 1 where they are few."""
    images = [access for access in launch.accesses if access.array in IMAGES]
    moved = sum(access.sectors for access in images)
    return sum(access.sectors for access in images if access.bytes == 16) / moved if moved > 1000 else 1.0


@pytest.mark.table(4)
@pytest.mark.parametrize(("case", "kind"), ROWS)
def test_each_value_is_moved_about_once(case: Case, kind: type[Provider]) -> None:
    profile = kernel_profile.profile_of(case, kind(1))
    moved = MOVED.get(case.family, 1.06)
    if case.family == "normalization" and case.dtype == "float16":
        moved = 1.10  # a row's weights are float32 in any case
    assert excesses(*profile.launches, moved=moved, sectors=SECTORS.get(case.family, 1.03)) == []
    assert is_narrow(case, kind) or min(map(wide_share, profile.launches)) > 0.9
    kernels = [launch.kernel for launch in profile.launches]
    if case.family == "normalization" and case.dtype == "float16":
        moved = 1.20  # statistics and weights are float32 in any case
    accesses = [
        access for launch in profile.launches for access in launch.accesses if not access.array.startswith("parts")
    ]
    assert sum(access.moved_bytes for access in accesses) <= arrays_moved(case, kernels) * moved * case.least_bytes, (
        kernels
    )
