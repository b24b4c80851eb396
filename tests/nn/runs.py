"""Small training runs, and what is left of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn import nn
from gpucnn.data import Loader, Shift


def bits(model: nn.Module, asnumpy: Callable[[Any], Any] = np.asarray) -> dict[str, bytes]:
    """The parameters and statistics of a model, bit for bit."""
    return {name: asnumpy(array).tobytes() for name, array in model.state_dict().items()}


BATCHES, EPOCHS = 4, 3


class EndedError(Exception):
    pass


class Ending(nn.CrossEntropyLoss):
    """A loss at whose `at`-th gradient the run ends, as a kill would end it; it can say "batch" at each."""

    def __init__(self, at: int | None, says: bool = False) -> None:
        super().__init__()
        self.at, self.says, self.calls = at, says, 0

    def backward(self, grad_output: Any = 1.0) -> Any:
        self.calls += 1
        if self.says:
            print("batch", flush=True)
        if self.calls == self.at:
            raise EndedError
        return super().backward(grad_output)


def small_network(seed: int = 0, channels: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, rng=seed),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3, rng=seed),
        nn.Linear(16 * channels, 2, rng=seed),
    )


def loader(kind: str, seed: int) -> Any:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCHES * 5, 1, 6, 6)).astype(np.float32)
    y = (x.mean((1, 2, 3)) > 0).astype(int)
    if kind == "list":
        return [(x[start : start + 5], y[start : start + 5]) for start in range(0, len(x), 5)]
    return Loader(x, y, 5, shuffle=True, rng=seed, augment=Shift(1), prefetch=2)


def run(kind: str, optimizer: str, every: int | None, path: Any, at: int | None = None, **options: Any) -> Any:
    """A run from seeds that a resumed one does not share, if `options` say so: weights, state, history."""
    seed = options.pop("seed", 0)
    model = options.pop("model", None) or small_network(seed)
    learner = nn.Adam(model.parameters()) if optimizer == "Adam" else nn.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = nn.CosineAnnealingLR(learner, EPOCHS) if kind == "list" else nn.ReduceLROnPlateau(learner, patience=0)
    history = nn.fit(
        model,
        options.pop("loader", None) or loader(kind, seed),
        optimizer=learner,
        **{
            "loss": Ending(at),
            "epochs": EPOCHS,
            "validation": loader("list", 0)[:1],
            "schedule": schedule,
            "checkpoint": None if path is None else nn.Checkpoint(path, every=every),
            "early_stopping": 2,
            "rng": np.random.default_rng(seed),
            "progress": False,
            **options,
        },
    )
    history.seconds = [0.0] * len(history)
    return bits(model), state_bits(learner), learner.param_groups[0]["lr"], schedule.state_dict(), history


def state_bits(optimizer: nn.Optimizer) -> list[dict[str, Any]]:
    """What an optimiser remembers of each parameter, bit for bit."""
    states = optimizer.state_dict()["state"].values()
    return [{name: np.asarray(value).tobytes() for name, value in state.items()} for state in states]


if __name__ == "__main__":  # for test_resuming.py to kill: python runs.py CHECKPOINT WEIGHTS
    model = small_network()
    run("Loader", "Adam", 2, sys.argv[1], model=model, loss=Ending(None, says=True), epochs=30, early_stopping=99)
    nn.save_weights(model, sys.argv[2])
