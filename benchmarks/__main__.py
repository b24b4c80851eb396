"""``python -m benchmarks``: check, measure, print a table, write JSON, Markdown and figures.

On a machine with a GPU it measures there, else on the CPU; ``--device`` decides otherwise.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import environment, publishing
from benchmarks.cases import Case, select
from benchmarks.layers import Device, Tier
from benchmarks.networks.cases import NetworkCase, select_networks
from benchmarks.publishing import EXIT_FAULT as EXIT_FAULT  # a status of this command
from benchmarks.publishing import (
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    check_publishable,
    conclude,
    file_stem,
    make_console,
    split_filters,
    usage,
)
from gpucnn.installing import install_command

if TYPE_CHECKING:  # these import NumPy, which must wait for the thread limits
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from benchmarks.providers import Provider
    from benchmarks.results import Record
    from benchmarks.timing import Limits

REQUIRED = ("numpy", "rich", "matplotlib", "threadpoolctl")

# Seconds for the layers' cases themselves; imports, limits and figures add about ten. Whole networks have a
# separate budget in `benchmarks.networks.session`.
BUDGET_S: dict[Tier, float] = {"quick": 9.0, "default": 150.0, "full": 600.0}
MAX_ROUNDS: dict[Tier, int] = {"quick": 9, "default": 15, "full": 25}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare gpucnn with the other implementations that are installed, on the "
        "layers of real networks and, on the CPU, on whole networks. Each result is checked before it is timed.",
        epilog="Layers have a budget of 150 s by default and whole networks one of the same length, which "
        "--filter 'whole network' measures alone. "
        "Exit status: 0, 1 for a wrong result or a failure, 2 for a mistaken call or a run that may not be "
        "published, 130 when interrupted (what was measured is kept).",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="tier", action="store_const", const="quick", help="under 40 seconds")
    size.add_argument("--full", dest="tier", action="store_const", const="full", help="every case, more rounds")
    publishing.add_filter(
        parser,
        "cases whose network/layer/operation or family contains it, or providers so named; repeat to narrow, "
        "commas for alternatives",
    )
    parser.add_argument(
        "--providers",
        type=lambda text: [name for name in text.split(",") if name],
        default=[],
        metavar="NAMES",
        help="only these implementations, comma-separated",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "gpu", "simulator"),
        default="auto",
        help="auto: the GPU where there is one; simulator: to try the GPU's run without one, one image a case",
    )
    parser.add_argument("--gpu", type=int, metavar="INDEX", help="which GPU of several (default: the first visible)")
    parser.add_argument("--threads", type=int, help="for every provider (default: all available CPUs)")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    publishing.add_output(parser)
    parser.add_argument("--report", type=Path, metavar="JSON", help="print and draw an earlier result, run nothing")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="replace this device's committed result in benchmarks/results too; refused for a run that is not whole, "
        "on a busy machine, or with fewer peers than the committed one",
    )
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="with --publish: put the summary between this file's markers"
    )
    options = parser.parse_args(arguments)
    options.tier = options.tier or "default"
    if options.readme and not options.publish:
        parser.error("--readme FILE is part of publishing: add --publish")
    if options.threads is not None and options.threads < 1:
        parser.error("--threads must be at least 1")
    if options.gpu is not None and options.gpu < 0:
        parser.error("--gpu must be at least 0")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    started = time.perf_counter()
    if options.list:
        device: Device = "cpu" if choose_device(options.device)[0] == "cpu" else "gpu"
        networks = select_networks(options.tier, options.filters) if device == "cpu" else []
        return list_cases(select(options.tier, options.filters, device), networks)
    if not require_packages():
        return EXIT_USAGE
    threads = options.threads or environment.available_cpus()
    environment.confine(threads)
    try:
        return report_again(options) if options.report else run(options, threads, started)
    except publishing.CannotPublishError as error:
        print(f"not published: {error}", file=sys.stderr)
        return EXIT_USAGE


def require_packages() -> bool:
    """Whether all packages of the benchmarks are there; says which are missing."""
    missing = [module for module in REQUIRED if find_spec(module) is None]
    if missing:
        print(f"needs {', '.join(missing)}: {install_command('bench')}", file=sys.stderr)
    return not missing


def run(options: argparse.Namespace, threads: int, started: float) -> int:
    """Choose the device and measure there; the exit status."""
    chosen, why = choose_device(options.device)
    print(why)
    if chosen == "none":
        return EXIT_USAGE
    if chosen == "cpu":
        return run_on_cpu(options, threads, started)
    from benchmarks.gpu.command import run_on_gpu

    return run_on_gpu(options, chosen, threads, started)


def report_again(options: argparse.Namespace) -> int:
    """Print, draw and, where that was asked, publish an earlier result; the exit status."""
    from benchmarks.results import Run

    return conclude(Run.load(options.report), options, options.report.stem, make_console(140))


def run_on_cpu(options: argparse.Namespace, threads: int, started: float) -> int:
    """Measure, print, write; the exit status."""
    from benchmarks import session
    from benchmarks.networks import session as network_session
    from benchmarks.results import Run
    from benchmarks.timing import measure_limits

    console = make_console(140)
    provider_words, case_filters = split_filters(options.filters)
    cases, networks = select(options.tier, case_filters), select_networks(options.tier, case_filters)
    if not cases and not networks:
        return usage("no case matches; see --list", console)
    providers = load_providers(threads, [*options.providers, *provider_words], console)
    if not providers:
        return usage("no such provider is installed", console)
    facts = environment.describe(threads, providers)
    filtered = bool(options.filters or options.providers)
    device = environment.slug(environment.device_name(), threads)
    if options.publish:  # what is known to be refused is not measured first
        peers = [provider.name for provider in providers if not provider.ours]
        whole = options.tier != "quick" and not filtered
        check_publishable(whole, facts, peers, file_stem(options.tier, device, filtered, interrupted=False))
    busy = environment.why_busy(facts)
    if busy:
        console.print(f"{busy}: the numbers will mislead", style="yellow")
    limits = measure_limits(threads, providers)
    tier, rounds = options.tier, MAX_ROUNDS[options.tier]
    measured = session.run(cases, providers, BUDGET_S[tier], rounds)
    records, interrupted = measure(cases, measured, providers, limits, console)
    network_records: list[Record] = []
    if not interrupted:
        measured = network_session.run(networks, providers, network_session.BUDGET_S[tier], rounds)
        network_records, interrupted = measure(networks, measured, providers, limits, console)
    if not interrupted:  # again, for the first measurement may have met a busy neighbour
        limits = limits.raised_by(measure_limits(threads, providers))
    run = Run(
        tier=tier,
        complete=not (filtered or interrupted),
        seconds=round(time.perf_counter() - started, 1),
        environment=facts,
        limits=limits,
        records=tuple(records),
        networks=tuple(network_records),
    )
    reached = f"{len(run.all_records)} of {len(cases) + len(networks)}" if interrupted else ""
    return conclude(run, options, file_stem(tier, device, filtered, interrupted), console, reached)


def choose_device(wanted: str) -> tuple[str, str]:
    """``"cpu"``, ``"gpu"``, ``"simulator"`` or ``"none"`` of them, and a sentence that says why."""
    if wanted in ("cpu", "simulator"):
        return wanted, f"measuring on the {wanted}, as asked"
    from benchmarks.gpu.environment import why_none

    reason = why_none()
    if reason is None:
        return "gpu", "measuring on the GPU; --device cpu for the CPU"
    if wanted == "gpu":
        return "none", f"no GPU to measure on: {reason}"
    return "cpu", f"measuring on the CPU, for there is no GPU to measure on: {reason}"


def list_cases(cases: Sequence[Case], networks: Sequence[NetworkCase]) -> int:
    for case in cases:
        print(
            f"{case.id:48} {case.family:24} {case.flops / 1e9:8.2f} GFLOP "
            f"{case.least_bytes / 1e6:8.1f} MB   {case.shapes}"
        )
    for network in networks:
        print(f"{network.id:48} {network.family:49} {network.shapes}")
    print(f"{len(cases) + len(networks)} cases")
    return 0


def load_providers(threads: int, names: Sequence[str], console: Console) -> list[Provider]:
    from benchmarks.providers import installed

    present, absent = installed(threads, names)
    for name, reason in absent.items():
        console.print(f"without {name} ({reason})", style="yellow")
    for provider in present:
        console.print(f"{provider.name} {provider.version()}", highlight=False)
    console.print(f"CPU only, {threads} thread(s) for every provider", highlight=False)
    return present


def measure(
    cases: Sequence[Case | NetworkCase],
    measured: Iterator[Record],
    providers: Sequence[Provider],
    limits: Limits,
    console: Console,
) -> tuple[list[Record], bool]:
    """The records, and whether the user stopped the run; a bar in a terminal, else plain lines.

    `measured` gives the record of each of `cases` in turn.
    """
    from benchmarks.progress import Shown
    from benchmarks.results import subjects_of

    subjects = subjects_of(p.name for p in providers if p.ours) or [providers[0].name]
    records: list[Record] = []
    if not cases:
        return records, False
    try:
        with Shown([case.id for case in cases], subjects, console) as shown:
            for record in measured:
                records.append(record)
                shown.record(record, limits)
    except KeyboardInterrupt:
        return records, True
    return records, False


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before the first case or after the last
        sys.exit(EXIT_INTERRUPTED)
