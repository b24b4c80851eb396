"""Folders of images made here by Pillow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpucnn.data import image_folder

Image = pytest.importorskip("PIL.Image")


def save(path: Path, pixels: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def test_a_class_for_each_subfolder_in_order(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    for name, image in zip(("dog/b.png", "cat/z.PNG", "dog/a.bmp", "dog/deep/er.ppm"), pixels, strict=True):
        save(tmp_path / name, image)
    (tmp_path / "readme.txt").write_text("no class")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / ".hidden.png").write_text("no image")
    (tmp_path / ".git").mkdir()
    x, y, classes = image_folder(tmp_path)
    assert classes == ("cat", "dog")
    assert y.tolist() == [0, 1, 1, 1]
    assert y.dtype == np.int64
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    np.testing.assert_array_equal(x, pixels[[1, 2, 0, 3]].transpose(0, 3, 1, 2) / np.float32(255))


def test_grey_and_colour(tmp_path: Path) -> None:
    save(tmp_path / "a/x.png", np.full((2, 2, 3), (255, 0, 0)))
    save(tmp_path / "a/y.png", np.full((2, 2), 51))
    red, grey = image_folder(tmp_path, mode="rgb").x
    assert red[:, 0, 0].tolist() == [1, 0, 0]
    np.testing.assert_allclose(grey, 0.2, atol=1e-6)
    as_grey = image_folder(tmp_path, mode="grey").x
    assert as_grey.shape == (2, 1, 2, 2)
    np.testing.assert_allclose(as_grey[:, 0, 0, 0], [0.299, 0.2], atol=0.002)  # red's share of the luma


def test_cropping_takes_the_middle_and_stretching_all(tmp_path: Path) -> None:
    wide = np.zeros((4, 12))
    wide[:, 4:8] = 255
    save(tmp_path / "a/x.png", wide)
    assert image_folder(tmp_path, size=4, mode="grey", fit="crop").x.min() == 1
    stretched = image_folder(tmp_path, size=(4, 6), mode="grey", fit="stretch").x[0, 0]
    assert stretched.shape == (4, 6)
    assert stretched[:, 0].max() == 0
    assert stretched[:, 2:4].min() > 0.8
    assert image_folder(tmp_path, size=(2, 3)).x.shape == (1, 3, 2, 3)
    assert image_folder(tmp_path, size=np.int64(2)).x.shape == (1, 3, 2, 2)  # type: ignore[arg-type]


def test_images_stand_as_their_camera_was_held(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by 90 degrees
    (tmp_path / "a").mkdir()
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "a/x.png", exif=exif)
    assert image_folder(tmp_path, mode="grey").x[0, 0].tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"mode": "RGBA"}, "mode is 'RGBA', expected one of 'rgb', 'grey'"),
        ({"fit": "pad"}, "fit is 'pad', expected one of 'crop', 'stretch'"),
        ({"size": 0}, "size is 0, expected an int or two, of at least 1"),
        ({"size": (3, 4, 5)}, "size is"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, Any], says: str) -> None:
    save(tmp_path / "a/x.png", np.zeros((2, 2)))
    with pytest.raises(ValueError, match=f"^image_folder: {says}"):
        image_folder(tmp_path, **arguments)


def test_folders_and_files_that_are_not_as_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        image_folder(tmp_path / "none")
    with pytest.raises(ValueError, match="has no subfolders, expected one for each class"):
        image_folder(tmp_path)
    save(tmp_path / "a/x.png", np.zeros((2, 3)))
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="the class b has no images"):
        image_folder(tmp_path)
    save(tmp_path / "b/y.png", np.zeros((4, 5)))
    with pytest.raises(ValueError, match=r"y\.png has 4x5 pixels and the images before it have 2x3, expected one size"):
        image_folder(tmp_path)
    (tmp_path / "b/y.png").write_bytes((tmp_path / "a/x.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"y\.png cannot be read"):
        image_folder(tmp_path)
    Image.fromarray(np.zeros((2, 3), np.uint16)).save(tmp_path / "b/y.png")
    with pytest.raises(ValueError, match=r"y\.png cannot be read: its pixels are I;16, expected 8 bits"):
        image_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ModuleNotFoundError, match="image_folder: Pillow is not installed: pip install"):
        image_folder(tmp_path)
