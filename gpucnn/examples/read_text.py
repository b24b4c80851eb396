"""Read the text on a picture: ``python -m gpucnn.examples.read_text IMAGE``.

Three networks of the package rapidocr-onnxruntime (PaddleOCR's, Apache-2.0) run by `gpucnn.onnx`: one gives the chance
of text for each pixel, one tells lines that are upside down, one reads a line as chances of 6625 characters at each of
its positions. The package's code is not needed: ``--models`` names a folder with its .onnx files, or it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import gpucnn.functional as F
from gpucnn import set_num_threads
from gpucnn.installing import optional
from gpucnn.onnx import Model, load

Host = np.ndarray[Any, Any]

PACKAGE = "rapidocr_onnxruntime"
SHORT_SIDE, LONG_SIDE = 736, 1600  # pixels: small pictures are enlarged to the one, none beyond the other
STEP = 32  # pixels: the product of the detector's strides
TEXT_PIXEL, TEXT_BOX, TEXT_LINE = 0.3, 0.5, 0.5  # least chances: of a pixel, on average of a box and of a line
GROWTH = 1.6  # boxes are trained smaller than text, so that lines do not touch; this undoes it
SMALLEST = 3  # pixels: the height of a box
UNCLEAR = 0.1  # least chance of a way around that is tried
HEIGHT, TURNING_WIDTH, READING_WIDTH = 48, 192, 320  # pixels: of lines, as the networks were trained on


class Line(NamedTuple):
    """A line of text on a picture.

    Attributes
    ----------
    corners : array [4, 2]
        x and y of its corners, from its top left one around.
    text : str
        Its characters.
    confidence : float
        The average chance of them.
    """

    corners: Host
    text: str
    confidence: float


class Reader:
    """The three networks, from a folder with their files."""

    def __init__(self, folder: Path) -> None:
        self.detection, self.turning, self.recognition = (load(_only(folder, part)) for part in ("det", "cls", "rec"))
        # 0 stands for no character, so that one can come twice in a row
        self.characters = ["", *self.recognition.metadata["character"].split("\n"), " "]

    def read(self, picture: Host) -> list[Line]:
        """The lines of text on a picture [H, W, 3] of bytes, in RGB, from top to bottom."""
        pixels = (picture[:, :, ::-1].transpose(2, 0, 1)[None] / np.float32(127.5) - 1).astype(np.float32)  # BGR
        lines = (self.line(pixels, corners) for corners in self.boxes(pixels))
        return in_reading_order([line for line in lines if line.confidence >= TEXT_LINE])

    def boxes(self, pixels: Host) -> list[Host]:
        """The corners [4, 2] of each box of text on pixels [1, 3, H, W]."""
        size = pixels.shape[2:]
        factor = min(max(1.0, SHORT_SIDE / min(size)), LONG_SIDE / max(size))
        scaled = [max(STEP, round(length * factor / STEP) * STEP) for length in size]
        chances = _run(self.detection, F.interpolate(pixels, scaled, mode="bilinear"))[0, 0]
        back = np.array(size, np.float64)[::-1] / scaled[::-1]  # x first
        return [corners * back for corners in text_boxes(chances)]

    def line(self, pixels: Host, corners: Host) -> Line:
        """The line within a box, read upright, upside down, or in the better way of the two where that is not clear."""
        crop = cut_out(pixels, corners)
        upright, turned = _run(self.turning, _of_height(crop, TURNING_WIDTH, TURNING_WIDTH))[0]
        ways = [(upright, crop), (turned, np.ascontiguousarray(crop[:, :, ::-1, ::-1]))]
        texts = [self.text(way) for chance, way in ways if chance > UNCLEAR]
        return Line(corners, *max(texts, key=lambda found: found[1]))

    def text(self, crop: Host) -> tuple[str, float]:
        """The characters on a crop [1, 3, H, W], and their average chance."""
        chances = _run(self.recognition, _of_height(crop, READING_WIDTH))[0]  # [positions, characters]
        best = chances.argmax(axis=1)
        kept = (best != 0) & (best != np.concatenate([[0], best[:-1]]))  # a character that goes on is one
        confidence = float(chances.max(axis=1)[kept].mean()) if kept.any() else 0.0
        return "".join(self.characters[place] for place in best[kept]), confidence


def _only(folder: Path, part: str) -> Path:
    """The one file of a folder whose name has that part.

    Raises
    ------
    FileNotFoundError
        There is none, or there are several.
    """
    found = sorted(folder.glob(f"*_{part}*.onnx"))
    if len(found) != 1:
        raise FileNotFoundError(f"{folder} has {len(found)} files *_{part}*.onnx, expected 1")
    return found[0]


def _run(model: Model, x: Host) -> Host:
    result: Host = model.run([x])[0]
    return result


def _of_height(crop: Host, least: int, most: int = 1 << 14) -> Host:
    """A line [1, 3, H, W] in the height that the networks read, between `least` and `most` wide, grey on its right."""
    _, _, height, width = crop.shape
    scaled = min(max(1, round(HEIGHT * width / height)), most)
    resized: Host = F.interpolate(crop, (HEIGHT, scaled), mode="bilinear")
    return F.pad(resized, (0, max(0, least - scaled)))  # type: ignore[no-any-return]


# --- Boxes ------------------------------------------------------------------------------------------------------------


def text_boxes(chances: Host) -> Iterator[Host]:
    """The corners [4, 2] of each group of neighbouring pixels that are likely text, in a map of chances [H, W]."""
    for runs in groups(chances > TEXT_PIXEL):
        inside = [chances[row, first:last] for row, first, last in runs]
        points = np.array([(x, y) for row, *ends in runs for x in ends for y in (row, row + 1)], np.float64)
        corners = smallest_rectangle(points)
        width, height = (np.linalg.norm(corners[1] - corners[0]), np.linalg.norm(corners[3] - corners[0]))
        if min(width, height) < SMALLEST or np.concatenate(inside).mean() < TEXT_BOX:
            continue
        margin = GROWTH * width * height / (2 * (width + height))
        along, down = (corners[1] - corners[0]) / width * margin, (corners[3] - corners[0]) / height * margin
        yield corners + [-along - down, along - down, along + down, down - along]


def groups(mask: Host) -> list[list[tuple[int, int, int]]]:
    """Groups of true pixels that touch, also by corners, each as runs (row, first, end) of pixels side by side."""
    parents: list[int] = []

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = run = parents[parents[run]]
        return run

    runs: list[tuple[int, int, int]] = []
    above = range(0)  # places in `runs` of those of the row before
    for row, line in enumerate(mask):
        changes = np.flatnonzero(np.diff(line, prepend=False, append=False)).reshape(-1, 2).tolist()
        begin = len(runs)
        for first, end in changes:
            parents.append(len(runs))
            for other in above:
                if runs[other][1] <= end and first <= runs[other][2]:
                    parents[root(other)] = root(len(runs))
            runs.append((row, first, end))
        above = range(begin, len(runs))
    found: dict[int, list[tuple[int, int, int]]] = {}
    for place, run in enumerate(runs):
        found.setdefault(root(place), []).append(run)
    return list(found.values())


def smallest_rectangle(points: Host) -> Host:
    """The corners [4, 2], from the top left one around, of the smallest rectangle around points [n, 2]."""
    edges = np.diff(_hull(points), axis=0)
    angles = np.unique(np.arctan2(edges[:, 1], edges[:, 0]) % (np.pi / 2))
    axes = np.stack([np.stack([np.cos(angles), np.sin(angles)]), np.stack([-np.sin(angles), np.cos(angles)])])
    places = np.einsum("axe,px->aep", axes, points)  # of each point along both axes of each angle
    low, high = places.min(axis=2), places.max(axis=2)
    best = int(np.prod(high - low, axis=0).argmin())
    along, down = axes[:, :, best]
    (left, top), (right, bottom) = low[:, best], high[:, best]
    corners = np.array([x * along + y * down for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))])
    return np.roll(corners, 1, axis=0) if angles[best] > np.pi / 4 else corners


def _hull(points: Host) -> Host:
    """The convex hull of points [n, 2], its first point again at its end."""
    ordered = np.unique(points, axis=0).tolist()

    def half(given: list[list[float]]) -> list[list[float]]:
        chain: list[list[float]] = []
        for x, y in given:
            while len(chain) > 1:
                (x0, y0), (x1, y1) = chain[-2:]
                if (x1 - x0) * (y - y0) > (y1 - y0) * (x - x0):
                    break
                chain.pop()
            chain.append([x, y])
        return chain

    return np.array(half(ordered) + half(ordered[::-1])[1:] if len(ordered) > 1 else ordered * 2)


def cut_out(pixels: Host, corners: Host) -> Host:
    """The part of pixels [1, 3, H, W] within a box, upright: [1, 3, height, width]; a column is turned into a line."""
    along, down = corners[1] - corners[0], corners[3] - corners[0]
    width, height = (max(1, round(float(np.linalg.norm(side)))) for side in (along, down))
    shares = (np.arange(height)[:, None, None] + 0.5) / height, (np.arange(width)[None, :, None] + 0.5) / width
    x, y = np.moveaxis(corners[0] + shares[0] * down + shares[1] * along - 0.5, -1, 0)
    crop = _sampled(pixels[0], x, y)[None]
    return np.ascontiguousarray(np.rot90(crop, axes=(2, 3))) if height >= 1.5 * width else crop


def _sampled(image: Host, x: Host, y: Host) -> Host:
    """An image [C, H, W] at positions [height, width], between pixels linearly; those outside are at its border."""
    bottom, right = (size - 1 for size in image.shape[1:])
    x, y = np.clip(x, 0, right), np.clip(y, 0, bottom)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    beyond, below = np.minimum(left + 1, right), np.minimum(top + 1, bottom)
    x, y = (x - left).astype(image.dtype), (y - top).astype(image.dtype)
    upper = image[:, top, left] * (1 - x) + image[:, top, beyond] * x
    lower = image[:, below, left] * (1 - x) + image[:, below, beyond] * x
    sampled: Host = upper * (1 - y) + lower * y
    return sampled


def in_reading_order(lines: list[Line]) -> list[Line]:
    """Lines from top to bottom, and those at one height from left to right."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: line.corners[:, 1].mean()):
        middle, height = line.corners[:, 1].mean(), np.ptp(line.corners[:, 1])
        if rows and middle - rows[-1][0].corners[:, 1].mean() < height / 2:
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=lambda line: line.corners[:, 0].min())]


