"""``python -m benchmarks.gpu_check``: the one command for a machine with a GPU, and the report that it leaves."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu_check import preflight
from benchmarks.gpu_check.parts import PARTS, Context, Follow, Part
from benchmarks.gpu_check.report import FAILED, NOT_RUN, PASSED, Outcome, Report, facts
from benchmarks.isolation import ended_by_sigterm, follow
from benchmarks.publishing import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_USAGE


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check",
        description="Check the CUDA kernels on this machine's GPU: the test suite, repeatability, arrays beyond 2**31 "
        "elements, compute-sanitizer, CUDA graphs and a cold start. Writes gpu_check.md, gpu_check.json and logs.",
        epilog="Exit status: 0 if every chosen part passed, 1 if one failed or could not be run, 2 if there is nothing "
        "to run on, 130 when interrupted (what was found is in the report).",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the report and the logs go; it is made")
    parser.add_argument("--parts", metavar="NAMES", help="only these, separated by commas; see --list")
    parser.add_argument("--list", action="store_true", help="print the parts and stop")
    parser.add_argument("--limit-minutes", type=float, default=25.0, metavar="M", help="for all parts (default: 25)")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only checks and tests whose name contains it")
    parser.add_argument(
        "--backend",
        choices=("cuda", "simulator"),
        default="cuda",
        help="simulator: to try the command without a GPU, at small sizes",
    )
    options = parser.parse_args(arguments)
    if not options.list and options.out is None:
        parser.error("--out DIR says where the report goes")
    if not options.limit_minutes > 0:
        parser.error("--limit-minutes must be above 0")
    names = [part.name for part in PARTS]
    chosen = options.parts.split(",") if options.parts else [part.name for part in PARTS if part.default]
    unknown = [name for name in chosen if name not in names]
    if unknown:
        parser.error(f"--parts: there is no {', '.join(unknown)}, expected some of {', '.join(names)}")
    options.chosen = [part for part in PARTS if part.name in chosen]
    return options


def main(arguments: Sequence[str] | None = None, follow: Follow = follow) -> int:
    options = parse(arguments)
    if options.list:
        for part in PARTS:
            print(f"{part.name:14} {part.title}{'' if part.default else ' (only if asked for)'}")
        return 0
    found = preflight.look(options.backend)
    if found.hopeless:
        print(found.hopeless, file=sys.stderr)
        return EXIT_USAGE
    reasons = {part.name: found.missing[part.name] for part in options.chosen if part.name in found.missing}
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, why in reasons.items() if why == reason]
        print(f"without {', '.join(names)}: {reason}", file=sys.stderr)
    if len(reasons) == len(options.chosen):
        return EXIT_USAGE
    report = Report(facts(options.backend))  # before the tree holds anything of this run
    if options.filter:
        report.facts["only what contains"] = options.filter
    options.out.mkdir(parents=True, exist_ok=True)
    with ended_by_sigterm(), progress() as display:
        context = Context(options.backend, options.out, report, follow, found.sanitizer, options.filter, display.show)
        complete = run(options.chosen, context, 60 * options.limit_minutes, reasons, display)
    print(f"{report.status}: see {(options.out / 'gpu_check.md').resolve()}")
    if not complete:
        return EXIT_INTERRUPTED
    return 0 if report.status == PASSED else EXIT_FAULT


def run(chosen: Sequence[Part], context: Context, limit_s: float, reasons: dict[str, str], display: Display) -> bool:
    """Run the parts; the report is written after each. Whether none was interrupted.

    A part may take its share of the time, and what those before it left.
    """
    report = context.report
    report.outcomes = [Outcome(part.name, NOT_RUN, reasons.get(part.name, "not reached")) for part in chosen]
    possible = [part for part in chosen if part.name not in reasons]
    started, shares, interrupted = time.perf_counter(), 0.0, False
    report.write(context.out)
    for part in possible:
        shares += part.share
        deadline = limit_s * shares / sum(part.share for part in possible)
        display.begin(part)
        try:
            outcome = part.run(context, part, deadline - (time.perf_counter() - started))
        except KeyboardInterrupt:
            outcome, interrupted = Outcome(part.name, NOT_RUN, "interrupted"), True
        except Exception as error:  # a fault of this command: the other parts are to be run all the same
            outcome = Outcome(part.name, FAILED, f"{type(error).__name__}: {error}")
        report.outcomes[chosen.index(part)] = outcome
        report.complete = part is possible[-1] and not interrupted
        report.write(context.out)
        display.end(outcome)
        if interrupted:
            break
    return not interrupted


# --- What is shown --------------------------------------------------------------------------------------------------


class Display:
    """A line for each part as it begins and ends; `update` shows what happens between."""

    def __init__(self, write: Callable[[str], None] = print, update: Callable[[str], None] = lambda text: None) -> None:
        self._write, self._update = write, update
        self._title, self._began = "", 0.0

    def begin(self, part: Part) -> None:
        self._title, self._began = f"{part.name}: {part.title}", time.perf_counter()
        self._write(self._title)

    def show(self, text: str) -> None:
        self._update(f"{self._title.partition(':')[0]} {text} {time.perf_counter() - self._began:.0f} s")

    def end(self, outcome: Outcome) -> None:
        counts = f"{outcome.passed} passed, {outcome.failed} failed, {outcome.not_run} not run"
        said = "; ".join(filter(None, [counts, f"{outcome.seconds:.0f} s", outcome.reason, *outcome.notes]))
        self._write(f"  {outcome.status}: {said}")


@contextmanager
def progress() -> Iterator[Display]:
    """A line that moves, in a terminal where rich is installed; else plain lines."""
    if find_spec("rich") is None or not sys.stdout.isatty():
        yield Display(lambda text: print(text, flush=True))
        return
    from rich.console import Console

    console = Console(highlight=False)
    with console.status("") as status:
        yield Display(lambda text: console.print(text, markup=False), status.update)


if __name__ == "__main__":
    sys.exit(main())
