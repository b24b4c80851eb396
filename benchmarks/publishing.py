"""Files of a run of either device, publication of committed results, and exit codes.

A run writes to `LOCAL`, which git ignores. `RESULTS` holds the committed results, and changes only where a run is
published: a whole run, on an idle machine, with every peer that the result before it had.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.layers import Device

if TYPE_CHECKING:  # these import NumPy, which must wait for the thread limits
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from benchmarks.results import Run

RESULTS = Path(__file__).parent / "results"
LOCAL = RESULTS / "local"

EXIT_FAULT = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class CannotPublishError(Exception):
    """A run may not replace the committed result; the message says why, and what to do."""


def output_folder(text: str) -> Path:
    """The folder that ``--out`` names; not that of the committed results."""
    if Path(text).resolve() == RESULTS.resolve():
        raise argparse.ArgumentTypeError(f"{text} holds the committed results; --publish replaces them")
    return Path(text)


def make_console(width: int) -> Console:
    """The terminal, or plain text of `width` columns."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width)


def usage(mistake: str, console: Console) -> int:
    """Say why nothing can be run; the exit status."""
    console.print(mistake, style="red")
    return EXIT_USAGE


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``."""
    told = "default: benchmarks/results/local, which git ignores"
    parser.add_argument("--out", type=output_folder, default=LOCAL, metavar="DIR", help=told)


def add_filter(parser: argparse.ArgumentParser, told: str) -> None:
    """Add ``--filter``, of which there may be several."""
    parser.add_argument("--filter", dest="filters", action="append", default=[], metavar="SUBSTR", help=told)


def split_filters(filters: Sequence[str], device: Device = "cpu") -> tuple[list[str], list[str]]:
    """The words that name providers, and the filters that are about cases."""
    from benchmarks.providers import kinds
    from benchmarks.results import FALLBACK

    names = [*(kind.name.lower() for kind in kinds(device)), FALLBACK.lower()]
    words_of_providers: list[str] = []
    of_cases: list[str] = []
    for text in filters:
        words = [word for word in text.lower().split(",") if word]
        if all(any(word in name for name in names) for word in words):
            words_of_providers += words
        else:
            of_cases.append(text)
    return words_of_providers, of_cases


def file_stem(tier: str, device: str, filtered: bool, interrupted: bool) -> str:
    """``<device>`` for a whole run; any other run has a suffix."""
    suffixes = (
        ("" if tier == "default" else tier),
        ("filtered" if filtered else ""),
        ("partial" if interrupted else ""),
    )
    return "-".join([device, *filter(None, suffixes)])


def check_publishable(whole: bool, environment: dict[str, Any], peers: Iterable[str], stem: str) -> None:
    """Raise CannotPublishError where a run may not replace the committed result called `stem`.

    `peers` are the implementations that it compares with.
    """
    from benchmarks.environment import why_busy
    from benchmarks.results import Run

    if not whole:
        raise CannotPublishError(
            "only a whole run is published: leave out --quick, --filter and --providers, and let it reach the end"
        )
    busy = why_busy(environment)
    if busy:
        raise CannotPublishError(f"{busy}: close what else runs, wait some minutes and run again")
    target = RESULTS / f"{stem}.json"
    missing = set(Run.load(target).peers) - set(peers) if target.exists() else set()
    if missing:
        raise CannotPublishError(
            f"{target} compares with {', '.join(sorted(missing))}, which this run does not: install what is missing "
            "and run again, or remove that file if its comparison is no longer wanted"
        )


def conclude(run: Run, options: argparse.Namespace, stem: str, console: Console, interrupted: str = "") -> int:
    """Keep a run; the exit status. `interrupted` says how far it came, where it did not come to its end."""
    if run.all_records:
        keep(run, options, stem, console)
    if interrupted:
        console.print(f"interrupted after {interrupted} cases", style="red")
        return EXIT_INTERRUPTED
    return EXIT_FAULT if run.faults else 0


def keep(run: Run, options: argparse.Namespace, stem: str, console: Console) -> None:
    """Print the tables, write the run's files to ``--out`` and, where that was asked, publish them.

    Raises
    ------
    CannotPublishError
        The run may not be published. Its files are in ``--out``.
    """
    from benchmarks.report import print_report, update_readme
    from benchmarks.results import Run

    print_report(run, console)
    tell(write(run, options.out / stem), console)
    if not options.publish:
        return
    committed = RESULTS / f"{stem}.json"
    if not committed.exists() or Run.load(committed) != run:  # the committed run itself is only rendered again
        check_publishable(run.complete and run.tier != "quick", run.environment, run.peers, stem)
    tell(write(run, RESULTS / stem), console)
    if options.readme:
        details = Path(os.path.relpath(committed.with_suffix(".md").resolve(), options.readme.resolve().parent))
        update_readme(options.readme, run, details.as_posix())
        tell([options.readme], console)


def write(run: Run, stem: Path) -> list[Path]:
    """Write JSON, Markdown tables and figures, all beginning with `stem`; their paths."""
    from benchmarks.networks.plots import draw_networks
    from benchmarks.plots import draw
    from benchmarks.report import markdown_report

    stem.parent.mkdir(parents=True, exist_ok=True)
    data, tables = (stem.with_name(stem.name + suffix) for suffix in (".json", ".md"))
    run.save(data)
    tables.write_text(markdown_report(run))
    return [data, tables, *draw(run, stem), *draw_networks(run, stem)]


def tell(paths: Iterable[Path], console: Console) -> None:
    """Print the full path of each file that was written, one a line."""
    for path in paths:
        console.print(f"wrote {path.resolve()}", markup=False, highlight=False, soft_wrap=True)
