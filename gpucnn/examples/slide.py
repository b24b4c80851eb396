"""Slide a digit classifier over a large picture: ``python -m gpucnn.examples.slide --out DIR``.

A small network learns to say which digit, or none, is in the middle of a 32×32 window. Its linear layers then become
convolutions (`gpucnn.nn.linear_to_conv`), and it reads a 512×512 picture of scattered digits in one run: a map
of predictions, one every 4 pixels, equal to those of the network run window by window, but faster.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpucnn import functional as F
from gpucnn import nn
from gpucnn.data import digits
from gpucnn.examples._report import command_line, parse, threads

Host = np.ndarray[Any, Any]

WINDOW = 32
NOTHING = 10  # the class of windows without a digit in their middle
SIZES = (20, 24, 28)  # of digits in a picture, in pixels
NEAR, FAR = 3, 9  # a digit is in the middle if it is this near to it, and there is none if all are this far


class Picture(NamedTuple):
    """Digits scattered over a picture, and their positions.

    Attributes
    ----------
    image : array [1, H, W]
        From 0 to about 1.
    centres : array of int [n, 2]
        Row and column of each digit's middle.
    labels : array of int [n]
        The digit.
    """

    image: Host
    centres: Host
    labels: Host


def network(rng: np.random.Generator | int | None = None) -> nn.Sequential:
    """A classifier of 32×32 windows, without padding: ten digits, and nothing."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, bias=False, rng=rng),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 24, 5, bias=False, rng=rng),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24 * 5 * 5, 64, bias=False, rng=rng),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, NOTHING + 1, rng=rng),
    )


