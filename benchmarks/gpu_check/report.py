"""The report: which parts passed, on which device, at which commit, with which kernels. No host name, no path."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import environment as host
from benchmarks.gpu import environment
from benchmarks.gpu_check.machine import KernelBuild
from benchmarks.isolation import ROOT

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
SHOWN = 20  # failures of a part that the report quotes


@dataclass
class Outcome:
    """The outcome of a part. `reason` says why it did not pass; `notes` are further remarks."""

    name: str
    status: str
    reason: str = ""
    passed: int = 0
    failed: int = 0
    not_run: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Launched:
    """The numbers of passed and failed checks that launched a kernel."""

    passed: int = 0
    failed: int = 0


@dataclass
class Report:
    """Written after each part, so that an interrupted run leaves its results so far."""

    facts: dict[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)
    kernels: dict[KernelBuild, Launched] = field(default_factory=dict)
    complete: bool = False

    def count(self, names: Iterable[str], passed: bool) -> None:
        """Note that a check that launched the kernels `names` passed or failed."""
        for name in names:
            launched = self.kernels.setdefault(KernelBuild.of(name), Launched())
            launched.passed += passed
            launched.failed += not passed

    @property
    def status(self) -> str:
        """Passed where every part did, failed where one did."""
        states = {outcome.status for outcome in self.outcomes}
        if FAILED in states:
            return FAILED
        return PASSED if self.complete and states == {PASSED} else "incomplete"

    def as_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            **self.facts,
            "parts": [asdict(outcome) for outcome in self.outcomes],
            "kernels": [build._asdict() | asdict(launched) for build, launched in sorted(self.kernels.items())],
        }

    def as_markdown(self) -> str:
        lines = [f"# GPU check: {self.status}\n", *(f"- {name}: {value}" for name, value in self.facts.items())]
        lines += ["\n| part | status | passed | failed | not run | seconds | |", "|---|---|--:|--:|--:|--:|---|"]
        lines += map(_row, self.outcomes)
        failing = [outcome for outcome in self.outcomes if outcome.failures]
        lines += ["\n## Failures"] if failing else []
        for outcome in failing:
            lines += [f"\n### {outcome.name}\n", *(f"- {text}" for text in outcome.failures)]
        lines += ["\n## Kernels\n", *self._kernel_lines()]
        return scrubbed("\n".join(lines) + "\n")

    def _kernel_lines(self) -> list[str]:
        if not self.kernels:
            return ["None was launched by a check that compares its results."]
        builds: dict[tuple[str, str, str], list[str]] = {}
        for build, launched in sorted(self.kernels.items()):
            dtype = build.dtype + (" (FAILED)" if launched.failed else "")
            builds.setdefault((build.kernel, build.index, build.build), []).append(dtype)
        return [
            "Each row's dtypes were launched by checks that all passed, those marked excepted.\n",
            "| kernel | indices | build | dtypes |",
            "|---|---|---|---|",
            *(f"| {' | '.join(key)} | {', '.join(dtypes)} |" for key, dtypes in builds.items()),
        ]

    def write(self, folder: Path) -> None:
        """Write gpu_check.json and gpu_check.md, each atomically."""
        replace(folder / "gpu_check.json", scrubbed(json.dumps(self.as_json(), indent=1)) + "\n")
        replace(folder / "gpu_check.md", self.as_markdown())


def _row(outcome: Outcome) -> str:
    said = "; ".join(filter(None, [outcome.reason, *outcome.notes])).replace("|", "\\|")
    counts = f"{outcome.passed} | {outcome.failed} | {outcome.not_run}"
    return f"| {outcome.name} | {outcome.status} | {counts} | {outcome.seconds:.0f} | {said} |"


def replace(path: Path, text: str) -> None:
    """Write `text` to a file that is never half written."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


def scrubbed(text: str) -> str:
    """`text` without this machine's name and without its folders."""
    text = text.replace(f"{ROOT}{os.sep}", "").replace(str(ROOT), ".")
    text = re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+", "…/", text)  # any other absolute path
    node = platform.node()
    return text.replace(node, "…") if len(node) > 2 else text


# --- Where it ran ---------------------------------------------------------------------------------------------------


def facts(backend: str) -> dict[str, Any]:
    """Device, versions, state of the sources and date."""
    import numpy as np

    import gpucnn

    device = {"device": "simulator"} if backend == "simulator" else device_facts()
    return {
        **device,
        "gpucnn": gpucnn.__version__,
        "NumPy": np.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **sources_facts(),
        "date": host.now(),
    }


def device_facts() -> dict[str, Any]:
    """The current GPU, its driver, and the versions of its compilers."""
    from gpucnn.backends.cuda.device import nvrtc
    from gpucnn.backends.cuda.device.cupy_runtime import CupyRuntime

    cupy = CupyRuntime().xp
    known, versions = environment.properties(cupy), environment.versions(cupy)
    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    return {
        "device": known["name"],
        "compute capability": known["compute_capability"],
        "multiprocessors": known["multiprocessors"],
        "memory": f"{known['memory_bytes'] / 2**30:.0f} GiB",
        "driver": versions.get("driver", "unknown"),
        "driver's CUDA": versions["driver's CUDA"],
        "CUDA runtime": versions["CUDA"],
        "NVRTC": ".".join(map(str, nvrtc.load((major, *nvrtc.MAJORS)).version)),
        "CuPy": versions["CuPy"],
    }


def sources_facts() -> dict[str, Any]:
    """The commit, whether files differ from it, and a digest of the sources that needs no git."""
    commit, changes = host.git(ROOT, "rev-parse", "HEAD"), host.git(ROOT, "status", "--porcelain")
    clean = "unknown" if changes is None else "no" if changes else "yes"
    return {"commit": commit or "unknown", "tree clean": clean, "digest of gpucnn and kernels": sources_digest()}


def sources_digest() -> str:
    """Twelve digits that change with any file of gpucnn/ and kernels/."""
    digest = hashlib.sha256()
    files = [path for folder in ("gpucnn", "kernels") for path in (ROOT / folder).rglob("*")]
    for path in sorted(files):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
