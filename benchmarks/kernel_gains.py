"""``python -m benchmarks.kernel_gains``: what the kernels' staged paths save over their plain ones.

Layers of the benchmarks run in the simulator by both paths. What is compared is counted, not timed: bytes of the
sectors that requests to global memory touch, caches credited with nothing, and memory instructions of warps, to
global and to shared memory. A plain kernel's repeated reads of a sector are mostly hits in L1 on a device.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import publishing
from benchmarks.kernel_profile import cases_of, profile_of
from benchmarks.providers.base import Provider
from benchmarks.providers.gpucnn import GpucnnGpu, GpucnnGpuChannelsLast

LAYERS = {  # by the path that they take
    "depthwise tiles": (
        "mobilenetv2/dw_96_s2/", "mobilenetv2/dw_384/", "mobilenetv2/dw_960/", "efficientnet-b0/dw5_240/",
    ),
    "pooling tiles": (
        "resnet-50/max_pool/", "vgg-16/pool1/", "googlenet/inception_pool/", "yolov3-spp/spp13/forward",
        "densenet-121/transition1/", "resnet-50/global_avg/", "segnet/unpool1/",
    ),
    "norm rows": ("vit-b/layer_norm/", "convnext-t/layer_norm/", "ddpm/group_norm/", "cyclegan/instance_norm/"),
    "interpolation tiles": ("fpn/upsample/", "deeplabv3+/decoder/"),
}  # fmt: skip


def _plain() -> None:
    """Leave out the staged paths of this process."""
    from gpucnn.backends.cuda.convolution import depthwise
    from gpucnn.backends.cuda.normalization import normalization
    from gpucnn.backends.cuda.pooling import pooling
    from gpucnn.backends.cuda.resampling import resampling

    none: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    for module, name in (
        (depthwise, "takes"),
        (pooling, "tile_of"),
        (normalization, "norm_rows"),
        (resampling, "_tile"),
    ):
        mock.patch.object(module, name, none).start()


def counts() -> dict[str, dict[str, int]]:
    """Bytes and memory instructions of each case and memory order."""
    providers: dict[str, Provider] = {"channels first": GpucnnGpu(1), "channels last": GpucnnGpuChannelsLast(1)}
    found = {}
    for case in cases_of([]):
        if not any(case.id.startswith(layer) for layers in LAYERS.values() for layer in layers):
            continue
        for order, provider in providers.items():
            if provider.refuses(case) is not None:
                continue
            profile = profile_of(case, provider)
            requests = sum(access.requests for launch in profile.launches for access in launch.accesses)
            found[f"{case.id}, {order}"] = {"bytes": profile.moved_bytes, "instructions": requests}
    return found


def markdown(staged: dict[str, dict[str, int]], plain: dict[str, dict[str, int]]) -> str:
    """A table of all cases, by path."""
    text = [_HEAD]
    for path, layers in LAYERS.items():
        text += [f"## {path.capitalize()}\n", "| layer | MB | plain | saved | thousand instructions | plain | saved |"]
        text += ["|---|--:|--:|--:|--:|--:|--:|"]
        for name, own in staged.items():
            if not name.startswith(layers):
                continue
            cells = []
            for count, unit in (("bytes", 1e6), ("instructions", 1e3)):
                before, after = plain[name][count], own[count]
                cells += [f"{after / unit:.1f}", f"{before / unit:.1f}", f"{1 - after / before:.0%}"]
            text.append(f"| {name} | {' | '.join(cells)} |")
        text.append("")
    return "\n".join(text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernel_gains", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--plain", action="store_true", help="print the counts of the plain paths as JSON, and no more")
    parser.add_argument("--publish", action="store_true", help="replace the committed page in benchmarks/results too")
    options = parser.parse_args(arguments)
    if options.plain:
        _plain()
        print(json.dumps(counts()))
        return 0
    child = [sys.executable, "-m", "benchmarks.kernel_gains", "--plain"]  # plans are kept for a process's lifetime
    plain: dict[str, Any] = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
    page = markdown(counts(), plain)
    for folder in (publishing.LOCAL, *([publishing.RESULTS] if options.publish else [])):
        folder.mkdir(parents=True, exist_ok=True)
        Path(folder, "kernel-gains.md").write_text(page, encoding="utf-8")
        print(f"wrote {folder / 'kernel-gains.md'}")
    return 0


_HEAD = """# What the staged kernels save

Counted in the simulator on layers of the benchmarks in float32; nothing has run on a GPU, nothing is timed. *MB* is the
sectors that all requests to global memory touch, caches credited with nothing: on a device most of a plain kernel's
repeated reads hit L1. *Instructions* are the loads and stores that warps issue, to shared memory too; arithmetic is not
counted. A negative share is a cost. README.md has the parts of these paths.
"""

if __name__ == "__main__":
    raise SystemExit(main())
