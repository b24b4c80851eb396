"""CUDA C++ as C++17 for g++ and clang++.

The compiler's own preprocessor resolves the macros first. Of CUDA C++, `include/cuda_shim.h` then gives meaning to
everything but three constructs, which are rewritten here, line for line:

- shared variables: ``__shared__ float tile[32];`` becomes a reference to memory that the runtime gives to each block;
- inline PTX: ``asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h))`` becomes ``gpucnn::ptx::cvt_f32_f16(f, h)``;
- ``extern "C"`` is dropped and everything put into a namespace, so that no name clashes with the C library's.

What cannot be lowered is an error, never left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gpucnn.simulator.errors import LoweringError

NAMESPACE = "gpucnn_kernel"
INCLUDE = Path(__file__).parent / "include"
PREPROCESSOR_FLAGS = ("-E", "-x", "c++", "-std=c++17", "-undef", "-nostdinc", "-D__CUDACC__", "-D__CUDACC_RTC__")
CUDA_ARCH = "-D__CUDA_ARCH__=800"

_OPEN, _CLOSE = "([{", ")]}"
_LINE_MARKER = re.compile(r'^#(?:line)? (\d+) "((?:\\.|[^"\\])*)".*$', re.M)
_ASM = re.compile(r"\b(?:asm|__asm__|__asm)\b\s*(?:volatile\b|__volatile__\b)?\s*\(")
_BEFORE_SHARED = re.compile(
    r"(?:\b(?:extern|static|volatile|const)\b\s*|\b(?:__align__|alignas)\s*\([^()]*\)\s*)*\Z"
)  # what may stand before the word
_SHARED = re.compile(r"\b__shared__\b")
_ALIGNMENT = re.compile(r"\b(?:__align__|alignas)\s*\(")
_DECLARATOR = re.compile(r"\s*(?P<type>[^\[]*[\s*&>])?(?P<name>\w+)\s*(?P<dimensions>\[.*\])?\s*", re.S)
_KERNEL = re.compile(r'\bextern\s+"C"[^;{}()]*\b__global__\b')
_KERNEL_HEAD = re.compile(r"\s*void\s+(\w+)\s*\(.*\)\s*", re.S)
_DEFINED = re.compile("[{;]")
_C_BLOCK = re.compile(r'\bextern\s+"C"\s*\{')
_LAUNCH_BOUNDS = re.compile(r"\b__launch_bounds__\s*\(")
_INSTRUCTION = re.compile(r"([a-z][\w.:]*)\s*(.*)$", re.S)
_OPERAND = re.compile(r'\s*"([^"]*)"\s*(\(.*\))\s*$', re.S)


@dataclass(frozen=True)
class Kernel:
    """A kernel of the source, and the arguments of its ``__launch_bounds__`` as they stand there."""

    name: str
    launch_bounds: str


@dataclass(frozen=True)
class Lowered:
    """A C++ program, which `cuda_shim.h` must precede, and its kernels."""

    text: str
    kernels: tuple[Kernel, ...]


def lower(preprocessed: str, name: str) -> Lowered:
    """Rewrite the preprocessed text of a CUDA C++ source called `name`."""
    block = _C_BLOCK.search(preprocessed)
    if block:
        raise _error(preprocessed, block.start(), name, 'an extern "C" block; write extern "C" before each kernel')
    kernels = tuple(_kernels(preprocessed, name))
    text = _rewrite(preprocessed, name, _ASM, _lower_asm)
    text = _rewrite(text, name, _SHARED, _lower_shared)
    text = re.sub(r'\bextern\s+"C"', "", text)
    return Lowered(f"namespace {NAMESPACE} {{\n{text}\n}}\n{_entries(kernels)}", kernels)


# --- Kernels ------------------------------------------------------------------------------------------------------


def _kernels(text: str, name: str) -> Iterator[Kernel]:
    """Each extern "C" __global__ function that is defined."""
    for match in _KERNEL.finditer(text):
        end = _DEFINED.search(text, match.end())
        head, launch_bounds = _without_call(_LAUNCH_BOUNDS, text[match.end() : end.start() if end else len(text)])
        named = _KERNEL_HEAD.fullmatch(head)
        if not named:
            raise _error(
                text, match.start(), name, 'a kernel that does not begin with extern "C" __global__ void name('
            )
        if end and end[0] == "{":
            yield Kernel(named[1], launch_bounds or "")


def _entries(kernels: tuple[Kernel, ...]) -> str:
    """A table of the kernels for the launcher."""
    described = "".join(
        f'::gpucnn::KernelEntry<&{NAMESPACE}::{kernel.name}>::describe("{kernel.name}", '
        f"[] {{ using namespace {NAMESPACE}; return ::gpucnn::launch_bound({kernel.launch_bounds}); }}()),\n"
        for kernel in kernels
    )
    return (
        '#line 1 "<kernels>"\n'
        '#define EXPORTED extern "C" __attribute__((visibility("default")))\n'
        f"EXPORTED const ::gpucnn::Entry gpucnn_entries[] = {{\n{described}{{}}}};\n"
        f"EXPORTED const int gpucnn_entry_count = {len(kernels)};\n"
    )


# --- Shared variables ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Variable:
    """A declared variable: ``type name dimensions``."""

    type: str
    name: str
    dimensions: str


def _lower_shared(text: str, start: int, end: int) -> tuple[int, int, str]:
    """The statement that holds a __shared__ in [start, end): its begin and end, and its replacement."""
    prefix = _BEFORE_SHARED.search(text, max(0, start - 200), start)
    first = prefix.start() if prefix else start
    last = _statement_end(text, end)
    words, alignment = _without_call(_ALIGNMENT, text[first:last])
    is_dynamic = bool(re.search(r"\bextern\b", words))
    variables = _variables(re.sub(r"\b(?:__shared__|extern|static)\b", " ", words))
    if is_dynamic:
        lowered = [_dynamic_shared(variable) for variable in variables]
    elif _depth(text, first):
        lowered = [_static_shared(variable, alignment) for variable in variables]
    else:
        raise LoweringError("a static shared variable outside a function")
    return first, last + 1, " ".join(lowered)


def _variables(declaration: str) -> list[_Variable]:
    """The variables of ``type name[..], name[..]``."""
    declarators = _split(declaration, ",", angles=True)
    outside = " ".join(declarator.partition("[")[0] for declarator in declarators)
    if "=" in outside or re.search(r"\w\s*[({]", outside):
        raise LoweringError("a shared variable cannot be initialised")
    parts = [_DECLARATOR.fullmatch(declarator) for declarator in declarators]
    if parts[0] is None or not parts[0]["type"] or any(part is None or part["type"] for part in parts[1:]):
        raise LoweringError(f"the shared declaration {' '.join(declaration.split())!r}")
    kind = " ".join(parts[0]["type"].split())
    return [_Variable(kind, part["name"], " ".join((part["dimensions"] or "").split())) for part in parts if part]


def _dynamic_shared(variable: _Variable) -> str:
    return f"{variable.type}* {variable.name} = static_cast<{variable.type}*>(::gpucnn::dynamic_shared());"


def _static_shared(variable: _Variable, alignment: str | None) -> str:
    name = variable.name
    alias, storage = f"gpucnn_type_{name}", f"gpucnn_shared_{name}"
    return (
        f"using {alias} = {variable.type}{variable.dimensions}; "
        f"static ::gpucnn::SharedVariable {storage}(sizeof({alias}), {alignment or f'alignof({alias})'}, "
        f'"{name}", ::gpucnn::Site::here()); '
        f"{alias}& {name} = *static_cast<{alias}*>({storage}.get());"
    )


def _statement_end(text: str, position: int) -> int:
    """The semicolon that ends a statement."""
    while position < len(text) and text[position] != ";":
        position = _closing(text, position) + 1 if text[position] in _OPEN else position + 1
    return position


def _without_call(call: re.Pattern[str], words: str) -> tuple[str, str | None]:
    """`words` without what `call` matches up to its bracket, and the text in the brackets; None if it is not there."""
    match = call.search(words)
    if not match:
        return words, None
    close = _closing(words, match.end() - 1)
    return words[: match.start()] + " " + words[close + 1 :], words[match.end() : close]


def _depth(text: str, position: int) -> int:
    """The number of open braces, other than those of namespaces."""
    kinds: list[bool] = []
    for match in re.finditer(
        r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\])+\'|(\bnamespace\b[\w\s:]*)?([{}])', text[:position]
    ):
        if match.group(2) == "{":
            kinds.append(match.group(1) is None)
        elif match.group(2) == "}" and kinds:
            kinds.pop()
    return sum(kinds)


# --- Inline PTX ---------------------------------------------------------------------------------------------------


def _lower_asm(text: str, start: int, end: int) -> tuple[int, int, str]:
    """An asm statement: its begin and end, and the calls that replace it."""
    close = _closing(text, end - 1)
    semicolon = text.find(";", close)
    sections = _split(text[end:close], ":")
    operands = [operand for section in sections[1:3] for operand in _operands(section)]
    calls = " ".join(_call(instruction, operands) for instruction in _instructions(sections[0]))
    return start, semicolon + 1, f"{{ {calls} }}"


def _instructions(template: str) -> Iterator[str]:
    """The instructions of an asm template, which is one or more string literals."""
    code = "".join(re.findall(r'"((?:\\.|[^"\\])*)"', template)).replace("\\n", "\n").replace("\\t", " ")
    for instruction in re.split(r"[;\n]", re.sub(r"//.*", "", code)):
        if instruction.strip():
            yield instruction.strip()


def _operands(section: str) -> Iterator[str]:
    """The expressions of a section's operands, those of pointers as addresses."""
    for item in _split(_LINE_MARKER.sub("", section), ","):
        match = _OPERAND.match(item)
        if match:
            address = "::gpucnn::ptx::address" if match.group(1).lstrip("=+&") == "l" else ""
            yield address + " ".join(match.group(2).split())
        elif item.strip():
            raise LoweringError(f"the asm operand {' '.join(item.split())!r}")


