"""The example `read_text`: groups of pixels, boxes and crops, and printed lines read right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample import examples

pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytest.importorskip("onnx.checker", reason="onnx is not installed")

from PIL import Image, ImageDraw, ImageFont

from gpucnn.examples import read_text
from gpucnn.examples.read_text import Line

Host = np.ndarray[Any, Any]

# --- Boxes ------------------------------------------------------------------------------------------------------------


def flooded(mask: Host) -> set[frozenset[tuple[int, int]]]:
    """The groups of true pixels, by going from each to its eight neighbours."""
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, set()
    while left:
        group, border = set(), [left.pop()]
        while border:
            y, x = border.pop()
            group.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            border += near
        found.add(frozenset(group))
    return found


@examples(60)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 10_000))
def test_groups_are_of_pixels_that_touch(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    found = read_text.groups(mask)
    assert {frozenset((row, x) for row, first, end in group for x in range(first, end)) for group in found} == flooded(
        mask
    )


@examples(60)
@given(st.integers(1, 30), st.integers(0, 10_000))
def test_the_rectangle_is_the_smallest(count: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 20, (count, 1, 2))
    points = (pixels + [[0, 0], [0, 1], [1, 0], [1, 1]]).reshape(-1, 2).astype(float)  # their corners
    corners = read_text.smallest_rectangle(points)
    along, down = corners[1] - corners[0], corners[3] - corners[0]
    np.testing.assert_allclose([along @ down, *(corners[2] - corners[0] - along - down)], 0, atol=1e-9)
    assert along[0] >= abs(along[1]) - 1e-9  # the first side goes to the right
    assert down[1] >= abs(down[0]) - 1e-9
    for side in (along, down):
        places = (points - corners[0]) @ side / (side @ side)
        np.testing.assert_allclose([places.min(), places.max()], [0, 1], atol=1e-9)
    angles = np.linspace(0, np.pi / 2, 500)
    turned = [points @ np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in angles]
    least = min(float(np.prod(np.ptp(each, axis=0))) for each in turned)
    assert np.linalg.norm(along) * np.linalg.norm(down) <= least + 1e-9


def test_boxes_are_larger_than_what_is_likely() -> None:
    chances = np.zeros((40, 60), np.float32)
    chances[10:20, 5:45] = 0.9  # 40 by 10, so the margin is 1.6 * 400 / 100 = 6.4
    chances[30:32, 5:45] = 0.9  # too low
    chances[30:36, 50:58] = 0.4  # not likely enough
    (box,) = read_text.text_boxes(chances)
    np.testing.assert_allclose(box, [[-1.4, 3.6], [51.4, 3.6], [51.4, 26.4], [-1.4, 26.4]], atol=1e-5)


def test_crops_are_upright() -> None:
    pixels = np.random.default_rng(0).random((1, 3, 20, 30), dtype=np.float32)
    box = np.array([[4.0, 5.0], [24.0, 5.0], [24.0, 12.0], [4.0, 12.0]])
    np.testing.assert_allclose(read_text.cut_out(pixels, box), pixels[:, :, 5:12, 4:24], atol=1e-6)
    column = np.array([[4.0, 2.0], [9.0, 2.0], [9.0, 19.0], [4.0, 19.0]])
    upright = np.rot90(pixels[:, :, 2:19, 4:9], axes=(2, 3))
    np.testing.assert_allclose(read_text.cut_out(pixels, column), upright, atol=1e-6)
    ramp = np.broadcast_to(np.arange(30.0)[:, None] + np.arange(30.0) * 2, (1, 1, 30, 30))
    slanted = np.array([[10.0, 10.0], [18.0, 16.0], [15.0, 20.0], [7.0, 14.0]])  # 10 by 5
    crop = read_text.cut_out(ramp, slanted)[0, 0]
    assert crop.shape == (5, 10)
    centre = slanted[0] + (slanted[1] - slanted[0]) * 3.5 / 10 + (slanted[3] - slanted[0]) * 1.5 / 5 - 0.5
    np.testing.assert_allclose(crop[1, 3], centre[1] + 2 * centre[0], atol=1e-9)
    outside = read_text.cut_out(pixels, np.array([[-9.0, -9.0], [3.0, -9.0], [3.0, -4.0], [-9.0, -4.0]]))
    np.testing.assert_allclose(outside[0, :, :, :9], np.broadcast_to(pixels[0, :, :1, :1], (3, 5, 9)), atol=1e-6)


def test_lines_are_in_reading_order() -> None:
    def line(text: str, x: float, y: float) -> Line:
        return Line(np.array([[x, y], [x + 20, y], [x + 20, y + 10], [x, y + 10]]), text, 1.0)

    lines = [line("d", 0, 40), line("b", 50, 2), line("a", 10, 4), line("c", 60, 16)]
    assert [each.text for each in read_text.in_reading_order(lines)] == ["a", "b", "c", "d"]


# --- The command ------------------------------------------------------------------------------------------------------


def printed(size: tuple[int, int], *texts: tuple[str, tuple[int, int], int]) -> Any:
    """A picture with lines of text: what, where, and its height."""
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed: it has a typeface")
    face = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    picture = Image.new("RGB", size, "#f4f0e8")
    for text, at, height in texts:
        ImageDraw.Draw(picture).text(at, text, font=ImageFont.truetype(face, height), fill="#203060")
    return picture


@pytest.fixture(scope="module")
def folder(model_file: Callable[..., Path]) -> Path:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    return model_file("rapidocr_onnxruntime", "models")


def test_printed_lines_are_read(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = printed((420, 160), ("Convolution", (20, 20), 40), ("Page 7", (40, 110), 24), ("1989", (250, 110), 24))
    picture.save(tmp_path / "page.png")
    assert read_text.main([str(tmp_path / "page.png"), "--models", str(folder), "--threads", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("3 lines in ")
    assert ["".join(line.split()[2:]) for line in said[1:4]] == ["Convolution", "Page7", "1989"]  # spaces are unsure
    drawn = np.asarray(Image.open(tmp_path / "page.text.png")).astype(int)
    changed = np.abs(drawn - np.asarray(picture)).max(axis=2) > 0
    rows, columns = changed.any(axis=1), changed.any(axis=0)
    assert rows.nonzero()[0][[0, -1]].tolist() == pytest.approx([20, 140], abs=15)  # around the text, and nowhere else
    assert columns.nonzero()[0][[0, -1]].tolist() == pytest.approx([20, 320], abs=25)


def test_lines_that_are_upside_down_and_upright(folder: Path) -> None:
    reader = read_text.Reader(folder)
    down = printed((420, 100), ("upside down", (40, 20), 44)).rotate(180)
    up = printed((420, 100), ("upwards", (40, 20), 44)).rotate(90, expand=True)
    for picture, text in ((down, "upsidedown"), (up, "upwards")):
        (line,) = reader.read(np.asarray(picture))
        assert line.text.replace(" ", "") == text
        assert line.confidence > 0.9


def test_a_picture_without_text(folder: Path) -> None:
    assert read_text.Reader(folder).read(np.full((40, 300, 3), 200, np.uint8)) == []


def test_what_is_missing_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="2"):
        read_text.main([str(tmp_path / "none.png"), "--models", str(tmp_path)])
    assert f"read_text: {tmp_path} has 0 files *_det*.onnx, expected 1" in capsys.readouterr().err
    monkeypatch.setattr(read_text, "PACKAGE", "no_such_package")
    with pytest.raises(SystemExit, match="2"):
        read_text.main([str(tmp_path / "none.png")])
    assert "the package no-such-package is not installed, and no --models is given" in capsys.readouterr().err
