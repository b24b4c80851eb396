"""Memory of the process and its peaks, where the system counts them: on Linux."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gpucnn

STATUS = Path("/proc/self/status")
PEAK_RESET = Path("/proc/self/clear_refs")


def held_bytes() -> int | None:
    """Bytes that the process holds, after returning free memory to the system; None where that is not counted."""
    _give_back()
    return _counted("RssAnon")


def growth_during(call: Callable[[], object]) -> int | None:
    """The peak of the process's memory while a call runs, above the level before; None where it is not counted."""
    _give_back()
    before = _counted("VmRSS")
    try:
        PEAK_RESET.write_text("5")  # the peak is now what is in memory now
    except OSError:
        return None
    call()
    peak = _counted("VmHWM")
    return None if before is None or peak is None else peak - before


def _give_back() -> None:
    """Return freed memory to the system: gpucnn's, and the C library's where it can be asked to."""
    gc.collect()
    gpucnn.release_memory()
    with suppress(AttributeError, OSError, TypeError):  # other C libraries than GNU's have no such function
        ctypes.CDLL(None).malloc_trim(0)


def _counted(name: str) -> int | None:
    """A line of the process's status, in bytes."""
    if not STATUS.exists():
        return None
    match = re.search(rf"^{name}:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else None
