"""Images from a folder with one subfolder per class."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.data.images import Host, Images
from gpucnn.geometry.arguments import is_sequence, plain
from gpucnn.installing import optional

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_MODES = {"rgb": "RGB", "grey": "L"}
_FITS = ("crop", "stretch")


def image_folder(
    folder: str | PathLike[str],
    size: int | tuple[int, int] | None = None,
    mode: str = "rgb",
    fit: str = "crop",
) -> Images:
    """The images below a folder, those of each class in a subfolder that has its name.

    Parameters
    ----------
    folder : str or path
        Its subfolders are the classes, in alphabetical order. Within them files of the usual kinds (PNG, JPEG, TIFF,
        BMP, GIF, WebP, PGM, PPM) are read, those in deeper folders too; other and hidden files are not.
    size : int or pair of int, optional
        Height and width of the result; if left out, the images must have one size.
    mode : str
        ``"rgb"`` or ``"grey"``.
    fit : str
        The way images of another shape are fitted to `size`: ``"crop"`` scales them to cover it and takes the middle,
        ``"stretch"`` scales height and width by themselves.

    Returns
    -------
    Images
        float32 [N, 3 or 1, H, W], 0 to 1; by class, then by name.

    Raises
    ------
    ModuleNotFoundError
        Pillow is not installed.
    FileNotFoundError
        There is no such folder.
    ValueError
        There are no classes, a class has no images, a file cannot be read, images are of several sizes and `size` was
        left out, or an argument is out of range.

    Notes
    -----
    Images are turned as their EXIF orientation says; of an animation the first picture is taken, transparency is not
    kept. Scaling is bilinear with antialiasing, Pillow's.
    """
    Image, ImageOps = (optional("image_folder", f"PIL.{part}", "examples") for part in ("Image", "ImageOps"))
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"image_folder: there is no folder {root}")
    if mode not in _MODES:
        raise ValueError(f"image_folder: mode is {mode!r}, expected one of {', '.join(map(repr, _MODES))}")
    if fit not in _FITS:
        raise ValueError(f"image_folder: fit is {fit!r}, expected one of {', '.join(map(repr, _FITS))}")
    target = _size(size)
    files = _files(root)
    images: list[Host] = []
    for path in (path for paths in files.values() for path in paths):
        try:
            with Image.open(path) as opened:
                if opened.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels are {opened.mode}, expected 8 bits a channel")
                picture: Any = ImageOps.exif_transpose(opened).convert(_MODES[mode])
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"image_folder: {path} cannot be read: {error}") from error
        if target is not None and fit == "crop":
            picture = ImageOps.fit(picture, target[::-1], Image.Resampling.BILINEAR)
        elif target is not None:
            picture = picture.resize(target[::-1], Image.Resampling.BILINEAR)
        pixels = np.asarray(picture).reshape(picture.height, picture.width, -1)
        if images and pixels.shape != images[0].shape:
            raise ValueError(
                f"image_folder: {path} has {pixels.shape[0]}x{pixels.shape[1]} pixels and the images before it have "
                f"{images[0].shape[0]}x{images[0].shape[1]}, expected one size, or the argument size"
            )
        images.append(pixels)
    x = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32, order="C") / np.float32(255)
    y = np.repeat(np.arange(len(files)), [len(paths) for paths in files.values()])
    return Images(x, y.astype(np.int64), tuple(files))


def _size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width."""
    if size is None:
        return None
    given: Any = size if is_sequence(size) else (size, size)
    pair = tuple(map(plain, given))
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"image_folder: size is {size}, expected an int or two, of at least 1")
    return pair


def _files(root: Path) -> dict[str, list[Path]]:
    """The image files of each class."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise ValueError(f"image_folder: {root} has no subfolders, expected one for each class")
    files = {
        folder.name: sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
        for folder in folders
    }
    for name, paths in files.items():
        if not paths:
            raise ValueError(f"image_folder: the class {name} has no images in {root / name}")
    return files
