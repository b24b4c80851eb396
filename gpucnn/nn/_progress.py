"""Progress of `fit` and `tiled`: a bar in a terminal, lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

LINE_SECONDS = 10.0  # between two lines within an epoch
BAR_SECONDS = 0.1  # between two changes of the bar's text; reading a loss waits for a device


class Display:
    """Shows nothing; the base of the others.

    Parameters
    ----------
    epochs : int
        The number of epochs.
    """

    interval = float("inf")  # seconds between two `update`

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.begun = self.shown = time.perf_counter()
        self.done = 0  # batches since the start of this process
        self.left: int | None = None  # batches to come

    def advance(self, epoch: int, batch: int, length: int | None, measures: Callable[[], str]) -> None:
        """One more batch is done: the `batch`-th of `length`, if that is known, in epoch `epoch`, from 0."""
        left = None if length is None else length * (self.epochs - epoch) - batch
        of = "" if length is None else f"/{length}"
        self.step(left, lambda: f"epoch {epoch + 1}/{self.epochs}, batch {batch}{of}: {measures()}")

    def step(self, left: int | None, text: Callable[[], str]) -> None:
        """One more part of the work is done, and so many are left, if that is known; `text` says where it is."""
        self.done += 1
        self.left = left
        if time.perf_counter() - self.shown >= self.interval:
            self.update(text())
            self.shown = time.perf_counter()

    def update(self, text: str) -> None:
        """Show the progress."""

    def line(self, text: str) -> None:
        """Show a line that stays, such as the results of an epoch."""

    def close(self) -> None:
        """Show nothing more."""

    def seconds_left(self) -> float | None:
        """The time left at the speed so far."""
        if self.left is None or not self.done:
            return None
        return (time.perf_counter() - self.begun) / self.done * self.left


class Lines(Display):
    """A line for each epoch, and one every few seconds within long ones."""

    interval = LINE_SECONDS

    def update(self, text: str) -> None:
        """Show the progress."""
        left = self.seconds_left()
        self.line(text if left is None else f"{text}, about {duration(left)} left")

    def line(self, text: str) -> None:
        """Show a line that stays."""
        print(text, flush=True)
        self.shown = time.perf_counter()


class Bar(Display):
    """A bar over all epochs, above it a line for each that is done."""

    interval = BAR_SECONDS

    def __init__(self, epochs: int, console: Any) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__(epochs)
        columns = (BarColumn(24), TextColumn("{task.fields[left]}"), TextColumn("{task.description}", markup=False))
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("", total=None, left="")
        self._bar.start()

    def update(self, text: str) -> None:
        """Show the progress."""
        left = self.seconds_left()
        total = None if self.left is None else self.done + self.left
        shown = "" if left is None else f"{duration(left)} left"
        self._bar.update(self._task, completed=self.done, total=total, description=text, left=shown)

    def line(self, text: str) -> None:
        """Show a line that stays."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()


def display(epochs: int, progress: bool) -> Display:
    """A bar where there is a terminal and rich is installed, else lines; or nothing."""
    if not progress:
        return Display(epochs)
    if sys.stdout.isatty():
        try:
            from rich.console import Console
        except ModuleNotFoundError:
            return Lines(epochs)
        return Bar(epochs, Console())
    return Lines(epochs)


def duration(seconds: float) -> str:
    """Seconds in the words of a clock.

    Examples
    --------
    >>> duration(7.6), duration(75), duration(3725)
    ('8 s', '1 min 15 s', '1 h 02 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
