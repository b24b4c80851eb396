"""The compile gate: every kernel goes through NVIDIA's compiler for every architecture, and keeps to its budgets.

No GPU is needed. What is compiled is what the public operations launch (`launches`), so nothing is listed by hand:

- float32 on each architecture: one build of each file for known sizes, one generic, whose indices have 32 or 64 bits
  in turn;
- float32 layers of real networks, built for their sizes, on sm_75 and sm_90, and generic on sm_90; of copies and sums
  that differ in sizes alone, one;
- every other dtype: each file that takes it, built for known sizes on sm_90 and generic on sm_75, with 32- or 64-bit
  indices in turn.

The budgets are read from the compiler's report. A kernel may spill, that is keep values in memory for want of
registers, only where `MAY_SPILL` says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import sample
from launches import SM_75, SM_80, Launch, launches_of_calls, launches_of_layers, recording

import gpucnn.functional as F
from gpucnn.backends.cuda.device.nvrtc import OPTIONS, CompilationError, Nvrtc
from gpucnn.backends.cuda.device.sources import SCALARS, Source, folder

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120")
FROM_SM_80 = {"implicit_gemm", "implicit_gemm_backward_weight"}  # of bfloat16, which no tensor core multiplied before
REGISTERS = 65_536  # of a multiprocessor, and so the most that a block may have
STATIC_SHARED = 48 * 1024

MAY_SPILL: dict[str, int] = {  # bytes that a kernel's threads may spill or keep on a stack, with the reason
    "implicit_gemm": 96,  # generic builds with 64-bit indices of fp32x3; test_implicit_gemm.py allows the others none
}


class Report(NamedTuple):
    """What the compiler says of one kernel."""

    kernel: str
    stack: int
    spilled: int
    registers: int
    shared: int


_PROPERTIES = re.compile(
    r"Function properties for (\w+)\n"
    r"ptxas\s+\. +(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
    r"ptxas info\s+: Used (\d+) registers(.*)"
)


def reports(log: str) -> Iterator[Report]:
    """The report of each kernel in the compiler's log."""
    for kernel, stack, stores, loads, registers, rest in _PROPERTIES.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        yield Report(kernel, int(stack), max(int(stores), int(loads)), int(registers), int(shared[1]) if shared else 0)


def complaints(compiler: Nvrtc, launches: Iterable[Launch], architecture: str) -> Iterator[str]:
    """What is wrong with the programs of `launches` on an architecture: errors, warnings, budgets exceeded."""
    threads: dict[str, int] = {}
    programs: dict[str, Source] = {}
    for launch in launches:
        programs[launch.source.text] = launch.source
        threads[launch.source.kernel] = max(launch.threads, threads.get(launch.source.kernel, 0))
    for source in programs.values():
        try:
            log = compiler.compile(source.text, source.name, (*OPTIONS, f"-arch={architecture}", "-Xptxas=-v")).log
        except CompilationError as error:
            yield str(error)
            continue
        yield from (f"{source.name} on {architecture}: {line}" for line in log.splitlines() if "warning" in line)
        found = {report.kernel: report for report in reports(log)}
        if source.kernel not in found:
            yield f"{source.name} on {architecture}: no report of {source.kernel} in\n{log}"
        for report in found.values():
            for excess in over_budget(report, threads.get(report.kernel, 0)):
                yield f"{source.name} on {architecture}: {report.kernel} has {excess}"


def over_budget(report: Report, threads: int) -> Iterator[str]:
    """What a kernel, launched with blocks of `threads`, uses too much of."""
    allowed = MAY_SPILL.get(report.kernel, 0)
    if report.spilled > allowed:
        yield f"{report.spilled} bytes spilled, expected {allowed} at most"
    if report.stack > allowed:
        yield f"a stack of {report.stack} bytes, expected {allowed} at most"
    if (report.registers + 7) // 8 * 8 * threads > REGISTERS:
        yield f"{report.registers} registers in blocks of {threads} threads, expected {REGISTERS} in all at most"
    if report.shared > STATIC_SHARED:
        yield f"{report.shared} bytes of shared memory, expected {STATIC_SHARED} at most"


def capability_of(architecture: str) -> tuple[int, int]:
    """The compute capability that decides what an architecture is launched."""
    return SM_75 if architecture == "sm_75" else SM_80


def expect_none(found: Iterable[str]) -> None:
    listed = list(found)
    assert not listed, "\n".join(listed)


def one_of_each(launches: Iterable[Launch]) -> list[Launch]:
    """One program for each kernel, and one that adds a residual."""
    adds = "#define RESIDUAL 1"
    return list({(launch.source.kernel, adds in launch.source.text): launch for launch in launches}.values())


BRANCHES_ON_SWITCHES = {"pack", "sum_splits"}  # and by no other constants, but for those in a program's name
_CONSTANT = re.compile(r"static constexpr \w+ (\w+) = (-?\d+)LL;")