def _call(instruction: str, operands: list[str]) -> str:
    match = _INSTRUCTION.match(instruction)
    if not match:
        raise LoweringError(f"the PTX {instruction!r}")
    function = re.sub(r"[.:]+", "_", match.group(1))
    if function not in known_instructions():
        raise LoweringError(f"the PTX instruction {match.group(1)!r}; include/ptx.h has those that it can run")
    arguments = [argument.strip() for argument in re.sub(r"[\[\]{}]", " ", match.group(2)).split(",")]
    return f"::gpucnn::ptx::{function}({', '.join(_argument(word, operands) for word in arguments if word)});"


def _argument(word: str, operands: list[str]) -> str:
    def expression(match: re.Match[str]) -> str:
        number = int(match.group(1))
        if number >= len(operands):
            raise LoweringError(f"the PTX operand {match.group(0)!r}: there are {len(operands)}")
        return operands[number]

    lowered = re.sub(r"%(\d+)", expression, word)
    if "%" in re.sub(r"%\d+", "", word) or re.match(r"[A-Za-z_]", word):
        raise LoweringError(f"the PTX operand {word!r}")
    return lowered


@cache
def known_instructions() -> frozenset[str]:
    """The functions of `include/ptx.h` that inline PTX may call."""
    return frozenset(re.findall(r"^inline void (\w+)\(", (INCLUDE / "ptx.h").read_text(encoding="utf-8"), re.M))


