"""The GPU of a run, its driver and its clocks. No host name and no path is recorded."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks import environment
from benchmarks.environment import slug as slug
from benchmarks.gpu.device import CupyDevice, Device, SimulatedDevice
from benchmarks.providers import Provider

CLOCKS = {
    "SM clock": "clocks.sm",
    "memory clock": "clocks.mem",
    "power": "power.draw",
    "power limit": "power.limit",
    "temperature": "temperature.gpu",
    "driver": "driver_version",
}


def describe(threads: int, providers: list[Provider], device: Device) -> dict[str, Any]:
    """Everything that a reader needs to judge the numbers."""
    facts = environment.describe(threads, providers)
    facts["host"] = facts["device"]
    facts["device"] = {"kind": "gpu", "name": device.name, "threads": threads, "l2_bytes": device.l2_bytes}
    if isinstance(device, CupyDevice):
        facts["device"] |= properties(device.xp)
        facts["versions"] |= versions(device.xp)
    return facts


def properties(cupy: Any) -> dict[str, Any]:
    """The current GPU."""
    found = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    return {
        "name": found["name"].decode(),
        "compute_capability": f"{found['major']}.{found['minor']}",
        "multiprocessors": found["multiProcessorCount"],
        "memory_bytes": int(found["totalGlobalMem"]),
    }


def versions(cupy: Any) -> dict[str, str]:
    """The driver and the libraries that CuPy found."""
    runtime = cupy.cuda.runtime
    found = {
        "CuPy": cupy.__version__,
        "CUDA": _cuda(runtime.runtimeGetVersion()),
        "driver's CUDA": _cuda(runtime.driverGetVersion()),
    }
    try:
        import torch

        found["cuDNN"] = _cudnn(torch.backends.cudnn.version() or 0)
    except ImportError:
        pass
    driver = clocks().get("driver")
    return found | ({"driver": driver} if driver else {})


def _cuda(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _cudnn(number: int) -> str:
    """The version as text: 9.10.2 from 91002; before 9 it was 8.9.7 from 8907."""
    step = 10_000 if number >= 90_000 else 1_000
    return f"{number // step}.{number % step // 100}.{number % 100}"


def clocks() -> dict[str, str]:
    """The current clocks of the first visible GPU by nvidia-smi; empty where it has none."""
    known = zip(CLOCKS, _asked(CLOCKS.values()), strict=False)
    return {name: value for name, value in known if value and not value.startswith("[")}


def utilization() -> float | None:
    """The share of the last moments in which any kernel ran on the GPU; None where nvidia-smi does not report it.

    Ask before this process uses the GPU.
    """
    values = _asked(["utilization.gpu"])
    number = values[0].removesuffix("%").strip() if values else ""
    return float(number) / 100 if number.isdigit() else None


def _asked(queries: Iterable[str]) -> list[str]:
    """nvidia-smi's answer for the first visible GPU; empty without one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    chosen = [f"--id={visible}"] if visible else []
    command = ["nvidia-smi", f"--query-gpu={','.join(queries)}", "--format=csv,noheader", *chosen]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = done.stdout.strip().splitlines()
    return [value.strip() for value in lines[0].split(",")] if lines else []


def chosen_gpu(index: int | None, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment in which a worker sees one GPU alone; `index` counts the visible ones, in nvidia-smi's order."""
    visible = [part.strip() for part in given.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    if index is None and not visible:
        return {}
    index = index or 0
    if visible and index >= len(visible):
        raise ValueError(f"--gpu is {index}, expected less than {len(visible)}, the number of visible GPUs")
    chosen = visible[index] if visible else str(index)
    return {"CUDA_VISIBLE_DEVICES": chosen, "CUDA_DEVICE_ORDER": given.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")}


def make_device(kind: str) -> Device:
    """The current GPU, or the simulator, ready for timing."""
    device = SimulatedDevice() if kind == "simulator" else CupyDevice()
    device.flush()  # which takes its memory now, and not while something is timed
    return device


def why_none() -> str | None:
    """The reason why there is no GPU to measure on; None where there is one. It imports CuPy to find out."""
    from gpucnn.backends.cuda.device.cupy_runtime import why_unavailable

    return why_unavailable()
