"""Ranks that are threads, and small runs of which each rank takes its share."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gpucnn import nn
from gpucnn.data import Loader
from gpucnn.distributed import Communicator, local, synchronized

SAMPLES, BATCH, EPOCHS = 22, 8, 3  # the last batch is small: of 5 ranks, or of 4 of its validation, some have nothing


def on_ranks(size: int, work: Callable[[Any], Any], communicators: list[Any] | None = None) -> list[Any]:
    """What `work` returns on each rank; its first exception, which ends the others, is raised."""

    def one(communicator: Communicator) -> Any:
        try:
            return work(communicator)
        except BaseException:
            communicator.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        futures = [threads.submit(one, each) for each in communicators or local(size)]
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    own = [error for error in errors if "all were ended" not in str(error)]
    for error in own or errors:
        raise error
    return [future.result() for future in futures]


def samples(dtype: Any = np.float64) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((SAMPLES, 2, 6, 6)).astype(dtype), rng.integers(0, 3, SAMPLES)


def network(norm: str = "none", dtype: Any = np.float64, seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, rng=seed, dtype=dtype),
        nn.Identity() if norm == "none" else nn.BatchNorm2d(4, dtype=dtype),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout, rng=seed),
        nn.Linear(64, 3, rng=seed, dtype=dtype),
    )


def trained(communicator: Any, norm: str = "none", **options: Any) -> tuple[dict[str, Any], nn.History, nn.Module]:
    """Weights, history and model of a run, of a rank or alone (None); their first weights differ from rank to rank."""
    rank, size = (0, 1) if communicator is None else (communicator.rank, communicator.size)
    dtype = options.pop("dtype", np.float64)
    seed, dropout = options.pop("seed", 0) + rank, options.pop("dropout", 0.0)
    model = options.pop("model", None) or network(norm, dtype, seed, dropout)
    if norm == "synchronized" and communicator is not None:
        synchronized(model, communicator)
    x, y = samples(dtype)
    validation = options.pop("validation", True)
    options = {
        "loss": nn.CrossEntropyLoss(),
        "optimizer": nn.SGD(model.parameters(), 0.1, momentum=0.9),
        "epochs": EPOCHS,
        "validation": Loader(x, y, 4, shard=(rank, size)) if validation else None,
        "progress": False,
        "communicator": communicator,
        **options,
    }
    loader = options.pop("loader", None) or Loader(x, y, BATCH, shuffle=True, rng=3, shard=(rank, size))
    history = nn.fit(model, loader, **options)
    history.seconds = [0.0] * len(history)
    return {name: array.copy() for name, array in model.state_dict().items()}, history, model


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Bit for bit."""
    assert {name: array.tobytes() for name, array in one.items()} == {
        name: array.tobytes() for name, array in other.items()
    }


def assert_near(one: dict[str, Any], other: dict[str, Any], atol: float = 1e-12) -> None:
    assert list(one) == list(other)
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=0, atol=atol, err_msg=name)
