"""Augmentations against loops over images, and what they leave alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucnn.data import Compose, Crop, Flip, Shift

sizes = st.integers(1, 6)


def images(n: int, c: int, h: int, w: int) -> np.ndarray:
    """Each pixel another number, none 0 or -1."""
    return np.arange(1, n * c * h * w + 1, dtype=np.float32).reshape(n, c, h, w)


def assert_windows(y: np.ndarray, x: np.ndarray, size: tuple[int, int], padding: int, fill: float) -> None:
    """Raise unless each image of y is a window of `size` of the padded image of x."""
    (height, width), (n, c, h, w) = size, x.shape
    assert (y.shape, y.dtype) == ((n, c, height, width), x.dtype)
    for before, after in zip(x, y, strict=True):
        padded = np.pad(before, ((0, 0), (padding,) * 2, (padding,) * 2), constant_values=fill)
        places = [
            padded[:, i : i + height, j : j + width].tobytes()
            for i in range(h + 2 * padding - height + 1)
            for j in range(w + 2 * padding - width + 1)
        ]
        assert after.tobytes() in places


@given(st.integers(0, 5), sizes, sizes, sizes, st.integers(0, 3), st.integers(0, 3), st.integers(0, 99), st.data())
def test_a_crop_is_a_window_of_the_padded_image_and_a_shift_one_of_its_size(
    n: int, c: int, h: int, w: int, padding: int, less: int, seed: int, data: st.DataObject
) -> None:
    x = images(n, c, h, w)
    size = data.draw(st.integers(1, h + 2 * padding)), max(1, w + 2 * padding - less)
    y = Crop(size, padding, fill=-1)(x, np.random.default_rng(seed))
    assert y.flags.c_contiguous
    assert_windows(y, x, size, padding, -1)
    assert_windows(Shift(padding)(x, np.random.default_rng(seed)), x, (h, w), padding, 0)


def test_every_place_is_cropped_as_often() -> None:
    x = np.broadcast_to(images(1, 1, 3, 3), (9000, 1, 3, 3))
    corners = Crop(2, padding=1)(x, np.random.default_rng(0))[:, 0, 0, 0]
    counts = np.unique(corners, return_counts=True)[1]
    # 16 places; those in the padded row and column above all show 0
    assert sorted(counts)[-1] == pytest.approx(9000 * 7 / 16, rel=0.05)
    assert all(count == pytest.approx(9000 / 16, rel=0.2) for count in sorted(counts)[:-1])
    assert len(counts) == 10


def test_some_images_are_mirrored_and_the_others_are_not() -> None:
    x = images(1000, 2, 2, 3)
    y = Flip()(x, np.random.default_rng(0))
    mirrored = np.array([np.array_equal(b, a[..., ::-1]) for a, b in zip(x, y, strict=True)])
    untouched = np.array([np.array_equal(b, a) for a, b in zip(x, y, strict=True)])
    assert (mirrored ^ untouched).all()
    assert 440 < mirrored.sum() < 560
    np.testing.assert_array_equal(Flip(0)(x, np.random.default_rng(0)), x)
    np.testing.assert_array_equal(Flip(1)(x, np.random.default_rng(0)), x[..., ::-1])


@pytest.mark.parametrize("augment", [Crop(3, 1), Shift(2), Flip(), Compose(Flip(), Shift(1), Crop(2))], ids=repr)
def test_a_seed_decides_and_the_input_stays(augment: Crop | Shift | Flip | Compose) -> None:
    x = images(16, 1, 4, 4)
    before = x.copy()
    first, second, other = (augment(x, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(x, before)


def test_steps_follow_one_another() -> None:
    x = images(3, 1, 4, 4)
    rng = np.random.default_rng(0)
    expected = Crop(2)(Flip()(x, rng), rng)
    np.testing.assert_array_equal(Compose(Flip(), Crop(2))(x, np.random.default_rng(0)), expected)
    assert Compose()(x, rng) is x


def test_arguments_out_of_range() -> None:
    for make, says in (
        (lambda: Crop(0), "Crop: size is 0, expected an int or two, of at least 1"),
        (lambda: Crop((1, 2, 3)), "Crop: size is"),  # type: ignore[arg-type]
        (lambda: Crop(2, -1), "Crop: padding is -1, expected at least 0"),
        (lambda: Shift(-1), "Shift: pixels is -1"),
        (lambda: Flip(1.5), "Flip: probability is 1.5, expected 0 to 1"),
    ):
        with pytest.raises(ValueError, match=says):
            make()
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"Crop: size is 7, expected at most the padded image's \(6, 6\)"):
        Crop(7, 1)(images(1, 1, 4, 4), rng)
    for augment in (Crop(1), Shift(1), Flip()):
        with pytest.raises(ValueError, match=r"x has shape \(2, 3\), expected \(N, C, H, W\)"):
            augment(np.zeros((2, 3)), rng)
