"""Messages of g++ and clang++ in the form, and where possible in the words, of NVRTC's log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from gpucnn.simulator.errors import CompileError, LoweringError

_Q = r"[\"'‘]([^\"'’]*)[\"'’]"  # something quoted
_MESSAGE = re.compile(
    r"^(?P<file>[^:\n]+):(?P<line>\d+):(?:(?P<column>\d+):)? (?P<kind>fatal error|error): (?P<text>.*)$", re.M
)
_LOWERED = re.compile(r"^(?P<file>[^:\n]+):(?P<line>\d+): (?P<text>the simulator cannot run .*)$", re.M | re.S)
_MAX_ERRORS = 100

# The compiler's wording, and NVRTC's.
_WORDINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"{_Q} was not declared in this scope.*", r'identifier "\1" is undefined'),
        (rf"use of undeclared identifier {_Q}.*", r'identifier "\1" is undefined'),
        (rf"{_Q} does not name a type.*", r'identifier "\1" is undefined'),
        (rf"{_Q} has not been declared.*", r'identifier "\1" is undefined'),
        (rf"unknown type name {_Q}.*", r'identifier "\1" is undefined'),
        (r"expected [\"'‘]?([;,)}\]])[\"'’]?(?: .*|$)", r'expected a "\1"'),
        (r"expected (?:primary-)?expression.*", "expected an expression"),
        (r"expected unqualified-id.*", "expected an identifier"),
        (
            r"no matching function for call to [\"'‘]([\w:~]+)[^\"'’]*[\"'’]",
            r'no instance of overloaded function "\1" matches the argument list',
        ),
        (r"too (few|many) arguments to function.*", r"too \1 arguments in function call"),
        (
            r"[\"'‘](?:const )?(?:struct |class )?([^\"'’]*)[\"'’] has no member named " + _Q + ".*",
            r'class "\1" has no member "\2"',
        ),
        (r"assignment of read-only .*", "expression must be a modifiable lvalue"),
        (r"increment of read-only .*", "expression must be a modifiable lvalue"),
        (r"lvalue required as left operand of assignment", "expression must be a modifiable lvalue"),
        (r"static assertion failed: (.*)", r'static assertion failed with "\1"'),
        (r"static assertion failed$", "static assertion failed"),
        (r"#error (.*)", r"#error directive: \1"),
        (rf"redefinition of {_Q}", r'function "\1" has already been defined'),
        (rf"conflicting declaration {_Q}.*", r'declaration is incompatible with previous "\1"'),
        (r"([^\s:]+): No such file or directory", r'cannot open source file "\1"'),
        (rf"{_Q} file not found", r'cannot open source file "\1"'),
    )
)


class _Error(NamedTuple):
    file: str
    line: int
    column: int
    is_fatal: bool
    text: str


class Diagnostics:
    """The log of a program that does not compile.

    Parameters
    ----------
    name : str
        The program's name, as NVRTC was given it.
    text : str
        The program.
    headers : mapping of str to str
        Its headers, whose lines are shown as the program's are.
    """

    def __init__(self, name: str, text: str, headers: Mapping[str, str]) -> None:
        self.name = name or "default_program"
        self._texts = {self.name: text, **headers}

    def log(self, error: CompileError) -> str:
        """NVRTC's log of the errors that the compiler found."""
        errors = list(dict.fromkeys(self._errors(str(error), isinstance(error, LoweringError))))[:_MAX_ERRORS]
        if not errors:
            return f"{self.name}: error: {error}\n"
        parts = [self._described(one) for one in errors]
        fatal = errors[-1].is_fatal
        what = "catastrophic error" if fatal and len(errors) == 1 else "error"
        count = f"{len(errors)} {what}{'s' if len(errors) > 1 else ''}"
        parts.append(f'{count} detected in the compilation of "{self.name}".\n')
        if fatal:
            parts.append("Compilation terminated.\n")
        return "".join(parts)

    def _errors(self, said: str, is_lowering: bool) -> list[_Error]:
        pattern = _LOWERED if is_lowering else _MESSAGE
        found = []
        for match in pattern.finditer(said):
            groups = match.groupdict()
            file = self._file(match["file"])
            column = int(groups.get("column") or 0)
            text = match["text"].strip() if is_lowering else in_nvrtc_words(match["text"].strip())
            line = int(match["line"])
            if text.startswith('expected a "'):
                line, column = self._next_word(file, line, column)
            found.append(_Error(file, line, column, groups.get("kind") == "fatal error", text))
        # The table of kernels repeats what is wrong in a name expression.
        return [error for error in found if error.file != "<kernels>"] or found

    def _next_word(self, file: str, line: int, column: int) -> tuple[int, int]:
        """Where the next word stands: NVRTC points at what it found in place of what it expected."""
        lines = self._texts.get(file, "").split("\n")
        rest = re.compile(r"\s*\S")
        text = "\n".join(lines[line - 1 :])
        match = rest.match(text, min(column - 1, len(text)))
        if not match:
            return line, column
        before = text[: match.end() - 1]
        return line + before.count("\n"), len(before) - before.rfind("\n")

    def _file(self, file: str) -> str:
        """The name by which the program knows a file."""
        if file == PurePosixPath(self.name).name:
            return self.name
        for name in self._texts:
            if file.endswith(f"/{name}"):
                return name
        return file

    def _described(self, error: _Error) -> str:
        kind = "catastrophic error" if error.is_fatal else "error"
        lines = self._texts.get(error.file, "").split("\n")
        line = lines[error.line - 1].rstrip() if 0 < error.line <= len(lines) else ""
        shown = f"  {line}\n  {' ' * _caret(line, error)}^\n" if line else ""
        return f"{error.file}({error.line}): {kind}: {error.text}\n{shown}\n"


def _caret(line: str, error: _Error) -> int:
    """The column that NVRTC points at, from 0: behind an inclusion, else at the word of the error."""
    if error.is_fatal:
        return len(line)
    return min(error.column - 1, len(line)) if error.column else len(line) - len(line.lstrip())


def in_nvrtc_words(text: str) -> str:
    """A message of the compiler as NVRTC words it, or with NVRTC's quotes if it is not one of those known here."""
    for pattern, replacement in _WORDINGS:
        match = pattern.fullmatch(text)
        if match:
            return match.expand(replacement)
    return re.sub(_Q, r'"\1"', text)
