"""Rules that every file of kernels/ keeps, so that a newcomer finds the same things in the same places."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpucnn.backends.cuda.device.sources import folder

KERNELS = sorted(folder().glob("*.cu"))
SOURCES = sorted([*KERNELS, *folder().glob("*.cuh")])
FIELDS = ("Source", "Reads", "Writes", "Mapping", "Bytes", "Determinism", "Limits")
HEADERS = {path.name for path in SOURCES if path.suffix == ".cuh"}

# Functions of files that hold more than the one they are named after.
SEVERAL = {
    "interpolate": {"resample", "resample_tiles"},  # both directions are one resampling, by different tables
    "max_pool": {"max_pool", "max_pool_with_indices"},
    "max_pool_backward": {"max_pool_backward", "max_pool_backward_out_of_window"},
    "norm_backward_sums": {"norm_backward_sums", "norm_backward_sums_combine"},
    "norm_statistics": {"norm_statistics", "norm_statistics_combine"},
    "unpool": {"unpool", "unpool_anywhere"},
}

_KERNEL = re.compile(
    r'^extern "C" __global__ void (?:(__launch_bounds__\([^()]+\))\s+)?(\w+)\((.*?)\) \{', re.MULTILINE | re.DOTALL
)
_COMMENT = re.compile(r"//.*")
_ASM = re.compile(r"\basm\b(?: volatile)?\(([^:)]*)")
each_kernel = pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code_of(path: Path) -> str:
    """The text without its comments."""
    return _COMMENT.sub("", text_of(path))


def kernels_in(path: Path) -> list[tuple[str, str, str]]:
    """The launch bounds of each kernel, its name, and its parameters."""
    return _KERNEL.findall(text_of(path))


def test_there_are_kernels() -> None:
    assert "conv_forward.cu" in {path.name for path in KERNELS}
    ((bounds, name, parameters),) = kernels_in(folder() / "conv_forward.cu")
    assert bounds.startswith("__launch_bounds__(256")
    assert name == "conv_forward"
    assert parameters.count("\n") == 4
    assert SEVERAL.keys() <= {path.stem for path in KERNELS}


@each_kernel
def test_a_file_opens_with_what_there_is_to_know(path: Path) -> None:
    header = text_of(path).partition("#include")[0]
    assert all(line.startswith("//") for line in header.splitlines())
    fields = re.findall(r"^// ([A-Z]\w+)  +\S", header, re.MULTILINE)
    assert tuple(field for field in fields if field in FIELDS) == FIELDS
    assert len(header.partition("// Source")[0].strip()) > 20  # what it computes comes first


@each_kernel
def test_kernels_are_named_after_their_file(path: Path) -> None:
    kernels = kernels_in(path)
    assert {name for _, name, _ in kernels} == SEVERAL.get(path.stem, {path.stem})
    assert len(kernels) == text_of(path).count("__global__")
    assert len(kernels) == text_of(path).count('extern "C"')


@each_kernel
def test_kernels_say_how_large_their_blocks_may_be(path: Path) -> None:
    assert all(bounds for bounds, _, _ in kernels_in(path))


@each_kernel
def test_pointers_say_what_they_point_to(path: Path) -> None:
    for _, name, parameters in kernels_in(path):
        *pointers, structure = parameters.splitlines()
        assert re.fullmatch(r"\s*const \w+Params p", structure), f"{name}: the parameters come last, by value"
        for line in pointers:
            assert re.match(r"\s*(const )?\w+( \w+)*\* __restrict__ \w+, ", line), f"{name}: {line}"
            assert re.search(r"// (\[[^\]]*\]|as \w+$)", line), f"{name}: {line} does not say its shape"


@each_source
def test_no_sum_depends_on_the_order_of_threads(path: Path) -> None:
    code = code_of(path)
    assert not re.search(r"atomicAdd|atomicSub|atomicExch|atomicCAS|\b(red|atom)\.", code)
    for call in re.findall(r"atomic\w+\([^;]*;", code):
        assert call.startswith(("atomicMax(", "atomicMin(")), call  # of integers: any order gives the same


@each_source
def test_one_source_for_every_compiler(path: Path) -> None:
    directives = re.findall(r"^\s*#\s*(\w+)", code_of(path), re.MULTILINE)
    assert set(directives) <= {"include", "pragma", "define", "undef"}  # no #if: what is compiled is what is read
    assert not re.search(r"simulat", text_of(path), re.IGNORECASE)


@each_source
def test_only_own_headers_are_included(path: Path) -> None:
    included = re.findall(r"^\s*#\s*include\s+(.*)$", text_of(path), re.MULTILINE)
    assert {name.strip() for name in included} <= {f'"{header}"' for header in HEADERS}
    assert path.suffix == ".cuh" or '"common.cuh"' in included
    for name in included:
        assert f"\n#include {name}\n" in text_of(path), f"{name}: exactly this form is replaced by the file"


@each_source
def test_an_asm_is_one_instruction(path: Path) -> None:
    for instruction in _ASM.findall(code_of(path)):
        assert instruction.count(";") == 1, instruction
        assert not re.search(r"@|\.reg\b|[{}]\s*\\|\bbra\b", instruction), instruction


@each_source
def test_lines_are_short_and_clean(path: Path) -> None:
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        assert len(line) <= 120, f"{path.name}:{number}"
        assert line == line.rstrip(), f"{path.name}:{number}"
        assert "\t" not in line, f"{path.name}:{number}"
    assert text_of(path).endswith("\n")


@each_source
def test_the_order_of_headers_is_that_of_their_needs(path: Path) -> None:
    included = re.findall(r'^#include "(\w+\.cuh)"$', text_of(path), re.MULTILINE)
    order = [
        name for name in ("common.cuh", "params.cuh", "windows.cuh", "packs.cuh", "unfolding.cuh") if name in included
    ]
    assert included[: len(order)] == order
    assert len(included) == len(set(included))
