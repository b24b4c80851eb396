"""The C++ of the CPU kernels: documented, understood by the host, without warnings for each compiler and target."""

from __future__ import annotations

import platform
import re
import shutil
import struct
from functools import cache
from pathlib import Path

import pytest

from gpucnn.backends.cpu import builds
from gpucnn.backends.cpu.library import Kernel
from gpucnn.compilation.compiler import CompilerError, find_compiler, run

FOLDER = builds.folder()
FILES = builds.files()
HEADERS = sorted(path.name for path in FOLDER.glob("*.hpp"))
OF_KERNELS = [file for file in FILES if file != "threads"]  # which calls them
SCALARS = ("float", "double")

# All kernels have the same last parameters, whether they need them or not; headers hold functions that not each file
# calls.
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-unused-function")
X86 = {"x86-64": "SSE2", "x86-64-v3": "AVX2", "x86-64-v4": "AVX-512"}


def kernels_of(file: str) -> list[Kernel]:
    return [Kernel(file, name) for name in re.findall(r"^KERNEL (\w+)\(", builds.text(file), re.MULTILINE)]


def expect_no_message(command: list[str], text: str | None = None) -> None:
    try:
        run(command, text)
    except CompilerError as error:
        pytest.fail(str(error))


# --- What the host reads ----------------------------------------------------------------------------------------------


def test_files_are_found() -> None:
    assert "bias_activation" in FILES
    assert "vectors.hpp" in HEADERS
    assert {path.suffix for path in FOLDER.iterdir()} == {".cpp", ".hpp"}


@pytest.mark.table(1000)
@pytest.mark.parametrize("name", [*(f"{file}.cpp" for file in FILES), *HEADERS])
def test_a_file_begins_with_what_it_is(name: str) -> None:
    first = (FOLDER / name).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("// ")
    assert len(first) > 20
    if name.endswith(".hpp"):
        assert "#pragma once" in (FOLDER / name).read_text(encoding="utf-8")


@pytest.mark.table(1000)
@pytest.mark.parametrize("file", OF_KERNELS)
def test_the_host_understands_each_kernel(file: str) -> None:
    kernels = kernels_of(file)
    assert kernels
    for kernel in kernels:
        assert kernel.fields
        assert len(set(kernel.fields)) == len(kernel.fields)
        assert kernel.arrays
        assert len(set(kernel.arrays)) == len(kernel.arrays)


def test_kernels_have_names_of_their_own() -> None:
    names = [kernel.name for file in FILES for kernel in kernels_of(file)]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.usefixtures("compiler")
@pytest.mark.table(1000)
@pytest.mark.parametrize("file", OF_KERNELS)
def test_the_host_lays_parameters_out_as_the_compiler_does(file: str) -> None:
    kernel = kernels_of(file)[0]
    places = {name: struct.calcsize(kernel.format[: 1 + index]) for index, name in enumerate(kernel.fields)}
    checks = [f"static_assert(offsetof(Params, {name}) == {at});" for name, at in places.items()]
    checks.append(f"static_assert(sizeof(Params) == {struct.calcsize(kernel.format)});")
    text = "\n".join((f'#include "{file}.cpp"', "#include <cstddef>", *checks))
    expect_no_message([compiler(), *flags("float"), "-fsyntax-only", "-x", "c++", "-"], text)


# --- What compilers say -----------------------------------------------------------------------------------------------


def compiler() -> str:
    found = find_compiler()
    assert found is not None
    return found.path


def flags(scalar: str, *target: str) -> tuple[str, ...]:
    without = [flag for flag in builds.FLAGS if flag != "-shared"]
    return (*without, *target, f"-DSCALAR={scalar}", f"-I{FOLDER}")


@pytest.mark.usefixtures("compiler")
@pytest.mark.table(3)
@pytest.mark.parametrize("file", FILES)
def test_as_it_is_built_a_file_compiles_without_warnings(file: str, tmp_path: Path) -> None:
    """With the flags of this machine; some warnings come only with optimisation."""
    command = [compiler(), *flags("float", *builds.target_flags()), *WARNINGS, "-c", str(FOLDER / f"{file}.cpp")]
    expect_no_message([*command, "-o", str(tmp_path / "kernels.o")])


@pytest.mark.usefixtures("compiler")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="this machine's compiler is not for x86-64")
@pytest.mark.table(4)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("target", X86, ids=X86.values())
def test_on_any_x86_64_a_file_compiles_without_warnings(file: str, target: str) -> None:
    for scalar in SCALARS:
        expect_no_message(
            [compiler(), *flags(scalar, f"-march={target}"), *WARNINGS, "-fsyntax-only", str(FOLDER / f"{file}.cpp")]
        )


@cache
def other_compiler(name: str) -> str:
    numbered = (f"{name}-{version}" for version in range(25, 14, -1))  # as Debian calls them
    found = next(filter(None, map(shutil.which, (*numbered, name))), None)
    if found is None:
        pytest.skip(f"{name} is not installed")
    version = run([found, "-dumpversion"]).strip()
    oldest = 15 if "clang" in name else 11
    if int(version.partition(".")[0]) < oldest:
        pytest.skip(f"{name} is of version {version}, older than {oldest}")
    return found


@pytest.mark.table(4)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", ["clang++", "aarch64-linux-gnu-g++"])
def test_another_compiler_compiles_a_file_without_warnings(file: str, name: str, tmp_path: Path) -> None:
    for scalar in SCALARS:
        command = [other_compiler(name), *flags(scalar), *WARNINGS, "-c", str(FOLDER / f"{file}.cpp")]
        expect_no_message([*command, "-o", str(tmp_path / "kernels.o")])
