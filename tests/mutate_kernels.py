"""Mutation testing of the CUDA kernels: change one place at a time, and see whether the simulator notices.

``python tests/mutate_kernels.py`` draws 400 mutants of kernels/ with a seed, runs the cases of kernel_cases.py on each
in the simulator, and lists those that no case tells from the original. A mutant is killed by a report of the simulator,
by a wrong result, by failing to compile, or by running for too long.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from kernel_cases import CASES, Case  # noqa: E402
from planting import planted  # noqa: E402

from gpucnn import simulator  # noqa: E402
from gpucnn.backends.cuda.device import sources  # noqa: E402

LIMIT_SECONDS = 90.0
INCLUDE = re.compile(r'^#include "([\w.]+)"$', re.MULTILINE)

SWAPS = (
    (r" < ", " <= "), (r" <= ", " < "), (r" > ", " >= "), (r" >= ", " > "), (r" == ", " != "), (r" != ", " == "),
    (r" \+ ", " - "), (r" - ", " + "), (r" \* ", " + "), (r" / ", " * "), (r" % ", " / "),
    (r" && ", " || "), (r" \|\| ", " && "), (r"\+= ", "-= "), (r"-= ", "+= "), (r"/= ", "*= "), (r"\*= ", "/= "),
    (r"__syncthreads\(\);", ";"), (r"\bcontinue;", ";"), (r"\breturn;", ";"),
    (r"(?<=\b[a-z]\.)h\b", "w"), (r"(?<=\b[a-z]\.)w\b", "h"), (r"(?<=_)h\b", "w"), (r"(?<=_)w\b", "h"),
    (r"(?<=_)d\b", "h"),
    (r"(?<=_)n\b", "c"), (r"(?<=_)c\b", "n"),
    (r"(?<![\w.\"])0(?![\w.\"])", "1"), (r"(?<![\w.\"])1(?![\w.\"])", "2"), (r"(?<![\w.\"])1(?![\w.\"])", "0"),
    (r"(?<![\w.\"])2(?![\w.\"])", "1"), (r"\bleast\(", "most("), (r"\bmost\(", "least("), (r"!(?=[\w(])", ""),
    (r"\btrue\b", "false"), (r"\bfalse\b", "true"),
)  # fmt: skip
"""What is looked for in a line of code, and what is put in its place."""


@dataclass(frozen=True)
class Mutant:
    """One changed place."""

    file: str
    line: int
    before: str
    after: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}\n    - {self.before.strip()}\n    + {self.after.strip()}"


def mutants_of(file: str) -> Iterator[Mutant]:
    """Every change of one place of kernels/`file`."""
    return mutants_in(file, sources._text(file))


def mutants_in(file: str, text: str) -> Iterator[Mutant]:
    """Every change of one place of a file that reads `text`."""
    lines = text.split("\n")
    for index, line in enumerate(lines):
        code = line.partition("//")[0]
        if not code.strip() or code.startswith("#") or "__launch_bounds__" in code:  # bounds change speed alone
            continue
        for pattern, new in SWAPS:
            for match in re.finditer(pattern, code):
                after = line[: match.start()] + new + line[match.end() :]
                yield Mutant(file, index + 1, line, after, "\n".join([*lines[:index], after, *lines[index + 1 :]]))


def cases_of(file: str) -> list[Case]:
    """The cases that run `file`: of a header, those of the kernels that include it, one kernel after the other."""
    users = {
        kernel.stem for kernel in sources.folder().glob("*.cu") if kernel.name == file or _includes(kernel.name, file)
    }
    found = [case for case in CASES if users.intersection(case.kernels)]
    return sorted(found, key=lambda case: "float32" not in case.name)  # a build a dtype: the common one first


def _includes(file: str, header: str) -> bool:
    headers = INCLUDE.findall(sources._text(file))
    return header in headers or any(_includes(other, header) for other in headers)


def verdict(mutant: Mutant) -> str:
    """How the mutant is killed, or "survived"."""
    with planted(mutant.file, mutant.text) as backend:
        for case in cases_of(mutant.file):
            try:
                results = tuple(simulator.asnumpy(result) for result in case.run(backend, simulator.asarray))
            except Exception as error:  # any report is a kill
                return type(error).__name__
            if not case.agrees(results):
                return "wrong result"
    return "survived"


def _report(judge: Callable[[], str], connection: Any) -> None:
    connection.send(judge())


def in_a_process(judge: Callable[[], str], seconds: float = LIMIT_SECONDS) -> str:
    """The verdict of `judge`, which has a process of its own and so long."""
    context = get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(judge, there))
    process.start()
    there.close()
    try:
        return str(here.recv()) if here.poll(seconds) else "ran too long"
    except EOFError:
        return "crashed"
    finally:
        process.kill()
        process.join()


def limited_verdict(mutant: Mutant) -> str:
    """As `verdict`, in a process of its own that may take `LIMIT_SECONDS`."""
    return in_a_process(partial(verdict, mutant))


def main() -> int:
    """Draw mutants, judge them, and print the score and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400, help="how many mutants to draw (default 400)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--file", help="only mutants of this file of kernels/")
    given = parser.parse_args()
    files = (
        [given.file] if given.file else sorted(p.name for p in sources.folder().glob("*.cu*") if p.name != "params.cuh")
    )
    every = [mutant for file in files for mutant in mutants_of(file)]
    drawn = random.Random(given.seed).sample(every, min(given.count, len(every)))
    for case in CASES:
        _ = case.expected  # once, before the processes part
    started, verdicts = time.monotonic(), {}
    with TemporaryDirectory() as cache, ThreadPoolExecutor(given.jobs) as pool:
        os.environ["GPUCNN_CACHE_DIR"] = cache  # what mutants are compiled to is of no use afterwards
        for done, (mutant, result) in enumerate(zip(drawn, pool.map(limited_verdict, drawn), strict=True), 1):
            verdicts[mutant] = result
            survived = sum(value == "survived" for value in verdicts.values())
            minutes = (time.monotonic() - started) / 60
            sys.stdout.write(f"\r{done}/{len(drawn)} mutants, {survived} survived, {minutes:.1f} min ")
            sys.stdout.flush()
            if result in ("survived", "ran too long"):  # what takes all of the time may have had no case to fail
                sys.stdout.write(f"\n{mutant} ({result})\n")
    counts: dict[str, int] = {}
    for result in verdicts.values():
        counts[result] = counts.get(result, 0) + 1
    killed = len(drawn) - counts.get("survived", 0)
    sys.stdout.write(f"\n{killed} of {len(drawn)} drawn from {len(every)} killed: {100 * killed / len(drawn):.1f} %\n")
    for result, count in sorted(counts.items(), key=lambda item: -item[1]):
        sys.stdout.write(f"  {count:4} {result}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
