"""``python -m benchmarks.scaling``: how far training in several processes scales: a model, fitted to measured runs.

Processes of this machine, started by mpiexec, sum arrays and train a ResNet-18; each has one thread. A message takes
`Link.latency` and its bytes over `Link.bandwidth`, so that the sum of B bytes over R ranks takes
``2 (R - 1) latency + 2 (R - 1) / R * B / bandwidth``: each rank sends a share to every other one, and the sums back.
The link is fitted to the sums that were measured. Of GPUs nothing is measured: their links and times are `GPUS`'
assumptions, and the model says what follows from them for up to 1024.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import environment, publishing

RANKS = (1, 2, 4)
SUMS = tuple(4 << 2 * power for power in range(5, 12))  # bytes: 4 KiB to 16 MiB
REPEATS = 7
BATCH, SIZE, BUCKET_MB = 4, 64, 4.0  # of the training step: images of a rank, their pixels, and its messages
MARK = "measured: "


# --- The model ----------------------------------------------------------------------------------------------------


class Link(NamedTuple):
    """What a message takes beyond nothing: seconds, and bytes in a second."""

    latency: float
    bandwidth: float

    def sum_time(self, nbytes: float, ranks: int) -> float:
        """Seconds to sum so many bytes over all ranks.

        Examples
        --------
        >>> Link(1e-6, 1e9).sum_time(1e6, 2)
        0.001002
        """
        return 2 * (ranks - 1) * self.latency + 2 * (ranks - 1) / ranks * nbytes / self.bandwidth


class Training(NamedTuple):
    """A training step of one rank: seconds of one image, bytes of all gradients and of a bucket, and the link."""

    image_time: float
    nbytes: float
    bucket: float
    link: Link

    def step_time(self, ranks: int, images: float) -> float:
        """Seconds of a step with so many images a rank: sums hide behind two thirds of it, the backward, but the last.

        Buckets become full evenly during the backward; they are summed one after the other.
        """
        compute, count = self.image_time * images, max(1, round(self.nbytes / self.bucket))
        done = 0.0
        for number in range(1, count + 1):
            full = compute / 3 + compute * 2 / 3 * number / count
            done = max(done, full) + self.link.sum_time(self.nbytes / count, ranks)
        return max(compute, done)

    def efficiency(self, ranks: int, images: float) -> float:
        """The share of ideal speed: one rank's time for the same images over that of the step."""
        return self.image_time * images / self.step_time(ranks, images)


GPUS = {
    "NVLink, 300 GB/s each": Training(4e-4, 102e6, 25 * 2**20, Link(4e-6, 300e9)),
    "network, 400 Gbit/s each": Training(4e-4, 102e6, 25 * 2**20, Link(6e-6, 40e9)),
    "network, 100 Gbit/s for 8": Training(4e-4, 102e6, 25 * 2**20, Link(10e-6, 1.3e9)),
}
"""Assumed, of a ResNet-50: 0.4 ms an image on a GPU, float32 gradients in buckets of 25 MiB, and their links."""
COUNTS = tuple(2**power for power in range(11))


def fitted(times: Sequence[tuple[int, int, float]]) -> Link:
    """The link for which the model's relative errors are least, of sums that were measured: ranks, bytes, seconds."""
    rows = np.array([(2 * (ranks - 1), 2 * (ranks - 1) / ranks * nbytes) for ranks, nbytes, _ in times])
    seconds = np.array([each[2] for each in times])
    latency, per_byte = np.linalg.lstsq(rows / seconds[:, None], np.ones(len(times)), rcond=None)[0]
    return Link(max(float(latency), 0.0), 1 / max(float(per_byte), 1e-15))


# --- What a rank measures -----------------------------------------------------------------------------------------


