"""Program text from the files in kernels/: types, sizes and headers in one string for the compiler.

Everything that a build depends on is in its text, so the text is also its key in every cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_PACKAGE = Path(__file__).parents[3]
_FOLDERS = (_PACKAGE / "kernels", _PACKAGE.parent / "kernels")  # in a wheel; in a checkout
_INCLUDE = re.compile(r'#include "([\w.]+)"$')
_FIELDS = re.compile(r"^  (RUN_TIME )?(index_t|double) ([\w, ]+);", re.MULTILINE)


class ScalarType(NamedTuple):
    """The CUDA C++ name of a dtype, and its accumulator type."""

    storage: str
    accumulator: str


SCALARS = {
    "float16": ScalarType("half_t", "float"),
    "bfloat16": ScalarType("bfloat16_t", "float"),
    "float32": ScalarType("float", "float"),
    "tf32": ScalarType("tf32_t", "float"),  # float32 whose last 13 bits are not read, as copies write it
    "float64": ScalarType("double", "double"),
    "complex64": ScalarType("Complex<float>", "Complex<float>"),
    "complex128": ScalarType("Complex<double>", "Complex<double>"),
    # integers wrap, as NumPy's do: their sums are kept unsigned, where C++ lets them
    "int8": ScalarType("signed char", "unsigned int"),
    "int16": ScalarType("short", "unsigned int"),
    "int32": ScalarType("int", "unsigned int"),
    "int64": ScalarType("long long", "unsigned long long"),
    "uint8": ScalarType("unsigned char", "unsigned int"),
    "uint16": ScalarType("unsigned short", "unsigned int"),
    "uint32": ScalarType("unsigned int", "unsigned int"),
    "uint64": ScalarType("unsigned long long", "unsigned long long"),
}


class Kernel:
    """One ``extern "C"`` function of kernels/: its file, the structure that it takes, its name and its block size.

    Its name is the file's, unless that holds several.
    """

    def __init__(self, file: str, params: str, function: str = "", block: int = 256) -> None:
        self.file, self.params, self.name, self.block = file, params, function or file, block

    @cached_property
    def arrays(self) -> tuple[str, ...]:
        """The names of its array parameters, in their order, as its source declares them."""
        text = re.sub(r"//.*", "", _text(f"{self.file}.cu"))
        declared = re.search(rf"^{self.name}\(([^)]*)\)", text, re.MULTILINE)
        if declared is None:
            raise ValueError(f"kernels/{self.file}.cu declares no kernel {self.name}")
        return tuple(re.findall(r"\* __restrict__ (\w+)", declared[1]))


@dataclass(frozen=True)
class Source:
    """The whole text of a program and its kernel to launch; `name` is short and for humans."""

    kernel: str
    name: str
    text: str


@dataclass(frozen=True)
class Structure:
    """The fields of a structure of parameters in order: name, whether it is an index, whether it is set at run time."""

    name: str
    fields: tuple[tuple[str, bool, bool], ...]

    def packed(self, values: Mapping[str, Any], wide: bool, specialised: bool) -> np.ndarray[Any, Any]:
        """`values` as the bytes that the kernel takes, with 64-bit indices where `wide`: an array of no dimensions."""
        index, kept = (np.int64 if wide else np.int32), [field for field in self.fields if field[2] or not specialised]
        dtype = np.dtype([(name, index if is_index else np.float64) for name, is_index, _ in kept], align=True)
        record = np.array(tuple([values[name] for name, _, _ in kept]), dtype)
        return record.view(np.dtype((np.void, dtype.itemsize)))


@cache
def folder() -> Path:
    """The folder that holds the CUDA sources.

    Raises
    ------
    FileNotFoundError
        This installation has none.
    """
    for candidate in _FOLDERS:
        if (candidate / "common.cuh").is_file():
            return candidate
    raise FileNotFoundError(
        f"gpucnn: its CUDA kernels are in none of {', '.join(map(str, _FOLDERS))}; install gpucnn again"
    )


@cache
def _text(file: str) -> str:
    return (folder() / file).read_text(encoding="utf-8")


@cache
def structure(name: str) -> Structure:
    """The structure `name`, which params.cuh declares or, where it serves a single kernel, that kernel's file."""
    texts = map(_text, ("params.cuh", *sorted(path.name for path in folder().glob("*.cu"))))
    found = (re.search(rf"^struct {name} {{\n(.*?)^}};", text, re.MULTILINE | re.DOTALL) for text in texts)
    body = next(filter(None, found), None)
    if body is None:
        raise LookupError(f"no file of kernels/ has a structure {name}")
    fields = [
        (field.strip(), kind == "index_t", bool(live))
        for live, kind, names in _FIELDS.findall(body[1])
        for field in names.split(",")
    ]
    return Structure(name, tuple(fields))


def source(
    kernel: Kernel,
    dtype: str,
    wide: bool,
    fixed: Mapping[str, Any] | None,
    constants: tuple[tuple[str, int | str], ...] = (),
) -> Source:
    """The program of `kernel` for arrays of `dtype`, with 64-bit indices where `wide`.

    `fixed` holds the values of the structure that a specialised build knows at compile time; None asks for the generic
    build. `constants` are what every build of the kernel has to know: numbers, or the names of dtypes.
    """
    scalar = SCALARS[dtype]
    prelude = [
        f"#define SCALAR {scalar.storage}",
        f"#define ACCUMULATOR {scalar.accumulator}",
        f"#define INDEX {'long long' if wide else 'int'}",
        *(f"#define {name} {SCALARS[value].storage if isinstance(value, str) else value}" for name, value in constants),
    ]
    described = (dtype, "int64" if wide else "int32", "generic" if fixed is None else "specialised")
    chosen = ",".join((*described, *(f"{name}={value}" for name, value in constants)))
    text = "\n".join(prelude) + "\n" + _inlined(f"{kernel.file}.cu", kernel.params, fixed)
    return Source(kernel.name, f"{kernel.name}[{chosen}]", text)


def _inlined(file: str, params: str, fixed: Mapping[str, Any] | None) -> str:
    """The text of `file` with its headers inlined; #line directives keep each line's file and number."""
    text = _text(file)
    if fixed is not None and f"struct {params} {{\n" in text:
        text = _with_constants(text, params, fixed)
    lines = [f'#line 1 "{file}"']
    for number, line in enumerate(text.split("\n"), start=1):
        header = _INCLUDE.match(line)
        lines += [line] if header is None else [_inlined(header[1], params, fixed), f'#line {number + 1} "{file}"']
    return "\n".join(lines)


def _with_constants(text: str, params: str, fixed: Mapping[str, Any]) -> str:
    """The text with the fields of one structure as constants; line numbers are unchanged."""
    start = text.index(f"struct {params} {{\n")
    end = text.index("\n};", start)

    def constants(match: re.Match[str]) -> str:
        live, kind, names = match.groups()
        if live:
            return match[0]
        fields = (field.strip() for field in names.split(","))
        return "  " + " ".join(f"static constexpr {kind} {field} = {_literal(fixed[field])};" for field in fields)

    return text[:start] + _FIELDS.sub(constants, text[start:end]) + text[end:]


def _literal(value: Any) -> str:
    return float(value).hex() if isinstance(value, float) else f"{int(value)}LL"
