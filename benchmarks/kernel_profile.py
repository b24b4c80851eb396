"""``python -m benchmarks.kernel_profile``: the memory traffic of the CUDA kernels on memory-bound layers.

The kernels run in the simulator, which counts from their addresses what a GPU's memory would be asked for. No GPU is
needed and nothing is timed: the counts are those of every machine. A batch of few images shows what a larger one does.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import publishing
from benchmarks.cases import Case, select
from benchmarks.data import make_operands
from benchmarks.layers import ConvLayer, Layer, NormLayer
from benchmarks.providers.base import Provider
from benchmarks.providers.gpucnn import GpucnnGpu, GpucnnGpuChannelsLast
from benchmarks.publishing import EXIT_USAGE

if TYPE_CHECKING:
    from rich.console import Console

    from gpucnn.simulator import Profile

FAMILIES = ("depthwise", "pooling", "normalization", "unfolding", "resampling", "layout", "bias and activation")
MAX_TAPS, FEW_CHANNELS = 200, 16
HALOS = ("depthwise", "pooling", "resampling")  # families whose windows overlap: tile borders are read twice
MOST = {"moved": 1.10, "moved with halo": 1.35, "sectors": 1.05, "conflict": 2}
# What a launch of the simulator has under the same names as a row.
COUNTED = (
    "kernel", "moved_bytes", "least_bytes", "sectors", "ideal_sectors", "requests", "worst_conflict",
    "divergent_branches", "barriers",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One launch of a case; bytes are of global memory."""

    case: str
    family: str
    order: str
    dtype: str
    shapes: str
    kernel: str
    moved_bytes: int
    least_bytes: int
    sectors: int
    ideal_sectors: int
    requests: int
    worst_conflict: int
    divergent_branches: int
    barriers: int
    wide_share: float  # of the bytes moved, those of accesses of 16 bytes a lane

    @property
    def moved(self) -> float:
        """Bytes moved over the least possible."""
        return self.moved_bytes / max(1, self.least_bytes)

    @property
    def sector_share(self) -> float:
        """Sectors over those that the bytes would fill."""
        return self.sectors / max(1, self.ideal_sectors)

    @property
    def excesses(self) -> list[str]:
        """The limits of `MOST` that it exceeds."""
        halo = any(word in self.family for word in HALOS)
        found = {
            "moved": self.moved > MOST["moved with halo" if halo else "moved"],
            "sectors": self.sector_share > MOST["sectors"],
            "conflict": self.worst_conflict > MOST["conflict"],
        }
        return [name for name, beyond in found.items() if beyond]


# --- Running ------------------------------------------------------------------------------------------------------


def cases_of(filters: Sequence[str], dtypes: Sequence[str] = ("float32",)) -> list[Case]:
    """The memory-bound cases, at batches that the simulator runs in seconds."""
    return [
        replace(case, layer=_smaller(case.layer), batch=_batch(case.layer))
        for case in select("full", filters, "gpu")
        if case.dtype in dtypes and any(word in case.family for word in FAMILIES)
    ]


def _smaller(layer: Layer) -> Layer:
    """The layer, or a few channels of it where it has hundreds of taps, which the simulator takes minutes for."""
    if isinstance(layer, ConvLayer) and math.prod(layer.kernel) > MAX_TAPS:
        return replace(layer, channels=FEW_CHANNELS, out_channels=FEW_CHANNELS, groups=FEW_CHANNELS)
    return layer


def _batch(layer: Layer) -> int:
    """Few images, but rows enough for blocks that take several."""
    is_rows = isinstance(layer, NormLayer) and layer.kind == "layer" and layer.rank == 1
    return 8 if is_rows else 1 if math.prod(layer.size) * layer.channels > 50_000 else 4


def profile_of(case: Case, provider: Provider) -> Profile:
    """The launches of a case; those that prepare it are not among them."""
    from gpucnn import simulator

    arrays = {name: simulator.asarray(array) for name, array in make_operands(case).items()}
    call = provider.prepare(case, arrays)
    with simulator.profile() as profile:
        call()
    return profile


def rows_of(case: Case, order: str, profile: Profile) -> Iterator[Row]:
    """A row for each launch."""
    for launch in profile.launches:
        wide = sum(access.sectors for access in launch.accesses if access.bytes == 16)
        counted = {name: getattr(launch, name) for name in COUNTED}
        wide_share = wide / max(1, launch.sectors)
        yield Row(case.id, case.family, order, case.dtype, case.shapes, **counted, wide_share=wide_share)


