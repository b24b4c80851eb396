"""Atomic writes of the caches' files."""

from __future__ import annotations

import os
from pathlib import Path

from gpucnn.compilation.trust import make_folder


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically, writable by its owner alone; of several writers the last one wins.

    Raises
    ------
    OSError
        The folder cannot be made, or the file not be written; nothing is left behind.
    """
    make_folder(path.parent)
    temporary = path.with_name(f"{os.urandom(8).hex()}.tmp")
    try:
        with open(temporary, "xb", opener=_for_its_owner) as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _for_its_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o644)
