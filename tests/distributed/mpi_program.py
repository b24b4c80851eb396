"""The programs of ranks under mpiexec, for test_mpi.py: python mpi_program.py NAME FOLDER."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rank_threads import assert_near, assert_same, network, samples, trained

import gpucnn.functional as F
from gpucnn import nn
from gpucnn.data import Loader
from gpucnn.distributed import MPI, Communicator, GradientReducer, conv2d, volume


class Ending(nn.CrossEntropyLoss):
    """A loss at whose `at`-th gradient the rank fails, or is killed."""

    def __init__(self, at: int, kills: bool) -> None:
        super().__init__()
        self.left, self.kills = at, kills

    def backward(self, grad_output: Any = 1.0) -> Any:
        self.left -= 1
        if not self.left:
            if self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("this rank fails")
        return super().backward(grad_output)


def checks(communicator: Communicator, folder: Path) -> None:
    """Collectives, volumes, and weights that equal those of one process."""
    rank, size = communicator.rank, communicator.size
    values = np.random.default_rng(0).standard_normal((size, 1001)).astype(np.float32)
    expected = values[0]
    for value in values[1:]:
        expected = expected + value
    assert communicator.all_reduce(values[rank].copy()).tobytes() == expected.tobytes()
    assert (communicator.all_gather(values[rank]) == values).all()
    assert (communicator.broadcast(values[rank].copy(), size - 1) == values[-1]).all()
    left = np.zeros(5)
    communicator.exchange({(rank + 1) % size: np.full(5, rank)}, {(rank - 1) % size: left.astype(int)})
    communicator.exchange({(rank + 1) % size: np.full(5, float(rank))}, {(rank - 1) % size: left})
    assert (left == (rank - 1) % size).all()
    communicator.barrier()
    image, filters = np.random.default_rng(1).standard_normal((2, 3, 11, 6)), np.ones((4, 3, 5, 3))
    part = np.array_split(image, size, axis=2)[rank]
    whole = F.conv2d(image, filters, stride=2, padding=2)
    rows = conv2d(part, filters, communicator, stride=2, padding=2)
    counts = communicator.all_gather(np.array([rows.shape[2]]))[:, 0]
    first = int(counts[:rank].sum())
    np.testing.assert_allclose(rows, whole[:, :, first : first + rows.shape[2]], rtol=0, atol=1e-12)
    assert counts.sum() == whole.shape[2]

    model = network()
    reducer = GradientReducer(model.parameters(), communicator, bucket_mb=1e-3)
    x, _ = samples()
    for _ in range(20):  # the messages of two threads at once are not mixed up
        model.zero_grad()
        before = communicator.bytes_sent
        with reducer:
            model.backward(np.ones_like(model(x[rank : rank + 2])))
            gathered = communicator.all_gather(np.full(3, rank))
        assert gathered[:, 0].tolist() == list(range(size))
        sent = communicator.bytes_sent - before
        assert sent == volume(model.parameters(), rank, size, 1e-3) + gathered[0].nbytes * (size - 1)

    for norm in ("none", "synchronized"):
        alone = trained(None, norm)
        found = trained(communicator, norm)
        assert_near(found[0], alone[0])
        np.testing.assert_allclose(found[1].validation_losses, alone[1].validation_losses, rtol=0, atol=1e-12)
        for name, array in found[0].items():
            assert (communicator.all_gather(array) == array).all(), name
        again = trained(communicator, norm)
        assert_same(found[0], again[0])

    checkpoint = nn.Checkpoint(folder / "finished", every=1)
    trained(communicator, "synchronized", checkpoint=checkpoint, epochs=2)  # another number of ranks goes on
    exact(communicator)


def exact(communicator: Communicator) -> None:
    """Where no sum is rounded, weights have the bits of one process."""
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-2, 3, shape).astype(np.float64) for shape in ((16, 2, 6, 6), (16, 3)))
    results = []
    for each in (None, communicator):
        model = network()
        for parameter in model.parameters():
            parameter.data[...] = np.random.default_rng(1).integers(-1, 2, parameter.shape) / 2
        shard = (0, 1) if each is None else (each.rank, each.size)
        options: dict[str, Any] = {"loss": nn.MSELoss("sum"), "optimizer": nn.SGD(model.parameters(), 2.0**-6)}
        nn.fit(model, Loader(x, y, 8, shard=shard), epochs=1, progress=False, communicator=each, **options)
        results.append(model.state_dict())
    assert_same(*results)


def ending(communicator: Communicator, folder: Path, kills: bool) -> None:
    """A run in which rank 1 fails or is killed, at a batch that the file's name says, and whose checkpoint stays."""
    at = int(os.environ["FAILS_AT"])
    loss = Ending(at, kills) if communicator.rank == 1 else nn.CrossEntropyLoss()
    trained(communicator, "synchronized", loss=loss, checkpoint=nn.Checkpoint(folder / "ended", every=1))


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    ranks = MPI()
    if name == "checks":
        checks(ranks, folder)
        print(f"rank {ranks.rank} of {ranks.size} is done", flush=True)
    elif name == "before":  # an error before any message, on all ranks alike
        raise ZeroDivisionError("all ranks fail")
    else:
        ending(ranks, folder, name == "killed")