def measure() -> int:
    """Measure as one of the ranks; the first one prints the figures."""
    from gpucnn import nn, set_num_threads
    from gpucnn.distributed import MPI, Communicator, GradientReducer, volume

    set_num_threads(1)
    events: list[tuple[str, float, float]] = []

    class Timed(MPI):
        def all_reduce(self, array: Any) -> Any:
            start = time.perf_counter()
            result = super().all_reduce(array)
            events.append(("sum", start, time.perf_counter()))
            return result

        def _duplicate(self) -> Timed:
            return Timed(self._comm)

    ranks: Communicator = Timed()

    def best(call: Any) -> float:
        """The least time of a call that all ranks begin together; of the slowest rank."""
        found = []
        for _ in range(REPEATS):
            ranks.barrier()
            start = time.perf_counter()
            call()
            found.append(float(ranks.all_gather(np.array([time.perf_counter() - start])).max()))
        return min(found)

    sums = []
    for nbytes in SUMS:
        array = np.zeros(nbytes // 4, np.float32)
        sums.append((ranks.size, nbytes, best(partial(ranks.all_reduce, array))))

    model, loss = nn.models.resnet18(num_classes=10, rng=0), nn.CrossEntropyLoss()
    images, labels = np.random.default_rng(0).random((BATCH, 3, SIZE, SIZE), np.float32), np.zeros(BATCH, int)
    reducer = GradientReducer(model.parameters(), ranks, BUCKET_MB)

    def step() -> None:
        model.zero_grad()
        loss(model(images), labels)
        model.backward(loss.backward())

    def step_of_all() -> None:
        with reducer:
            step()

    alone, together = best(step), best(step_of_all)
    for module in model.modules():
        if not list(module.children()):
            module.backward = _timed(module.backward, events)  # type: ignore[method-assign]
    ranks.barrier()
    events.clear()
    sent, began = ranks.bytes_sent, time.perf_counter()
    step_of_all()
    if ranks.rank == 0:
        found = {
            **{"sums": sums, "alone": alone, "together": together, "sent": ranks.bytes_sent - sent},
            "volume": volume(model.parameters(), 0, ranks.size, BUCKET_MB),
            "nbytes": 4 * sum(each.size for each in dict.fromkeys(model.parameters())),
            "timeline": [(name, start - began, end - began) for name, start, end in events],
        }
        print(MARK + json.dumps(found), flush=True)
    return 0


def _timed(call: Any, events: list[tuple[str, float, float]]) -> Any:
    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = call(*arguments)
        events.append(("backward", start, time.perf_counter()))
        return result

    return timed


# --- All of them ----------------------------------------------------------------------------------------------------


def run_ranks(count: int) -> dict[str, Any]:
    """What so many ranks measure."""
    launcher = Path(sys.executable).with_name("mpiexec")
    command = str(launcher) if launcher.exists() else shutil.which("mpiexec")
    if command is None:
        sys.exit('mpiexec is missing: pip install -e ".[mpi]" mpich')
    quiet = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    arguments = [command, "-n", str(count), sys.executable, "-m", "benchmarks.scaling", "--rank"]
    ran = subprocess.run(arguments, env=quiet, capture_output=True, text=True, check=False)
    lines = [line for line in ran.stdout.splitlines() if line.startswith(MARK)]
    if ran.returncode or len(lines) != 1:
        sys.exit(f"{count} ranks failed:\n{ran.stdout}{ran.stderr}")
    found: dict[str, Any] = json.loads(lines[0][len(MARK) :])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, fit, print and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    publishing.add_output(parser)
    parser.add_argument("--publish", action="store_true", help="replace the committed page and figure too")
    options = parser.parse_args(arguments)
    if options.rank:
        return measure()
    runs = {}
    for count in RANKS:
        print(f"{count} rank{'s' if count > 1 else ''} …", file=sys.stderr, flush=True)
        runs[count] = run_ranks(count)
    for folder in (options.out, *([publishing.RESULTS] if options.publish else [])):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scaling.md").write_text(page(runs), encoding="utf-8")
        draw(runs, folder / "scaling.png")
        print(f"wrote {folder / 'scaling.md'} and scaling.png")
    print(page(runs))
    return 0


def page(runs: dict[int, dict[str, Any]]) -> str:
    """The figures as Markdown."""
    link = link_of(runs)
    errors = [abs(link.sum_time(nbytes, ranks) / seconds - 1) for ranks, nbytes, seconds in _sums(runs)]
    lines = [
        "# How far training in several processes scales",
        "",
        f"Measured on {environment.device_name()}, {environment.available_cpus()} cores, by `python -m "
        "benchmarks.scaling`: processes with one thread each, messages through the machine's memory.",
        "",
        f"A message takes {link.latency * 1e6:.0f} µs and its bytes over {link.bandwidth / 1e9:.2f} GB/s; with these "
        f"the model is off by {np.median(errors):.0%} in the median of {len(errors)} sums, {max(errors):.0%} at most, "
        "of ranks that have a core each.",
        "",
        f"A step of a ResNet-18, {BATCH} images of {SIZE} × {SIZE} a rank:",
        "",
        "| ranks | step without sums, ms | with them, ms | efficiency | bytes sent by a rank | by the model |",
        "| --: | --: | --: | --: | --: | --: |",
    ]
    for count, run in runs.items():
        alone, together = run["alone"] * 1e3, run["together"] * 1e3
        figures = (count, f"{alone:.0f}", f"{together:.0f}", f"{alone / together:.0%}", f"{run['sent']:,}")
        lines.append(f"| {' | '.join(map(str, figures))} | {run['volume']:,} |")
    lines += [
        "",
        "Ranks share a machine's memory, and beyond its cores these too: the step alone takes longer as well.",
        "",
    ]
    lines += ["Predicted for GPUs, by assumption (none was measured): efficiency with 32 images a GPU.", ""]
    lines += ["| link | " + " | ".join(map(str, COUNTS)) + " |", "| --- |" + " --: |" * len(COUNTS)]
    for name, training in GPUS.items():
        lines.append(f"| {name} | " + " | ".join(f"{training.efficiency(n, 32):.0%}" for n in COUNTS) + " |")
    lines += [
        "",
        "What breaks first is the number of messages: each rank sends to every other one, twice a bucket, so that "
        "the latency of a sum grows with the ranks, and passes the backward at some 256 of them. A ring or a tree "
        "would not do so yet. Larger buckets put it off: `GradientReducer(…, bucket_mb=100)` sends a ResNet-50's "
        "gradients at once.",
    ]
    lines += ["", "![Sums, a step's timeline, efficiency](scaling.png)"]
    return "\n".join(lines) + "\n"


def link_of(runs: dict[int, dict[str, Any]]) -> Link:
    """The link fitted to what all runs measured."""
    return fitted(_sums(runs))


def _sums(runs: dict[int, dict[str, Any]]) -> list[tuple[int, int, float]]:
    """What was measured of ranks that have a core each."""
    cores = max(2, environment.available_cpus())
    return [tuple(each) for count, run in runs.items() if 1 < count <= cores for each in run["sums"]]


def draw(runs: dict[int, dict[str, Any]], path: Path) -> None:
    """The sums and the fit; one step as it went; what the model predicts."""
    from benchmarks import plots

    figure, (sums, line, ahead) = plots.plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    link = link_of(runs)
    for count, colour in zip((count for count in runs if count > 1), ("#4477aa", "#ee6677"), strict=False):
        _, sizes, seconds = zip(*runs[count]["sums"], strict=True)
        sums.loglog(sizes, np.array(seconds) * 1e3, "o", color=colour, label=f"{count} ranks, measured")
        modelled = [link.sum_time(size, count) * 1e3 for size in sizes]
        sums.loglog(sizes, modelled, color=colour, label=f"{count} ranks, model")
    sums.set(title="Sum of an array over all ranks", xlabel="bytes", ylabel="ms")
    sums.legend()

    shown = max(count for count in runs if 1 < count <= max(2, environment.available_cpus()))
    rows = {"backward": 1, "sum": 0}
    for name, start, end in runs[shown]["timeline"]:
        colour = "#66ccee" if name == "backward" else "#ee6677"
        line.barh(rows[name], (end - start) * 1e3, left=start * 1e3, color=colour, edgecolor="white", linewidth=0.5)
    line.set_yticks([0, 1], ["sums of\nbuckets", "layers'\nbackward"])
    line.set(title=f"A step of one of {shown} ranks", xlabel="ms from its beginning")

    for (name, training), marker in zip(GPUS.items(), "os^", strict=True):
        line_of = ahead.semilogx(COUNTS, [100 * training.efficiency(n, 32) for n in COUNTS], marker=marker, label=name)
        strong = [(n, 1024 / n) for n in COUNTS]
        found = [100 * training.efficiency(n, images) for n, images in strong]
        ahead.semilogx(COUNTS, found, marker=marker, linestyle=":", color=line_of[0].get_color())
    ahead.set_xscale("log", base=2)
    ahead.set(
        title="Predicted: 32 images a GPU; dotted 1024 in all", xlabel="GPUs", ylabel="efficiency, %", ylim=(0, 105)
    )
    ahead.legend()
    plots.save(figure, path)


if __name__ == "__main__":
    sys.exit(main())
