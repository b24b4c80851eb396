"""Readers of images that are already on this machine; nothing is downloaded."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

import numpy as np

from gpucnn.data.idx import read_idx
from gpucnn.data.images import Images, Split
from gpucnn.installing import optional

_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_DIGITS = tuple("0123456789")
_FILES = {
    (part, kind): f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
}


def fashion_mnist(folder: str | PathLike[str] | None = None) -> Split:
    """Fashion-MNIST: 60,000 grey 28×28 pictures of clothing to train on and 10,000 to test with, in 10 classes.

    Parameters
    ----------
    folder : str or path, optional
        Where its four IDX files are, plain or ``.gz``. If it is left out they are looked for in ``fashion-mnist`` and
        ``FashionMNIST/raw`` (torchvision's) below the folder in the environment variable GPUCNN_DATA, then in
        ``datasets/fashion-mnist`` below the system's data folders (XDG_DATA_DIRS, else /usr/local/share and
        /usr/share), where Debian's package ``dataset-fashion-mnist`` puts them.

    Returns
    -------
    Split
        `Images` to train on and to test with: float32 [N, 1, 28, 28], 0 to 1.

    Raises
    ------
    FileNotFoundError
        The files are in none of these folders; it says what to install.
    ValueError
        They are damaged, or hold something else.

    References
    ----------
    H. Xiao, K. Rasul, R. Vollgraf, *Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms*,
    arXiv:1708.07747, 2017.
    """
    return _mnist_like(
        "fashion_mnist", folder, ("fashion-mnist", "FashionMNIST/raw"), _FASHION,
        "install Debian's package dataset-fashion-mnist",
    )  # fmt: skip


def mnist(folder: str | PathLike[str] | None = None) -> Split:
    """MNIST: 60,000 grey 28×28 pictures of handwritten digits to train on and 10,000 to test with.

    Parameters
    ----------
    folder : str or path, optional
        Where its four IDX files are, as for `fashion_mnist`; the folders are called ``mnist`` and ``MNIST/raw``.

    Returns
    -------
    Split
        `Images` to train on and to test with: float32 [N, 1, 28, 28], 0 to 1.

    Raises
    ------
    FileNotFoundError, ValueError
        As `fashion_mnist`.

    References
    ----------
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, *Gradient-based learning applied to document recognition*, Proceedings
    of the IEEE 86, 1998.
    """
    return _mnist_like("mnist", folder, ("mnist", "MNIST/raw"), _DIGITS, "download them from a mirror of MNIST")


def digits(size: int = 8) -> Images:
    """scikit-learn's digits: 1,797 grey pictures of handwritten digits, of 8×8 pixels.

    Parameters
    ----------
    size : int
        Height and width of the result: 8 as they are, others by bilinear interpolation.

    Returns
    -------
    Images
        float32 [1797, 1, size, size], 0 to 1.

    Raises
    ------
    ModuleNotFoundError
        scikit-learn, which contains them, is not installed.
    ValueError
        `size` is below 1.

    References
    ----------
    E. Alpaydin, C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository, 1998: its test
    set.

    Examples
    --------
    >>> x, y, classes = digits(size=28)  # doctest: +SKIP
    >>> x.shape, y[:4].tolist()  # doctest: +SKIP
    ((1797, 1, 28, 28), [0, 1, 2, 3])
    """
    if size < 1:
        raise ValueError(f"digits: size is {size}, expected at least 1")
    found = optional("digits", "sklearn.datasets", "examples").load_digits()
    x = np.asarray(found.images, np.float32)[:, None] / 16
    if size != 8:
        from gpucnn.functional import interpolate

        x = interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    return Images(x, np.asarray(found.target, np.int64), _DIGITS)


def _mnist_like(
    op: str, folder: str | PathLike[str] | None, names: tuple[str, ...], classes: tuple[str, ...], otherwise: str
) -> Split:
    found = _folder(op, folder, names, otherwise)
    parts = []
    for part in ("train", "t10k"):
        x, y = (read_idx(_file(found, _FILES[part, kind])) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
        if x.ndim != 3 or y.shape != x.shape[:1] or {x.dtype, y.dtype} != {np.dtype(np.uint8)}:
            raise ValueError(
                f"{op}: the {part} files in {found} hold {x.dtype} {x.shape} and {y.dtype} {y.shape}, expected uint8 "
                "images (N, H, W) and uint8 labels (N)"
            )
        if y.size and y.max() >= len(classes):
            raise ValueError(f"{op}: the {part} labels in {found} reach {y.max()}, expected 0 to {len(classes) - 1}")
        parts.append(Images(x[:, None].astype(np.float32) / np.float32(255), y.astype(np.int64), classes))
    return Split(*parts)


def _folder(op: str, folder: str | PathLike[str] | None, names: tuple[str, ...], otherwise: str) -> Path:
    """The first folder that has all four files."""
    if folder is not None:
        places = [Path(folder)]
    else:
        given = os.environ.get("GPUCNN_DATA")
        places = [Path(given) / name for name in names] if given else []
        shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        places += [Path(data) / "datasets" / names[0] for data in shared.split(":") if data]
    for place in places:
        if all(_file(place, name).is_file() for name in _FILES.values()):
            return place
    files = ", ".join(_FILES.values())
    raise FileNotFoundError(
        f"{op}: {' and '.join(map(str, places))} do not hold the files {files} (each plain or .gz); {otherwise}, or "
        "give their folder, or its parent in the environment variable GPUCNN_DATA"
    )


def _file(folder: Path, name: str) -> Path:
    """The file as it is called there: plain, with a dot for the first hyphen before idx, or compressed."""
    names = (name, name.replace("-idx", ".idx"), f"{name}.gz", f"{name.replace('-idx', '.idx')}.gz")
    return next((folder / name for name in names if (folder / name).is_file()), folder / name)
