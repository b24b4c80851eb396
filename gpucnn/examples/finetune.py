"""Teach a trained network another task from a few images: ``python -m gpucnn.examples.finetune --out DIR``.

A network learns to read digits. From very few other images it then learns to separate even from odd digits: its head
is replaced and trained alone, on frozen features; then everything learns, at a tenth of the learning rate. For
comparison: the same network trained on the few images from scratch, and a linear classifier on the features.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import data, nn
from gpucnn.data import Images
from gpucnn.examples._report import command_line, parse, threads

Host = np.ndarray[Any, Any]

WAYS = {
    "from scratch": "0.45",
    "linear classifier on the features": "#7a5ba8",
    "new head": "#b8640a",
    "new head, then all": "#2463a8",
}
LR, HEAD_LR = 3e-3, 1e-2  # of all from the start, and of a new head


def network(num_classes: int, rng: np.random.Generator) -> nn.Sequential:
    """Images [N, 1, 8, 8] to scores [N, num_classes]."""
    return nn.Sequential(
        {
            "features": nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1, bias=False, rng=rng),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.Conv2d(16, 32, 3, padding=1, bias=False, rng=rng),
                nn.BatchNorm2d(32),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(32, 32, 3, padding=1, bias=False, rng=rng),
                nn.BatchNorm2d(32),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ),
            "flatten": nn.Flatten(),
            "hidden": nn.Sequential(nn.Linear(32 * 2 * 2, 32, bias=False, rng=rng), nn.BatchNorm1d(32), nn.ReLU()),
            "head": nn.Linear(32, num_classes, rng=rng),
        }
    )


def even_or_odd(images: Images) -> Images:
    """The same images, labelled for another task."""
    return Images(images.x, images.y % 2, ("even", "odd"))


def few(images: Images, each: int, rng: np.random.Generator) -> Images:
    """A given number of images of each class, drawn at random."""
    chosen = [rng.permutation(np.flatnonzero(images.y == label))[:each] for label in range(len(images.classes))]
    return Images(images.x[np.concatenate(chosen)], images.y[np.concatenate(chosen)], images.classes)


def loader(images: Images, seed: int) -> data.Loader:
    """Batches of 32, moved by up to a pixel."""
    return data.Loader(images.x, images.y, batch_size=32, shuffle=True, rng=seed, augment=data.Shift(1))


def learn(
    model: nn.Module, optimizer: nn.Optimizer, images: Images, steps: int, seed: int, progress: bool = False
) -> None:
    """Train the parameters of `model` that `optimizer` holds for about the given number of steps."""
    batches = loader(images, seed)
    epochs = max(1, round(steps / len(batches)))
    schedule = nn.CosineAnnealingLR(optimizer, T_max=epochs)
    nn.fit(
        model.train(),
        batches,
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        schedule=schedule,
        epochs=epochs,
        progress=progress,
    )


def accuracy(model: nn.Module, images: Images) -> float:
    """The share of images that the model classifies correctly."""
    batches = data.Loader(images.x, images.y, batch_size=500)
    return nn.evaluate(model, batches, nn.CrossEntropyLoss()).accuracy or 0.0


def ways(trained: nn.Sequential, images: Images, test: Images, steps: int, seed: int) -> list[float]:
    """The test accuracies of all `WAYS`, of a network that is `trained` for another task."""
    classes = len(images.classes)
    scratch = network(classes, np.random.default_rng(seed))
    learn(scratch, nn.AdamW(scratch.parameters(), lr=LR), images, 2 * steps, seed)

    model = copy.deepcopy(trained)
    linear = nn.linear_classifier(nn.features(model, upto="hidden"), loader(images, seed), rng=seed)
    found = [accuracy(scratch, test), accuracy(linear, test)]

    head = nn.replace_head(model, classes, rng=seed)
    nn.freeze(model, but=head)
    learn(model, nn.AdamW(head.parameters(), lr=HEAD_LR), images, steps, seed)
    found.append(accuracy(model, test))

    nn.unfreeze(model)
    learn(model, nn.AdamW(model.parameters(), lr=HEAD_LR / 10), images, steps, seed)
    found.append(accuracy(model, test))
    return found


def draw(path: Path, counts: Sequence[int], found: Host) -> None:
    """Accuracies [counts, runs, ways] over the number of images: lines through the means, a band from least to most."""
    figure = import_module("matplotlib.figure").Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for at, (way, colour) in enumerate(WAYS.items()):
        percent = 100 * found[:, :, at]
        axes.fill_between(counts, percent.min(axis=1), percent.max(axis=1), color=colour, alpha=0.15, linewidth=0)
        axes.plot(counts, percent.mean(axis=1), color=colour, marker="o", label=way)
    axes.set(xscale="log", xlabel="images of each class", ylabel="test accuracy, %")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    axes.set_title(f"Even or odd, by a network that reads digits (mean and range of {found.shape[1]} draws)")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train to read digits, then to separate even from odd ones in each way; compare."""
    parser = command_line("finetune", (__doc__ or "").split("\n")[0], "the plot")
    counts = [5, 10, 20, 50]
    parser.add_argument(
        "--counts", type=int, nargs="+", default=counts, help="images of even and of odd digits (5 10 20 50)"
    )
    parser.add_argument("--runs", type=int, default=3, help="draws of these images (%(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="training steps with few images (%(default)s)")
    options = parse(parser, arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with threads(options.threads):
        run(options)


def run(options: argparse.Namespace) -> None:
    """The whole example, with the options of `main`."""
    images = data.digits()
    images = Images(data.normalize(images.x, *data.channel_statistics(images.x)), images.y, images.classes)
    train, rest = data.train_test_split(images, test_size=0.6, rng=options.seed)
    new, test = data.train_test_split(rest, test_size=0.6, rng=options.seed)

    print(f"First the network learns to read digits, from {len(train.y)} images:", flush=True)
    trained = network(10, np.random.default_rng(options.seed))
    learn(trained, nn.AdamW(trained.parameters(), lr=LR), train, 8 * options.steps, options.seed, progress=True)
    print(f"It reads {accuracy(trained, test):.1%} of {len(test.y)} test images right.\n", flush=True)

    cases = [(count, number) for count in options.counts for number in range(options.runs)]
    found = []
    rich: Any = import_module("rich.progress")
    for count, number in rich.track(cases, description="Then, from few others, even or odd"):
        seed = options.seed + 1000 * number + count
        chosen = few(even_or_odd(new), count, np.random.default_rng(seed))
        found.append(ways(trained, chosen, even_or_odd(test), options.steps, seed))
    accuracies = np.array(found).reshape(len(options.counts), options.runs, len(WAYS))

    print(
        f"\nThe share of {len(test.y)} test images that is named right, even or odd (mean of {options.runs} draws):\n"
    )
    print("images of each  " + "  ".join(WAYS))
    for count, means in zip(options.counts, accuracies.mean(axis=1), strict=True):
        print(f"{count:14}  " + "  ".join(f"{mean:{len(way)}.1%}" for way, mean in zip(WAYS, means, strict=True)))
    draw(options.out / "finetune.png", options.counts, accuracies)
    print(f"\nWritten to {options.out}: finetune.png, the same as a plot.")


if __name__ == "__main__":
    main()
