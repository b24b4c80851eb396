"""CUDA C++ as C++17 for g++ and clang++.

The compiler's own preprocessor resolves the macros first. Of CUDA C++, `include/cuda_shim.h` then gives meaning to
everything but these constructs, which are rewritten here, line for line:

- shared variables: ``__shared__ float tile[32];`` becomes a reference to memory that the runtime gives to each block;
- inline PTX: ``asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h))`` becomes ``gpucnn::ptx::cvt_f32_f16(f, h)``;
- kernels: a function follows each, which describes it to the launcher in the scope of its definition;
- global variables: they are kept and never taken for constants, since the host may write to them.

Names stay as they are, so a kernel has the symbol that NVIDIA's compiler would give it: ``_Z3addPfS_i``. Which symbol
that is, only the compiler knows: the text has placeholders for it, and `Lowered.finish` puts the symbols that the
compiler chose into its assembly code. Only C linkage is taken away, or a kernel ``read`` would be the C library's;
such a kernel gets its plain name in the table of kernels.

What cannot be lowered is an error, never left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gpucnn.simulator.errors import LoweringError

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
_KERNEL = re.compile(r"\b__global__\b")
_KERNEL_NAME = re.compile(r"(?P<name>\b[A-Za-z_]\w*(?:\s*::\s*\w+)*\s*(?:<[^;{}]*>)?)\s*\Z")
_LAUNCH_BOUNDS = re.compile(r"\b__launch_bounds__\s*\(")
_ATTRIBUTE = re.compile(r"\b(?:__\w+__|alignas|__attribute__)\s*\Z")
_C_LINKAGE = re.compile(r'\bextern(\s+)"C"(?=\s*([{]?))')
_TEMPLATE = re.compile(r"\btemplate\s*<\s*[^\s>]")
_INSTANTIATION = re.compile(r"\btemplate\b(?!\s*<)")
_GLOBAL_VARIABLE = re.compile(r"\b__(?:device|constant|managed)__\b")
_DIGITS = re.compile(r"\b\d[\w']*\Z")
_INSTRUCTION = re.compile(r"([a-z][\w.:]*)\s*(.*)$", re.S)
_OPERAND = re.compile(r'\s*"([^"]*)"\s*(\(.*\))\s*$', re.S)
_PLACEHOLDER = "gpucnn kernel {}"
_SYMBOL = re.compile(r"^gpucnn_symbol_(\d+):\n\s*\.\w+\s+([\w.$]+)", re.M)
_OBJECT = re.compile(r"^\s*\.type\s+([\w.$]+),\s*[@%](?:object|gnu_unique_object)\b", re.M)
_NOT_CUDA = re.compile(
    r"gpucnn|_ZGV|_ZZ|_ZT|_ZN6gpucnn|_ZNS?t|_ZNK?St|_ZSt|\.|_ZN12_GLOBAL__N_1\d+gpucnn|_ZL\d+gpucnn|__"
)


@dataclass(frozen=True)
class Kernel:
    """A kernel of the source, and the arguments of its ``__launch_bounds__`` as they stand there."""

    name: str
    launch_bounds: str
    has_c_linkage: bool = False


@dataclass(frozen=True)
class Lowered:
    """A C++ program, which `cuda_shim.h` must precede, its kernels, and the name expressions whose symbols it has."""

    text: str
    kernels: tuple[Kernel, ...]
    expressions: tuple[str, ...] = ()

    def finish(self, assembly: str) -> tuple[str, dict[str, str]]:
        """Put the symbols of kernels and variables into assembly code; that, and the symbols of the expressions."""
        found = {int(match.group(1)): match.group(2) for match in _SYMBOL.finditer(assembly)}
        plain = {found[i]: kernel.name for i, kernel in enumerate(self.kernels) if kernel.has_c_linkage}
        symbols = {number: plain.get(symbol, symbol) for number, symbol in found.items()}
        for number, symbol in symbols.items():
            assembly = assembly.replace(f'"{_PLACEHOLDER.format(number)}"', f'"{symbol}"')
        first = len(self.kernels)
        lowered = {expression: symbols[first + i] for i, expression in enumerate(self.expressions)}
        return assembly + _table_of_variables(assembly), lowered


def lower(preprocessed: str, name: str, expressions: Sequence[str] = ()) -> Lowered:
    """Rewrite the preprocessed text of a CUDA C++ source called `name`."""
    text = _rewrite(preprocessed, name, _ASM, _lower_asm)
    text = _rewrite(text, name, _SHARED, _lower_shared)
    text = _rewrite(text, name, _GLOBAL_VARIABLE, _lower_variable)
    text, kernels = _describe_kernels(text, name)
    text = _C_LINKAGE.sub(r'extern\1"C++"', text)
    return Lowered(f"{text}\n{_entries(len(kernels), expressions)}", kernels, tuple(expressions))


# --- Kernels ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Head:
    """The head of a kernel's definition or declaration, and the index of the brace or semicolon after it."""

    prefix: str
    name: str
    parameters: str
    launch_bounds: str
    end: int


