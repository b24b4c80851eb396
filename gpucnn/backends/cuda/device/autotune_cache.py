"""Autotune cache: the fastest algorithm of each convolution on disk, one small file each, keyed by all that affects it.

Files are written atomically, so several processes may tune concurrently: of two that time the same, the last wins.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

from gpucnn import __version__
from gpucnn.backends.cuda.device.runtime import Device
from gpucnn.compilation.files import write_whole
from gpucnn.geometry import ConvGeometry
from gpucnn.numerics import choices
from gpucnn.paths import cache_folder


class AutotuneCache:
    """The picks for one device and driver, read when they are first asked for.

    Parameters
    ----------
    device : Device
    driver : int
        The CUDA version that the driver is for, as CUDA numbers them.
    folder : Path, optional
        By default ``autotune`` within the one that ``GPUCNN_CACHE_DIR`` chooses.
    """

    def __init__(self, device: Device, driver: int, folder: Path | None = None) -> None:
        self._folder = cache_folder() / "autotune" if folder is None else folder
        self._facts = {
            "device": device.name,
            "compute capability": ".".join(map(str, device.compute_capability)),
            "driver": driver,
            "gpucnn": __version__,
        }
        self._read: dict[tuple[str, ConvGeometry, str, str], str | None] = {}
        self._warned = False

    def algorithm(self, direction: str, geometry: ConvGeometry, dtype: str) -> str | None:
        """The algorithm that was picked for a convolution, None where none was."""
        key = direction, geometry, dtype, choices().precision
        if key not in self._read:
            self._read[key] = self._load(direction, geometry, dtype)
        return self._read[key]

    def keep(self, direction: str, geometry: ConvGeometry, dtype: str, milliseconds: Mapping[str, float]) -> str:
        """Keep the quickest of the algorithms that were timed, and return it."""
        picked = min(milliseconds, key=lambda name: milliseconds[name])
        path, facts = self._file(direction, geometry, dtype)
        content = {**facts, "algorithm": picked, "milliseconds": dict(milliseconds)}
        write_whole(path, json.dumps(content, indent=1).encode())
        self._read[direction, geometry, dtype, choices().precision] = picked
        return picked

    def _file(self, direction: str, geometry: ConvGeometry, dtype: str) -> tuple[Path, dict[str, object]]:
        """The file of a pick, and all that it depends on."""
        asked = {"direction": direction, "dtype": dtype, "precision": choices().precision, "geometry": repr(geometry)}
        facts = {**self._facts, **asked}
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{name}.json", facts

    def _load(self, direction: str, geometry: ConvGeometry, dtype: str) -> str | None:
        path, facts = self._file(direction, geometry, dtype)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if facts.items() <= content.items() and isinstance(content["algorithm"], str):
                return str(content["algorithm"])
            reason = "it is for something else"
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"gpucnn: {path} holds no pick and is ignored, as are others like it ({reason}); delete the file",
                RuntimeWarning,
                stacklevel=2,
            )
        return None
