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

pytestmark = pytest.mark.usefixtures("compiler")
WRONG = "a wrong result"


class Bug(NamedTuple):
    """In kernels/`file`, `new` stands for `old`; the call of `case` is to end in `caught`."""

    what: str
    file: str
    old: str
    new: str
    case: str
    caught: Any


SMALL = "3-d, all different, float32, contiguous"
MANY = "many positions, float32, contiguous"
PLANES = "depthwise, aligned planes, float32, contiguous"
TURNED = "3-d, all different, float32, channels_last"
MANY_TURNED = "many positions, float32, channels_last"

BUGS = [
    # --- borders --------------------------------------------------------------------------------------------------
    Bug(
        "no left border",
        "windows.cuh",
        "start < 0 ? ceil_div(-start, dilation) : 0",
        "0",
        f"forward, {SMALL}",
        simulator.OutOfBounds,
    ),
    Bug(
        "no right border",
        "windows.cuh",
        "start < size ? least(kernel, (size - 1 - start) / dilation + 1) : 0",
        "kernel",
        f"forward, {MANY}",
        simulator.OutOfBounds,
    ),
    Bug(
        "right border one too far",
        "windows.cuh",
        "(size - 1 - start) / dilation + 1)",
        "(size - start) / dilation + 1)",
        f"forward, {MANY}",
        simulator.OutOfBounds,
    ),
    Bug(
        "left border one too near",
        "windows.cuh",
        "ceil_div(-start, dilation) : 0",
        "ceil_div(1 - start, dilation) : 0",
        f"forward, {MANY}",
        WRONG,
    ),
    Bug("no upper border", "im2col.cu", "h >= 0 && h < p.h", "h >= 0", f"im2col, {MANY_TURNED}", simulator.OutOfBounds),
    Bug("no lower border", "im2col.cu", "h >= 0 && h < p.h", "h < p.h", f"im2col, {TURNED}", simulator.OutOfBounds),
    Bug(
        "the border read as inside", "im2col.cu", "w >= 0 && w < p.w", "w >= 0 && w <= p.w", f"im2col, {TURNED}", WRONG
    ),
    Bug(
        "rows that begin where those before them end",
        "unfolding.cuh",
        "    w = p.low_w;\n    ++h;",
        "    w = 0;\n    ++h;",
        "im2col, a tile and one, float32, contiguous",
        WRONG,
    ),
    Bug(
        "positions that run on into the next row",
        "unfolding.cuh",
        "place += p.stride_h * p.pitch - p.ow * p.stride_w",
        "place += p.stride_h * p.pitch",
        f"im2col, {SMALL}",
        simulator.OutOfBounds,
    ),
    Bug(
        "packs from anywhere",
        "packs.cuh",
        "-offset & (BORDER - 1)",
        "0",
        f"im2col, {SMALL}",
        simulator.Misaligned,
    ),
    Bug(
        "one thread too many",
        "conv_forward.cu",
        "if (i >= p.n",
        "if (i > p.n",
        f"forward, {SMALL}",
        simulator.OutOfBounds,
    ),
    Bug(
        "an output past the last",
        "windows.cuh",
        "if (o >= out) {",
        "if (o > out) {",
        f"backward input, {SMALL}",
        simulator.OutOfBounds,
    ),
    Bug(
        "an output before the first",
        "windows.cuh",
        "least((kernel - 1 - k) / tap_step, o / output_step) + 1",
        "(kernel - 1 - k) / tap_step + 1",
        f"backward input, {SMALL}",
        simulator.OutOfBounds,
    ),
    Bug(
        "the last part of a split sum runs over",
        "conv_backward_weight.cu",
        "least(begin + p.run, p.n * p.od * p.oh * p.ow)",
        "begin + p.run + 1",
        f"backward weight, {SMALL}",
        simulator.OutOfBounds,
    ),
    Bug(
        "an index beyond the band not looked at",
        "unpool.cu",
        "if (place >= share.first && place < share.last &&",
        "if (place >= share.first &&",
        "unpool, bands of rows, float32, contiguous",
        (simulator.OutOfBounds, simulator.Race),
    ),
    # --- indices --------------------------------------------------------------------------------------------------
    Bug(
        "a run that goes on in the next row",
        "tiles.cuh",
        "start += e / patch.run * patch.run_pitch;",
        "start += e / patch.run * patch.run;",
        "max backward, parts of slices, float32, channels_last",
        simulator.Race,
    ),
    Bug(
        "a part of a row that claims for the next",
        "unpool.cu",
        "row_place >= share.row_first && row_place < share.row_last",
        "row_place >= share.row_first",
        "unpool, bands of rows, float32, channels_last",
        WRONG,
    ),
    Bug(
        "wrong stride residue",
        "windows.cuh",
        "(shift - k * dilation) % stride != 0",
        "(shift + k * dilation) % stride != 0",
        f"backward input, {SMALL}",
        WRONG,
    ),
    Bug(
        "residues that no tap meets read",
        "windows.cuh",
        "  if (k == tap_step) return {0, 0, 0};\n",
        "",
        "backward input, residues without taps, float32, contiguous",
        WRONG,
    ),
    Bug(
        "residues of two axes swapped",
        "windows.cuh",
        "residue % p.residues_w",
        "residue % p.residues_h",
        f"backward input, {SMALL}",
        WRONG,
    ),
    Bug(
        "every group reads the first",
        "conv_forward.cu",
        "o.c / p.oc_group * p.c_group",
        "0",
        f"forward, {SMALL}",
        WRONG,
    ),
    Bug(
        "strides of two axes swapped",
        "conv_forward.cu",
        "(d0 + kd * p.dilation_d) * p.x_d",
        "(d0 + kd * p.dilation_d) * p.x_h",
        f"forward, {SMALL}",
        WRONG,
    ),
    Bug(
        "the filter turned",
        "conv_backward_input.cu",
        "kh * p.w_kh",
        "(p.kh - 1 - kh) * p.w_kh",
        f"backward input, {SMALL}",
        WRONG,
    ),
    Bug(
        "taps of one column transposed",
        "col2im.cu",
        "* p.kh + tap.h) * p.kw + tap.w",
        "* p.kw + tap.w) * p.kh + tap.h",
        f"col2im, {SMALL}",
        WRONG,
    ),
    Bug(
        "channels last forgotten",
        "common.cuh",
        "  if (channels_last) {\n    at.c = i % c;",
        "  if (false) {\n    at.c = i % c;",
        "forward, 3-d, all different, float32, channels_last",
        simulator.OutOfBounds,
    ),
    Bug(
        "ties go to the last",
        "max_pool.cu",
        "comparable(value) > comparable(best.value)",
        "comparable(value) >= comparable(best.value)",
        f"max with indices, {SMALL}",
        WRONG,
    ),
    Bug("NaN is lost", "max_pool.cu", " | is_nan | ", " | ", f"max with indices, {SMALL}", WRONG),
    Bug(
        "padding in the divisor",
        "pooling.cuh",
        "divides == DIVIDES_VALID || axis.adaptive",
        "axis.adaptive",
        "average, ceil mode, float32, contiguous",
        WRONG,
    ),
    Bug(
        "an adaptive window rounded down",
        "pooling.cuh",
        "((i + 1) * total + parts - 1) / parts",
        "(i + 1) * total / parts",
        "average, adaptive, float32, contiguous",
        WRONG,
    ),
    Bug(
        "padding read as its neighbour",
        "depthwise.cuh",
        "0u - static_cast<unsigned>(has)",
        "~0u",
        f"forward, {PLANES}",
        WRONG,
    ),
    Bug(
        "a pack past the image",
        "depthwise.cuh",
        "at + PACK <= s.image",
        "at < s.image",
        "forward, depthwise, a long signal, unaligned, float32, contiguous",
        simulator.OutOfBounds,
    ),
    Bug(
        "a tile without its halo",
        "depthwise.cuh",
        "(outputs.last - 1) * stride + (kernel - 1) * dilation - low + 1)",
        "(outputs.last - 1) * stride - low + 1)",
        "forward, depthwise, bands of rows, float32, contiguous",
        WRONG,
    ),
    Bug(
        "the filter turned, depthwise",
        "depthwise_backward_input.cu",
        "const index_t oh = last_oh - r * p.output_step_h;",
        "const index_t oh = last_oh - (ROWS + TAPS - 2 - r) * p.output_step_h;",
        f"backward input, {PLANES}",
        WRONG,
    ),
    Bug(
        "neighbouring lanes not added",
        "depthwise_backward_weight.cu",
        "offset >= p.vectors",
        "offset > p.vectors",
        f"backward weight, {PLANES}",
        WRONG,
    ),
    # --- races ----------------------------------------------------------------------------------------------------
    Bug(
        "no barrier after staging",
        "depthwise_forward.cu",
        "place.channels, inputs);\n    __syncthreads();",
        "place.channels, inputs);",
        f"forward, {PLANES}",
        (simulator.Race, simulator.UninitialisedRead),
    ),
    Bug(
        "no barrier before the results are written",
        "depthwise_backward_input.cu",
        "    __syncthreads();\n    if (!p.channels_last)",
        "    if (!p.channels_last)",
        f"backward input, {PLANES}",
        (simulator.Race, simulator.UninitialisedRead),
    ),
    Bug(
        "no barrier before the sum",
        "common.cuh",
        "  scratch[thread] = value;\n  __syncthreads();",
        "  scratch[thread] = value;",
        f"backward weight, {MANY}",
        (simulator.Race, simulator.UninitialisedRead),
    ),
    Bug(
        "no barrier between the halves",
        "common.cuh",
        "scratch[thread + half];\n    __syncthreads();",
        "scratch[thread + half];",
        f"backward weight, {MANY}",
        simulator.Race,
    ),
    Bug(
        "scratch written before all have read it",
        "norm_tiles.cuh",
        "  }\n  __syncthreads();  // no thread may",
        "  }\n  // no thread may",
        "statistics, batch, float32, contiguous",
        simulator.Race,
    ),
    Bug(
        "sums of a row written before all have read others",
        "norm_rows.cuh",
        "  if (of_row > 1) __syncthreads();  // no thread may",
        "  // no thread may",
        "statistics, layer, rows of two warps, float32, contiguous",
        simulator.Race,
    ),
    Bug(
        "a block's rows added out of turn",
        "norm_rows_backward.cu",
        "    }\n    __syncthreads();\n  }\n  const index_t block",
        "    }\n  }\n  __syncthreads();\n  const index_t block",
        "affine, layer, aligned, float32, contiguous",
        (simulator.Race, simulator.UninitialisedRead),
    ),
    Bug(
        "a tile read before it is whole",
        "pack.cu",
        "  __syncthreads();\n\n",
        "\n",
        "pack, whole tiles, float32, contiguous to float32, channels last",
        (simulator.Race, simulator.UninitialisedRead),
    ),
    Bug(
        "taps that meet the same inputs at once",
        "col2im.cu",
        "        __syncthreads();\n      }",
        "      }",
        f"col2im, {MANY}",
        simulator.Race,
    ),
    Bug(
        "inputs unfolded before they are there",
        "im2col.cu",
        "  __syncthreads();\n\n",
        "\n",
        f"im2col, {MANY}",
        (simulator.Race, simulator.UninitialisedRead),
    ),
    Bug(
        "every thread writes the sum",
        "conv_backward_weight.cu",
        "if (threadIdx.x == 0) parts",
        "parts",
        f"backward weight, {MANY}",
        simulator.Race,
    ),
    Bug(
        "blocks scatter without atomics",
        "col2im.cu",
        "store_pack(x + rows.offset + k, pack);",
        "store_pack(x + k, pack);",
        f"col2im, {MANY}",
        simulator.Race,
    ),
    Bug(
        "a claim that is not atomic",
        "unpool.cu",
        "atomicMax(owners + (plane * plane_places + order_of(places, index)) * p.inner + c, static_cast<int>(v));",
        "owners[(plane * plane_places + order_of(places, index)) * p.inner + c] = static_cast<int>(v);",
        "unpool, float32, contiguous",
        simulator.Race,
    ),
    # --- synchronisation, memory, types ---------------------------------------------------------------------------
    Bug(
        "a barrier that some do not reach",
        "conv_backward_weight.cu",
        "  acc_t sum = {};",
        "  acc_t sum = {};\n  if (begin + static_cast<index_t>(threadIdx.x) >= end) return;",
        "backward weight, 1-d, wide stride, float32, contiguous",
        simulator.SynchronisationError,
    ),
    Bug(
        "a barrier for half of the threads",
        "common.cuh",
        "+ scratch[thread + half];\n    __syncthreads();",
        "+ scratch[thread + half];\n    if (thread < half) __syncthreads();",
        f"backward weight, {MANY}",
        (simulator.SynchronisationError, simulator.Race),
    ),
    Bug(
        "scratch too small",
        "conv_backward_weight.cu",
        "__shared__ acc_t scratch[128];",
        "__shared__ acc_t scratch[64];",
        f"backward weight, {MANY}",
        simulator.OutOfBounds,
    ),
    Bug(
        "a tile filled one place off",
        "pack.cu",
        "tile[skewed<scalar_t>(o * p.pitch + i)] = pack.at[j]",
        "tile[skewed<scalar_t>(o * p.pitch + i + 1)] = pack.at[j]",
        "forward, many positions, float32, im2col, channels_last",
        simulator.UninitialisedRead,
    ),
    Bug(
        "scratch read before it is written",
        "common.cuh",
        "  scratch[thread] = value;\n",
        "  if (thread < 16) scratch[thread] = value;\n",
        f"backward weight, {MANY}",
        simulator.UninitialisedRead,
    ),
    Bug(
        "a result read before it is written",
        "sum_splits.cu",
        "  acc_t sums[PACK] = {};",
        "  acc_t sums[PACK] = {widen(grad_w[i])};",
        f"backward weight, {MANY}",
        WRONG,
    ),
    Bug(
        "a write to an input",
        "im2col.cu",
        "      scalar_t value = {};",
        "      scalar_t value = {};\n      const_cast<scalar_t*>(x)[0] = value;",
        f"im2col, {TURNED}",
        simulator.ReadOnlyWrite,
    ),
    Bug(
        "a bias that is not there",
        "conv_forward.cu",
        "  if (bias) sum",
        "  sum",
        f"forward without bias, {SMALL}",
        simulator.OutOfBounds,
    ),
    Bug(
        "four values at once from anywhere",
        "im2col.cu",
        "value = x[",
        "value = reinterpret_cast<const float4*>(x + w)->x + x[",
        f"im2col, {TURNED}",
        simulator.Misaligned,
    ),
    Bug(
        "a product that does not fit",
        "conv_forward.cu",
        "const index_t i = thread_index();",
        "const index_t i = thread_index() * 0x4000000 / 0x4000000;",
        f"forward, {SMALL}",
        simulator.UndefinedBehaviour,
    ),
    Bug(
        "a share of nothing",
        "pooling.cuh",
        "i * total / parts;",
        "i * total / (parts - parts);",
        "average, adaptive, float32, contiguous",
        simulator.UndefinedBehaviour,
    ),
]


def case_named(name: str) -> Case:
    (case,) = (case for case in CASES if case.name == name)
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
    with pytest.raises(simulator.ArgumentMismatch):
        simulated(case_named(f"im2col, {SMALL}"), CudaBackend(SimulatorRuntime()))


def test_arrays_in_the_wrong_places_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_named(f"im2col, {SMALL}")
    packed = sources.Structure.packed
    monkeypatch.setattr(sources.Structure, "packed", lambda *given: np.int32(packed(*given).nbytes))
    with pytest.raises(simulator.ArgumentMismatch):
        simulated(case, CudaBackend(SimulatorRuntime()))
