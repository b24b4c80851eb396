"""``python -m benchmarks.kernel_model``: the time that dense convolutions in 16 bits should take on tensor cores.

The page has the kernels that memory should limit as well: see `benchmarks.memory_model`.

No GPU is needed: NVIDIA's compiler builds what each layer launches, and the machine code tells what its main loop
issues. From that, the launch's blocks and the bytes that its tiles read follow the time on a GPU and what limits it,
beside an estimate of cuDNN's. It is a model: latencies, clocks under load and hits in L1 are not in it.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import memory_model, publishing
from benchmarks.cases import chosen, select, slug
from benchmarks.gpus import COPY_SHARE, GPUS, LAUNCH_S, SUBPARTITIONS, Gpu
from benchmarks.layers import ConvLayer
from benchmarks.sass import Code, codes, disassembler
from gpucnn.backends.cuda.convolution import implicit_gemm
from gpucnn.backends.cuda.convolution.select import algorithm
from gpucnn.backends.cuda.device import nvrtc
from gpucnn.backends.cuda.device.runtime import Plan
from gpucnn.backends.cuda.device.simulator_runtime import SimulatorRuntime
from gpucnn.backends.cuda.launch.dry_run import DryRun
from gpucnn.backends.cuda.launch.listening import listening
from gpucnn.backends.cuda.launch.plans import layout
from gpucnn.geometry import Axis, ConvGeometry
from gpucnn.geometry.geometries import Channels, conv_geometry

DIRECTIONS = ("forward", "backward_input", "backward_weight")
_TURNED = {"forward": "backward_input", "backward_input": "forward"}  # of a transposed convolution
ITEMSIZE = 2
PEAK_SHARE = 0.75  # of the arithmetic peak that cuBLAS and cuDNN reach
_HALO = 1.5  # positions that the taps of a tile's read, over those of the tile


@dataclass(frozen=True)
class Launch:
    """A planned launch and the bytes of its arrays."""

    plan: Plan
    nbytes: int

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a block of an implicit GEMM, as its program's name says."""
        assert self.plan.source is not None
        tile = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", self.plan.source.name)}
        return 16 * tile["FRAGMENTS"] * tile["WARPS_M"], implicit_gemm.WARP_COLUMNS * tile["WARPS_N"]


@dataclass(frozen=True)
class Row:
    """A layer in one direction on one GPU; times are in seconds."""

    layer: str
    direction: str
    gpu: str
    tile: str
    gemm: float
    copies: float  # to channels last, of filters, and sums of parts
    limit: str
    cudnn: float  # channels first, with its own changes of layout

    @property
    def ratio(self) -> float:
        """CuDNN's time over ours."""
        return self.cudnn / (self.gemm + self.copies)


# --- What is launched -------------------------------------------------------------------------------------------------


class _Collector(DryRun):
    def __init__(self, runtime: SimulatorRuntime) -> None:
        super().__init__(runtime)
        self.launches: list[Launch] = []

    def launched(self, plan: Plan, arrays: Sequence[Any]) -> bool:
        self.launches.append(Launch(plan, sum(array.nbytes for array in arrays if array is not None)))
        return False


def geometry_of(layer: ConvLayer) -> ConvGeometry:
    """That of the convolution which the layer, or a transposed one, is."""
    each = layer.untransposed
    padding = tuple(zip(each.padding, each.padding, strict=True))
    channels = Channels(each.channels, each.out_channels, each.groups)
    return conv_geometry("conv", each.size, channels, each.kernel, each.stride, padding, each.dilation)


