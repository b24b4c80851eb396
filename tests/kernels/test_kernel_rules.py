"""Rules that every file of kernels/ keeps, so that a newcomer finds the same things in the same places."""

from __future__ import annotations

import re

from gpucnn.backends.cuda.device.sources import folder

TEXTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder().glob("*.cu*"))}
KERNELS = {name.removesuffix(".cu"): text for name, text in TEXTS.items() if name.endswith(".cu")}
CODES = {name: re.sub(r"//.*", "", text) for name, text in TEXTS.items()}  # without comments
FIELDS = ["Source", "Reads", "Writes", "Mapping", "Bytes", "Determinism", "Limits"]
HEADERS = ["common.cuh", "params.cuh", "windows.cuh", "packs.cuh", "unfolding.cuh"]
"""Those that need others, in the order of their needs."""

# Functions of files that hold more than the one they are named after.
SEVERAL = {
    "grid_sample_backward_input": {"grid_sample_backward_keys", "grid_sample_backward_input"},
    "interpolate": {"resample", "resample_tiles"},  # both directions are one resampling, by different tables
    "max_pool": {"max_pool", "max_pool_with_indices"},
    "max_pool_backward": {"max_pool_backward", "max_pool_backward_out_of_window"},
    "norm_backward_sums": {"norm_backward_sums", "norm_backward_sums_combine"},
    "norm_statistics": {"norm_statistics", "norm_statistics_combine"},
    "unpool": {"unpool", "unpool_anywhere"},
}


def kernels_in(text: str) -> list[tuple[str, str]]:
    """The name of each kernel, all of which say how large their blocks may be, and its parameters."""
    kernel = r'^extern "C" __global__ void __launch_bounds__\([^()]+\)\s+(\w+)\((.*?)\) \{'
    return re.findall(kernel, text, re.MULTILINE | re.DOTALL)


def test_there_are_kernels() -> None:
    ((name, parameters),) = kernels_in(KERNELS["conv_forward"])
    assert name == "conv_forward"
    assert parameters.count("\n") == 5
    assert SEVERAL.keys() <= KERNELS.keys()


def test_a_file_opens_with_what_there_is_to_know() -> None:
    for name, text in KERNELS.items():
        header = text.partition("#include")[0]
        assert all(line.startswith("//") for line in header.splitlines()), name
        fields = re.findall(r"^// ([A-Z]\w+)  +\S", header, re.MULTILINE)
        assert [field for field in fields if field in FIELDS] == FIELDS, name
        assert len(header.partition("// Source")[0].strip()) > 20, f"{name}: what it computes comes first"


def test_kernels_are_named_after_their_file_and_have_bounds() -> None:
    for name, text in KERNELS.items():
        kernels = kernels_in(text)
        assert {kernel for kernel, _ in kernels} == SEVERAL.get(name, {name})
        assert len(kernels) == text.count("__global__") == text.count('extern "C"'), name


def test_pointers_say_what_they_point_to() -> None:
    for name, parameters in (kernel for text in KERNELS.values() for kernel in kernels_in(text)):
        *pointers, structure = parameters.splitlines()
        assert re.fullmatch(r"\s*const \w+Params p", structure), f"{name}: the parameters come last, by value"
        for line in pointers:
            assert re.match(r"\s*(const )?\w+( \w+)*\* __restrict__ \w+, ", line), f"{name}: {line}"
            assert re.search(r"// (\[[^\]]*\]|as \w+$)", line), f"{name}: {line} does not say its shape"


def test_no_sum_depends_on_the_order_of_threads() -> None:
    for name, code in CODES.items():
        assert not re.search(r"\b(red|atom)\.", code), name
        # of integers: any order gives the same
        assert set(re.findall(r"atomic\w+", code)) <= {"atomicMax", "atomicMin"}, name


def test_one_source_for_every_compiler() -> None:
    for name, code in CODES.items():
        directives = set(re.findall(r"^\s*#\s*(\w+)", code, re.MULTILINE))
        assert directives <= {"include", "pragma", "define", "undef"}, f"{name}: what is compiled is what is read"
        assert not re.search(r"simulat", TEXTS[name], re.IGNORECASE), name


def test_own_headers_are_included_in_the_order_of_their_needs() -> None:
    for name, text in TEXTS.items():
        included = re.findall(r'^#include "(\w+\.cuh)"$', text, re.MULTILINE)  # this form is replaced by the file
        assert len(included) == len(re.findall(r"#\s*include", text)) == len(set(included)), name
        assert set(included) <= TEXTS.keys(), name
        assert name.endswith(".cuh") or "common.cuh" in included, name
        order = [header for header in HEADERS if header in included]
        assert included[: len(order)] == order, name


def test_an_asm_is_one_instruction() -> None:
    for name, code in CODES.items():
        for instruction in re.findall(r"\basm\b(?: volatile)?\(([^:)]*)", code):
            assert instruction.count(";") == 1, f"{name}: {instruction}"
            assert not re.search(r"@|\.reg\b|[{}]\s*\\|\bbra\b", instruction), f"{name}: {instruction}"


def test_lines_are_short_and_clean() -> None:
    for name, text in TEXTS.items():
        for number, line in enumerate(text.splitlines(), start=1):
            assert len(line) <= 120, f"{name}:{number}"
            assert line == line.rstrip(), f"{name}:{number}"
            assert "\t" not in line, f"{name}:{number}"
        assert text.endswith("\n"), name