# --- The command ------------------------------------------------------------------------------------------------------


def models_folder(given: Path | None) -> Path:
    """The folder with the models: the given one, or that of the package, which is not imported.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    if given is not None:
        return given
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise FileNotFoundError(f"the package {PACKAGE.replace('_', '-')} is not installed, and no --models is given")
    return Path(package.origin).parent / "models"


def draw(picture: Any, lines: Sequence[Line]) -> Any:
    """A copy of a picture of Pillow's with the lines' boxes and numbers."""
    drawing = optional("read_text", "PIL.ImageDraw", "examples")
    copy = picture.copy()
    pen = drawing.Draw(copy)
    size = max(14, min(copy.size) // 40)
    for number, line in enumerate(lines, 1):
        pen.polygon([tuple(corner) for corner in line.corners.tolist()], outline="#d02020", width=max(1, size // 8))
        x, y = line.corners[0]
        place: dict[str, Any] = {
            "xy": (max(0, x), max(size, y)),
            "text": str(number),
            "font_size": size,
            "anchor": "lb",
        }
        left, top, right, bottom = pen.textbbox(**place)
        pen.rectangle((left - 1, top - 1, right + 1, bottom), fill="#d02020")
        pen.text(**place, fill="white")
    return copy


def main(arguments: Sequence[str] | None = None) -> int:
    """Read a picture, print its lines, and save it with their boxes."""
    parser = argparse.ArgumentParser(prog="python -m gpucnn.examples.read_text", description="Read text on a picture.")
    parser.add_argument("image", type=Path, help="the picture")
    parser.add_argument("--models", type=Path, help=f"folder with the models' files (that of {PACKAGE}, if installed)")
    parser.add_argument("--out", type=Path, help="the picture with boxes (IMAGE with the ending .text.png)")
    parser.add_argument("--threads", type=int, help="of gpucnn (as many as the process has CPUs)")
    chosen = parser.parse_args(arguments)
    if chosen.threads is not None:
        set_num_threads(chosen.threads)
    try:
        images, operations = (optional(parser.prog, f"PIL.{name}", "examples") for name in ("Image", "ImageOps"))
        optional(parser.prog, "onnx", "examples")
        reader = Reader(models_folder(chosen.models))
        with images.open(chosen.image) as opened:
            picture = operations.exif_transpose(opened).convert("RGB")
    except (ModuleNotFoundError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    begin = time.perf_counter()
    lines = reader.read(np.asarray(picture))
    print(f"{len(lines)} lines in {time.perf_counter() - begin:.2f} s")
    for number, line in enumerate(lines, 1):
        print(f"{number:3d}  {line.confidence:4.0%}  {line.text}")
    out = chosen.out or chosen.image.with_suffix(".text.png")
    draw(picture, lines).save(out)
    print(f"{out} shows where")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
