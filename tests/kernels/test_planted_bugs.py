"""Bugs planted in the kernels, one at a time, each caught by the check that is meant to catch it.

The kernel as it stands passes the same call, so a report is the bug's doing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from kernel_cases import CASES, Case
from planting import planted, replaced

from gpucnn import simulator
from gpucnn.backends.cuda import CudaBackend
from gpucnn.backends.cuda.device import sources
from gpucnn.backends.cuda.device.simulator_runtime import SimulatorRuntime
from gpucnn.backends.cuda.launch import plans as launching
from gpucnn.simulator import (
    ArgumentMismatch,
    Misaligned,
    OutOfBounds,
    Race,
    ReadOnlyWrite,
    SynchronisationError,
    UndefinedBehaviour,
    UninitialisedRead,
)

pytestmark = pytest.mark.usefixtures("compiler")
WRONG = "a wrong result"


class Bug(NamedTuple):
    """In kernels/`file`, `new` stands for `old`; the call of `case` is to end in `caught`.

    A case whose name says no dtype is that of float32 and contiguous arrays.
    """

    what: str
    file: str
    case: str
    caught: Any
    old: str
    new: str


SMALL = "3-d, all different"
MANY = "many positions"
PLANES = "depthwise, aligned planes"
TURNED = "3-d, all different, float32, channels_last"
MANY_TURNED = "many positions, float32, channels_last"
GEMM = "implicit GEMM, steps of channels, float16, contiguous"

BUGS = [
    # --- borders --------------------------------------------------------------------------------------------------
    Bug("no left border", "windows.cuh", f"forward, {SMALL}",
        OutOfBounds, "return i >= 0 && i < size;", "return i < size;"),
    Bug("no right border", "windows.cuh", f"forward, {MANY}",
        OutOfBounds, "return i >= 0 && i < size;", "return i >= 0;"),
    Bug("right border one too far", "windows.cuh", f"forward, {MANY}",
        OutOfBounds, "return i >= 0 && i < size;", "return i >= 0 && i <= size;"),
    Bug("left border one too near", "windows.cuh", f"forward, {MANY}",
        WRONG, "return i >= 0 && i < size;", "return i > 0 && i < size;"),
    Bug("taps before the image counted", "windows.cuh", "average, ceil mode",
        WRONG, "start < 0 ? ceil_div(-start, dilation) : 0", "0"),
    Bug("taps behind the image counted", "windows.cuh", "average, ceil mode",
        WRONG, "(size - 1 - start) / dilation + 1)", "(size - start) / dilation + 1)"),
    Bug("no upper border", "im2col.cu", f"im2col, {MANY_TURNED}",
        OutOfBounds, "h >= 0 && h < p.h", "h >= 0"),
    Bug("no lower border", "im2col.cu", f"im2col, {TURNED}",
        OutOfBounds, "h >= 0 && h < p.h", "h < p.h"),
    Bug("the border read as inside", "im2col.cu", f"im2col, {TURNED}",
        WRONG, "w >= 0 && w < p.w", "w >= 0 && w <= p.w"),
    Bug("rows that begin where those before them end", "unfolding.cuh", "im2col, a tile and one",
        WRONG, "    w = p.low_w;\n    ++h;", "    w = 0;\n    ++h;"),
    Bug("positions that run on into the next row", "unfolding.cuh", f"im2col, {SMALL}",
        OutOfBounds, "place += p.stride_h * p.pitch - p.ow * p.stride_w", "place += p.stride_h * p.pitch"),
    Bug("packs from anywhere", "packs.cuh", f"im2col, {SMALL}",
        Misaligned, "-offset & (BORDER - 1)", "0"),
    Bug("one thread too many", "conv_forward.cu", f"forward, {SMALL}",
        OutOfBounds, "i < count;", "i <= count;"),
    Bug("an output past the last", "conv_backward_input.cu", f"backward input, {SMALL}",
        OutOfBounds, "!is_inside(ow, p.ow)", "ow < 0"),
    Bug("an output before the first", "conv_backward_input.cu", f"backward input, {SMALL}",
        OutOfBounds, "!is_inside(ow, p.ow)", "ow >= p.ow"),
    Bug("a tap past the last", "conv_backward_input.cu", "backward input, residues without taps",
        (OutOfBounds, UndefinedBehaviour), "kh < p.kh && ", ""),
    Bug("the last part of a split sum runs over", "conv_backward_weight.cu", f"backward weight, {SMALL}",
        OutOfBounds, "least(begin + p.run, p.n * p.od * p.oh * p.ow)", "begin + p.run + 1"),
    Bug("an index beyond the band not looked at", "unpool.cu", "unpool, bands of rows",
        (OutOfBounds, Race), "if (place >= share.first && place < share.last &&", "if (place >= share.first &&"),
    # --- indices --------------------------------------------------------------------------------------------------
    Bug("a run that goes on in the next row", "tiles.cuh", "max backward, parts of slices, float32, channels_last",
        Race, "start += e / patch.run * patch.run_pitch;", "start += e / patch.run * patch.run;"),
    Bug("a part of a row that claims for the next", "unpool.cu", "unpool, bands of rows, float32, channels_last",
        WRONG, "row_place >= share.row_first && row_place < share.row_last", "row_place >= share.row_first"),
    Bug("wrong stride residue", "windows.cuh", f"backward input, {SMALL}",
        WRONG, "(shift - k * dilation) % stride != 0", "(shift + k * dilation) % stride != 0"),
    Bug("residues that no tap meets read", "windows.cuh", "backward input, residues without taps",
        WRONG, ": Readers{kernel, 0};", ": Readers{0, 0};"),
    Bug("residues of two axes swapped", "windows.cuh", f"backward input, {SMALL}",
        WRONG, "residue % p.residues_w", "residue % p.residues_h"),
    Bug("every group reads the first", "conv_forward.cu", f"forward, {SMALL}",
        WRONG, "o.c / p.oc_group * p.c_group", "0"),
    Bug("strides of two axes swapped", "conv_forward.cu", f"forward, {SMALL}",
        WRONG, "d * p.x_d", "d * p.x_h"),
    Bug("the filter turned", "conv_backward_input.cu", f"backward input, {SMALL}",
        WRONG, "kh * p.w_kh", "(p.kh - 1 - kh) * p.w_kh"),
    Bug("taps of one column transposed", "col2im.cu", f"col2im, {SMALL}",
        WRONG, "* p.kh + tap.h) * p.kw + tap.w", "* p.kw + tap.w) * p.kh + tap.h"),
    Bug("channels last forgotten", "common.cuh", "forward, 3-d, all different, float32, channels_last",
        OutOfBounds, "  if (channels_last) at.c", "  if (false) at.c"),
    Bug("ties go to the last", "max_pool.cu", f"max with indices, {SMALL}",
        WRONG, "next.value > best.value", "next.value >= best.value"),
    Bug("NaN is lost", "max_pool.cu", f"max with indices, {SMALL}",
        WRONG, " | is_nan | ", " | "),
    Bug("padding in the divisor", "pooling.cuh", "average, ceil mode",
        WRONG, "divides == DIVIDES_VALID || axis.adaptive", "axis.adaptive"),
    Bug("an adaptive window rounded down", "pooling.cuh", "average, adaptive",
        WRONG, "(i + 1) * total + parts - 1, parts", "(i + 1) * total, parts"),
    Bug("padding read as its neighbour", "depthwise.cuh", f"forward, {PLANES}",
        WRONG, "0u - static_cast<unsigned>(has)", "~0u"),
    Bug("a pack past the image", "depthwise.cuh", "forward, depthwise, a long signal, unaligned",
        OutOfBounds, "at + PACK <= s.image", "at < s.image"),
    Bug("a tile without its halo", "depthwise.cuh", "forward, depthwise, bands of rows",
        WRONG, "(outputs.last - 1) * stride + (kernel - 1) * dilation - low + 1)",
        "(outputs.last - 1) * stride - low + 1)"),
    Bug("the filter turned, depthwise", "depthwise_backward_input.cu", f"backward input, {PLANES}",
        WRONG, "const index_t oh = last_oh - r * p.output_step_h;",
        "const index_t oh = last_oh - (ROWS + TAPS - 2 - r) * p.output_step_h;"),
    Bug("neighbouring lanes not added", "depthwise_backward_weight.cu", f"backward weight, {PLANES}",
        WRONG, "offset >= p.vectors", "offset > p.vectors"),
    # --- races ----------------------------------------------------------------------------------------------------
    Bug("no barrier after staging", "depthwise_forward.cu", f"forward, {PLANES}",
        (Race, UninitialisedRead), "place.channels, inputs);\n    __syncthreads();", "place.channels, inputs);"),
    Bug("no barrier before the results are written", "depthwise_backward_input.cu", f"backward input, {PLANES}",
        (Race, UninitialisedRead), "    __syncthreads();\n    if (!p.channels_last)", "    if (!p.channels_last)"),
    Bug("no barrier before the sum", "common.cuh", f"backward weight, {MANY}",
        (Race, UninitialisedRead), "  scratch[thread] = value;\n  __syncthreads();", "  scratch[thread] = value;"),
    Bug("no barrier between the halves", "common.cuh", f"backward weight, {MANY}",
        Race, "scratch[thread + half];\n    __syncthreads();", "scratch[thread + half];"),
    Bug("scratch written before all have read it", "norm_tiles.cuh", "statistics, batch",
        Race, "  }\n  __syncthreads();  // no thread may", "  }\n  // no thread may"),
    Bug("sums of a row written before all have read others", "norm_rows.cuh", "statistics, layer, rows of two warps",
        Race, "  if (of_row > 1) __syncthreads();  // no thread may", "  // no thread may"),
    Bug("a block's rows added out of turn", "norm_rows_backward.cu", "affine, layer, aligned",
        (Race, UninitialisedRead), "    }\n    __syncthreads();\n  }\n}\n", "    }\n  }\n  __syncthreads();\n}\n"),
    Bug("a tile read before it is whole", "pack.cu", "pack, whole tiles, float32, contiguous to float32, channels last",
        (Race, UninitialisedRead), "  __syncthreads();\n\n", "\n"),
    Bug("taps that meet the same inputs at once", "col2im.cu", f"col2im, {MANY}",
        Race, "        __syncthreads();\n      }", "      }"),
    Bug("inputs unfolded before they are there", "im2col.cu", f"im2col, {MANY}",
        (Race, UninitialisedRead), "  __syncthreads();\n\n", "\n"),
    Bug("every thread writes the sum", "conv_backward_weight.cu", f"backward weight, {MANY}",
        Race, "if (threadIdx.x == 0) parts", "parts"),
    Bug("blocks scatter without atomics", "col2im.cu", f"col2im, {MANY}",
        Race, "store_pack(x + rows.offset + k, pack);", "store_pack(x + k, pack);"),
    Bug("a claim that is not atomic", "unpool.cu", "unpool",
        Race,
        "atomicMax(owners + (plane * plane_places + order_of(places, index)) * p.inner + c, static_cast<int>(v));",
        "owners[(plane * plane_places + order_of(places, index)) * p.inner + c] = static_cast<int>(v);"),
    # --- synchronisation, memory, types ---------------------------------------------------------------------------
    Bug("a barrier that some do not reach", "conv_backward_weight.cu", "backward weight, 1-d, wide stride",
        SynchronisationError, "  acc_t sum = {};",
        "  acc_t sum = {};\n  if (begin + static_cast<index_t>(threadIdx.x) >= end) return;"),
    Bug("a barrier for half of the threads", "common.cuh", f"backward weight, {MANY}",
        (SynchronisationError, Race), "+ scratch[thread + half];\n    __syncthreads();",
        "+ scratch[thread + half];\n    if (thread < half) __syncthreads();"),
    Bug("scratch too small", "conv_backward_weight.cu", f"backward weight, {MANY}",
        OutOfBounds, "__shared__ acc_t scratch[128];", "__shared__ acc_t scratch[64];"),
    Bug("a tile filled one place off", "pack.cu", "forward, many positions, float32, im2col, channels_last",
        UninitialisedRead, "tile[skewed<scalar_t>(o * p.pitch + i)] = pack.at[j]",
        "tile[skewed<scalar_t>(o * p.pitch + i + 1)] = pack.at[j]"),
    Bug("scratch read before it is written", "common.cuh", f"backward weight, {MANY}",
        UninitialisedRead, "  scratch[thread] = value;\n", "  if (thread < 16) scratch[thread] = value;\n"),
    Bug("a result read before it is written", "sum_splits.cu", f"backward weight, {MANY}",
        WRONG, "  acc_t sums[PACK] = {};", "  acc_t sums[PACK] = {widen(total[i])};"),
    Bug("a write to an input", "im2col.cu", f"im2col, {TURNED}",
        ReadOnlyWrite, "      scalar_t value = {};",
        "      scalar_t value = {};\n      const_cast<scalar_t*>(x)[0] = value;"),
    Bug("a bias that is not there", "conv_forward.cu", f"forward without bias, {SMALL}",
        OutOfBounds, "  if (bias) sum", "  sum"),
    Bug("four values at once from anywhere", "im2col.cu", f"im2col, {TURNED}",
        Misaligned, "value = x[", "value = reinterpret_cast<const float4*>(x + w)->x + x["),
    Bug("a product that does not fit", "conv_forward.cu", f"forward, {SMALL}",
        UndefinedBehaviour, "index_t i = thread_index();", "index_t i = thread_index() * 0x4000000 / 0x4000000;"),
    Bug("a share of nothing", "pooling.cuh", "average, adaptive",
        UndefinedBehaviour, "quotient(i * total, parts)", "quotient(i * total, parts - parts)"),
    # --- Winograd's filtering ---------------------------------------------------------------------------------------
    Bug("tiles beyond the last", "winograd_input.cu", "forward, Winograd, tiles beyond the last",
        Race, "tw0 + tile >= p.tiles_w ||", ""),  # with the first tiles of the next row
    Bug("inputs read before they are there", "winograd_input.cu", "forward, Winograd, uneven padding",
        UninitialisedRead, "  __syncthreads();\n\n  for (int tile", "\n  for (int tile"),
    Bug("filters that are not flipped", "winograd_filters.cu", "backward input, Winograd, uneven padding",
        WRONG, "k / 3 * p.w_h + k % 3 * p.w_w", "k % 3 * p.w_h + k / 3 * p.w_w"),
    # --- implicit GEMM --------------------------------------------------------------------------------------------
    Bug("a step multiplied before its copies land", "gemm.cuh", f"forward, {GEMM}",
        UninitialisedRead, "wait<STAGES - 2>", "wait<STAGES - 1>"),
    Bug("a step multiplied before others' copies land", "gemm.cuh", f"forward, {GEMM}",
        UninitialisedRead, "      __syncthreads();\n      copy(", "      copy("),
    Bug("matrices of a fragment in the other order", "implicit_gemm.cu", f"forward, {GEMM}",
        WRONG, "half * 2 + lane / 8 % 2", "half * 2 + lane / 16"),
    Bug("channels beyond the last", "implicit_gemm.cu", f"forward, {GEMM}",
        OutOfBounds, "kd < tile.d.taps && chunk < p.chunks", "kd < tile.d.taps"),
    Bug("taps beyond the last", "implicit_gemm.cu", "forward, implicit GEMM, four taps at once, float16, contiguous",
        OutOfBounds, "kd < tile.d.taps && chunk < p.chunks", "chunk < p.chunks"),
    Bug("rows beyond the last", "implicit_gemm.cu", f"forward, {GEMM}",
        OutOfBounds, "p.rows % TILE_M == 0 ||", "true ||"),
    Bug("positions beyond the last", "implicit_gemm.cu", f"forward, {GEMM}",
        OutOfBounds, "at.n >= p.n ||", ""),
    Bug("a residue's first tap for all", "implicit_gemm.cu",
        "backward input, implicit GEMM, residues without taps, float16, contiguous",
        WRONG, "first.k, (kernel - first.k", "0, (kernel - first.k"),
    Bug("blocks that begin with the image", "implicit_gemm.cu",
        "backward input, implicit GEMM, blocks that begin before the image, float16, contiguous",
        WRONG, "return {-cut, fold,", "return {0, fold,"),
    Bug("positions before the image", "implicit_gemm.cu",
        "backward input, implicit GEMM, blocks that begin before the image, float16, contiguous",
        OutOfBounds, "!is_inside(h, p.oh) || !is_inside(w, p.ow)", "h >= p.oh || w >= p.ow"),
    Bug("a bias per row", "implicit_gemm.cu",
        "transposed, implicit GEMM, blocks of several strides, float16, contiguous",
        OutOfBounds, "p).c * p.bias_c", "p).c * p.bias_c + row"),
    Bug("a part's positions run into the next", "implicit_gemm_backward_weight.cu", f"backward weight, {GEMM}",
        OutOfBounds, "exists = number < tile.end;", "exists = true;"),
    Bug("places of several steps in one room", "implicit_gemm_backward_weight.cu", f"backward weight, {GEMM}",
        Race, "place(places[s], s, tile, p)", "place(places[0], s, tile, p)"),
    Bug("one block of channels for all", "implicit_gemm_backward_weight.cu",
        "backward weight, implicit GEMM, blocks of channels, float16, contiguous",
        WRONG, "column / block_length * p.chunks_at_once + ", ""),
    Bug("halves not exchanged", "implicit_gemm_backward_weight.cu", f"backward weight, {GEMM}",
        WRONG, "is_upper ? own[2] : own[0], 1", "is_upper ? own[0] : own[2], 1"),
]  # fmt: skip


def case_named(name: str) -> Case:
    (case,) = (case for case in CASES if case.name in (name, f"{name}, float32, contiguous"))
    return case


def simulated(case: Case, backend: CudaBackend) -> tuple[np.ndarray[Any, Any], ...]:
    return tuple(simulator.asnumpy(result) for result in case.run(backend, simulator.asarray))


def test_there_are_enough_of_different_kinds() -> None:
    assert len(BUGS) >= 25
    assert len({bug.what for bug in BUGS}) == len(BUGS)
    assert len({str(bug.caught) for bug in BUGS}) >= 8


@pytest.mark.table(2)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.what)
def test_a_planted_bug_is_caught(bug: Bug) -> None:
    case = case_named(bug.case)
    assert case.agrees(simulated(case, CudaBackend(SimulatorRuntime())))
    with planted(bug.file, replaced(bug.file, bug.old, bug.new)) as backend:
        if bug.caught is WRONG:
            assert not case.agrees(simulated(case, backend))
            return
        with pytest.raises(bug.caught) as caught:
            simulated(case, backend)
    assert ".cu" in str(caught.value)  # it says where


def test_a_forgotten_index_type_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program counts in 64 bits, the host packs 32: the structure has another size."""
    source = sources.source
    monkeypatch.setattr(launching, "source", lambda kernel, dtype, wide, *others: source(kernel, dtype, True, *others))
    with pytest.raises(ArgumentMismatch):
        simulated(case_named(f"im2col, {SMALL}"), CudaBackend(SimulatorRuntime()))


def test_arrays_in_the_wrong_places_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_named(f"im2col, {SMALL}")
    packed = sources.Structure.packed
    monkeypatch.setattr(sources.Structure, "packed", lambda *given: np.int32(packed(*given).nbytes))
    with pytest.raises(ArgumentMismatch):
        simulated(case, CudaBackend(SimulatorRuntime()))
