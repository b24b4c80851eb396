"""Options of the training examples, and the report of a run in words and as a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import gpucnn.functional as F
from gpucnn import nn, set_num_threads
from gpucnn.data import Images
from gpucnn.installing import optional

Host = np.ndarray[Any, Any]

TRAINING, TEST = "#b8640a", "#2463a8"
COLUMNS = 8  # of misread images in the picture
NEEDED = ("matplotlib", "rich", "safetensors", "sklearn")


def command_line(name: str, purpose: str, writes: str) -> argparse.ArgumentParser:
    """The options of every example: here of `name`, which writes what `writes` says to the folder ``--out``."""
    parser = argparse.ArgumentParser(prog=f"python -m gpucnn.examples.{name}", description=purpose)
    parser.add_argument("--out", type=Path, default=Path(name), help=f"folder for {writes} (./%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what decides all that is drawn by chance (%(default)s)")
    parser.add_argument("--threads", type=int, help="of gpucnn (as many as the process has CPUs)")
    return parser


def options(name: str, purpose: str, epochs: int, target: float) -> argparse.ArgumentParser:
    """The command line of the training example `name`."""
    parser = command_line(name, purpose, "plot, history and weights")
    parser.add_argument("--epochs", type=int, default=epochs, help="times through the images (%(default)s)")
    parser.add_argument("--target", type=float, default=target, help="least test accuracy of a success (%(default)s)")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exit with the command that installs the packages of the examples if one is missing."""
    chosen = parser.parse_args(arguments)
    try:
        for module in NEEDED:
            optional(parser.prog, module, "examples")
    except ModuleNotFoundError as error:
        parser.exit(2, f"{error}\n")
    return chosen


def threads(count: int | None) -> Any:
    """Within the block, a context manager, gpucnn takes `count` threads; BLAS, which would spin, has one."""
    if count is not None:
        set_num_threads(count)
    return import_module("threadpoolctl").threadpool_limits(1)


def chances(model: nn.Module, x: Host, batch_size: int = 500) -> Host:
    """The probability [N, classes] that a model gives to each class for the images `x`."""
    model.eval()
    with nn.inference():
        parts = [F.softmax(model(x[at : at + batch_size]), dim=1) for at in range(0, len(x), batch_size)]
    return np.concatenate(parts)


def report(out: Path, title: str, model: nn.Module, history: nn.History, test: Images, x: Host, target: float) -> bool:
    """Write weights, history and picture to `out`, print the result, and return whether the target was reached.

    Parameters
    ----------
    out : path
        A folder that exists.
    title : str
        What was trained, for the picture.
    model : Module
        The network.
    history : History
        Of its training, with the test images for validation.
    test : Images
        The test images, as they are shown.
    x : array [N, C, H, W]
        The same, as the network takes them.
    target : float
        The least test accuracy that is a success.
    """
    probabilities = chances(model, x)
    read = probabilities.argmax(axis=1)
    right = int((read == test.y).sum())
    accuracy = right / len(test.y)
    nn.save_weights(model, out / "weights.safetensors")
    history.to_json(out / "history.json")
    draw(
        out / "run.png",
        f"{title}: {accuracy:.2%} of {len(test.y):,} test images named right",
        history,
        test,
        probabilities,
    )
    print(f"Written to {out}: run.png, history.json, weights.safetensors.")
    reached = accuracy >= target
    print(
        f"Test accuracy {accuracy:.2%}: {right:,} of {len(test.y):,} images that the network never saw, "
        f"{'which reaches' if reached else 'short of'} the target of {target:.0%}, "
        f"after {sum(history.seconds):.0f} s of training."
    )
    return reached


def draw(path: Path, title: str, history: nn.History, test: Images, probabilities: Host) -> None:
    """Losses, accuracies and learning rate over the epochs, and the test images misread most surely."""
    read = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(read != test.y)
    surest = wrong[np.argsort(-probabilities[wrong, read[wrong]], kind="stable")][: 2 * COLUMNS]
    rows = max(1, -(-len(surest) // COLUMNS))
    figure = import_module("matplotlib.figure").Figure(figsize=(12, 4.1 + 1.9 * rows), layout="constrained")
    figure.suptitle(title, fontsize=14)
    above, below = figure.subfigures(2, 1, height_ratios=(3.6, 0.4 + 1.9 * rows))
    lines = _curves(above.subplots(1, 3), history)
    above.legend(handles=lines, frameon=False, ncols=2, loc="outside lower center")
    shown = f"the {len(surest)} of which it is surest" if len(wrong) > len(surest) else "all of them"
    below.suptitle(f"{len(wrong):,} misread, {shown}:" if len(wrong) else "None misread", fontsize=12)
    for axes in below.subplots(rows, max(5, min(COLUMNS, len(surest))), squeeze=False).flat:
        axes.axis("off")
    for axes, at in zip(below.axes, surest, strict=False):
        axes.imshow(np.moveaxis(test.x[at], 0, -1).squeeze(), cmap="gray_r", vmin=0, vmax=1)
        sure = probabilities[at, read[at]]
        axes.set_title(f"{test.classes[test.y[at]]}, read as\n{test.classes[read[at]]} ({sure:.1%})", fontsize=9)
    figure.savefig(path, dpi=110)


def _curves(panels: Any, history: nn.History) -> list[Any]:
    """Draw them, and return the lines of training and test."""
    losses, accuracies, rates = panels
    epochs = np.arange(1, len(history) + 1)
    for axes, name, training, tested in (
        (losses, "Loss", history.losses, history.validation_losses),
        (accuracies, "Accuracy, %", 100 * np.array(history.accuracies), 100 * np.array(history.validation_accuracies)),
    ):
        axes.plot(epochs, training, color=TRAINING, marker=".", label="training, with augmentation and dropout")
        axes.plot(epochs, tested, color=TEST, marker=".", label="test")
        axes.set_title(name)
    later = len(history) // 4  # the first epochs would flatten the others
    shown = 100 * np.array(history.accuracies[later:] + history.validation_accuracies[later:])
    margin = 0.2 + 0.1 * np.ptp(shown)
    accuracies.set_ylim(shown.min() - margin, min(shown.max() + margin, 100.2))
    rates.plot(epochs, history.learning_rates, color="0.35", marker=".")
    rates.set_title("Learning rate")
    rates.set_ylim(0, None)
    ticker = import_module("matplotlib.ticker")
    losses.set_yscale("log")
    losses.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5)))
    losses.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    losses.yaxis.set_minor_locator(ticker.NullLocator())
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=8))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return list(losses.lines)
