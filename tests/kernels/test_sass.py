"""The machine code of the kernels that memory limits: accesses of 128 bits, and no values in local memory.

No GPU is needed: NVRTC compiles for sm_90 what layers of real networks launch, and NVIDIA's disassembler shows it. A
program says in its constant PACK how many elements one access is to take; where these are 16 bytes, the code must have
such loads and stores. That they are what moves the bytes is the profile's to say (test_profile_*.py).
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

import ml_dtypes  # noqa: F401  NumPy knows bfloat16 by name from here on
import numpy as np
import sample
from launches import Launch, launches_of_layers

from benchmarks.sass import Code, codes, parsed
from gpucnn.backends.cuda.device.nvrtc import OPTIONS, Nvrtc

ARCHITECTURE = "sm_90"
WIDE = 16  # bytes of the widest access

# Where PACK is not of both sides: the image may lie in any order, sums are one for many elements, what repairs a plane
# reads what it needs alone, and what adds the parts of sums shares a file with what leaves them.
PACKS_LOADS = {"col2im", "depthwise_backward_weight", "norm_statistics", "norm_backward_sums"}
PACKS_STORES = {"im2col"}
PACKS_NOTHING = {"max_pool_backward_out_of_window", "norm_statistics_combine", "norm_backward_sums_combine"}

_NAME = re.compile(r"(\w+)\[(\w+),\w+,\w+(?:,(.*))?\]")


class Program(NamedTuple):
    """What a program's name says of it."""

    kernel: str
    dtype: str
    constants: str

    @property
    def is_wide(self) -> bool:
        """Whether its accesses take 16 bytes of its dtype."""
        return self._takes_wide(re.search(r"\b(?:X_)?PACK=(\d+)", self.constants))

    @property
    def writes_wide(self) -> bool:
        """Whether its stores do: those of `pack` are of another number of elements than its loads."""
        return self._takes_wide(re.search(r"\b(?:Y_)?PACK=(\d+)", self.constants))

    def _takes_wide(self, pack: re.Match[str] | None) -> bool:
        return pack is not None and int(pack[1]) * np.dtype(self.dtype).itemsize == WIDE


def program(launch: Launch) -> Program:
    match = _NAME.fullmatch(launch.source.name)
    assert match is not None, launch.source.name
    return Program(match[1], match[2], match[3] or "")


@cache
def programs() -> list[tuple[Program, Launch]]:
    """The first and the last layer's launch of each program with a PACK: channels first, and last."""
    launches = launches_of_layers()
    chosen = [
        *{program(launch): launch for launch in reversed(launches)}.items(),
        *{program(launch): launch for launch in launches}.items(),
    ]
    return [(one, launch) for one, launch in chosen if "PACK=" in one.constants]


def code_of(compiler: Nvrtc, launch: Launch, architecture: str = ARCHITECTURE) -> Code:
    image = compiler.compile(launch.source.text, launch.source.name, (*OPTIONS, f"-arch={architecture}")).image
    return codes(image)[launch.source.kernel]


def test_kernels_that_memory_limits_are_known_by_their_packs() -> None:
    kernels = {one.kernel for one, _ in programs()} - {"norm_statistics_combine", "norm_backward_sums_combine"}
    assert len(kernels) >= 10
    assert {one.kernel for one, _ in programs() if one.is_wide} == kernels


def test_wide_programs_load_and_store_128_bits_and_none_uses_local_memory(sass_compiler: Nvrtc) -> None:
    found = []
    for one, launch in sample.some(programs(), 4):
        code = code_of(sass_compiler, launch)
        name = launch.source.name
        if code.local:
            found.append(f"{name}: {code.local} accesses of local memory")
        wide = one.is_wide and one.kernel not in PACKS_NOTHING
        if wide and one.kernel not in PACKS_STORES and not code.loads[128]:
            found.append(f"{name}: loads of {dict(code.loads)} bits, expected 128 among them")
        if wide and one.writes_wide and one.kernel not in PACKS_LOADS and not code.stores[128]:
            found.append(f"{name}: stores of {dict(code.stores)} bits, expected 128 among them")
    assert not found, "\n".join(found)


# --- The reading of the code ------------------------------------------------------------------------------------------

TEXT = """
	.section	.text.first,"ax",@progbits
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0060*/                   LDG.E.128.CONSTANT R12, desc[UR6][R2.64] ;
        /*0070*/              @!P0 LDG.E.64 R12, desc[UR6][R2.64] ;
        /*0080*/                   LDGSTS.E.BYPASS.128 [R0], desc[UR6][R2.64] ;
        /*0090*/              @UP1 LDG.E.U16.CONSTANT R12, desc[UR6][R2.64] ;
        /*00f0*/                   STS.128 [R0], R12 ;
        /*0150*/                   STG.E desc[UR6][R2.64], R4 ;
.L_x_1:
        /*0160*/                   HMMA.16816.F32 R4, R12, R14, R4 ;
.L_x_2:
        /*0170*/                   HMMA.16816.F32 R8, R12, R14, R8 ;
        /*0180*/              @!P0 BRA `(.L_x_2) ;
        /*0190*/              @P1  BRA `(.L_x_1) ;
        /*01a0*/                   BRA `(.L_x_3) ;
	.section	.text.second,"ax",@progbits
        /*0000*/                   STL.64 [R1], R2 ;
        /*0010*/               @P1 LDL R2, [R1] ;
"""


def test_the_code_is_read() -> None:
    found = parsed(TEXT)
    assert found.keys() == {"first", "second"}
    assert found["first"].loads == {128: 2, 64: 1, 16: 1}
    assert found["first"].stores == {32: 1}
    assert found["first"].of("STS") == {128: 1}
    assert found["first"].loops == ({"HMMA": 1, "BRA": 1}, {"HMMA": 2, "BRA": 2})
    assert found["first"].main_loop("HMMA") == {"HMMA": 1, "BRA": 1}
    assert (found["first"].local, found["second"].local) == (0, 2)


def test_the_disassembler_shows_what_was_compiled(sass_compiler: Nvrtc) -> None:
    text = (
        'extern "C" __global__ void wide(const uint4* __restrict__ x, uint4* __restrict__ y) { y[0] = x[0]; }\n'
        'extern "C" __global__ void kept(float* x, int i) {'
        " volatile float a[64]; for (int j = 0; j < i; ++j) a[x[j] > 0 ? j : i] = x[j]; x[i] = a[i]; }"
    )
    found = codes(sass_compiler.compile(text, "test", (*OPTIONS, f"-arch={ARCHITECTURE}")).image)
    assert found["wide"].loads == {128: 1}
    assert found["wide"].stores == {128: 1}
    assert found["wide"].local == 0
    assert found["kept"].local > 0


def test_what_a_name_says() -> None:
    assert Program("k", "float32", "PACK=4").is_wide
    assert Program("k", "float16", "PACK=8,TAPS=3").is_wide
    assert not Program("k", "float16", "PACK=4").is_wide
    turned = Program("pack", "float32", "X_PACK=4,Y_PACK=1,TARGET=float32")
    assert (turned.is_wide, turned.writes_wide) == (True, False)
    assert not Program("k", "float32", "").is_wide
