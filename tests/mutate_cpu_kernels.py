"""Mutation testing of the compiled CPU kernels: change one place at a time, and see whether fuzzing notices.

``python tests/mutate_cpu_kernels.py`` draws 60 mutants of kernels/cpu with a seed, compiles each for float32, computes
drawn calls of tests/fuzz.py until one fails, and lists those that none tells from the original. A mutant is killed by a
wrong result, by failing to compile, by a crash, or by running for too long. Of 400 calls few reach a kernel that one
family alone uses: ``--file winograd.cpp --family Winograd`` draws all of them from that.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["GPUCNN_CPU"] = "numpy"  # no kernel is loaded before the processes part

import fuzz  # noqa: E402
from mutate_kernels import Mutant, in_a_process, mutants_in  # noqa: E402

from gpucnn.backends.cpu import builds  # noqa: E402
from gpucnn.compilation.compiler import hash_of  # noqa: E402

LIMIT_SECONDS = 400.0
LEFT_OUT = ("threads.cpp", "convert.cpp", "adam.cpp", "sgd.cpp", "linear.cpp")  # which tests/fuzz.py does not draw
INCLUDE = re.compile(r'^#include "([\w.]+)"$', re.MULTILINE)


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())}


def every_mutant(names: list[str]) -> list[Mutant]:
    """Those of some files; prefetches and sizes of blocks for the caches change no result."""
    found = []
    for name, text in texts(builds.folder()).items():
        if name not in LEFT_OUT and (not names or name in names):
            found += [mutant for mutant in mutants_in(name, text) if "prefetch" not in mutant.before]
    return found


def included(name: str, files: dict[str, str]) -> set[str]:
    """A file and all that it includes."""
    found = {name}
    for header in INCLUDE.findall(files[name]):
        found |= included(header, files)
    return found


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """Sources with the mutant, for this process; files that do not include it keep their builds."""
    files = {**texts(builds.folder()), mutant.file: mutant.text}
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")

        def build(file: str, dtype: str, identity: str, kept: Path) -> builds.Build:
            parts = [files[name] for name in sorted(included(f"{file}.cpp", files))]
            return builds.Build(file, dtype, kept / f"{file}-{dtype}-{hash_of(identity, *builds.flags(), *parts)}.so")

        patched: Any = builds
        patched._FOLDERS, patched._build = (Path(folder),), build
        for function in (builds.folder, builds.text, builds._headers):
            function.cache_clear()
        yield


def verdict(mutant: Mutant, calls: int, family: str | None = None) -> str:
    """How the mutant is killed by calls, of all families or of one, or "survived"."""
    os.environ["GPUCNN_CPU_FLAGS"] = "-O1"
    assert not builds._libraries
    with planted(mutant):
        try:
            builds.load_all(lambda done, total: done, ("float32",))
        except RuntimeError:
            return "does not compile"
        for index in range(calls):
            if fuzz.failures_of(1, index, "float32", family):
                return f"wrong result of call {index}"
    return "survived"


def limited_verdict(mutant: Mutant, calls: int, family: str | None = None, seconds: float = LIMIT_SECONDS) -> str:
    """As `verdict`, in a process of its own that may take so long."""
    return in_a_process(partial(verdict, mutant, calls, family), seconds)


def main() -> int:
    """Draw mutants, judge them, and print the score and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="how many mutants to draw (default 60)")
    parser.add_argument("--calls", type=int, default=400, help="how many calls each has to compute (default 400)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", action="append", default=[], help="only mutants of this file of kernels/cpu/")
    parser.add_argument("--family", choices=fuzz.FAMILIES, help="only calls of this family of operations")
    given = parser.parse_args()
    every = every_mutant(given.file)
    drawn = random.Random(given.seed).sample(every, min(given.count, len(every)))
    name = "vectors.hpp"
    unchanged = Mutant(name, 0, "", "", texts(builds.folder())[name])
    if limited_verdict(unchanged, given.calls, given.family, 3600) != "survived":  # its builds serve all mutants
        sys.exit("the kernels fail as they are: see python tests/fuzz.py --seed 1 --dtype float32")
    started, verdicts = time.monotonic(), Counter[str]()
    for done, mutant in enumerate(drawn, 1):
        result = limited_verdict(mutant, given.calls, given.family)
        verdicts[re.sub(r" of call \d+", "", result)] += 1
        minutes = (time.monotonic() - started) / 60
        sys.stdout.write(f"{done}/{len(drawn)}, {minutes:.1f} min: {result}\n")
        if result in ("survived", "ran too long"):
            sys.stdout.write(f"{mutant}\n")
        sys.stdout.flush()
    killed = len(drawn) - verdicts["survived"]
    sys.stdout.write(f"{killed} of {len(drawn)} drawn from {len(every)} killed: {100 * killed / len(drawn):.1f} %\n")
    for result, count in verdicts.most_common():
        sys.stdout.write(f"  {count:4} {result}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