def of_different_branches(launches: Iterable[Launch]) -> list[Launch]:
    """One program of those that differ in sizes above 1 alone, where these decide no branch."""
    found: dict[Any, Launch] = {}
    for launch in launches:
        source = launch.source
        switches = tuple((name, min(int(value), 2)) for name, value in _CONSTANT.findall(source.text))
        key = (source.name, launch.threads, switches) if source.kernel in BRANCHES_ON_SWITCHES else source.text
        found.setdefault((source.kernel, key), launch)
    return list(found.values())


def test_every_kernel_is_launched_by_some_operation() -> None:
    kernels = {name for file in folder().glob("*.cu") for name in re.findall(r"^(\w+)\(const ", file.read_text(), re.M)}
    launched = {launch.source.kernel for launch in (*launches_of_calls("float32", True, False), *launches_of_layers())}
    assert launched == kernels


@pytest.mark.table(1)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_on_each_architecture(nvrtc_library: Nvrtc, architecture: str) -> None:
    wide, capability = ARCHITECTURES.index(architecture) % 2 == 1, capability_of(architecture)
    launches = [
        *one_of_each(launches_of_calls("float32", True, False, capability)),
        *one_of_each(launches_of_calls("float32", False, wide, capability)),
    ]
    expect_none(complaints(nvrtc_library, sample.some(launches, 6), architecture))


@pytest.mark.thorough
@pytest.mark.parametrize(("architecture", "specialises"), [("sm_75", True), ("sm_90", True), ("sm_90", False)])
def test_layers_of_real_networks(nvrtc_library: Nvrtc, architecture: str, specialises: bool) -> None:
    """Of generic builds too, which are launched in the same blocks until the others have been compiled."""
    launches = launches_of_layers(specialises, capability_of(architecture))
    expect_none(complaints(nvrtc_library, of_different_branches(launches), architecture))


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", sorted(SCALARS.keys() - {"float32", "tf32"}))
def test_each_dtype(nvrtc_library: Nvrtc, dtype: str) -> None:
    wide = sorted(SCALARS).index(dtype) % 2 == 1
    specialised = one_of_each(launches_of_calls(dtype, True, False))
    generic = one_of_each(launches_of_calls(dtype, False, wide, SM_75))
    missing = {launch.source.kernel for launch in specialised} - {launch.source.kernel for launch in generic}
    assert missing == (FROM_SM_80 if dtype == "bfloat16" else set())
    assert len(generic) >= 14
    expect_none([*complaints(nvrtc_library, specialised, "sm_90"), *complaints(nvrtc_library, generic, "sm_75")])


@pytest.mark.table(1)
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_wide_numbers_and_indices_together(nvrtc_library: Nvrtc, architecture: str) -> None:
    """What takes the most registers: packs of float64 of two arrays, 64-bit indices, strides not known beforehand."""
    pixels = np.zeros((2, 8, 8, 4))
    with recording(specialises=False, wide=True) as recorder:
        for image in (np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), pixels.transpose(0, 3, 1, 2)):
            F.batch_norm(image, np.zeros(4), np.ones(4), np.ones(4), np.zeros(4), residual=image, activation="relu")
    expect_none(complaints(nvrtc_library, recorder.launches.values(), architecture))


# --- The gate itself ------------------------------------------------------------------------------------------------

LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for first
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers, 128 bytes smem, 372 bytes cmem[0]
ptxas info    : Compile time = 4.034 ms
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas info    : Function properties for second
ptxas         .    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers
"""


def test_the_report_is_read() -> None:
    assert list(reports(LOG)) == [Report("first", 0, 0, 12, 128), Report("second", 16, 8, 255, 0)]


def test_budgets_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = reports(LOG)
    assert not list(over_budget(first, 1024))
    assert len(list(over_budget(second, 1024))) == 3
    assert len(list(over_budget(second._replace(shared=STATIC_SHARED + 1), 256))) == 3
    assert not list(over_budget(first._replace(registers=64), 1024))
    assert list(over_budget(first._replace(registers=65), 1024))
    monkeypatch.setitem(MAY_SPILL, "second", 16)
    assert not list(over_budget(second, 256))


def test_what_does_not_compile_is_named(nvrtc_library: Nvrtc) -> None:
    good, *_ = launches_of_calls("float32", False, False)
    bad = Launch(Source("f", "f[float32]", 'extern "C" __global__ void f(float* x) { y = 1; }'), 32, 0)
    spilling = Source(
        "g",
        "g[float32]",
        'extern "C" __global__ void g(float* x, int i) {'
        " volatile float a[64]; for (int j = 0; j < i; ++j) a[x[j] > 0 ? j : i] = x[j]; x[i] = a[i]; }",
    )
    found = list(complaints(nvrtc_library, [good, bad, Launch(spilling, 32, 0)], "sm_90"))
    assert len(found) == 2
    assert 'identifier "y" is undefined' in found[0]
    assert "g[float32] on sm_90: g has a stack of 256 bytes, expected 0 at most" in found[1]
