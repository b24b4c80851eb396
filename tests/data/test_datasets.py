"""Data sets from files made here, and where they are looked for."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from test_idx import idx_bytes

from gpucnn.data import digits, fashion_mnist, mnist

IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


def place(folder: Path, suffix: str = ".gz", dot: bool = False, labels: int = 10) -> dict[str, np.ndarray]:
    """Small files like MNIST's in `folder`, and what they hold."""
    rng = np.random.default_rng(7)
    held = {}
    for part, n in (("train", 30), ("t10k", 20)):
        held[f"{part}-{IMAGES}"] = rng.integers(0, 256, (n, 6, 5), dtype=np.uint8)
        held[f"{part}-{LABELS}"] = np.arange(n, dtype=np.uint8) % labels
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in held.items():
        content = gzip.compress(idx_bytes(array)) if suffix else idx_bytes(array)
        (folder / f"{name.replace('-idx', '.idx') if dot else name}{suffix}").write_bytes(content)
    return held


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data of this machine."""
    monkeypatch.delenv("GPUCNN_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "none"))


@pytest.mark.parametrize("read", [fashion_mnist, mnist])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dot", [False, True])
def test_files_in_a_given_folder(tmp_path: Path, read: type, suffix: str, dot: bool) -> None:
    held = place(tmp_path, suffix, dot)
    for part, images in zip(("train", "t10k"), read(tmp_path), strict=True):
        assert images.x.dtype == np.float32
        assert images.y.dtype == np.int64
        np.testing.assert_array_equal(images.x, held[f"{part}-{IMAGES}"][:, None] / np.float32(255))
        np.testing.assert_array_equal(images.y, held[f"{part}-{LABELS}"])
        assert len(images.classes) == 10
    assert read(tmp_path).train.classes[9] == {fashion_mnist: "Ankle boot", mnist: "9"}[read]


@pytest.mark.parametrize(
    ("read", "name"), [(fashion_mnist, "FashionMNIST/raw"), (mnist, "mnist"), (mnist, "MNIST/raw")]
)
def test_the_folder_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: type, name: str) -> None:
    place(tmp_path / name)
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path))
    assert read().train.x.shape == (30, 1, 6, 5)


def test_the_systems_data_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place(tmp_path / "b/datasets/fashion-mnist")
    monkeypatch.setenv("XDG_DATA_DIRS", f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    assert fashion_mnist().test.x.shape == (20, 1, 6, 5)
    place(tmp_path / "a/datasets/fashion-mnist", labels=5)
    assert fashion_mnist().test.y.max() == 4


def test_the_data_folder_of_debians_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_DATA_DIRS")
    with pytest.raises(FileNotFoundError, match="/usr/share/datasets/mnist do not hold"):
        mnist()


def test_missing_files_say_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"do not hold the files .*install Debian's package dataset-fashion-mnist"
    ):
        fashion_mnist()
    place(tmp_path)
    (tmp_path / f"t10k-{LABELS}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=f"^fashion_mnist: {tmp_path} do not hold"):
        fashion_mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        (f"train-{LABELS}", np.zeros(29, np.uint8), r"train files .* uint8 \(30, 6, 5\) and uint8 \(29,\)"),
        (f"train-{IMAGES}", np.zeros((30, 6, 5), np.float32), "float32"),
        (f"t10k-{IMAGES}", np.zeros((20, 30), np.uint8), "t10k files"),
        (f"t10k-{LABELS}", np.full(20, 11, np.uint8), "labels in .* reach 11, expected 0 to 9"),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, name: str, array: np.ndarray, says: str) -> None:
    place(tmp_path, "")
    (tmp_path / name).write_bytes(idx_bytes(array))
    with pytest.raises(ValueError, match=f"^mnist: .*{says}"):
        mnist(tmp_path)


# --- Digits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 28, 32])
def test_digits_at_each_size(size: int) -> None:
    pytest.importorskip("sklearn")
    x, y, classes = digits(size)
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((1797, 1, size, size), np.float32, (1797,), np.int64)
    assert x.flags.writeable
    assert float(x.min()) == 0
    assert 0.9 < float(x.max()) <= 1
    assert classes == tuple("0123456789")
    assert np.bincount(y).min() > 170
    small = digits().x
    if size == 32:  # four samples of each pixel, whose mean away from the border is between its neighbours
        np.testing.assert_allclose(x.mean((1, 2, 3)), small.mean((1, 2, 3)), atol=1e-6)


def test_digits_need_a_size_and_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="digits: size is 0, expected at least 1"):
        digits(0)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="digits: scikit-learn is not installed: pip install"):
        digits()