# --- What is written ----------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row]) -> str:
    """A table of all launches, headed by the number that stay within the limits."""
    beyond = [row for row in rows if row.excesses]
    lines = [
        "# What the CUDA kernels do to memory",
        "",
        "Counted in the simulator from the kernels' addresses, without a GPU; nothing is timed. *moved* is the bytes",
        "of all requests over the least possible (each sector of 32 bytes once; caches are credited with nothing),",
        "*sectors* those that requests touch over those that their bytes would fill, *conflict* the words of one",
        "bank of shared memory that one round wants at most, *wide* the share of accesses of 16 bytes a lane.",
        "",
        f"{len(rows) - len(beyond)} of {len(rows)} launches are within {MOST['moved']:.2f} (moved; "
        f"{MOST['moved with halo']:.2f} where windows overlap), {MOST['sectors']:.2f} (sectors) and a conflict of "
        f"{MOST['conflict']:.0f}; the others are marked.",
        "",
        "| case | order | dtype | kernel | moved | sectors | conflict | wide | MB moved | |",
        "|---|---|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for row in rows:
        beyond_what = ", ".join(row.excesses)
        lines.append(
            f"| {row.case} | {row.order} | {row.dtype} | `{row.kernel}` | {row.moved:.3f} | {row.sector_share:.3f} | "
            f"{row.worst_conflict or ''} | {row.wide_share:.0%} | {row.moved_bytes / 1e6:.2f} | {beyond_what} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """For each kernel a line: its launches as points by bytes moved over the least possible."""
    from matplotlib.figure import Figure

    kernels = sorted({row.kernel for row in rows}, reverse=True)
    figure = Figure(figsize=(9, 0.3 * len(kernels) + 1.4), layout="constrained")
    axes = figure.subplots()
    colours = {"channels first": "#31688e", "channels last": "#e07b39"}
    for shift, (order, colour) in zip((0.13, -0.13), colours.items(), strict=True):
        own = [row for row in rows if row.order == order]
        places = [kernels.index(row.kernel) + shift for row in own]
        if own:
            axes.scatter([row.moved for row in own], places, s=16, color=colour, label=order)
    for limit, style in ((MOST["moved"], "-"), (MOST["moved with halo"], ":")):
        axes.axvline(limit, color="#888888", linewidth=0.8, linestyle=style)
    axes.set_yticks(range(len(kernels)), kernels, fontsize=8, family="monospace")
    axes.set_xlabel("bytes moved over the least possible (lines: 1.10, and 1.35 where windows overlap)")
    axes.set_xscale("log")
    axes.set_xlim(left=0.97)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def write(rows: Sequence[Row], stem: Path) -> list[Path]:
    """Write JSON, Markdown and the figure under the name `stem`."""
    paths = [Path(f"{stem}{suffix}") for suffix in (".json", ".md", ".png")]
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths[0].write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    paths[1].write_text(markdown(rows), encoding="utf-8")
    draw(rows, paths[2])
    return paths


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernel_profile", description=(__doc__ or "").split("\n\n")[1]
    )
    publishing.add_filter(parser, "as benchmarks'")
    parser.add_argument("--dtype", action="append", choices=("float32", "float16"), help="default: float32")
    parser.add_argument("--lines", action="store_true", help="print each launch line by line")
    publishing.add_output(parser)
    parser.add_argument(
        "--publish", action="store_true", help="replace the committed profile in benchmarks/results too; of all cases"
    )
    options = parser.parse_args(arguments)
    options.partial = bool(options.filters or options.dtype)
    if options.publish and options.partial:
        parser.error("--publish: the committed profile is of all cases in float32; leave out --filter and --dtype")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    from gpucnn import simulator

    if simulator.available() != "available":
        print(simulator.available(), file=sys.stderr)
        return EXIT_USAGE
    cases = cases_of(options.filters, options.dtype or ("float32",))
    if not cases:
        print("no case matches; python -m benchmarks --list --full names them", file=sys.stderr)
        return EXIT_USAGE

    console = publishing.make_console(160)
    rows = profiled(cases, options.lines, console)
    name = "kernel-profile-filtered" if options.partial else "kernel-profile"
    for folder in (options.out, *([publishing.RESULTS] if options.publish else [])):
        publishing.tell(write(rows, folder / name), console)
    return 0


def profiled(cases: Sequence[Case], by_line: bool, console: Console) -> list[Row]:
    """The rows of all cases in both memory orders, printed as they come, `by_line` with each launch line by line."""
    from rich.progress import track

    providers: dict[str, Provider] = {"channels first": GpucnnGpu(1), "channels last": GpucnnGpuChannelsLast(1)}
    runs = [(case, order) for case in cases for order, provider in providers.items() if provider.refuses(case) is None]
    rows: list[Row] = []
    for case, order in track(runs, "profiling", console=console, disable=not console.is_terminal):
        profile = profile_of(case, providers[order])
        for row in rows_of(case, order, profile):
            rows.append(row)
            remark = f"beyond: {', '.join(row.excesses)}" if row.excesses else ""
            console.print(
                f"{row.case:50} {row.order:14} {row.dtype} {row.kernel:30} moved {row.moved:6.3f}  sectors "
                f"{row.sector_share:6.3f}  conflict {row.worst_conflict}  {remark}",
                highlight=False,
                soft_wrap=True,
            )
        if by_line:
            console.print(str(profile), highlight=False, markup=False, soft_wrap=True)
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
