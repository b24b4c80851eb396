"""Output of a run on either device: names of its files, JSON, tables and figures; exit codes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.layers import Device, Tier

if TYPE_CHECKING:  # these import NumPy, which must wait for the thread limits
    import argparse
    from collections.abc import Sequence

    from rich.console import Console

    from benchmarks.results import Run

EXIT_FAULT = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def split_filters(filters: Sequence[str], device: Device = "cpu") -> tuple[list[str], list[str]]:
    """The words that name providers, and the filters that are about cases."""
    from benchmarks.providers import kinds

    names = [kind.name.lower() for kind in kinds(device)]
    words_of_providers: list[str] = []
    of_cases: list[str] = []
    for text in filters:
        words = [word for word in text.lower().split(",") if word]
        if all(any(word in name for name in names) for word in words):
            words_of_providers += words
        else:
            of_cases.append(text)
    return words_of_providers, of_cases


def file_stem(tier: Tier, device: str, filtered: bool, interrupted: bool) -> str:
    """``<device>`` for the run to commit; any other run has a suffix and cannot replace it."""
    suffixes = (
        ("" if tier == "default" else tier),
        ("filtered" if filtered else ""),
        ("partial" if interrupted else ""),
    )
    return "-".join([device, *filter(None, suffixes)])


def keep(run: Run, options: argparse.Namespace, stem: str, console: Console) -> None:
    """Write the run's JSON, and publish it."""
    target = options.out / f"{stem}.json"
    options.out.mkdir(parents=True, exist_ok=True)
    verb = "replaced" if target.exists() else "wrote"
    run.save(target)
    console.print(f"{verb} {target.name} after {run.seconds:.0f} s")
    publish(run, options.out / stem, options.readme, console)


def publish(run: Run, stem: Path, readme: Path | None, console: Console) -> None:
    """Print the tables; write the Markdown table and the figures beside the JSON."""
    from benchmarks.networks.plots import draw_networks
    from benchmarks.plots import draw
    from benchmarks.report import markdown_report, print_report, update_readme

    print_report(run, console)
    stem.parent.mkdir(parents=True, exist_ok=True)
    details = stem.with_name(stem.name + ".md")
    details.write_text(markdown_report(run))
    written = [details, *draw(run, stem), *draw_networks(run, stem)]
    console.print("wrote " + ", ".join(path.name for path in written), highlight=False)
    if readme:
        target = Path(os.path.relpath(details.resolve(), readme.resolve().parent))
        update_readme(readme, run, target.as_posix())
        console.print(f"updated {readme.name}")
