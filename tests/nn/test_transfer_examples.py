"""The examples `slide` and `finetune`, in small: they run, say what they found, and write their pictures."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed; the digits come with it")
pytest.importorskip("safetensors", reason="safetensors is not installed; weights are written in its form")

from gpucnn.examples import finetune, slide


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000


@pytest.mark.thorough
def test_slide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slide.main(["--out", str(tmp_path), "--size", "96", "--steps", "8"])
    said = capsys.readouterr().out
    difference = re.search(r"difference between the scores is ([\d.e-]+), of scores up to (\d+)", said)
    assert difference is not None
    assert float(difference[1]) < 1e-5 * max(1, float(difference[2]))
    assert "289 windows of 32×32" in said
    assert is_png(tmp_path / "slide.png")
    first = (tmp_path / "slide.png").read_bytes()
    slide.main(["--out", str(tmp_path), "--size", "96", "--weights", str(tmp_path / "weights.safetensors")])
    assert (tmp_path / "slide.png").read_bytes() == first
    assert "Training" not in capsys.readouterr().out


def test_pictures_hold_digits_where_they_say(rng: np.random.Generator) -> None:
    x = {size: np.ones((1, 1, size, size), np.float32) for size in slide.SIZES}
    picture = slide.scatter(x, np.array([7]), 160, rng)
    assert len(picture.centres) > 5
    assert set(picture.labels) == {7}
    row, column = picture.centres.T
    assert picture.image[0, row, column].min() > 0.45
    assert slide.distance(picture, picture.centres + 4).min() == 4
    images, labels = slide.windows(picture, rng)
    assert images.shape == (len(labels), 1, 32, 32)
    assert (labels[: len(row)] == 7).all()
    assert (labels[len(row) :] == slide.NOTHING).all()


def test_digits_are_found_at_their_peaks() -> None:
    chances = np.zeros((11, 40, 40), np.float32)
    chances[10] = 1
    chances[3, 10:13, 10:13] = 0.8
    chances[3, 11, 11] = 0.9
    chances[8, 30, 20] = 0.75
    chances[1, 0, 39] = 0.6
    assert slide.found(chances) == [(11, 11, 3), (30, 20, 8)]


@pytest.mark.thorough
def test_finetune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finetune.main(["--out", str(tmp_path), "--counts", "2", "10", "--runs", "2", "--steps", "6"])
    said = capsys.readouterr().out
    rows = re.findall(r"^ +(\d+)((?: +\d+\.\d%){4})$", said, flags=re.MULTILINE)
    assert [count for count, _ in rows] == ["2", "10"]
    assert is_png(tmp_path / "finetune.png")


def test_slide_counts_each_digit_once() -> None:
    picture = slide.Picture(np.zeros((1, 100, 100)), np.array([[20, 20], [20, 60], [60, 60]]), np.array([1, 2, 3]))
    marks = np.array([[27, 20], [21, 20], [20, 60], [90, 90]])  # the first digit is marked twice, the third is missed
    counts = slide.tally(picture, marks, np.array([7, 1, 5, 4]))
    assert counts == slide.Tally(found=2, right=1, repeated=1, stray=1)
    nothing = slide.tally(picture, np.zeros((0, 2), int), np.zeros(0, int))
    assert nothing == slide.Tally(0, 0, 0, 0)