def _describe_kernels(text: str, name: str) -> tuple[str, tuple[Kernel, ...]]:
    """Add a description after each kernel: a function in its scope, which the table of entries calls."""
    parts: list[str] = []
    kernels: list[Kernel] = []
    position = 0
    blocks = _blocks_of_c_linkage(text)
    for match in _KERNEL.finditer(text):
        try:
            head = _kernel_head(text, match.start(), match.end())
            is_instantiation = bool(_INSTANTIATION.search(head.prefix))
            if _TEMPLATE.search(head.prefix) or (text[head.end] == ";" and not is_instantiation):
                continue
            last = head.end if is_instantiation else _closing(text, head.end)
        except LoweringError as error:
            raise _error(text, match.start(), name, str(error)) from None
        parts += [text[position : last + 1], _description(len(kernels), head)]
        position = last + 1
        has_c_linkage = bool(_C_LINKAGE.search(head.prefix)) or any(match.start() in block for block in blocks)
        kernels.append(Kernel(" ".join(head.name.split()), head.launch_bounds, has_c_linkage))
    return "".join([*parts, text[position:]]), tuple(kernels)


def _blocks_of_c_linkage(text: str) -> list[range]:
    """The extents of ``extern "C" { ... }``."""
    starts = [match.start(2) for match in _C_LINKAGE.finditer(text) if match.group(2)]
    return [range(start, _closing(text, start)) for start in starts]


def _kernel_head(text: str, start: int, end: int) -> _Head:
    """The head around a ``__global__`` in [start, end)."""
    first = max(text.rfind(mark, 0, start) for mark in ";{}") + 1
    position, bounds = end, ""
    while position < len(text) and text[position] not in "{;":
        if text[position] != "(":
            position += 1
            continue
        close = _closing(text, position)
        attribute = _ATTRIBUTE.search(text, max(end, position - 40), position)
        if not attribute:
            break
        if attribute[0].strip() == "__launch_bounds__":
            bounds = text[position + 1 : close]
        position = close + 1
    named = _KERNEL_NAME.search(text[end:position])
    if position == len(text) or text[position] != "(" or not named or not re.search(r"\bvoid\b", text[first:position]):
        raise LoweringError("a kernel that is not a function of the form __global__ void name(...)")
    last = close + 1
    while last < len(text) and text[last] not in "{;":
        last = _closing(text, last) + 1 if text[last] in _OPEN else last + 1
    after = _without_call(_LAUNCH_BOUNDS, text[close + 1 : last])[1]
    return _Head(text[first:start], named["name"], text[position + 1 : close], after or bounds, last)


def _description(number: int, head: _Head) -> str:
    """A function that describes a kernel, and a constant by which the assembly code tells its symbol."""
    parameters = ", ".join(
        _without_default(part) for part in _split(_without_markers(head.parameters), ",", angles=True)
    )
    kernel = f"static_cast<void (*)({parameters})>(&{head.name})"
    bounds = " ".join(_without_markers(head.launch_bounds).split())
    return (
        f" GPUCNN_C_LINKAGE {{ GPUCNN_SYMBOL gpucnn_symbol_{number} = (void*){kernel};"
        f" GPUCNN_KEPT void gpucnn_describe_{number}(::gpucnn::Entry& entry) {{"
        f" entry = ::gpucnn::KernelEntry<{kernel}>::describe("
        f'"{_PLACEHOLDER.format(number)}", ::gpucnn::launch_bound({bounds})); }} }}'
    )


def _without_default(parameter: str) -> str:
    """A parameter without its default argument, on one line."""
    return " ".join(_split(parameter, "=")[0].split())


def _without_markers(text: str) -> str:
    return _LINE_MARKER.sub("", text)


