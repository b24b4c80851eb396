"""Profile of launches: its counts, and these as text, JSON and a figure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpucnn.installing import optional

SECTOR = 32  # bytes

_SOURCE_WIDTH = 60
_COLUMNS = ("line", "memory", "lane", "requests", "lanes", "sectors", "of ideal", "conflict", "source")
_WORDS = ("line", "memory", "source")  # columns that are not numbers


# --- What a launch did --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AccessProfile:
    """The loads, or stores, of one source line to one array of global memory, or to shared memory.

    Attributes
    ----------
    file, line : str, int
        The line of the kernel; "" and 0 where that is not known.
    space : "global" or "shared"
        The memory space.
    kind : "read", "write" or "atomic"
        The kind of access.
    array : str
        The kernel's parameter; "" for shared memory.
    bytes : int
        The most that one lane moves by one instruction: at most 16.
    requests, lanes : int
        Executions by warps, and the lanes that took part in them, over all.
    sectors, ideal_sectors : int
        Of 32 bytes of global memory: touched by the requests, and what their bytes would fill.
    wavefronts, ideal_wavefronts : int
        Rounds of shared memory's banks: needed, and without conflicts.
    worst_conflict : int
        Words of one bank that one round's lanes want, at most; 1 is no conflict, 0 is global memory.
    """

    file: str
    line: int
    space: str
    kind: str
    array: str
    bytes: int
    requests: int
    lanes: int
    sectors: int
    ideal_sectors: int
    wavefronts: int
    ideal_wavefronts: int
    worst_conflict: int

    @property
    def moved_bytes(self) -> int:
        """Bytes of global memory that the requests move."""
        return self.sectors * SECTOR


@dataclass(frozen=True)
class BranchProfile:
    """A line after which the lanes of a warp may go on at several places; `divergent` of its executions they did."""

    file: str
    line: int
    executions: int
    divergent: int


@dataclass(frozen=True)
class CollectiveProfile:
    """A barrier or warp operation, and the number of warps that executed it."""

    name: str
    file: str
    line: int
    executions: int


@dataclass(frozen=True)
class ArrayProfile:
    """A kernel's array: its bytes, and those of the different sectors of it that were read, and written."""

    name: str
    bytes: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class LaunchProfile:
    """One launch of a kernel.

    Attributes
    ----------
    kernel : str
        Its name.
    grid, block : tuple of 3 int
        Blocks and threads.
    accesses, branches, collectives, arrays : tuple
        By source line, and by array.
    """

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    accesses: tuple[AccessProfile, ...]
    branches: tuple[BranchProfile, ...]
    collectives: tuple[CollectiveProfile, ...]
    arrays: tuple[ArrayProfile, ...]

    @property
    def moved_bytes(self) -> int:
        """Bytes of global memory that all requests move, caches not counted."""
        return SECTOR * self.sectors

    @property
    def least_bytes(self) -> int:
        """Bytes of the sectors that the launch touches: each once for reading and once for writing."""
        return sum(array.read_bytes + array.written_bytes for array in self.arrays)

    @property
    def moved_share(self) -> float:
        """`moved_bytes` over `least_bytes`; 1 for a kernel that moves everything once."""
        return self.moved_bytes / self.least_bytes if self.least_bytes else 1.0

    @property
    def requests(self) -> int:
        """Requests to global memory."""
        return sum(access.requests for access in self.accesses if access.space == "global")

    @property
    def sectors(self) -> int:
        """Sectors that all requests to global memory touch."""
        return sum(access.sectors for access in self.accesses)

    @property
    def ideal_sectors(self) -> int:
        """Sectors that the bytes of these requests would fill."""
        return sum(access.ideal_sectors for access in self.accesses)

    @property
    def sector_share(self) -> float:
        """`sectors` over `ideal_sectors`: 1 where all requests are coalesced and aligned."""
        return self.sectors / self.ideal_sectors if self.ideal_sectors else 1.0

    @property
    def worst_conflict(self) -> int:
        """Words of one bank of shared memory that one round's lanes want, at most."""
        return max((access.worst_conflict for access in self.accesses), default=0)

    @property
    def divergent_branches(self) -> int:
        """Executions of branches, by warps, after which lanes went different ways."""
        return sum(branch.divergent for branch in self.branches)

    @property
    def barriers(self) -> int:
        """Barriers that warps waited at."""
        return sum(each.executions for each in self.collectives if each.name == "__syncthreads")


@dataclass
class Profile:
    """The launches within a `profile` block, in order.

    Examples
    --------
    >>> from gpucnn import simulator
    >>> import gpucnn.functional as F, numpy as np
    >>> x = simulator.asarray(np.zeros((1, 64, 56, 56), np.float32))
    >>> with simulator.profile() as profile:  # doctest: +SKIP
    ...     y = F.max_pool2d(x, 2)
    >>> print(profile)  # doctest: +SKIP
    """

    launches: list[LaunchProfile] = field(default_factory=list)
    sources: dict[str, list[str]] = field(default_factory=dict)  # the lines of each file, where they are known

    @property
    def moved_bytes(self) -> int:
        """Bytes of global memory that all launches move."""
        return sum(launch.moved_bytes for launch in self.launches)

    def __str__(self) -> str:
        """A table for each launch."""
        return text(self)

    def as_dict(self) -> dict[str, Any]:
        """All counts as plain values, for JSON."""
        totals = ("moved_bytes", "least_bytes", "sectors", "ideal_sectors", "worst_conflict")
        return {"launches": [asdict(each) | {name: getattr(each, name) for name in totals} for each in self.launches]}

    def save(self, path: str | Path) -> None:
        """Write `as_dict` as JSON."""
        Path(path).write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")

    def plot(self, path: str | Path) -> None:
        """Draw, for each kernel, the bytes that each source line moves and those that it needs (needs matplotlib)."""
        plot(self, Path(path))


