"""Instructions of the kernels that memory should limit, held to what an H100's memory leaves time for.

NVRTC compiles for sm_90 what layers of real networks launch, and one block of each is executed instruction by
instruction: no GPU is needed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import gpucnn.functional as F
from benchmarks.cases import Case, select
from benchmarks.gpus import GPUS
from benchmarks.memory_model import memory_of, model, planning, run
from benchmarks.sass import disassembled
from benchmarks.sass_run import Memory, executed
from gpucnn import simulator
from gpucnn.backends.cuda.device.nvrtc import OPTIONS, Nvrtc

H100 = next(gpu for gpu in GPUS if gpu.name == "H100")
SMALL = 1e-6  # seconds of a launch that is not looked at: its own latency is longer

# Issue time over memory time, in float32 and in float16. Beyond 1 are windows that overlap, in 16 bits above all: each
# tap is widened and added or compared by itself, in an order that the results' bits depend on. The backward of max
# pooling gathers: adding each output to its input took less than half of the instructions, at four-way bank conflicts
# where channels are last.
BUDGETS = {
    "resnet-50/bn1/training": (0.8, 0.95),
    "resnet-50/bn1/backward": (0.5, 0.8),
    "vit-b/layer_norm/forward": (0.5, 0.9),
    "convnext-t/layer_norm/backward": (0.5, 1.0),
    "vgg-16/conv3_relu/forward": (0.3, 0.6),
    "resnet-50/max_pool/forward": (0.75, 1.3),
    "resnet-50/max_pool/backward": (1.4, 2.0),
    "densenet-121/transition1/forward": (0.5, 0.8),
    "densenet-121/transition1/backward": (0.7, 1.2),
    "inception-v3/branch_pool/forward": (1.4, 2.5),
}


def case_of(name: str) -> Case:
    return next(case for case in select("full", (), "gpu") if case.id == name)


@pytest.mark.parametrize("name", BUDGETS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_memory_limits_the_layer(sass_compiler: Nvrtc, name: str, dtype: str) -> None:
    budget = BUDGETS[name][dtype == "float16"]
    rows = [row for row in model([replace(case_of(name), dtype=dtype)]) if row.seconds(H100) > SMALL]
    assert rows
    found = {row.kernel: round(row.ratio(H100), 2) for row in rows}
    assert max(found.values()) <= budget, found


# --- The execution of machine code ------------------------------------------------------------------------------------

DIVERGENT = """
extern "C" __global__ void divergent(const float* __restrict__ x, float* __restrict__ y, int n) {
  __shared__ float sums[64];
  float sum = 0;
  if (threadIdx.x < 40) {
#pragma unroll 1
    for (int k = 0; k < n; ++k) sum += x[k * 64 + threadIdx.x];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x % 2) y[threadIdx.x] = sums[63 - threadIdx.x];
}
"""


def test_a_warp_issues_what_any_of_its_threads_executes(sass_compiler: Nvrtc) -> None:
    text = disassembled(sass_compiler.compile(DIVERGENT, "test", (*OPTIONS, "-arch=sm_90")).image)
    memory = Memory(np.ones(64, np.float32))
    found = executed(text, "divergent", 0, 1, 64, np.int32(5).tobytes(), [memory, memory])
    count = dict.fromkeys(("LDG", "STS", "LDS", "STG", "BAR", "EXIT"), 0)
    for name, times in found.issued.items():
        opcode = name.partition(".")[0]
        if opcode in count:
            count[opcode] += times
    assert count["LDG"] == 2 * 5
    assert (count["STS"], count["LDS"], count["STG"], count["BAR"]) == (2, 2, 2, 2)
    assert found.moved == (40 * 5 * 4, 32 * 4)


def test_accesses_are_those_that_the_simulator_counts(sass_compiler: Nvrtc, compiler: None) -> None:
    """Of all blocks of a pooling whose last ones are smaller: warps that load, and store, 16 bytes a lane."""
    x = simulator.asarray(np.random.default_rng(0).random((3, 5, 36, 44), np.float32))
    with simulator.profile() as profile:
        F.max_pool2d(x, 3, 2, padding=1)
    with planning() as dry:
        F.max_pool2d(x, 3, 2, padding=1)
    [(plan, arrays)], [launch] = dry.launches, profile.launches
    memory = [memory_of(array) for array in arrays]
    blocks = [run(sass_compiler, plan, memory, block) for block in range(plan.grid[0])]
    for opcode, kind in (("LDG", "read"), ("STG", "write")):
        counted = sum(
            access.requests
            for access in launch.accesses
            if (access.space, access.kind, access.bytes) == ("global", kind, 16)
        )
        found = sum(
            count
            for block in blocks
            for name, count in block.issued.items()
            if name.startswith(opcode) and ".128" in name
        )
        assert found == counted > 0
