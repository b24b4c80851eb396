"""Checks that nobody else can change what is loaded as code, and a private folder for where somebody could.

On POSIX a file of the cache and its folder must belong to this user or to root, and only their owner may write to them.
The same holds for the folder above, and none further up may let everybody replace its entries; a sticky one, as /tmp,
does not. Other systems keep the user's folders to the user by other means: there nothing is checked.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
import warnings
from pathlib import Path

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_warned = False


def why_unsafe(path: Path) -> str:
    """A sentence that says by which file or folder others could replace `path`; empty if they cannot.

    What does not exist yet is safe: it will be made for this user alone.
    """
    if os.name != "posix":
        return ""
    whole = path.absolute()
    parts = (whole, *whole.parents)
    reasons = (_why_unsafe(parts[level], level) for level in reversed(range(len(parts))))
    return next(filter(None, reasons), "")


def _why_unsafe(path: Path, level: int) -> str:
    """As `why_unsafe`, for a file (level 0), its folder (1) or one further up."""
    try:
        status = path.stat()
    except OSError:
        return ""
    if level <= 2 and status.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to user {status.st_uid}, not to user {os.geteuid()} or root"
    if level >= 2 and status.st_mode & stat.S_ISVTX:
        return ""
    writers = status.st_mode & (_OTHERS if level <= 2 else stat.S_IWOTH)
    if writers:
        who = "everybody" if writers & stat.S_IWOTH else "its group"
        return f"{path} can be written by {who} (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


def safe(path: Path) -> Path:
    """`path`, or if others could replace it a path of its name in the `private_folder`, with one warning a process."""
    global _warned
    reason = why_unsafe(path)
    if not reason:
        return path
    if not _warned:
        _warned = True
        warnings.warn(unsafe_message(reason), RuntimeWarning, stacklevel=2)
    return private_folder() / path.parent.name / path.name


def unsafe_message(reason: str) -> str:
    """The text of a warning that the cache is not used, for a `reason` of `why_unsafe`."""
    return (
        f"gpucnn: {reason}, so others could put their code in place of compiled kernels; nothing is loaded from there, "
        "and each process compiles its own. Take these rights away (chmod go-w), or set GPUCNN_CACHE_DIR to a folder "
        "of your own"
    )


def not_kept_message(error: Exception) -> str:
    """The text of a warning that the cache cannot be written to."""
    return (
        f"gpucnn: compiled kernels cannot be kept, so each process compiles its own ({error}); "
        "set GPUCNN_CACHE_DIR to a folder that can be written"
    )


# --- Folders and files of this user alone -----------------------------------------------------------------------------


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, for this user alone; one that is there stays as it is.

    Raises
    ------
    OSError
        It cannot be made.
    """
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def deny_others(file: Path) -> None:
    """Take the right to write from all but the owner: compilers leave it to the umask."""
    file.chmod(file.stat().st_mode & ~_OTHERS)


def private_folder() -> Path:
    """A folder for this process alone, removed when it ends; the child of a fork has another one.

    Raises
    ------
    OSError
        It cannot be made.
    """
    process = os.getpid()
    if process not in _private:
        made = Path(tempfile.mkdtemp(prefix="gpucnn-"))
        if _private.setdefault(process, made) is made:
            atexit.register(_remove, made, process)
        else:  # another thread was quicker
            made.rmdir()
    return _private[process]


_private: dict[int, Path] = {}  # by process: a fork has its parent's entry too


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
