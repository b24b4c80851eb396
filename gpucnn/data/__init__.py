"""Images from files on this machine, and batches of them: readers, augmentations, a loader; nothing is downloaded."""

from __future__ import annotations

from gpucnn.data.augmentation import Compose, Crop, Flip, Shift
from gpucnn.data.datasets import digits, fashion_mnist, mnist
from gpucnn.data.folders import image_folder
from gpucnn.data.idx import read_idx
from gpucnn.data.images import Images, Split, channel_statistics, normalize, train_test_split
from gpucnn.data.loader import Loader

__all__ = [
    "Compose", "Crop", "Flip", "Images", "Loader", "Shift", "Split", "channel_statistics", "digits", "fashion_mnist",
    "image_folder", "mnist", "normalize", "read_idx", "train_test_split",
]  # fmt: skip
