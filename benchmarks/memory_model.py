"""A model of the kernels that memory should limit: the instructions that they issue, beside the bytes that they move.

A layer's launches are planned without a GPU and built for sm_90; one block of each is executed instruction by
instruction (`benchmarks.sass_run`). The blocks' instructions over the schedulers' rate are the launch's issue time, and
its bytes over the memory's rate its memory time. Where the former is longer, fewer instructions would make it faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.cases import Case, select
from benchmarks.data import form, make_arrays
from benchmarks.gpus import GPUS, WARP, Gpu
from benchmarks.kernel_profile import FAMILIES
from benchmarks.layers import PoolLayer, ResampleLayer
from benchmarks.providers.gpucnn import GpucnnGpu
from benchmarks.sass import disassembled
from benchmarks.sass_run import ARCHITECTURE, Executed, Memory, executed
from gpucnn import backends
from gpucnn.backends.cuda.device import nvrtc
from gpucnn.backends.cuda.device.runtime import Plan
from gpucnn.backends.cuda.launch.dry_run import DryRun
from gpucnn.backends.listening import listening

DTYPES = ("float32", "float16")
ACCESS = 16  # bytes of a lane's access
LEAST_SHARE = 0.05  # of a call's time, below which a launch is left out of the page


@dataclass(frozen=True)
class Row:
    """A launch of a case."""

    case: str
    dtype: str
    kernel: str
    instructions: int  # of warps
    moved: int  # bytes of global memory, each once

    @property
    def per_access(self) -> float:
        """Instructions of a warp for the bytes that its lanes move by one access each."""
        return self.instructions / (self.moved / (WARP * ACCESS))

    def issue(self, gpu: Gpu) -> float:
        """Seconds that the schedulers take, always busy."""
        return self.instructions / gpu.issue

    def memory(self, gpu: Gpu) -> float:
        """Seconds that the memory takes, at its full rate."""
        return self.moved / gpu.dram

    def ratio(self, gpu: Gpu) -> float:
        """The former over the latter: within 1, memory is the limit."""
        return self.issue(gpu) / self.memory(gpu)

    def seconds(self, gpu: Gpu) -> float:
        return max(self.issue(gpu), self.memory(gpu))


# --- What is launched -------------------------------------------------------------------------------------------------


class _Collector(DryRun):
    def __init__(self, runtime: Any) -> None:
        super().__init__(runtime)
        self.launches: list[tuple[Plan, list[Any]]] = []

    def launched(self, plan: Plan, arrays: Sequence[Any]) -> bool:
        self.launches.append((plan, list(arrays)))
        return False


def cases_of(filters: Iterable[str]) -> list[Case]:
    """The cases of the families that memory limits, each in both dtypes."""
    cases = [case for case in select("full", filters, "gpu") if any(word in case.family for word in FAMILIES)]
    found = [replace(case, dtype=dtype) for dtype in DTYPES for case in cases]
    return list(dict.fromkeys(case for case in found if case.dtype == "float32" or case.dtypes[0] == case.dtypes[1]))


@contextmanager
def planning() -> Iterator[_Collector]:
    """Within the block, operations on the simulator's arrays plan specialised launches, which the collector has."""
    runtime = backends.backend_named("simulator").runtime  # type: ignore[attr-defined]
    dry = _Collector(runtime)
    before, runtime.specialises = runtime.specialises, True
    try:
        with listening(dry):
            yield dry
    finally:
        runtime.specialises = before


def launches(case: Case) -> list[tuple[Plan, list[Any]]]:
    """The launches of a case, channels first, and their arrays, which hold nothing."""
    with planning() as dry:
        given = {name: dry.xp.empty(shape, dtype) for name, (shape, dtype) in form(case).items()}
        call = GpucnnGpu(1).prepare(case, given)
        dry.launches.clear()
        call()
    return dry.launches


