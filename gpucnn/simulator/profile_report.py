"""A profile as text and as a figure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gpucnn.installing import optional
from gpucnn.simulator.profiling import AccessProfile, LaunchProfile, Profile

_SOURCE_WIDTH = 60
_COLUMNS = ("line", "memory", "lane", "requests", "lanes", "sectors", "of ideal", "conflict", "source")
_WORDS = ("line", "memory", "source")  # columns that are not numbers


# --- Text ---------------------------------------------------------------------------------------------------------


def text(profile: Profile) -> str:
    """A table for each launch: what it moves in all, then line by line."""
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
    """For each launch a panel: the bytes that each line moves, dark what its sectors would need, light the rest."""
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
