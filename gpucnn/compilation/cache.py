"""Disk cache of compiled files.

Each file is named after a hash of everything that it was made from. It is written under another name and renamed, so
several processes may build it concurrently; it ends in a checksum, so a truncated one is detected and rebuilt. Nothing
is taken from a place where others could change it (`gpucnn.compilation.trust`).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

from gpucnn.compilation.trust import deny_others, make_folder, safe

_SEAL = b"gpucnn-sealed:"
_made = threading.local()


def cached(path: Path, build: Callable[[Path], None]) -> Path:
    """The file at `path`, made by `build` if it is not there or not whole; elsewhere if others could change it there.

    Raises
    ------
    OSError
        The folder cannot be made, or not be written to.
    """
    path = safe(path)
    if is_whole(path):
        return path
    make_folder(path.parent)
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as scratch:
        target = Path(scratch) / path.name
        build(target)
        seal(target)
        deny_others(target)
        os.replace(target, path)
    _made.files = made() + 1
    return path


def made() -> int:
    """The number of files that this thread has built, as they were not in the cache."""
    files: int = getattr(_made, "files", 0)
    return files


def seal(path: Path) -> None:
    """Append a checksum; a loader does not look behind the end of a shared library."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("ab") as file:
        file.write(_SEAL + digest.encode())


def content(path: Path) -> bytes:
    """What a file of the cache held before its checksum was appended."""
    return path.read_bytes().rpartition(_SEAL)[0]


def is_whole(path: Path) -> bool:
    """Whether a file is there and its checksum is right."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    body, mark, digest = data.rpartition(_SEAL)
    return bool(mark) and hashlib.sha256(body).hexdigest().encode() == digest


@cache
def load(path: Path) -> ctypes.CDLL:
    """The shared library at `path`."""
    return ctypes.CDLL(str(path))
