"""``python -m benchmarks.kernel_model``: the time that dense convolutions should take as an implicit GEMM.

With ``--memory``, the kernels that memory should limit: see `benchmarks.memory_model`.

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
from gpucnn.backends.cuda.convolution import implicit_gemm, winograd
from gpucnn.backends.cuda.convolution.folding import Fold, OutputFold, fold_of_gradient, fold_of_input, fold_of_output
from gpucnn.backends.cuda.convolution.select import algorithm
from gpucnn.backends.cuda.device import nvrtc
from gpucnn.backends.cuda.device.runtime import MAX_BYTES, Plan
from gpucnn.backends.cuda.device.simulator_runtime import SimulatorRuntime
from gpucnn.backends.cuda.launch.dry_run import DryRun
from gpucnn.backends.cuda.launch.plans import layout
from gpucnn.backends.listening import listening
from gpucnn.geometry import Axis, ConvGeometry
from gpucnn.geometry.geometries import Channels, conv_geometry
from gpucnn.numerics import precision

DIRECTIONS = ("forward", "backward_input", "backward_weight")
_TURNED = {"forward": "backward_input", "backward_input": "forward"}  # of a transposed convolution
PEAK_SHARE = 0.75  # of the arithmetic peak that cuBLAS and cuDNN reach
_HALO = 1.5  # positions that the taps of a tile's read, over those of the tile


@dataclass(frozen=True)
class Arithmetic:
    """What is multiplied, at which precision of float32, and by which instruction."""

    name: str
    dtype: str
    precision: str
    opcode: str

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return np.dtype(self.dtype).itemsize

    def clocks(self, gpu: Gpu) -> float:
        """Clocks of a subpartition for one instruction."""
        return gpu.ffma_clocks if self.opcode == "FFMA" else gpu.hmma_clocks

    def peak(self, gpu: Gpu) -> float:
        """Operations a second of the library to compare with, which has no three products of TF32."""
        return {"float16": gpu.peak, "tf32": gpu.peak / 2}.get(self.name, gpu.ffma_peak)


ARITHMETIC = {
    each.name: each
    for each in (
        Arithmetic("float16", "float16", "fp32", "HMMA"),
        Arithmetic("tf32", "float32", "tf32", "HMMA"),
        Arithmetic("fp32", "float32", "fp32", "FFMA"),
        Arithmetic("fp32x3", "float32", "fp32x3", "HMMA"),
    )
}


@dataclass(frozen=True)
class Launch:
    """A planned launch and the bytes of its arrays."""

    plan: Plan
    nbytes: int

    @property
    def kernel(self) -> str:
        """The kernel's name; empty of a library's product."""
        return "" if self.plan.source is None else self.plan.source.kernel

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
        source = plan.source
        is_repair = source is not None and "LEAVES_FINITE=1" in source.name  # of results that are hardly ever there
        nbytes = 0 if is_repair else sum(array.nbytes for array in arrays if array is not None)
        self.launches.append(Launch(plan, nbytes))
        return False


def geometry_of(layer: ConvLayer) -> ConvGeometry:
    """That of the convolution which the layer, or a transposed one, is."""
    each = layer.untransposed
    padding = tuple(zip(each.padding, each.padding, strict=True))
    channels = Channels(each.channels, each.out_channels, each.groups)
    return conv_geometry("conv", each.size, channels, each.kernel, each.stride, padding, each.dilation)


def launches(direction: str, geometry: ConvGeometry, batch: int, of: Arithmetic) -> list[Launch]:
    """What images of `batch`, channels first, launch; empty where another algorithm computes the layer."""
    runtime = SimulatorRuntime()
    runtime.specialises = True
    dry = _Collector(runtime)
    inputs, outputs, groups = geometry.channels
    x, y = (
        dry.xp.empty((batch, channels, *size), of.dtype)
        for channels, size in ((inputs, geometry.input_size), (outputs, geometry.output_size))
    )
    w = dry.xp.empty((outputs, inputs // groups, *geometry.kernel_size), of.dtype)
    chosen = algorithm(direction, geometry, of.dtype, layout(x), layout(y), (8, 0))
    if chosen not in ("implicit_gemm", "winograd"):
        return []
    by = winograd if chosen == "winograd" else implicit_gemm
    with listening(dry):
        if direction == "forward":
            by.forward(runtime, x, w, None, y, geometry)
        elif direction == "backward_input":
            by.backward_input(runtime, y, w, None, x, geometry)
        else:
            implicit_gemm.backward_weight(runtime, x, y, w, geometry)
    return dry.launches


# --- Times ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reads:
    """What the blocks of an implicit GEMM read: of residues with different numbers of taps their mean.

    L1 holds the inputs of all taps of a tile, or those of its taps along w, or none.
    """

    steps: float  # of a block's main loop
    hits: tuple[tuple[float, float], ...]  # bytes of L1 for each block, and the share of x that is then read from L2


def winograd_reads(direction: str, geometry: ConvGeometry, itemsize: int) -> Reads:
    """That of a product of transformed images, without taps."""
    inputs, outputs, _ = geometry.channels
    depth = implicit_gemm.padded_depth(inputs if direction == "forward" else outputs, itemsize)
    return Reads(implicit_gemm.gemm_steps(1, depth, itemsize), ())


def reads_of(direction: str, geometry: ConvGeometry, batch: int, itemsize: int, terms: int = 1) -> Reads:
    """That of a layer's direction, as it is folded."""
    fold: Fold | OutputFold | None = fold_of_gradient(geometry)
    if direction != "backward_input":
        folded = fold_of_input(geometry, itemsize)
        geometry = geometry if folded is None else folded.convolution
        is_weight = direction == "backward_weight"
        fold = implicit_gemm.fold_of_weight(geometry, itemsize) if is_weight else fold_of_output(geometry)
        geometry = fold.convolution if is_weight and fold is not None else geometry
    inputs, outputs, groups = geometry.channels
    depth = implicit_gemm.padded_depth((outputs if direction == "backward_input" else inputs) // groups, itemsize)
    if direction == "backward_weight":
        run = implicit_gemm.split_positions(batch, depth, itemsize, geometry, terms)[1]
        return _weight_reads(run * itemsize / implicit_gemm.STEP_BYTES, geometry, itemsize, terms)
    taps, taps_w, strides = [geometry.taps], geometry.axes[2].kernel, [axis.stride for axis in geometry.axes]
    if fold is not None:
        taps, taps_w, strides = [fold.taps], fold.lines[2].taps, [line.stride for line in fold.lines]
    elif direction == "backward_input":
        taps = [math.prod(each) for each in product(*map(_taps_of_residues, geometry.axes))]
        taps_w, strides = -(-taps_w // strides[2]), [1]
    steps = sum(implicit_gemm.gemm_steps(each, depth, itemsize) for each in taps) / len(taps)
    run = implicit_gemm.chunks_at_once(depth * itemsize // MAX_BYTES) * MAX_BYTES
    positions = _HALO * implicit_gemm.TILES[0].columns
    hits = [
        (positions * step * run, _HALO * step / max(1.0, count))
        for step, count in ((math.prod(strides), sum(taps) / len(taps)), (strides[-1], taps_w))
    ]
    return Reads(steps, tuple(hits))


def _weight_reads(steps: float, geometry: ConvGeometry, itemsize: int, terms: int) -> Reads:
    """That of a wgrad: a tile's taps of one block of channels; those along w follow each other in one step."""
    (inputs, outputs, groups), (_, axis_h, axis_w) = geometry.channels, geometry.axes
    block = implicit_gemm.weight_chunks(inputs // groups, itemsize) * MAX_BYTES
    columns = implicit_gemm.weight_tile(outputs // groups, terms).columns * itemsize
    taps = max(1, min(axis_h.kernel * axis_w.kernel, columns // block))
    rows = -(-taps // axis_w.kernel)
    window = (rows - 1) * axis_h.dilation * axis_w.size + axis_w.kernel * axis_w.dilation
    along_w = _HALO * rows * axis_w.stride / taps
    return Reads(steps, ((window * block, _HALO * axis_h.stride * axis_w.stride / taps), (0, along_w)))


def _taps_of_residues(axis: Axis) -> list[int]:
    """The number of taps of each residue modulo the stride."""
    found = [len(residue.kernel_indices) for residue in axis.backward]
    return found + [0] * (min(axis.stride, axis.size) - len(found))


def gemm_time(
    gpu: Gpu, launch: Launch, code: Code, registers: int, shared: int, reads: Reads, of: Arithmetic
) -> tuple[float, str]:
    """The time of an implicit GEMM and what limits it; a tile's other taps hit L1 where that holds their inputs."""
    (blocks,), (threads,), steps = launch.plan.grid, launch.plan.block, reads.steps
    warps, loop = threads // 32, code.main_loop(of.opcode)
    if loop is None:  # of so few steps that the compiler unrolled them
        loop, steps = code.opcodes, 1.0
    resident = min(65_536 // (math.ceil(registers / 8) * 8 * threads), gpu.shared // (shared + 1024), 2048 // threads)
    on_one = math.ceil(blocks / gpu.multiprocessors)
    clocks: Counter[str] = Counter()
    for together in [resident] * (on_one // resident) + [on_one % resident]:
        running = math.ceil(together * warps / SUBPARTITIONS)  # warps of a subpartition
        clocks[_UNITS[of.opcode]] += math.ceil(steps * running * loop[of.opcode] * of.clocks(gpu))
        clocks["issue"] += math.ceil(steps * running * loop.total())
        clocks["shared memory"] += math.ceil(steps * together * warps * _shared_clocks(loop))
        clocks["outside of the loop"] += running * (sum(code.instructions.values()) - loop.total())
    outside = clocks.pop("outside of the loop") / gpu.clock
    times = {name: count / gpu.clock + outside for name, count in clocks.items()}
    rows, columns = launch.tile
    running = min(resident, on_one)
    left = gpu.l1 - running * (shared + 1024)
    again = min((1.0, *(share for held, share in reads.hits if running * held <= left)))
    times["L2"] = blocks * steps * (rows + again * columns) * implicit_gemm.STEP_BYTES / gpu.l2
    times["memory"] = launch.nbytes / (COPY_SHARE * gpu.dram)
    limit = max(times, key=lambda name: times[name])
    return times[limit] + LAUNCH_S, limit


_UNITS = {"HMMA": "tensor cores", "FFMA": "multipliers"}


def _shared_clocks(loop: Counter[str]) -> int:
    """Clocks of shared memory, of 128 bytes, for what a warp reads and its copies write; lanes share what LDS reads."""
    return 4 * loop["LDSM"] + 4 * loop["LDGSTS"] + loop["LDS"] + loop["STS"]


def cudnn_time(gpu: Gpu, layer: ConvLayer, direction: str, batch: int, of: Arithmetic) -> float:
    """An estimate for channels first: a product at cuBLAS's share of the peak, on tensor cores between changes of
    layout.
    """
    kernel = max(
        layer.flops(direction, batch) / (PEAK_SHARE * of.peak(gpu)),
        layer.least_bytes(direction, batch, of.itemsize) / (COPY_SHARE * gpu.dram),
    )
    if of.peak(gpu) == gpu.ffma_peak:
        return kernel + LAUNCH_S
    images = sum(math.prod(shape) for shape in (layer.input_shape(batch), layer.output_shape(batch)))
    return kernel + 2 * of.itemsize * images / (COPY_SHARE * gpu.dram) + 3 * LAUNCH_S


def model(layers: Sequence[ConvLayer], of: Arithmetic) -> Iterator[Row]:
    """The rows of all layers that run as an implicit GEMM, by direction and GPU."""
    compiler = nvrtc.load()
    for layer, direction in product(layers, DIRECTIONS):
        geometry, batch = geometry_of(layer), layer.batch("gpu")
        way = _TURNED.get(direction, direction) if layer.transposed else direction
        with precision(of.precision):
            planned, terms = launches(way, geometry, batch, of), implicit_gemm.terms(np.dtype(of.dtype))
        transforms = [launch for launch in planned if launch.kernel.startswith("winograd")]
        reads = reads_of(way, geometry, batch, of.itemsize, terms)
        if transforms:
            reads = winograd_reads(way, geometry, of.itemsize)
        for gpu in GPUS if planned else ():
            copies, gemm, limit, tile = 0.0, 0.0, "", ""
            for launch in planned:
                plan = launch.plan
                source = plan.source
                if source is None or "implicit_gemm" not in source.kernel:
                    copies += launch.nbytes / (COPY_SHARE * gpu.dram) + LAUNCH_S
                    continue
                options = (*nvrtc.OPTIONS, f"-arch={gpu.architecture}", "-Xptxas=-v")
                built = compiler.compile(source.text, source.name, options)
                registers = max(map(int, re.findall(r"Used (\d+) registers", built.log)))
                static = max(map(int, re.findall(r"(\d+) bytes smem", built.log)), default=0)
                code = codes(built.image)[source.kernel]
                time, limit = gemm_time(gpu, launch, code, registers, static + plan.shared_bytes, reads, of)
                gemm += time
                tile = ("Winograd, " if transforms else "") + " × ".join(map(str, launch.tile))
            cudnn = cudnn_time(gpu, layer, direction, batch, of)
            yield Row(f"{slug(layer.network)}/{layer.name}", direction, gpu.name, tile, gemm, copies, limit, cudnn)


# --- The page ---------------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row], name: str) -> str:
    """A table for each GPU, and the geometric means."""
    text = [_HEAD.format(name=name)]
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


_HEAD = """# Dense convolutions in {name} as an implicit GEMM: a model

Predicted, not measured: no kernel has run on a GPU. `python -m benchmarks.kernel_model --numbers {name}` compiles what
each layer of the benchmark launches, channels first, and counts: instructions of the main loop, registers and shared
memory, so blocks of a multiprocessor, and the bytes that tiles read; L1 is credited with a tile's other taps where it
holds them. *Limit* is what takes longest: tensor cores (by mma.sync, 62 % of an H100's peak) or multipliers of float32,
issue slots, shared memory, L2 or memory. *Copies* change images and filters to channels last and fill these up with
zeros, or transform them for Winograd's filtering, and add the parts of sums. *cuDNN* is an estimate that favours it: a
product at 75 % of the peak or 85 % of the memory's rate, and on tensor cores changes of layout of input and output at
85 %; it is not credited with Winograd's filtering. The one public measurement known is of resnet-50/conv2_3x3 in 16
bits on an H100: 31 µs for the product and 41 µs for the layouts. The ratio is cuDNN's time over ours. The model does
not know latencies, clocks under load, or what else runs.

What keeps ratios below 1 on an H100: a product by mma.sync takes at least 1.2 times the estimate's; 7 × 7 images in
batches of 32 are fewer tiles than there are multiprocessors, which the estimate leaves out; a wgrad copies both images
and adds parts, each by a launch of 2 µs at least; the gradient of a stem's input reads that of its output 2 to 6 times,
from L2.
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_model", description=_first(__doc__))
    parser.add_argument("--filter", action="append", default=[], metavar="WORDS", help="only layers with these words")
    parser.add_argument("--numbers", choices=ARITHMETIC, default="float16", help="a dtype, or a precision of float32")
    parser.add_argument("--memory", action="store_true", help="the kernels that memory should limit instead")
    parser.add_argument("--publish", action="store_true", help="replace the committed page in benchmarks/results too")
    options = parser.parse_args(arguments)
    if disassembler() is None:
        parser.error("nvdisasm is not installed: pip install nvidia-cuda-nvdisasm")
    cases = chosen(select("full", device="gpu"), options.filter)
    if options.memory:
        name, page = (
            "kernel-model-memory.md",
            memory_model.markdown(list(memory_model.model(memory_model.cases_of(options.filter)))),
        )
    else:
        layers = list(dict.fromkeys(case.layer for case in cases if isinstance(case.layer, ConvLayer)))
        name = "kernel-model.md" if options.numbers == "float16" else f"kernel-model-{options.numbers}.md"
        page = markdown(list(model(layers, ARITHMETIC[options.numbers])), options.numbers)
    print(page)
    for folder in (publishing.LOCAL, *([publishing.RESULTS] if options.publish else [])):
        folder.mkdir(parents=True, exist_ok=True)
        Path(folder, name).write_text(page, encoding="utf-8")
        print(f"wrote {folder / name}")
    return 0


def _first(text: str | None) -> str:
    return (text or "").split("\n")[0]


if __name__ == "__main__":
    raise SystemExit(main())
