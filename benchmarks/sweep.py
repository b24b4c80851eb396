"""``python -m benchmarks.sweep``: drawn layers, which no network of the table has, against the best peer on the CPU.

What is tuned on the table's layers should be as quick on others: odd channels and sizes, dilated and strided windows,
small batches. The seed is fixed; checks, times and ratios are those of ``python -m benchmarks --device cpu``.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks import environment, publishing
from benchmarks.__main__ import load_providers, measure, require_packages
from benchmarks.cases import LAYERS, Case, chosen
from benchmarks.layers import ConvLayer, Layer, NormLayer, PoolLayer, Shape
from benchmarks.publishing import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_USAGE, check_publishable, file_stem, tell

if TYPE_CHECKING:  # these import NumPy, which must wait for the thread limits
    from rich.console import Console

    from benchmarks.results import Row, Run

COUNT = 200
SEED = 20
BUDGET_S = 540.0
MAX_ROUNDS = 9
MAX_FLOPS = 2e9  # some 20 ms of a core
MAX_BYTES = 64e6
BATCHES = (1, 1, 2, 3, 4, 8)

Draw = random.Random


# Layers -------------------------------------------------------------------------------------------


def draw_layers(count: int = COUNT, seed: int = SEED) -> list[Layer]:
    """Different layers of all kinds in turn, none of which the table has."""
    rng = random.Random(seed)
    known = {_form(layer) for layer in LAYERS}
    drawn: dict[Layer, Layer] = {}
    while len(drawn) < count:
        layer = KINDS[len(drawn) % len(KINDS)](rng)
        if _fits(layer) and _form(layer) not in known:
            drawn.setdefault(_form(layer), layer)
    return [replace(layer, name=f"{number:03}-{layer.name}") for number, layer in enumerate(drawn.values())]


def _form(layer: Layer) -> Layer:
    """The layer without its names and batches."""
    return replace(layer, network="", name="", cpu_batch=1, gpu_batch=1, tier="default", devices=("cpu",))


def _fits(layer: Layer) -> bool:
    """Whether there is an output, and a call takes some 20 ms at most."""
    if min(layer.output_shape(1)) < 1:
        return False
    costs = [(layer.flops(o, layer.cpu_batch), layer.least_bytes(o, layer.cpu_batch)) for o in layer.operations]
    return all(flops <= MAX_FLOPS and moved <= MAX_BYTES for flops, moved in costs)


def _between(rng: Draw, low: int, high: int) -> int:
    """A number in [low, high]; each doubling is as likely as another."""
    return min(high, int(low * ((high + 1) / low) ** rng.random()))


def _size(rng: Draw) -> Shape:
    """Height and width of an image: equal in three of four."""
    height = _between(rng, 7, 112)
    return height, height if rng.random() < 0.75 else _between(rng, 7, 112)


def _convolution(rng: Draw, channels: int, out_channels: int, groups: int) -> ConvLayer:
    """Any window; padded so that stride 1 keeps the size in four of five."""
    taps, stride = rng.choice((1, 3, 3, 5, 7)), rng.choice((1, 1, 2))
    dilation = rng.choice((1, 1, 1, 2)) if taps > 1 else 1
    padding = dilation * (taps - 1) // 2 if rng.random() < 0.8 else 0
    name = f"k{taps}s{stride}" + (f"d{dilation}" if dilation > 1 else "") + (f"g{groups}" if groups > 1 else "")
    return ConvLayer(
        **_common(rng, name, channels),
        out_channels=out_channels,
        kernel=(taps, taps),
        stride=(stride, stride),
        padding=(padding, padding),
        dilation=(dilation, dilation),
        groups=groups,
        bias=rng.random() < 0.5,
    )


def _common(rng: Draw, name: str, channels: int) -> dict[str, Any]:
    return {
        "network": "drawn",
        "name": name,
        "channels": channels,
        "size": _size(rng),
        "cpu_batch": rng.choice(BATCHES),
    }


def _dense(rng: Draw) -> ConvLayer:
    return _convolution(rng, _between(rng, 3, 512), _between(rng, 3, 512), 1)


def _grouped(rng: Draw) -> ConvLayer:
    groups = _between(rng, 2, 32)
    return _convolution(rng, groups * _between(rng, 2, 32), groups * _between(rng, 1, 32), groups)


def _depthwise(rng: Draw) -> ConvLayer:
    channels = _between(rng, 3, 512)
    return _convolution(rng, channels, channels, channels)


def _pooling(rng: Draw) -> PoolLayer:
    kind: Literal["max", "avg"] = rng.choice(("max", "avg"))
    taps, stride = rng.choice((2, 3, 3, 5)), rng.choice((1, 2, 2, 3))
    padding = rng.choice((0, taps // 2))
    return PoolLayer(
        **_common(rng, f"{kind}-k{taps}s{stride}", _between(rng, 3, 512)),
        kind=kind,
        kernel=(taps, taps),
        stride=(stride, stride),
        padding=(padding, padding),
    )


def _norm(rng: Draw) -> NormLayer:
    kind: Literal["batch", "layer", "group", "instance"] = rng.choice(("batch", "batch", "layer", "group", "instance"))
    groups = _between(rng, 2, 32) if kind == "group" else 1
    channels = groups * _between(rng, 1, 16) if kind == "group" else _between(rng, 3, 512)
    return NormLayer(**_common(rng, kind, channels), kind=kind, groups=groups)


# of twenty layers
KINDS: tuple[Callable[[Draw], Layer], ...] = (
    *(_dense, _depthwise, _grouped, _dense, _pooling, _dense, _depthwise, _norm, _dense, _grouped),
    *(_dense, _pooling, _depthwise, _dense, _norm, _dense, _grouped, _depthwise, _dense, _pooling),
)


# The command --------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep",
        description=f"Compare gpucnn on the CPU with the best peer on {COUNT} layers that no network of the table has, "
        "in some ten minutes. Each result is checked before it is timed.",
        epilog="Exit status as that of python -m benchmarks.",
    )
    publishing.add_filter(parser, "cases whose drawn/layer/operation or family contains it, as python -m benchmarks")
    parser.add_argument("--layers", type=int, default=COUNT, metavar="N", help=f"the first N of them (default {COUNT})")
    parser.add_argument("--threads", type=int, help="for every implementation (default: all available CPUs)")
    publishing.add_output(parser)
    parser.add_argument("--publish", action="store_true", help="replace this device's committed result too")
    options = parser.parse_args(arguments)
    for name in ("layers", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    started = time.perf_counter()
    if not require_packages():
        return EXIT_USAGE
    threads = options.threads or environment.available_cpus()
    environment.confine(threads)
    try:
        return run(options, threads, started)
    except publishing.CannotPublishError as error:
        print(f"not published: {error}", file=sys.stderr)
        return EXIT_USAGE


def run(options: argparse.Namespace, threads: int, started: float) -> int:
    """Measure, print, write; the exit status."""
    from benchmarks import session
    from benchmarks.results import Run
    from benchmarks.timing import measure_limits

    console = publishing.make_console(140)
    cases = chosen(
        [Case(layer, o, layer.cpu_batch) for layer in draw_layers(options.layers) for o in layer.operations],
        options.filters,
    )
    if not cases:
        return publishing.usage("no case matches", console)
    providers = load_providers(threads, [], console)
    facts = environment.describe(threads, providers)
    filtered = bool(options.filters) or options.layers != COUNT
    device = environment.slug(environment.device_name(), threads)
    if options.publish:  # what is known to be refused is not measured first
        peers = [provider.name for provider in providers if not provider.ours]
        check_publishable(not filtered, facts, peers, file_stem("sweep", device, filtered, interrupted=False))
    limits = measure_limits(threads, providers)
    measured = session.run(cases, providers, BUDGET_S, MAX_ROUNDS)
    records, interrupted = measure(cases, measured, providers, limits, console)
    result = Run(
        tier="sweep",
        complete=not (filtered or interrupted),
        seconds=round(time.perf_counter() - started, 1),
        environment=facts,
        limits=limits,
        records=tuple(records),
    )
    if records:
        keep(result, options, file_stem("sweep", device, filtered, interrupted), console)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAULT if result.faults else 0


# Report -------------------------------------------------------------------------------------------


def keep(run: Run, options: argparse.Namespace, stem: str, console: Console) -> None:
    """Print the tables and write the files, of a published run those of `publishing.RESULTS` too."""
    from benchmarks import report

    for table in tables(run):
        console.print(table.terminal(report.MARKDOWN_ALONE_BESIDE_NUMPY))
    for record, outcome in run.faults:
        text = f"{outcome.status.upper()} {record.id}, {outcome.provider}: {outcome.note}"
        console.print(text, style="red", markup=False)
    console.print(summary(run), markup=False, highlight=False)
    tell(write(run, options.out / stem), console)
    if options.publish:
        check_publishable(run.complete, run.environment, run.peers, stem)
        tell(write(run, publishing.RESULTS / stem), console)


def tables(run: Run) -> list[Any]:
    """Geometric means by group and by family, then the case with the least ratio in each group and operation."""
    from benchmarks import report
    from benchmarks.results import rows_of, summarize

    rows = rows_of(run)
    means = [
        report.summary_table(kind, summarize(rows, kind_of), f"Geometric means by {kind}")
        for kind, kind_of in report.KINDS.items()
    ]
    return [*means, report.case_table(least(rows), "The least ratio to the best peer in each group")]


def least(rows: Sequence[Row]) -> list[Row]:
    """Of each group and operation the case on which the best peer is furthest ahead."""
    from benchmarks.results import by_group

    worst: dict[tuple[str, str], Row] = {}
    for row in sorted((row for row in rows if row.ratio), key=lambda row: row.ratio or 0.0):
        worst.setdefault(by_group(row.record), row)
    return list(worst.values())


def summary(run: Run) -> str:
    """All cases in a sentence, and the machine."""
    from benchmarks import report
    from benchmarks.results import Ratios, rows_of

    ratios = [row.ratio for row in rows_of(run) if row.ratio]
    best = Ratios.of(ratios)
    text = f"{len(run.records)} cases of drawn layers"
    if best:
        ahead = sum(ratio >= 1 for ratio in ratios) / len(ratios)
        text += (
            f"; the best peer's time over that of {run.subjects[0]}: geometric mean {best.mean:.2f}, "
            f"least {best.lowest:.2f}, at least 1 in {ahead:.0%}"
        )
    return f"{text}.\n\n{report.headline(run)}"


def write(run: Run, stem: Path) -> list[Path]:
    """Write JSON, Markdown tables and the scatter plot, all beginning with `stem`; their paths."""
    from benchmarks.plots import draw_scatter

    stem.parent.mkdir(parents=True, exist_ok=True)
    data, text = (stem.with_name(stem.name + suffix) for suffix in (".json", ".md"))
    run.save(data)
    parts = [f"# Drawn layers\n\n{summary(run)}", *(f"## {table.title}\n\n{table.markdown()}" for table in tables(run))]
    text.write_text("\n\n".join(parts) + "\n")
    return [data, text, *draw_scatter(run, Path(f"{stem}.png"))]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before the first case or after the last
        sys.exit(EXIT_INTERRUPTED)