def launches(direction: str, geometry: ConvGeometry, batch: int) -> list[Launch]:
    """What float16 images of `batch`, channels first, launch; empty where another algorithm computes the layer."""
    runtime = SimulatorRuntime()
    runtime.specialises = True
    dry = _Collector(runtime)
    inputs, outputs, groups = geometry.channels
    x, y = (
        dry.xp.empty((batch, channels, *size), np.float16)
        for channels, size in ((inputs, geometry.input_size), (outputs, geometry.output_size))
    )
    w = dry.xp.empty((outputs, inputs // groups, *geometry.kernel_size), np.float16)
    if algorithm(direction, geometry, "float16", layout(x), layout(y), tensor_cores=True) != "implicit_gemm":
        return []
    with listening(dry):
        if direction == "forward":
            implicit_gemm.forward(runtime, x, w, None, y, geometry)
        elif direction == "backward_input":
            implicit_gemm.backward_input(runtime, y, w, None, x, geometry)
        else:
            implicit_gemm.backward_weight(runtime, x, y, w, geometry)
    return dry.launches


# --- Times ------------------------------------------------------------------------------------------------------------


def steps_of(direction: str, geometry: ConvGeometry, batch: int) -> float:
    """Steps of a block's main loop; of residues with different numbers of taps their mean."""
    inputs, outputs, groups = geometry.channels
    per_step = implicit_gemm.STEP_BYTES // ITEMSIZE
    if direction == "backward_weight":
        depth = implicit_gemm.padded_depth(inputs // groups, ITEMSIZE)
        return implicit_gemm.split_positions(batch, depth, ITEMSIZE, geometry)[1] / per_step
    each = implicit_gemm.padded_depth((inputs if direction == "forward" else outputs) // groups, ITEMSIZE)
    taps_at_once = max(1, per_step // each) if each <= per_step // 2 else 1
    taps = [geometry.taps]
    if direction == "backward_input":
        taps = [math.prod(each) for each in product(*map(_taps_of_residues, geometry.axes))]
    return sum(math.ceil(each / per_step) * math.ceil(count / taps_at_once) for count in taps) / len(taps)


def _taps_of_residues(axis: Axis) -> list[int]:
    """The number of taps of each residue modulo the stride."""
    found = [len(residue.kernel_indices) for residue in axis.backward]
    return found + [0] * (min(axis.stride, axis.size) - len(found))


def gemm_time(
    gpu: Gpu, launch: Launch, code: Code, registers: int, shared: int, steps: float, taps: int
) -> tuple[float, str]:
    """The time of an implicit GEMM and what limits it; a tile's other taps hit L1 where that holds them."""
    (blocks,), (threads,) = launch.plan.grid, launch.plan.block
    warps, loop = threads // 32, code.main_loop("HMMA")
    if loop is None:  # of so few steps that the compiler unrolled them
        loop, steps = code.opcodes, 1.0
    resident = min(65_536 // (math.ceil(registers / 8) * 8 * threads), gpu.shared // (shared + 1024), 2048 // threads)
    on_one = math.ceil(blocks / gpu.multiprocessors)
    clocks: Counter[str] = Counter()
    for together in [resident] * (on_one // resident) + [on_one % resident]:
        running = math.ceil(together * warps / SUBPARTITIONS)  # warps of a subpartition
        clocks["tensor cores"] += math.ceil(steps * running * loop["HMMA"] * gpu.hmma_clocks)
        clocks["issue"] += math.ceil(steps * running * loop.total())
        clocks["shared memory"] += math.ceil(steps * together * warps * _shared_clocks(loop))
        clocks["outside of the loop"] += running * (sum(code.instructions.values()) - loop.total())
    outside = clocks.pop("outside of the loop") / gpu.clock
    times = {name: count / gpu.clock + outside for name, count in clocks.items()}
    rows, columns = launch.tile
    running = min(resident, on_one)
    left = gpu.l1 - running * (shared + 1024)
    again = 1.0 if left < running * _HALO * columns * implicit_gemm.STEP_BYTES else _HALO / taps
    times["L2"] = blocks * steps * (rows + min(1.0, again) * columns) * implicit_gemm.STEP_BYTES / gpu.l2
    times["memory"] = launch.nbytes / (COPY_SHARE * gpu.dram)
    limit = max(times, key=lambda name: times[name])
    return times[limit] + LAUNCH_S, limit


def _shared_clocks(loop: Counter[str]) -> int:
    """Clocks of shared memory, of 128 bytes, for what a warp reads and its copies write."""
    return 4 * loop["LDSM"] + 4 * loop["LDGSTS"] + loop["LDS"] + loop["STS"]


def cudnn_time(gpu: Gpu, layer: ConvLayer, direction: str, batch: int) -> float:
    """An estimate for channels first: a product at cuBLAS's share of the peak, between changes of layout."""
    kernel = max(
        layer.flops(direction, batch) / (PEAK_SHARE * gpu.peak),
        layer.least_bytes(direction, batch, ITEMSIZE) / (COPY_SHARE * gpu.dram),
    )
    images = sum(math.prod(shape) for shape in (layer.input_shape(batch), layer.output_shape(batch)))
    return kernel + 2 * ITEMSIZE * images / (COPY_SHARE * gpu.dram) + 3 * LAUNCH_S


def model(layers: Sequence[ConvLayer]) -> Iterator[Row]:
    """The rows of all layers that run on tensor cores, by direction and GPU."""
    compiler = nvrtc.load()
    for layer, direction in product(layers, DIRECTIONS):
        geometry, batch = geometry_of(layer), layer.batch("gpu")
        way = _TURNED.get(direction, direction) if layer.transposed else direction
        planned, steps = launches(way, geometry, batch), steps_of(way, geometry, batch)
        for gpu in GPUS if planned else ():
            copies, gemm, limit, tile = 0.0, 0.0, "", ""
            for launch in planned:
                source = launch.plan.source
                if source is None or "implicit_gemm" not in source.kernel:
                    copies += launch.nbytes / (COPY_SHARE * gpu.dram) + LAUNCH_S
                    continue
                options = (*nvrtc.OPTIONS, f"-arch={gpu.architecture}", "-Xptxas=-v")
                built = compiler.compile(source.text, source.name, options)
                registers = max(map(int, re.findall(r"Used (\d+) registers", built.log)))
                static = max(map(int, re.findall(r"(\d+) bytes smem", built.log)), default=0)
                code = codes(built.image)[source.kernel]
                taps = geometry.taps if direction != "backward_weight" else 1
                gemm, limit = gemm_time(gpu, launch, code, registers, static + launch.plan.shared_bytes, steps, taps)
                tile = " × ".join(map(str, launch.tile))
            cudnn = cudnn_time(gpu, layer, direction, batch)
            yield Row(f"{slug(layer.network)}/{layer.name}", direction, gpu.name, tile, gemm, copies, limit, cudnn)


# --- The page ---------------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row]) -> str:
    """A table for each GPU, and the geometric means."""
    text = [_HEAD]
    for gpu in dict.fromkeys(row.gpu for row in rows):
        own = [row for row in rows if row.gpu == gpu]
        text += [f"## {gpu}\n", "| layer | direction | tile | µs | of that copies | limit | cuDNN, µs | ratio |"]
        text += ["|---|---|---|--:|--:|---|--:|--:|"]
        for row in own:
            times = (
                f"{(row.gemm + row.copies) * 1e6:.0f} | {row.copies * 1e6:.0f} | {row.limit} | {row.cudnn * 1e6:.0f}"
            )
            text.append(f"| {row.layer} | {row.direction} | {row.tile} | {times} | {row.ratio:.2f} |")
        means = [f"{name} {_mean([row for row in own if row.direction == name]):.2f}" for name in DIRECTIONS]
        text += [f"\nGeometric means of the ratios: {', '.join(means)}; least {min(row.ratio for row in own):.2f}.\n"]
    return "\n".join(text)


def _mean(rows: Sequence[Row]) -> float:
    return math.exp(sum(math.log(row.ratio) for row in rows) / max(1, len(rows)))


_HEAD = """# Dense convolutions in float16 on tensor cores: a model

Predicted, not measured: no kernel has run on a GPU. `python -m benchmarks.kernel_model` compiles what each layer of the
benchmark launches, channels first, and counts: instructions of the main loop, registers and shared memory, so blocks of
a multiprocessor, and the bytes that tiles read; L1 is credited with a tile's other taps where it holds them. *Limit* is
what takes longest: tensor cores (by mma.sync, 62 % of an H100's peak), issue slots, shared memory, L2 or memory.
*Copies* change images and filters to channels last and add the parts of sums. *cuDNN* is an estimate that favours it: a
product at 75 % of the peak or 85 % of the memory's rate, and changes of layout of input and output at 85 %. The one
public measurement known is of resnet-50/conv2_3x3 on an H100: 31 µs for the product and 41 µs for the layouts. The
ratio is cuDNN's time over ours. The model does not know latencies, clocks under load, or what else runs.
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_model", description=_first(__doc__))
    parser.add_argument("--filter", action="append", default=[], metavar="WORDS", help="only layers with these words")
    parser.add_argument("--publish", action="store_true", help="replace the committed page in benchmarks/results too")
    options = parser.parse_args(arguments)
    if disassembler() is None:
        parser.error("nvdisasm is not installed: pip install nvidia-cuda-nvdisasm")
    cases = chosen(select("full", device="gpu"), options.filter)
    layers = list(dict.fromkeys(case.layer for case in cases if isinstance(case.layer, ConvLayer)))
    dense, bound = list(model(layers)), list(memory_model.model(memory_model.cases_of(options.filter)))
    page = "\n".join([*([markdown(dense)] if dense else []), *([memory_model.markdown(bound)] if bound else [])])
    print(page)
    for folder in (publishing.LOCAL, *([publishing.RESULTS] if options.publish else [])):
        folder.mkdir(parents=True, exist_ok=True)
        Path(folder, "kernel-model.md").write_text(page, encoding="utf-8")
        print(f"wrote {folder / 'kernel-model.md'}")
    return 0


def _first(text: str | None) -> str:
    return (text or "").split("\n")[0]


if __name__ == "__main__":
    raise SystemExit(main())