# --- Text ---------------------------------------------------------------------------------------------------------


def text(profile: Profile) -> str:
    """A table for each launch: its traffic in total, then line by line."""
    return "\n\n".join("\n".join(_launch(launch, profile)) for launch in profile.launches) or "no launches"


def _launch(launch: LaunchProfile, profile: Profile) -> Iterator[str]:
    grid, block = ("x".join(map(str, _short(sizes))) for sizes in (launch.grid, launch.block))
    yield f"{launch.kernel}  {grid} blocks of {block} threads"
    yield (
        f"  global memory: {launch.moved_bytes:,} bytes moved, {launch.moved_share:.3f} of the least; "
        f"{_ratio(launch.sectors, launch.requests)} sectors a request, {launch.sector_share:.3f} of ideal"
    )
    yield (
        f"  bank conflicts: {_conflict(launch.worst_conflict)}; barriers: {launch.barriers:,} by warps; "
        f"divergent branches: {launch.divergent_branches:,}"
    )
    yield from _table([_COLUMNS, *(_row(access, profile) for access in launch.accesses)])
    for branch in launch.branches:
        yield (
            f"  {branch.file}:{branch.line}  {branch.divergent:,} of {branch.executions:,} branches diverged  "
            f"{_source(profile, branch.file, branch.line)}"
        )
    for each in launch.collectives:
        yield f"  {each.file}:{each.line}  {each.name} by {each.executions:,} warps"


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        cells = (
            cell.ljust(width) if name in _WORDS else cell.rjust(width)
            for name, cell, width in zip(_COLUMNS, row, widths, strict=True)
        )
        yield ("  " + "  ".join(cells)).rstrip()


def _row(access: AccessProfile, profile: Profile) -> tuple[str, ...]:
    is_global = access.space == "global"
    units, ideal = (access.sectors, access.ideal_sectors) if is_global else (access.wavefronts, access.ideal_wavefronts)
    return (
        f"{access.file}:{access.line}" if access.line else "?",
        f"{access.kind} {access.array}" if is_global else f"{access.kind} shared",
        f"{access.bytes} B",
        f"{access.requests:,}",
        _ratio(access.lanes, access.requests),
        _ratio(units, access.requests),
        _ratio(units, ideal),
        "" if is_global else _conflict(access.worst_conflict),
        _source(profile, access.file, access.line),
    )


def _short(sizes: tuple[int, ...]) -> tuple[int, ...]:
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes = sizes[:-1]
    return sizes


def _ratio(a: float, b: float) -> str:
    return f"{a / b:.2f}" if b else "-"


def _conflict(worst: int) -> str:
    return "none" if worst <= 1 else f"{worst}-way"


def _source(profile: Profile, file: str, line: int) -> str:
    lines = profile.sources.get(file, [])
    source = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    return source if len(source) <= _SOURCE_WIDTH else source[: _SOURCE_WIDTH - 1] + "…"


# --- Figure -------------------------------------------------------------------------------------------------------


def plot(profile: Profile, path: Path) -> None:
    """A panel for each launch: the bytes that each line moves, those that its sectors need dark, the rest light."""
    launches = [launch for launch in profile.launches if launch.moved_bytes]
    if not launches:
        raise ValueError("plot: this profile has no launch that moved anything")
    rows = [_moving(launch) for launch in launches]
    heights = [len(lines) + 1.6 for lines in rows]
    figure = optional("Profile.plot", "matplotlib.figure", "train").Figure(
        figsize=(11, 0.34 * sum(heights) + 0.9), layout="constrained"
    )
    panels = figure.subplots(len(launches), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, launch, lines in zip(panels, launches, rows, strict=True):
        names = [f"{_source(profile, each.file, each.line)}   {each.file}:{each.line}" for each in lines]
        moved = [each.moved_bytes / 1e6 for each in lines]
        ideal = [each.ideal_sectors * 32 / 1e6 for each in lines]
        axes.barh(range(len(lines)), moved, color="#f2b8a0", label="moved in excess: sectors not filled")
        axes.barh(range(len(lines)), ideal, color="#31688e", label="the bytes that lanes ask for, in whole sectors")
        for at, each in enumerate(lines):
            sectors = _ratio(each.sectors, each.requests)
            note = f" {each.kind} {each.array}, {each.bytes} B a lane, {sectors} sectors a request"
            axes.text(moved[at], at, note, va="center", fontsize=8)
        axes.set_yticks(range(len(lines)), names, fontsize=8, family="monospace")
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_xlim(0, 1.9 * max(moved))
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(
            f"{launch.kernel}: {launch.moved_bytes / 1e6:.2f} MB moved, {launch.moved_share:.2f} of the least; "
            f"bank conflicts: {_conflict(launch.worst_conflict)}",
            loc="left",
            fontsize=10,
        )
    panels[-1].set_xlabel("MB of global memory moved")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def _moving(launch: LaunchProfile) -> list[AccessProfile]:
    """The accesses to global memory, the largest first; those of less than a hundredth together say nothing."""
    found = sorted(launch.accesses, key=lambda access: -access.sectors)
    return [access for access in found if access.sectors * 200 >= launch.sectors]
