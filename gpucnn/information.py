"""Backends, devices and versions on this machine, for people to read and for reports to keep."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpucnn import __version__
from gpucnn.backends import available, cpu_state
from gpucnn.backends.numpy.threads import get_num_threads, usable_cores
from gpucnn.numerics import choices
from gpucnn.paths import cache_folder

_AVX512 = ("AVX512_SKX", "X86_V4")  # NumPy's names for it before and since 2.4
PEERS = ("numpy", "ml_dtypes", "cupy", "cupy-cuda12x", "cupy-cuda13x", "torch", "onnxruntime", "threadpoolctl")


def info() -> dict[str, Any]:
    """Report versions, backends and why one is missing, which one the CPU takes, GPUs, processor, threads and BLAS.

    Returns
    -------
    dict
        Plain values, ready for JSON. ``python -m gpucnn`` prints it.

    Examples
    --------
    >>> info()["backends"]["numpy"]
    'available'
    """
    backends = available()
    return {
        "gpucnn": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _versions(),
        "backends": backends,
        "cpu": cpu_state(),
        **({"cuda": _cuda()} if backends["cuda"] == "available" else {}),
        "processor": {"name": _processor_name(), "cores": usable_cores(), "vector extensions": _vector_extensions()},
        "threads": get_num_threads(),
        "blas": _blas(),
        "precision": choices().precision,
        "cache": str(cache_folder()),
    }


def _cuda() -> dict[str, Any]:
    from gpucnn.backends.cuda.device.cupy_runtime import facts

    return facts()


def _versions() -> dict[str, str]:
    versions = {}
    for package in PEERS:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _vector_extensions() -> list[str]:
    """The processor's vector extensions that NumPy found, the widest last."""
    umath: Any = import_module("numpy._core._multiarray_umath")
    wanted = ("X86_V2", "SSE42", "X86_V3", "AVX2", *_AVX512, "NEON", "ASIMD", "SVE", "VSX", "VX")
    return [name for name in wanted if umath.__cpu_features__.get(name)]


def _blas() -> dict[str, Any]:
    """NumPy's BLAS: its build, and the kernels and threads that it chose where they can be queried."""
    import numpy as np

    built: dict[str, Any] = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})  # type: ignore[assignment]
    result: dict[str, Any] = {"name": built.get("name", "unknown"), "version": built.get("version", "unknown")}
    if find_spec("threadpoolctl") is None:
        result["kernels"] = "unknown: install threadpoolctl to see them"
        return result
    threadpoolctl: Any = import_module("threadpoolctl")
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool.get("user_api") == "blas"]
    own = next((pool for pool in pools if "numpy" in str(pool.get("filepath", ""))), pools[0] if pools else None)
    if own is not None:
        result["kernels"] = own.get("architecture", "unknown")
        result["threads"] = own["num_threads"]
        result["version"] = own.get("version") or result["version"]
    advice = blas_advice(_vector_extensions(), str(result.get("kernels", "")))
    if advice:
        result["advice"] = advice
    return result


# OpenBLAS's kernel sets without AVX-512, which it takes on newer processors that it does not recognise.
_AVX2_KERNELS = ("haswell", "zen", "excavator")


def blas_advice(extensions: list[str], kernels: str) -> str | None:
    """Advice where OpenBLAS uses a smaller vector width than the processor has; None where all is well.

    Examples
    --------
    >>> blas_advice(["AVX2"], "Zen") is None
    True
    >>> print(blas_advice(["AVX2", "AVX512_SKX"], "Haswell"))
    OpenBLAS took its AVX2 kernels (Haswell) on a processor with AVX-512; OPENBLAS_CORETYPE=SkylakeX, set before \
Python starts, chooses the AVX-512 ones
    """
    if any(name in extensions for name in _AVX512) and kernels.lower() in _AVX2_KERNELS:
        return (
            f"OpenBLAS took its AVX2 kernels ({kernels}) on a processor with AVX-512; "
            "OPENBLAS_CORETYPE=SkylakeX, set before Python starts, chooses the AVX-512 ones"
        )
    return None


def render(facts: dict[str, Any], indent: int = 0) -> str:
    """Facts as aligned lines of text."""
    width = max(map(len, facts), default=0)
    lines = []
    for key, value in facts.items():
        label = " " * indent + key
        if isinstance(value, dict):
            lines += [label, render(value, indent + 2)]
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            lines.append(f"{label.ljust(width + indent)}  {text}".rstrip())
    return "\n".join(lines)


def main(arguments: Sequence[str] = ()) -> None:
    """Print what this machine offers; with ``--build`` compile the CPU kernels for it."""
    parser = argparse.ArgumentParser(prog="python -m gpucnn", description="Print what this machine offers.")
    parser.add_argument(
        "--build", action="store_true", help="compile the CPU kernels now, not when the first operation runs"
    )
    if parser.parse_args(arguments).build:
        _build()
    else:
        sys.stdout.write(render(info()) + "\n")


def _build() -> None:
    from gpucnn.warm_up import warmup

    try:
        done = warmup(backend="compiled")
    except RuntimeError as error:
        sys.exit(f"gpucnn: {error}")
    sys.stdout.write(
        f"{done.compiled + done.found} builds of the CPU kernels in {cache_folder() / 'cpu'}: "
        f"{done.compiled} compiled, {done.found} found, {done.seconds:.1f} s\n"
    )
