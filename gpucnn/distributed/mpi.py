"""Ranks that are processes of an MPI program, started by ``mpiexec -n 4 python train.py``."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

from gpucnn.distributed.communicator import Array, Communicator
from gpucnn.installing import optional

__all__ = ["MPI"]

HEAD_START = 0.5  # seconds that rank 0 has to print an error which all ranks have, and to end them


class MPI(Communicator):
    """The ranks of an MPI communicator, through mpi4py.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        The communicator, duplicated, so that its other messages do not matter; by default that of all processes.
    cuda_aware : bool
        Hand CuPy's arrays to MPI as they are. It must have been built for that, or it reads memory that it cannot and
        crashes, which is why this is not found out by trying. By default they go through the host's memory.

    Raises
    ------
    ModuleNotFoundError
        mpi4py is not installed.
    RuntimeError
        Threads may not send at once (`MPI_THREAD_MULTIPLE`), which mpi4py asks for by default.

    Notes
    -----
    A program that has made one ends as a whole: an exception that nobody catches on any rank is printed, and all ranks
    are ended (``MPI_Abort``), within seconds, in place of waiting for ever for the one that failed.

    Examples
    --------
    >>> communicator = MPI()  # doctest: +SKIP
    >>> communicator.rank, communicator.size  # doctest: +SKIP
    (0, 1)
    """

    def __init__(self, comm: Any = None, cuda_aware: bool = False) -> None:
        self._mpi = optional("MPI", "mpi4py.MPI", "mpi")
        if self._mpi.Query_thread() < self._mpi.THREAD_MULTIPLE:
            raise RuntimeError("MPI: threads may not send at once here, expected MPI_THREAD_MULTIPLE, mpi4py's default")
        self._comm = (self._mpi.COMM_WORLD if comm is None else comm).Dup()
        super().__init__(self._comm.Get_rank(), self._comm.Get_size())
        self.stages = not cuda_aware
        self._end_together()

    def transfer(self, sends: Mapping[int, Array], receives: Mapping[int, Array]) -> None:
        """As `Communicator.transfer`, by messages of bytes."""
        for array in sends.values():
            _synchronize(array)
        requests = [self._comm.Irecv(self._message(array), source=peer) for peer, array in receives.items()]
        requests += [self._comm.Isend(self._message(array), dest=peer) for peer, array in sends.items()]
        statuses = [self._mpi.Status() for _ in requests]
        self._mpi.Request.Waitall(requests, statuses)
        for (peer, array), status in zip(receives.items(), statuses, strict=False):
            got = status.Get_count(self._mpi.BYTE)
            if got != array.nbytes:
                raise RuntimeError(f"MPI: got {got} bytes from rank {peer}, expected {array.nbytes}; do all ranks run?")

    def _message(self, array: Array) -> list[Any]:
        return [array.reshape(-1).view("uint8"), self._mpi.BYTE]

    def _duplicate(self) -> MPI:
        return MPI(self._comm, cuda_aware=not self.stages)

    def abort(self) -> None:
        """End all ranks at once, with exit status 1."""
        self._comm.Abort(1)

    def _end_together(self) -> None:
        """Let an exception that ends this process end all, after it was printed."""
        if self.size == 1 or getattr(sys.excepthook, "ends_all", False):
            return

        def hook(kind: Any, error: Any, trace: Any) -> None:
            if self.rank:
                time.sleep(HEAD_START)
            text = "".join(traceback.format_exception(kind, error, trace))
            print(
                f"gpucnn: rank {self.rank} of {self.size} failed, which ends all:\n{text}", file=sys.stderr, flush=True
            )
            sys.stdout.flush()
            self.abort()

        hook.ends_all = True  # type: ignore[attr-defined]
        sys.excepthook = hook


def _synchronize(array: Array) -> None:
    """Wait until a device has computed an array, where it is one of a device that computes behind the program."""
    device: Any = getattr(array, "device", None)
    if hasattr(device, "synchronize"):
        device.synchronize()
