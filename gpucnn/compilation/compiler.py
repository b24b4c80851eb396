"""The C++ compiler of this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path


class CompilerError(RuntimeError):
    """A C++ compiler is missing, or refused a program; the message holds what it printed."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler, and the facts that identify its version without running it."""

    path: str
    is_clang: bool
    identity: str


@cache
def _find(chosen: str | None, search_path: str | None) -> Compiler | None:
    for name in [chosen] if chosen else ["g++", "clang++"]:
        found = shutil.which(name, path=search_path)
        if found:
            real = Path(found).resolve()
            status = real.stat()
            return Compiler(
                found, "clang" in real.name or "clang" in name, f"{real} {status.st_size} {status.st_mtime_ns}"
            )
    return None


def find_compiler() -> Compiler | None:
    """The compiler that CXX names, else g++, else clang++; None if there is none."""
    return _find(os.environ.get("CXX"), os.environ.get("PATH"))


def run(command: list[str], text: str | None = None) -> str:
    """The output of a command, whose input is `text`.

    Raises
    ------
    CompilerError
        It failed, and the message is what it printed; or it cannot be run.
    """
    try:
        result = subprocess.run(
            command, input=text, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    except OSError as error:
        raise CompilerError(f"{command[0]} cannot be run: {error}") from error
    if result.returncode:
        raise CompilerError(result.stderr.strip() or f"{command[0]} failed with exit status {result.returncode}")
    return result.stdout


def hash_of(*parts: str) -> str:
    """A short name for the result of these parts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
