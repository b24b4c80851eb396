"""A training run for test_resuming.py to kill: ``python run_to_be_killed.py CHECKPOINT WEIGHTS``.

It has everything that has a state: momentum, a schedule, running statistics, dropout, a shuffling loader with
augmentation and prefetch, early stopping. It says "batch" as each batch is under way.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from gpucnn import nn
from gpucnn.data import Loader, Shift


class Telling(nn.CrossEntropyLoss):
    def backward(self, grad_output: Any = 1.0) -> Any:
        print("batch", flush=True)
        return super().backward(grad_output)


def run(checkpoint: str, weights: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((90, 1, 8, 8)).astype(np.float32)
    y = (x.mean((1, 2, 3)) > 0).astype(int)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, rng=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3, rng=2),
        nn.Linear(144, 2, rng=3),
    )
    optimizer = nn.AdamW(model.parameters(), lr=0.01)
    nn.fit(
        model,
        Loader(x, y, 8, shuffle=True, rng=4, augment=Shift(1), prefetch=2),
        loss=Telling(label_smoothing=0.1),
        optimizer=optimizer,
        epochs=10,
        validation=[(x, y)],
        schedule=nn.OneCycleLR(optimizer, 0.02, epochs=10, steps_per_epoch=12),
        checkpoint=nn.Checkpoint(checkpoint, every=2),
        early_stopping=8,
        clip_norm=1.0,
        rng=np.random.default_rng(5),
        progress=False,
    )
    nn.save_weights(model, weights)


if __name__ == "__main__":
    run(*sys.argv[1:])
