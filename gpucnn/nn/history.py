"""The history of a training run, epoch by epoch."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from itertools import zip_longest
from typing import Any

from gpucnn.installing import optional

__all__ = ["History"]

File = str | os.PathLike[str]


@dataclass
class History:
    """The measurements of `fit` in each epoch. A measure that the run does not have is an empty list.

    Attributes
    ----------
    losses, accuracies : list of float
        Over the training batches, each as it was when the network saw it. Accuracies are shares, in [0, 1].
    validation_losses, validation_accuracies : list of float
        Over the validation batches, after each epoch.
    learning_rates : list of float
        Of the first group of parameters, at the end of the epoch.
    seconds : list of float
        That the epoch took, validation included.
    best_epoch : int or None
        With early stopping the epoch, from 0, whose weights were the best and were restored; None if each epoch's
        measure was NaN.
    interrupted : bool
        Whether the run was stopped by the keyboard.

    Examples
    --------
    >>> history = History(losses=[2.0, 1.0], seconds=[0.5, 0.5])
    >>> History.from_json(history.to_json()) == history
    True
    >>> print(history)
    epoch    loss  seconds
        1  2.0000      0.5
        2  1.0000      0.5
    """

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    validation_accuracies: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    interrupted: bool = False

    def __len__(self) -> int:
        """The number of completed epochs."""
        return len(self.losses)

    def __str__(self) -> str:
        """A table with a row for each epoch, counted from 1, and a column for each measure of the run."""
        columns = {
            "epoch": [str(epoch) for epoch in range(1, len(self) + 1)],
            "loss": [f"{value:.4f}" for value in self.losses],
            "accuracy": [f"{value:.2%}" for value in self.accuracies],
            "validation loss": [f"{value:.4f}" for value in self.validation_losses],
            "validation accuracy": [f"{value:.2%}" for value in self.validation_accuracies],
            "learning rate": [f"{value:.3g}" for value in self.learning_rates],
            "seconds": [f"{value:.1f}" for value in self.seconds],
        }
        cells = [[name, *column] for name, column in columns.items() if column]
        if not cells:
            return "no epoch"
        widths = [max(map(len, column)) for column in cells]
        rows = ["  ".join(map(str.rjust, row, widths)) for row in zip_longest(*cells, fillvalue="")]
        if self.best_epoch is not None:
            rows[self.best_epoch + 1] += "  best"
        return "\n".join([*rows, "interrupted"] if self.interrupted else rows)

    def to_json(self, path: File | None = None) -> str:
        """The history as JSON; also written to `path`, if given. A number that is not finite is null."""
        text = json.dumps({name: _finite(value) for name, value in asdict(self).items()}, indent=2)
        if path is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(f"{text}\n")
        return text

    @classmethod
    def from_json(cls, text: str) -> History:
        """The history that `to_json` wrote; numbers that were not finite are NaN."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> History:
        """A history from its attributes by name."""
        if not isinstance(values, dict):
            raise TypeError(
                f"History: got a {type(values).__name__}, expected a dict of {[each.name for each in fields(cls)]}"
            )
        unknown = set(values) - {each.name for each in fields(cls)}
        if unknown:
            raise ValueError(f"History: got {sorted(unknown)[0]!r}, expected of {[each.name for each in fields(cls)]}")
        known: dict[str, Any] = {
            name: _numbers(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**known)

    def plot(self, path: File) -> None:
        """Draw losses, accuracies and a changing learning rate over the epochs, to a file such as ``run.svg``.

        Raises
        ------
        ModuleNotFoundError
            Matplotlib is not installed.
        """
        figures, ticker = (optional("History.plot", f"matplotlib.{part}", "train") for part in ("figure", "ticker"))
        panels = [("loss", {"training": self.losses, "validation": self.validation_losses})]
        if self.accuracies or self.validation_accuracies:
            panels.append(("accuracy", {"training": self.accuracies, "validation": self.validation_accuracies}))
        if len(set(self.learning_rates)) > 1:
            panels.append(("learning rate", {"learning rate": self.learning_rates}))
        figure = figures.Figure(figsize=(4.5 * len(panels), 3.5), layout="constrained")
        for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for number, (label, values) in enumerate(lines.items()):
                if values:
                    marker = "o" if len(values) < 30 else ""
                    axes.plot(range(1, len(values) + 1), values, label=label, marker=marker, ms=3, color=f"C{number}")
            if self.best_epoch is not None:
                axes.axvline(self.best_epoch + 1, color="0.6", lw=1, ls="--", label="best, restored")
            axes.set(title=title, xlabel="epoch")
            axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            if len(lines) > 1:
                axes.legend()
        figure.savefig(path)


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(values: list[Any]) -> list[float]:
    return [math.nan if value is None else value for value in values]
