"""Train a network in several processes: ``mpiexec -n 2 python -m gpucnn.examples.parallel``.

Each process, a rank, takes its share of every batch of scikit-learn's digits. The weights at the end are those of one
process, to rounding, however many there are. Without mpiexec there is one.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import numpy as np

from gpucnn import data, nn, set_num_threads
from gpucnn.distributed import MPI, synchronized


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and test; the exit status is 0 if the target was reached."""
    parser = argparse.ArgumentParser(prog="python -m gpucnn.examples.parallel")
    parser.add_argument("--epochs", type=int, default=10, help="times through the images")
    parser.add_argument("--target", type=float, default=0.97, help="least accuracy of a success")
    parser.add_argument("--checkpoint", help="file that holds the run, to go on from")
    chosen = parser.parse_args(arguments)

    communicator = MPI()
    rank, size = communicator.rank, communicator.size
    set_num_threads(max(1, (os.cpu_count() or 1) // size))  # all processes of one machine

    train, test = data.train_test_split(data.digits(), test_size=0.2, rng=0)
    loader = data.Loader(train.x, train.y, batch_size=32, shuffle=True, rng=0, shard=(rank, size))
    tests = data.Loader(test.x, test.y, batch_size=100, shard=(rank, size))

    rng = np.random.default_rng(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False, rng=rng),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 10, rng=rng),
    )
    synchronized(model, communicator)  # batch norms take the statistics of the whole batch
    history = nn.fit(
        model,
        loader,
        loss=nn.CrossEntropyLoss(),
        optimizer=nn.Adam(model.parameters(), lr=3e-3),
        epochs=chosen.epochs,
        validation=tests,
        checkpoint=chosen.checkpoint,
        communicator=communicator,
    )
    if rank == 0:
        print(f"{size} processes, of which the first sent {communicator.bytes_sent / 1e6:.1f} MB")
    return 0 if history.validation_accuracies[-1] >= chosen.target else 1


if __name__ == "__main__":
    sys.exit(main())