# --- Text ---------------------------------------------------------------------------------------------------------


def _rewrite(
    text: str, name: str, pattern: re.Pattern[str], lower_one: Callable[[str, int, int], tuple[int, int, str]]
) -> str:
    """Replace each construct that `pattern` finds, keeping the number of lines."""
    parts, position = [], 0
    for match in pattern.finditer(text):
        if match.start() < position:
            continue
        try:
            start, end, replacement = lower_one(text, match.start(), match.end())
        except LoweringError as error:
            raise _error(text, match.start(), name, str(error)) from None
        parts += [text[position:start], replacement, "\n" * text.count("\n", start, end)]
        position = end
    return "".join([*parts, text[position:]])


def _error(text: str, position: int, name: str, what: str) -> LoweringError:
    file, line = place(text, position, name)
    return LoweringError(f"{file}:{line}: the simulator cannot run {what}", file=file, line=line)


def place(text: str, position: int, name: str) -> tuple[str, int]:
    """File and line of a position in preprocessed text."""
    file, line, start = name, 1, 0
    for marker in _LINE_MARKER.finditer(text, 0, position):
        file, line, start = marker.group(2), int(marker.group(1)), marker.end() + 1
    return file, line + text.count("\n", start, position)


def _skip_literal(text: str, position: int) -> int:
    """The index of the quote that closes the literal at `position`."""
    quote = text[position]
    position += 1
    while position < len(text) and text[position] != quote:
        position += 2 if text[position] == "\\" else 1
    return position


def _closing(text: str, position: int) -> int:
    """The index of the bracket that closes the one at `position`."""
    depth = 0
    while position < len(text):
        character = text[position]
        if character in "\"'":
            position = _skip_literal(text, position)
        elif character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth -= 1
            if depth == 0:
                return position
        position += 1
    raise LoweringError("unbalanced brackets")


def _split(text: str, separator: str, *, angles: bool = False) -> list[str]:
    """Split at separators outside brackets and literals; with `angles` outside <> as well."""
    parts, start, position, depth = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        if character in "\"'":
            position = _skip_literal(text, position)
        elif character in _OPEN:
            position = _closing(text, position)
        elif angles and character in "<>":
            depth += 1 if character == "<" else -1
        elif character == separator and depth == 0:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    return [*parts, text[start:]]
