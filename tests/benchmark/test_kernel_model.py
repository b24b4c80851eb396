"""The model of dense convolutions on tensor cores: its parts by hand, and a layer from source to page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks import kernel_model, publishing
from benchmarks.gpus import GPUS, LAUNCH_S, SUBPARTITIONS, Gpu
from benchmarks.kernel_model import Launch, Reads, Row, gemm_time, launches, main, markdown, reads_of
from benchmarks.sass import Code
from gpucnn.backends.cuda.device.nvrtc import Nvrtc
from gpucnn.backends.cuda.device.runtime import Device, Plan
from gpucnn.backends.cuda.device.sources import Source
from gpucnn.geometry.geometries import Channels, conv_geometry

H100 = next(gpu for gpu in GPUS if gpu.name == "H100")
READS = Reads(1000, ((1.5 * 128 * 64, 1.5 / 9),))
HALF = kernel_model.ARITHMETIC["float16"]
ROW = Row("net/conv", "forward", "H100", "64 × 128", 30e-6, 10e-6, "L2", 60e-6)


def test_what_a_block_reads() -> None:
    """Steps of 32 channels of 16 bits each; of a residue's taps on the way back, or of a fold's."""
    square = conv_geometry("conv2d", (56, 56), Channels(64, 96), 3, 1, 1, 1)
    tile = 1.5 * 128 * 64  # bytes of its positions and a halo
    assert reads_of("forward", square, 32, 2) == Reads(9 * 2, ((tile, 1.5 / 9), (tile, 1.5 / 3)))
    assert reads_of("backward_input", square, 32, 2) == Reads(9 * 3, ((tile, 1.5 / 9), (tile, 1.5 / 3)))
    strided = conv_geometry("conv2d", (56, 56), Channels(64, 96), 3, 2, 1, 1)
    assert reads_of("forward", strided, 32, 2) == Reads(9 * 2, ((4 * tile, 1.5 * 4 / 9), (2 * tile, 1.5 * 2 / 3)))
    assert reads_of("backward_input", strided, 32, 2) == Reads(9 * 3 / 4, ((tile, 1.5 * 4 / 9), (tile, 1.5 / 2)))
    stem = conv_geometry("conv2d", (224, 224), Channels(3, 64), 7, 2, 3, 1)
    assert reads_of("forward", stem, 32, 2) == Reads(8, ((tile / 2, 1.5 / 16), (tile / 2, 1.5 / 4)))  # of 12 channels
    assert reads_of("backward_input", stem, 32, 2) == Reads(25 * 2, ((4 * tile, 6 / 25), (2 * tile, 3 / 5)))
    gaps = conv_geometry("conv2d", (8, 8), Channels(64, 16), 1, 2, 0, 1)
    assert reads_of("backward_input", gaps, 1, 2).steps == 1 / 4  # three residues have no tap


def test_what_a_block_of_a_wgrad_reads() -> None:
    """A tile has 4 taps of 32 channels, of two rows of the kernel."""
    square = conv_geometry("conv2d", (56, 56), Channels(64, 128), 3, 1, 1, 1)
    held, along_w = reads_of("backward_weight", square, 32, 2).hits
    assert held == ((56 + 3) * 64, 1.5 / 4)
    assert along_w == (0, 1.5 * 2 / 4)


def test_the_time_is_that_of_what_takes_longest() -> None:
    """132 blocks of 2 warps, one on each multiprocessor: a warp on each of two schedulers."""
    source = Source("implicit_gemm", "implicit_gemm[float16,FRAGMENTS=4,WARPS_M=1,WARPS_N=2,STAGES=4]", "")
    launch = Launch(Plan(source, Device(0, "", (9, 0), 132), (132,), (64,), None, 0), nbytes=1000)
    loop = Counter({"HMMA": 64, "LDSM": 16, "IADD3": 48})
    code = Code(Counter({"HMMA.16816.F32": 64, "LDSM.16": 16, "IADD3": 148}), (loop,))
    time, limit = gemm_time(H100, launch, code, 240, 48 << 10, READS, HALF)
    assert limit == "tensor cores"
    assert time == pytest.approx((1000 * 64 * 6.4 + 100) / 1.755e9 + LAUNCH_S)
    busy = Code(code.instructions, (loop + Counter({"IADD3": 1000}),))
    assert gemm_time(H100, launch, busy, 240, 48 << 10, READS, HALF)[1] == "issue"
    assert gemm_time(H100, Launch(launch.plan, 10**9), code, 240, 48 << 10, READS, HALF)[1] == "memory"


def test_what_other_algorithms_compute_is_left_out() -> None:
    pixels = conv_geometry("conv2d", (56, 56), Channels(64, 256), 1, 1, 0, 1)
    assert launches("forward", pixels, 2, HALF) == []
    square = conv_geometry("conv2d", (56, 56), Channels(64, 64), 3, 1, 1, 1)
    kernels = [launch.kernel for launch in launches("backward_weight", square, 2, HALF)]
    assert kernels.count("implicit_gemm_backward_weight") == 1
    assert kernels.count("pack") == 3
    few = conv_geometry("conv2d", (56, 56), Channels(3, 64), 3, 1, 1, 1)
    packs = [launch.nbytes for launch in launches("forward", few, 2, HALF) if launch.kernel == "pack"]
    of_channel = [64 * 9 * 2, 2 * 56 * 56 * 2]  # filters and image: 3 channels are read, 8 written
    assert sorted(packs) == [(3 + 8) * each for each in of_channel]


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_clocks_of_an_instruction_are_those_of_the_data_sheet(gpu: Gpu) -> None:
    """Peak rates in TFLOP/s, of which mma.sync reaches 62 % on an H100."""
    rate = gpu.multiprocessors * SUBPARTITIONS * gpu.clock
    share = 0.62 if gpu.name == "H100" else 1.0
    assert 2 * 16 * 8 * 16 * rate / gpu.hmma_clocks == pytest.approx(share * gpu.peak, rel=0.05)
    assert gpu.ffma_peak == pytest.approx({"A100": 19.5e12, "H100": 59.3e12, "RTX 4090": 82.6e12}[gpu.name], rel=0.01)


def test_the_page() -> None:
    page = markdown([ROW], "float16")
    assert "| net/conv | forward | 64 × 128 | 40 | 10 | L2 | 60 | 1.50 |" in page
    assert "forward 1.50" in page


@pytest.mark.thorough
@pytest.mark.parametrize("numbers", ["float16", "fp32"])
def test_the_command(sass_compiler: Nvrtc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: str) -> None:
    monkeypatch.setattr(publishing, "LOCAL", tmp_path)
    assert main(["--filter", "resnet-50/conv5", "--numbers", numbers]) == 0
    (file,) = tmp_path.iterdir()
    page = file.read_text(encoding="utf-8")
    assert page.count("| resnet-50/conv5_3x3 |") == 3 * len(GPUS)