def scatter(x: dict[int, Host], y: Host, size: int, rng: np.random.Generator) -> Picture:
    """A picture of `size`×`size` pixels with digits on it that do not touch: `x` holds them in each of their sizes."""
    rows = np.linspace(0, 1, size, dtype=np.float32)
    slope = rng.uniform(-0.15, 0.15, size=2)
    image = 0.2 + slope[0] * (rows[:, None] - 0.5) + slope[1] * (rows[None, :] - 0.5)
    image = image.astype(np.float32)
    centres: list[tuple[int, int]] = []
    labels: list[int] = []
    for _ in range(size * size // 400):
        height = int(rng.choice(SIZES))
        row, column = rng.integers(WINDOW // 2, size - WINDOW // 2 + 1, size=2)
        if any(max(abs(row - other[0]), abs(column - other[1])) < 30 for other in centres):
            continue
        number = int(rng.integers(len(y)))
        top, left = row - height // 2, column - height // 2
        image[top : top + height, left : left + height] += rng.uniform(0.5, 0.8) * x[height][number, 0]
        centres.append((int(row), int(column)))
        labels.append(int(y[number]))
    image += rng.normal(0, 0.05, image.shape).astype(np.float32)
    return Picture(image[None], np.array(centres), np.array(labels))


def windows(picture: Picture, rng: np.random.Generator) -> tuple[Host, Host]:
    """Windows around the picture's digits, a little off, and as many with none in their middle."""
    size, half = picture.image.shape[1], WINDOW // 2
    about = picture.centres + rng.integers(-NEAR, NEAR + 1, size=picture.centres.shape)
    elsewhere = rng.integers(half, size - half + 1, size=(3 * len(about), 2))
    elsewhere = elsewhere[distance(picture, elsewhere) >= FAR][: len(about)]
    middles = np.clip(np.concatenate([about, elsewhere]), half, size - half)
    x = np.stack([picture.image[:, r - half : r + half, c - half : c + half] for r, c in middles])
    return x, np.concatenate([picture.labels, np.full(len(elsewhere), NOTHING)])


def distance(picture: Picture, places: Host) -> Host:
    """The distance of each of `places` to the nearest digit's middle, along the axis where it is larger."""
    nearest: Host = distances(picture, places).min(axis=1)
    return nearest


def distances(picture: Picture, places: Host) -> Host:
    """The distance of each of `places` to each digit's middle [places, digits], along the axis where it is larger."""
    between: Host = np.abs(places[:, None] - picture.centres[None]).max(axis=2)
    return between


def train(model: nn.Module, x: dict[int, Host], y: Host, steps: int, rng: np.random.Generator) -> None:
    """Train on windows of pictures, a new picture for each step."""
    rich = import_module("rich.progress")
    rate = 4e-3
    loss, optimizer = nn.CrossEntropyLoss(), nn.Adam(model.parameters(), lr=rate)
    columns = [
        "Training",
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        "{task.description}",
        rich.TimeRemainingColumn(),
    ]
    model.train()
    model.needs_input_grad = False
    with rich.Progress(*columns) as progress:
        task = progress.add_task("", total=steps)
        for step in range(steps):
            images, labels = windows(scatter(x, y, 256, rng), rng)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, 2 * (1 - step / steps))
            model.zero_grad()
            scores = model(images)
            value = float(loss(scores, labels))
            model.backward(loss.backward())
            optimizer.step()
            right = float((scores.argmax(axis=1) == labels).mean())
            progress.update(task, advance=1, description=f"loss {value:.3f}, right {right:.0%}")


def found(chances: Host, threshold: float = 0.7) -> list[tuple[int, int, int]]:
    """Row and column in the map, and digit, of each place where a digit is more likely than anywhere near."""
    best = chances[:NOTHING].max(axis=0)
    near = F.max_pool2d(best[None], 13, 1, 6)[0]
    rows, columns = np.nonzero((best == near) & (best > threshold))
    return [(int(r), int(c), int(chances[:NOTHING, r, c].argmax())) for r, c in zip(rows, columns, strict=True)]


class Tally(NamedTuple):
    """The counts of a picture's digits that were found and read right, and of further marks.

    Attributes
    ----------
    found, right : int
        Digits with a mark near their middle, and those whose mark, the nearest of several, names them.
    repeated : int
        Marks near a digit that has a nearer one.
    stray : int
        Marks near no digit.
    """

    found: int
    right: int
    repeated: int
    stray: int


def tally(picture: Picture, places: Host, named: Host) -> Tally:
    """Match marks, at `places` [n, 2] in pixels and `named` [n], with the picture's digits."""
    between = distances(picture, places)
    near = between.min(axis=1) < FAR
    digit = between.argmin(axis=1)
    best = {int(digit[at]): at for at in np.argsort(-between.min(axis=1), kind="stable") if near[at]}
    right = sum(int(named[at] == picture.labels[number]) for number, at in best.items())
    return Tally(len(best), right, int(near.sum()) - len(best), int((~near).sum()))


def draw(path: Path, picture: Picture, chances: Host, stride: int) -> None:
    """The picture with the digits that were found, next to the map."""
    matplotlib: Any = import_module("matplotlib")
    figures: Any = import_module("matplotlib.figure")
    patches: Any = import_module("matplotlib.patches")
    size = picture.image.shape[1]
    colours = matplotlib.colormaps["tab10"](np.arange(10))[:, :3]
    figure = figures.Figure(figsize=(13, 7.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(picture.image[0], cmap="gray", vmin=0, vmax=1.1, extent=(0, size, size, 0))
    for row, column, digit in found(chances):
        y, x = row * stride + WINDOW / 2, column * stride + WINDOW / 2
        box = patches.Rectangle((x - 15, y - 15), 30, 30, fill=False, edgecolor=colours[digit], linewidth=1.6)
        left.add_patch(box)
        label = {"facecolor": colours[digit], "edgecolor": "none", "pad": 0.8}
        left.text(x - 14, y - 14, str(digit), color="white", fontsize=8, fontweight="bold", va="top", bbox=label)
    left.set_title("The picture, and the digits found in it")
    likely = chances[:NOTHING].argmax(axis=0)
    strength = chances[:NOTHING].max(axis=0)[..., None]
    first, last = WINDOW / 2 - stride / 2, WINDOW / 2 + (likely.shape[0] - 0.5) * stride
    right.imshow(strength * colours[likely], extent=(first, last, last, first), interpolation="nearest")
    right.set(xlim=(0, size), ylim=(size, 0), facecolor="0.85")
    right.set_title(f"The map of predictions, one every {stride} pixels\n(bright: sure; black: no digit)")
    for axes in (left, right):
        axes.set(xticks=range(0, size + 1, 128), yticks=range(0, size + 1, 128), aspect="equal")
    handles = [patches.Patch(color=colours[digit], label=str(digit)) for digit in range(10)]
    figure.legend(handles=handles, ncols=10, loc="outside lower center", frameon=False, title="Digit")
    figure.savefig(path, dpi=110)


def seconds(function: Any, repeats: int) -> tuple[float, Any]:
    """The median time of the calls, and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return float(np.median(times)), result


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, convert, compare, draw."""
    parser = command_line("slide", (__doc__ or "").split("\n")[0], "picture and weights")
    parser.add_argument("--size", type=int, default=512, help="height and width of the picture (%(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="training steps (%(default)s)")
    parser.add_argument("--weights", type=Path, help="file of an earlier run to load instead of training")
    options = parse(parser, arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with threads(options.threads):
        run(options)


def run(options: argparse.Namespace) -> None:
    """The whole example, with the options of `main`."""
    rng = np.random.default_rng(options.seed)
    sizes = {size: digits(size) for size in SIZES}
    order, y = rng.permutation(len(sizes[24].y)), sizes[24].y
    for_training, for_picture = order[:1400], order[1400:]
    model = network(rng)
    if options.weights:
        nn.load_weights(model, options.weights)
    else:
        x = {size: images.x[for_training] for size, images in sizes.items()}
        train(model, x, y[for_training], options.steps, rng)
        nn.save_weights(model, options.out / "weights.safetensors")

    x = {size: images.x[for_picture] for size, images in sizes.items()}
    picture = scatter(x, y[for_picture], options.size, np.random.default_rng([options.seed, 1]))
    converted = nn.linear_to_conv(model, (1, WINDOW, WINDOW))
    scores, stride = compare(model, converted, picture)

    row, column = np.clip((picture.centres - WINDOW // 2 + stride // 2) // stride, 0, scores.shape[1] - 1).T
    right = int((scores[:, row, column].argmax(axis=0) == picture.labels).sum())
    chances = F.softmax(nn.dense_map(converted, picture.image, shifts=2), dim=0)  # at half the stride
    marks = np.array(found(chances)).reshape(-1, 3)
    counts = tally(picture, WINDOW // 2 + marks[:, :2] * stride // 2, marks[:, 2])
    print(
        f"It was trained on none of the {len(picture.labels)} digits in it, and names {right} of them right from the "
        f"window at their middle.\n"
        f"In the map {counts.found} of them are found, {counts.right} of these read right; {counts.repeated} further "
        f"marks are at a digit already found, {counts.stray} where there is no digit."
    )
    draw(options.out / "slide.png", picture, chances, stride // 2)
    print(
        f"Written to {options.out}: slide.png, the picture beside the map"
        + ("." if options.weights else ", and weights.")
    )


def compare(model: nn.Module, converted: nn.Module, picture: Picture) -> tuple[Host, int]:
    """The map of predictions and its stride, after comparison with the network's scores of each window."""
    stride = nn.sliding_geometry(converted).stride
    whole, scores = seconds(lambda: nn.prediction_map(converted, picture.image), 5)
    size = picture.image.shape[1]
    print(f"The converted network reads the picture of {size}×{size} pixels in {whole:.2f} s.", flush=True)
    apart, crops = seconds(lambda: nn.crop_map(model, picture.image, (WINDOW, WINDOW), stride), 1)
    print(
        f"Its {scores[0].size:,} windows of {WINDOW}×{WINDOW}, one by one, take {apart:.2f} s: "
        f"{apart / whole:.0f} times as long.\n"
        f"The largest difference between the scores is {np.abs(scores - crops).max():.1e}, "
        f"of scores up to {np.abs(crops).max():.0f}."
    )
    return scores, stride[0]


if __name__ == "__main__":
    main()
