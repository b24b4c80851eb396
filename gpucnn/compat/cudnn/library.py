"""Versions and availability of cuDNN, which programs ask for before they call it, and the error that they catch."""

from __future__ import annotations

__all__ = ["CuDNNError", "available", "getVersion", "get_build_version"]

available = True
_VERSION = 8801  # of cuDNN 8.8.1, the last one that CuPy installed


class CuDNNError(RuntimeError):
    """The error of cuDNN's calls, for ``except`` clauses: here `TypeError` and `ValueError` are raised in its place."""


def getVersion() -> int:  # noqa: N802  cuDNN's name
    """The version of cuDNN whose functions these stand for: 8.8.1, the last one that CuPy installed.

    Examples
    --------
    >>> getVersion() >= 7000
    True
    """
    return _VERSION


def get_build_version() -> int:
    """As `getVersion`."""
    return _VERSION
