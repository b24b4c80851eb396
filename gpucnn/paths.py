"""Folders on disk."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder for compiled kernels: ``GPUCNN_CACHE_DIR``, else the user's cache folder."""
    chosen = os.environ.get("GPUCNN_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gpucnn"
