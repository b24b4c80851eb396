"""The machine of a run: threads, device name, versions. No host name and no path is recorded."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `confine` must run before anything imports NumPy
    from benchmarks.providers import Provider

# OpenBLAS's idle threads spin for about 0.1 s and slow whoever runs next two to three times
# (measured on two cores). After 2**20 cycles they rest, which cost gpucnn nothing measurable.
OPENBLAS_SPIN = "20"
BUSY_LOAD = 0.5  # of other processes, on the CPU that is measured; with a GPU, for each of the host's CPUs
BUSY_GPU = 0.05  # of the time before the run in which kernels ran on the GPU
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def available_cpus() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def confine(threads: int) -> None:
    """Give every library the same `threads` CPUs.

    Where the system allows, the process is bound to that many CPUs, before any library has started
    its threads; then the limits of each library follow.
    """
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", OPENBLAS_SPIN)
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        if threads < len(allowed):
            os.sched_setaffinity(0, allowed[:threads])
    import numpy as np  # noqa: F401 - so that its BLAS is there to be limited
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    threadpool_limits(threads)
    if find_spec("gpucnn"):
        import_module("gpucnn").set_num_threads(threads)


def load() -> float:
    """Processes that ran at the same time over the last minute; 0 where the system does not report it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def why_busy(facts: dict[str, Any]) -> str | None:
    """The reason why the machine in a report of `describe` was too busy for figures to commit, or None."""
    device = facts["device"]
    on_gpu = device["kind"] == "gpu"
    if device.get("utilization", 0.0) > BUSY_GPU:
        return f"the GPU is busy with other work ({device['utilization']:.0%} of the time)"
    host = facts.get("host", device)
    most = BUSY_LOAD * host["cpus"] if on_gpu else BUSY_LOAD
    if host["load"] > most:
        return f"the machine is busy (load {host['load']:g}, at most {most:g} for a result to commit)"
    return None


def device_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model name and its widest vector extension, since cloud machines give several models one name."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model, flags = (re.search(rf"^{field}\s*:\s*(.+)$", text, re.MULTILINE) for field in ("model name", "flags"))
    name = model[1].strip() if model else platform.processor() or platform.machine()
    extensions = flags[1].split() if flags else []
    widest = next((label for flag, label in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in extensions), None)
    return f"{name} ({widest})" if widest else name


def slug(name: str, threads: int | None = None) -> str:
    """The stem of the result files, for example ``amd-epyc-avx2-2-threads`` or ``nvidia-h100-80gb-hbm3``."""
    plain = re.sub(r"\((r|tm)\)|\bcpu\b|@.*$", " ", name.lower())
    plain = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return plain if threads is None else f"{plain}-{threads}-thread{'s' if threads > 1 else ''}"


def describe(threads: int, providers: Sequence[Provider]) -> dict[str, Any]:
    """Everything that a reader needs to judge the numbers; call it before the run loads the CPU."""
    import numpy as np
    from threadpoolctl import threadpool_info

    of_pool = ("user_api", "internal_api", "version", "architecture", "num_threads")
    return {
        "device": {
            "kind": "cpu",
            "name": device_name(),
            "architecture": platform.machine(),
            "cpus": available_cpus(),
            "threads": threads,
            "load": round(load(), 2),
        },
        "system": platform.system(),
        "date": now(),
        "commit": _commit(),
        "versions": {
            "Python": platform.python_version(),
            "NumPy": np.__version__,
            **{provider.name: provider.version() for provider in providers},
        },
        "thread_pools": [{key: pool.get(key) for key in of_pool} for pool in threadpool_info()],
        **({"gpucnn_threads": import_module("gpucnn").get_num_threads()} if find_spec("gpucnn") else {}),
    }


def now() -> str:
    """The date and the time of day."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def git(folder: Path, *arguments: str) -> str | None:
    """What git answers in a folder; None outside a repository."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _commit() -> str:
    """The checkout's short commit, with ``+`` when files differ from it; empty outside git."""
    folder = Path(__file__).parent
    commit = git(folder, "rev-parse", "--short", "HEAD")
    return commit + ("+" if git(folder, "status", "--porcelain", "--untracked-files=no") else "") if commit else ""
