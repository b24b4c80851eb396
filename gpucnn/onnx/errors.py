"""The error of models that cannot be read or run."""

from __future__ import annotations

__all__ = ["ModelError", "UnsupportedError"]


class ModelError(ValueError):
    """A model that is damaged, uses what is not supported, or was run on arrays that do not fit it.

    The message names the file or graph, the node and its operator, and says what is wrong.
    """


class UnsupportedError(ModelError):
    """A model that other runtimes may run: it uses an operator, an attribute or a dtype that is not supported here."""