def _entries(kernel_count: int, expressions: Sequence[str]) -> str:
    """A table of the kernels for the launcher, filled as the library is loaded."""
    numbers = range(kernel_count)
    declared = "".join(f'extern "C" void gpucnn_describe_{number}(::gpucnn::Entry&);\n' for number in numbers)
    called = "".join(f"gpucnn_describe_{number}(gpucnn_entries[{number}]);\n" for number in numbers)
    named = ""
    for number, expression in enumerate(expressions, kernel_count):
        declared += (
            f'#line 1 "<name expression {number - kernel_count}>"\n'
            f'extern "C" {{ GPUCNN_SYMBOL gpucnn_symbol_{number} = (void*)::gpucnn::named({expression}); }}\n'
        )
        named += (
            f"if (::gpucnn::NamedEntry<::gpucnn::named({expression})>::describe("
            f'"{_PLACEHOLDER.format(number)}", gpucnn_entries[gpucnn_entry_count], 0)) gpucnn_entry_count++;\n'
        )
    return (
        f'#line 1 "<kernels>"\n{declared}'
        '#line 1 "<kernels>"\n'
        f"GPUCNN_EXPORTED ::gpucnn::Entry gpucnn_entries[{kernel_count + len(expressions) + 1}] = {{}};\n"
        f"GPUCNN_EXPORTED int gpucnn_entry_count = {kernel_count};\n"
        "__attribute__((constructor)) GPUCNN_UNCHECKED static void gpucnn_describe_all() {\n"
        f"{called}{named}}}\n"
    )


# --- Global variables ---------------------------------------------------------------------------------------------


def _lower_variable(text: str, start: int, end: int) -> tuple[int, int, str]:
    """The memory space of a variable; with it an attribute that keeps it, where it is one and not a function's."""
    position = end
    while position < len(text) and text[position] not in "(){};=[":
        position += 1
        if text[position : position + 1] == "(" and _ATTRIBUTE.search(text, max(end, position - 40), position):
            position = _closing(text, position) + 1
    is_variable = text[position : position + 1] in list(";=[{") and "operator" not in text[end:position]
    return start, end, f"{text[start:end]} GPUCNN_KEPT" if is_variable else text[start:end]


def _table_of_variables(assembly: str) -> str:
    """Assembly code of a table of the program's variables, for the driver."""
    names = [name for name in dict.fromkeys(_OBJECT.findall(assembly)) if not _NOT_CUDA.match(name)]
    sizes = dict(re.findall(r"^\s*\.size\s+([\w.$]+),\s*(\d+)\s*$", assembly, re.M))
    rows = [name for name in names if name in sizes]
    strings = "".join(f'.Lgpucnn_name_{i}:\n\t.string "{name}"\n' for i, name in enumerate(rows))
    table = "".join(
        f"\t.8byte .Lgpucnn_name_{i}\n\t.8byte {name}\n\t.8byte {sizes[name]}\n" for i, name in enumerate(rows)
    )
    return (
        f'\t.section .rodata.gpucnn,"a"\n{strings}'
        '\t.section .data.rel.ro.gpucnn,"aw"\n\t.balign 8\n'
        "\t.globl gpucnn_variables\n\t.type gpucnn_variables, %object\n"
        f"\t.size gpucnn_variables, {24 * (len(rows) + 1)}\ngpucnn_variables:\n{table}"
        "\t.8byte 0\n\t.8byte 0\n\t.8byte 0\n"
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
        bare = instruction.strip().lstrip("{").strip()  # braces may enclose the whole
        if bare and bare != "}":
            yield bare


def _operands(section: str) -> Iterator[str]:
    """The expressions of a section's operands, those of 64 bits that are read as addresses."""
    for item in _split(_LINE_MARKER.sub("", section), ","):
        match = _OPERAND.match(item)
        if match:
            address = "::gpucnn::ptx::address" if match.group(1) == "l" else ""
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

    special = re.fullmatch(r"%%([a-z]\w*(?:\.[xyz])?)", word)
    if special:
        function = f"special_{special.group(1).replace('.', '_')}"
        if function not in known_registers():
            raise LoweringError(f"the PTX register {word[1:]!r}; include/ptx.h has those that it knows")
        return f"::gpucnn::ptx::{function}()"
    lowered = re.sub(r"%(\d+)", expression, word)
    if "%" in re.sub(r"%\d+", "", word) or re.match(r"[A-Za-z_]", word):
        raise LoweringError(f"the PTX operand {word!r}")
    return lowered


@cache
def known_instructions() -> frozenset[str]:
    """The functions of `include/ptx.h` that inline PTX may call."""
    return frozenset(re.findall(r"^inline void (\w+)\(", (INCLUDE / "ptx.h").read_text(encoding="utf-8"), re.M))


@cache
def known_registers() -> frozenset[str]:
    """The functions of `include/ptx.h` for the special registers of PTX."""
    return frozenset(
        re.findall(r"^inline uint\d+_t (special_\w+)\(", (INCLUDE / "ptx.h").read_text(encoding="utf-8"), re.M)
    )


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
    if quote == "'" and _DIGITS.search(text, max(0, position - 80), position):
        return position  # it separates digits
    if quote == '"' and text[position - 1 : position] == "R":
        end = f'){text[position + 1 : text.index("(", position)]}"'
        return text.index(end, position) + len(end) - 1
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
