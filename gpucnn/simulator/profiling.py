"""Memory profile of kernels: counted request by request, with the source line that issued it.

The counts follow from addresses alone, so they are those of a GPU up to what its compiler changes. A *request* is one
load or store of a warp; it costs the *sectors* (32 bytes) of global memory that its lanes touch, or the *wavefronts*
(rounds of the 32 banks) of shared memory that they need. No cache is modelled. Threads that leave a loop early are
matched with the others by how often each reached the instruction since the last barrier or whole-warp operation.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from gpucnn.simulator import settings, toolchain
from gpucnn.simulator.profiles import (
    SECTOR,
    AccessProfile,
    ArrayProfile,
    BranchProfile,
    CollectiveProfile,
    LaunchProfile,
    Profile,
)

_KINDS = ("read", "write", "atomic")
# the counts of an access, which add up
_COUNTS = ("requests", "lanes", "sectors", "ideal_sectors", "wavefronts", "ideal_wavefronts")


# --- The runtime's structures, as in runtime/profile.h ------------------------------------------------------------


class _Access(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("file", ctypes.c_char * 256),
        ("line", ctypes.c_int32),
        ("bytes", ctypes.c_int32),
        ("argument", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        *((name, ctypes.c_uint64) for name in _COUNTS),
        ("worst_conflict", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    )


class _Branch(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint64), ("executions", ctypes.c_uint64), ("divergent", ctypes.c_uint64))


class _Collective(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 64),
        ("file", ctypes.c_char * 256),
        ("line", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("executions", ctypes.c_uint64),
    )


class _Array(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("bytes", ctypes.c_uint64),
        ("sectors_read", ctypes.c_uint64),
        ("sectors_written", ctypes.c_uint64),
    )


_profile: ContextVar[Profile | None] = ContextVar("gpucnn_simulator_profile", default=None)


@contextmanager
def profile() -> Iterator[Profile]:
    """Within the block, run kernels with all checks and count their memory traffic.

    Yields
    ------
    Profile
        With an entry for each launch. Print it for tables, `Profile.save` writes JSON, `Profile.plot` a figure.

    Notes
    -----
    The counts depend on addresses only: sectors of global memory per request and the bytes moved against the least
    possible, bank conflicts in shared memory, divergent branches, barriers and operations of warps, each with its
    source line. A batch of one is representative of larger ones. No cache is modelled. Blocks
    of code are those of the C++ compiler, which turns short branches into selections as NVIDIA's does, though not
    always the same ones.
    """
    collected = Profile()
    token = _profile.set(collected)
    try:
        with settings.options(mode="profile"):
            yield collected
    finally:
        _profile.reset(token)


# --- From the runtime's counts ------------------------------------------------------------------------------------


class Built(Protocol):
    """A module that was compiled and loaded: its source, its library and the runtime that it runs on."""

    text: str
    path: Path
    runtime: Any


def note(kernel: str, built: Built, grid: Sequence[int], block: Sequence[int], args: Sequence[Any]) -> None:
    """Add the launch that has just ended to the profile that is being taken, if one is."""
    collected = _profile.get()
    if collected is None:
        return
    library = toolchain.load(built.runtime.path)
    rows = {
        name: _rows(library, name, structure)
        for name, structure in (
            ("accesses", _Access), ("branches", _Branch), ("collectives", _Collective), ("arrays", _Array)
        )
    }  # fmt: skip
    names = _parameters(built.text, kernel)
    addresses = [row.address for row in (*rows["accesses"], *rows["branches"]) if row.address]
    places = source_lines(built.path, addresses)
    collected.launches.append(
        LaunchProfile(
            kernel,
            tuple(grid),
            tuple(block),
            _accesses(rows["accesses"], places, names),
            _branches(rows["branches"], places),
            _collectives(rows["collectives"]),
            _arrays(rows["arrays"], names),
        )
    )
    for file, lines in _files(built.text).items():
        collected.sources.setdefault(file, lines)


def _rows(library: ctypes.CDLL, name: str, structure: type[ctypes.Structure]) -> list[Any]:
    function = getattr(library, f"gpucnn_profiled_{name}")
    function.restype = ctypes.POINTER(structure)
    function.argtypes = (ctypes.POINTER(ctypes.c_uint64),)
    count = ctypes.c_uint64()
    rows = function(ctypes.byref(count))
    return [structure.from_buffer_copy(rows[index]) for index in range(count.value)]


def _accesses(
    rows: Iterable[Any], places: dict[int, tuple[str, int]], names: Sequence[str]
) -> tuple[AccessProfile, ...]:
    """One profile for each line, memory, kind and array: several instructions may come from it."""
    merged: dict[tuple[Any, ...], AccessProfile] = {}
    for row in rows:
        file, line = places.get(row.address, ("", 0)) if row.address else (row.file.decode(), row.line)
        shared = row.argument < 0
        array = "" if shared else names[row.argument]
        space, kind = "shared" if shared else "global", _KINDS[row.kind]
        counts = {name: getattr(row, name) for name in ("bytes", *_COUNTS, "worst_conflict")}
        one = AccessProfile(Path(file).name, line, space, kind, array, **counts)
        key = (one.file, line, space, kind, array)
        merged[key] = _sum(merged[key], one) if key in merged else one
    return tuple(sorted(merged.values(), key=lambda access: (access.file, access.line, access.space, access.kind)))


def _sum(a: AccessProfile, b: AccessProfile) -> AccessProfile:
    return replace(
        a,
        bytes=max(a.bytes, b.bytes),
        worst_conflict=max(a.worst_conflict, b.worst_conflict),
        **{name: getattr(a, name) + getattr(b, name) for name in _COUNTS},
    )


def _branches(rows: Iterable[Any], places: dict[int, tuple[str, int]]) -> tuple[BranchProfile, ...]:
    """The lines whose branches diverged."""
    counts: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    for row in rows:
        if row.divergent and row.address in places:
            counts[places[row.address]][0] += row.executions
            counts[places[row.address]][1] += row.divergent
    return tuple(BranchProfile(file, line, *counts[file, line]) for file, line in sorted(counts))


def _collectives(rows: Iterable[Any]) -> tuple[CollectiveProfile, ...]:
    found = (
        CollectiveProfile(row.name.decode(), Path(row.file.decode()).name, row.line, row.executions) for row in rows
    )
    return tuple(sorted(found, key=lambda each: (each.file, each.line, each.name)))


def _arrays(rows: Iterable[Any], names: Sequence[str]) -> tuple[ArrayProfile, ...]:
    return tuple(
        ArrayProfile(names[row.argument], row.bytes, row.sectors_read * SECTOR, row.sectors_written * SECTOR)
        for row in sorted(rows, key=lambda row: row.argument)
    )


# --- Places and names ---------------------------------------------------------------------------------------------


def source_lines(library: Path, addresses: Sequence[int]) -> dict[int, tuple[str, int]]:
    """The kernel's line of each return address, for those that have one; functions of the shim are passed over."""
    tool = shutil.which("addr2line") or shutil.which("llvm-addr2line")
    wanted = sorted(set(addresses))
    if tool is None or not wanted:
        return {}
    command = [tool, "-a", "-i", "-e", str(library)]
    text = "\n".join(hex(address - 1) for address in wanted)
    output = subprocess.run(command, input=text, capture_output=True, text=True, check=False).stdout
    places: dict[int, tuple[str, int]] = {}
    address = 0
    for line in output.splitlines():
        if line.startswith("0x"):
            address = int(line, 16) + 1
            continue
        file, _, number = line.split(" ")[0].rpartition(":")
        is_kernel = file and not file.startswith(("?", "<")) and Path(file).parts[-3:-1] != ("simulator", "include")
        if is_kernel and number.isdigit() and address not in places:
            places[address] = (Path(file).name, int(number))
    return places


def _parameters(text: str, kernel: str) -> list[str]:
    """The names of a kernel's parameters, from its text."""
    code = re.sub(r"//.*", "", text)
    match = re.search(rf"\b{kernel}\s*\(([^)]*)\)\s*\{{", code)
    declared = match[1].split(",") if match else []
    return [re.findall(r"\w+", parameter)[-1] for parameter in declared if parameter.strip()]


def _files(text: str) -> dict[str, list[str]]:
    """The lines of each file that a program's text was put together from, by its ``#line`` directives."""
    files: dict[str, dict[int, str]] = defaultdict(dict)
    file, number = "", 1
    for line in text.splitlines():
        directive = re.match(r'#line (\d+) "(.*)"', line)
        if directive:
            file, number = directive[2], int(directive[1])
            continue
        files[file][number] = line
        number += 1
    return {
        file: [lines.get(number, "") for number in range(1, max(lines) + 1)] for file, lines in files.items() if file
    }
