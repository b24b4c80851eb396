"""Sobel and blur filters and pooling over a photograph: the README's example and its picture.

    pip install -e ".[docs]" && python docs/examples/photograph.py

writes docs/images/photograph.png.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import gpucnn.functional as F

PICTURE = Path(__file__).resolve().parents[1] / "images" / "photograph.png"


def filtered(photograph: np.ndarray) -> dict[str, np.ndarray]:
    """Each step's image, [H, W] or [H, W, 3] with values in [0, 1], of a photograph uint8 [H, W, 3]."""
    image = photograph.transpose(2, 0, 1).astype(np.float32) / 255  # [3, H, W]: a view, channels last in memory
    grey = image.mean(axis=0, keepdims=True)  # [1, H, W]

    smooth, slope = np.array([1, 2, 1], np.float32), np.array([-1, 0, 1], np.float32)
    sobel = np.stack([np.outer(smooth, slope), np.outer(slope, smooth)])[:, None]  # [2, 1, 3, 3]
    gradient = F.conv2d(grey, sobel, padding="same")  # [2, H, W]: across, down
    edges = np.hypot(*gradient)

    bell = np.exp(-(np.arange(-8, 9, dtype=np.float32) ** 2) / 32)
    blur = np.outer(bell, bell) / bell.sum() ** 2
    mirrored = F.pad(image, (8, 8, 8, 8), mode="reflect")
    blurred = F.conv2d(mirrored, np.stack([blur] * 3)[:, None], groups=3)  # one filter a colour

    return {
        "photograph": photograph / 255,
        "Sobel edges: conv2d": edges / edges.max(),
        "Gaussian blur: depthwise conv2d": blurred.transpose(1, 2, 0),
        "max_pool2d of the edges, 16": F.max_pool2d(edges[None], 16)[0] / edges.max(),
        "avg_pool2d of the photograph, 16": F.avg_pool2d(image, 16).transpose(1, 2, 0),
    }


def main() -> None:
    """Draw the steps side by side."""
    import matplotlib.pyplot as plt
    from skimage import data

    steps = filtered(data.astronaut())
    figure, axes = plt.subplots(1, len(steps), figsize=(15, 3.4), layout="constrained")
    for axis, (title, image) in zip(axes, steps.items(), strict=True):
        axis.imshow(np.clip(image, 0, 1), cmap="gray", interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=80)
    print(f"wrote {PICTURE.relative_to(Path.cwd()) if PICTURE.is_relative_to(Path.cwd()) else PICTURE}")


if __name__ == "__main__":
    main()
