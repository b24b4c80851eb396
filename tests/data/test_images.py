"""Splits and normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucnn.data import Images, channel_statistics, normalize, train_test_split


def numbered(labels: list[int]) -> Images:
    x = np.arange(len(labels), dtype=np.float32).reshape(-1, 1, 1, 1)
    return Images(x, np.array(labels, np.int64), ("a", "b", "c", "d"))


@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.floats(0, 1), st.integers(0, 9), st.booleans())
def test_a_split_keeps_each_image_once_with_its_label(
    labels: list[int], share: float, seed: int, stratify: bool
) -> None:
    images, wanted = numbered(labels), round(share * len(labels))
    if not 0 < wanted < len(labels):
        with pytest.raises(ValueError, match="expected 1 to"):
            train_test_split(images, share, seed)
        return
    train, test = train_test_split(images, share, seed, stratify)
    assert len(test.x) == len(test.y) == wanted
    numbers = np.concatenate([train.x, test.x]).ravel().astype(int)
    assert sorted(numbers) == list(range(len(labels)))
    assert np.concatenate([train.y, test.y]).tolist() == [labels[number] for number in numbers]
    assert (np.diff(train.x.ravel()) > 0).all()
    if stratify:
        of_test = np.bincount(test.y, minlength=4)
        assert (abs(of_test - wanted / len(labels) * np.bincount(labels, minlength=4)) <= 1).all()
    again = train_test_split(images, share, seed, stratify)
    np.testing.assert_array_equal(again.test.x, test.x)


def test_splits_differ_by_seed_and_take_a_count() -> None:
    images = numbered([0, 1] * 20)
    drawn = {tuple(train_test_split(images, 10, seed).test.x.ravel()) for seed in range(5)}
    assert len(drawn) == 5
    assert {len(numbers) for numbers in drawn} == {10}


@pytest.mark.parametrize(
    ("images", "test_size", "error", "says"),
    [
        (numbered([0, 1]), "half", TypeError, "test_size is a str, expected a float or an int"),
        (numbered([0, 1]), True, TypeError, "test_size is a bool"),
        (numbered([0, 1]), 2, ValueError, "test_size = 2 puts 2 of 2 images aside, expected 1 to 1"),
        (numbered([0, 1]), -0.5, ValueError, "expected 1 to 1"),
        (numbered([0, 1])._replace(y=np.zeros(3, np.int64)), 1, ValueError, "2 images and 3 labels"),
    ],
)
def test_splits_that_cannot_be(images: Images, test_size: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=f"^train_test_split: .*{says}"):
        train_test_split(images, test_size)


@pytest.mark.parametrize("shape", [(3, 2), (2500, 3, 2, 2), (4, 2, 3), (2, 1, 2, 3, 4)])
def test_channels_have_mean_0_and_deviation_1(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    offsets = np.arange(shape[1]).reshape(1, -1, *(1,) * (len(shape) - 2))
    x = (rng.standard_normal(shape) * (offsets + 1) + 100 * offsets).astype(np.float32)
    mean, std = channel_statistics(x)
    axes = tuple(axis for axis in range(len(shape)) if axis != 1)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(axes), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(std, x.astype(np.float64).std(axes), rtol=1e-12)
    z = normalize(x, mean, std)
    assert z.dtype == np.float32
    np.testing.assert_allclose(z.mean(axes), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(axes), 1, rtol=1e-4)


def test_one_mean_for_all_channels(rng: np.random.Generator) -> None:
    x = rng.random((2, 3, 4, 4))
    np.testing.assert_allclose(normalize(x, 0.5, [2.0]), (x - 0.5) / 2)


def test_normalisations_that_cannot_be() -> None:
    x = np.ones((2, 3, 4, 4), np.float32)
    with pytest.raises(ValueError, match=r"std is .*expected values above 0"):
        normalize(x, *channel_statistics(x))
    with pytest.raises(ValueError, match=r"std is nan"):
        normalize(x, 0, float("nan"))
    with pytest.raises(
        ValueError, match=r"mean has shape \(2,\) for x of shape \(2, 3, 4, 4\), expected one a channel"
    ):
        normalize(x, [0, 0], 1)
    with pytest.raises(TypeError, match="x has dtype uint8"):
        normalize(x.astype(np.uint8), 0, 1)
    for shape in ((3,), (0, 3, 2, 2)):
        with pytest.raises(ValueError, match="channel_statistics: x has shape"):
            channel_statistics(np.zeros(shape))


def test_what_is_no_array_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"train_test_split: images is a ndarray, expected Images\(x, y, classes\)"):
        train_test_split(np.ones((4, 1, 2, 2)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="channel_statistics: x is a list, expected a NumPy array"):
        channel_statistics([1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="normalize: x is a list, expected a NumPy array"):
        normalize([1.0], 0, 1)  # type: ignore[arg-type]