def memory_of(array: Any, indices: np.ndarray[Any, Any] | None = None) -> Memory | None:
    """What the kernels read of an array: numbers near 1, the indices of each plane, or the contents of a table."""
    if array is None:
        return None
    if array.dtype.kind == "f":
        return Memory(np.random.default_rng(0).uniform(1, 2, 1024).astype(array.dtype))
    if array.dtype == np.int64 and indices is not None:
        return Memory(indices)
    return Memory(array.get().reshape(-1))


def _indices(case: Case) -> np.ndarray[Any, Any] | None:
    """The indices of one plane of a pooling or unpooling."""
    if not isinstance(case.layer, PoolLayer | ResampleLayer):
        return None
    one = replace(case, batch=1, layer=replace(case.layer, channels=1))
    return make_arrays(one).get("indices")


# --- What it issues and moves -----------------------------------------------------------------------------------------


def model(cases: Iterable[Case]) -> Iterator[Row]:
    """The rows of all launches."""
    compiler = nvrtc.load()
    for case in cases:
        indices = _indices(case)
        for plan, arrays in launches(case):
            assert plan.source is not None
            found = run(compiler, plan, [memory_of(array, indices) for array in arrays])
            (blocks,) = plan.grid
            moved = [
                min(array.nbytes, blocks * moved)
                for array, moved in zip(arrays, found.moved, strict=True)
                if array is not None
            ]
            name = replace(case, dtype="float32").id
            yield Row(name, case.dtype, plan.source.kernel, blocks * found.issued.total(), sum(moved))


def run(compiler: nvrtc.Nvrtc, plan: Plan, arrays: Sequence[Memory | None], block: int | None = None) -> Executed:
    """What one block of a launch does, by default that in the middle."""
    source = plan.source
    assert source is not None
    image = compiler.compile(source.text, source.name, (*nvrtc.OPTIONS, f"-arch={ARCHITECTURE}")).image
    (blocks,), (threads,) = plan.grid, plan.block
    chosen = blocks // 2 if block is None else block
    return executed(disassembled(image), source.kernel, chosen, blocks, threads, plan.parameters.tobytes(), arrays)


# --- The page ---------------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row]) -> str:
    """A table of the launches that take a good share of their call's time."""
    h100 = next(gpu for gpu in GPUS if gpu.architecture == ARCHITECTURE)
    names = [gpu.name for gpu in GPUS]
    text = [_HEAD, f"| layer | dtype | kernel | MB | per access | {' | '.join(names)} | H100, µs | limit |"]
    text.append("|---|---|---|--:|--:|" + "--:|" * len(names) + "--:|---|")
    for row in rows:
        call = sum(other.seconds(h100) for other in rows if (other.case, other.dtype) == (row.case, row.dtype))
        if row.seconds(h100) < LEAST_SHARE * call:
            continue
        ratios = " | ".join(f"{row.ratio(gpu):.2f}" for gpu in GPUS)
        limit = "issue" if row.ratio(h100) > 1 else "memory"
        text.append(
            f"| {row.case} | {row.dtype} | `{row.kernel}` | {row.moved / 1e6:.1f} | {row.per_access:.0f} | {ratios} | "
            f"{row.seconds(h100) * 1e6:.1f} | {limit} |"
        )
    return "\n".join(text) + "\n"


_HEAD = """# Kernels that memory should limit: a model

Predicted, not measured: no kernel has run on a GPU. `python -m benchmarks.kernel_model --memory` executes the middle
block of each launch, channels first, instruction by instruction as sm_90's machine code, which stands for the other
GPUs' too, and the block for all. *MB* is what a launch moves of its arrays, each byte once; *per access* the
instructions that a warp issues for what its lanes move by one access of 16 bytes each, 512 bytes. The figures beneath
the GPUs are issue time over memory time, both at full rate: up to 1 the memory is the limit, which an H100 allows 142
instructions for, an A100 156 and an RTX 4090 655. The time is the longer one on an H100. Launches below 5 % of their
call are left out. The model does not know latencies, waves and caches, nor bank conflicts.
"""
