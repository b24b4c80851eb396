"""Ranks that are GPUs, whose arrays NCCL sends from one to the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpucnn.distributed.communicator import Array, Communicator
from gpucnn.installing import optional

__all__ = ["NCCL"]


class NCCL(Communicator):
    """The ranks of a ``cupyx.distributed.NCCLBackend``, a process and a GPU each.

    Parameters
    ----------
    backend : NCCLBackend
        As ``cupyx.distributed.init_process_group(n, rank, use_mpi=True)`` returns it. Any object with its `rank`,
        `send` and `recv` does.
    control : Communicator
        An `MPI` of the same ranks. It sends what is in the host's memory, such as counts, and ends all ranks.
    calls : module, optional
        An object with ``groupStart`` and ``groupEnd``, by default ``cupy.cuda.nccl``.

    Raises
    ------
    ModuleNotFoundError
        CuPy is not installed.
    ValueError
        The ranks are not the same.

    Notes
    -----
    Messages are on the current stream, behind what computes the arrays, and the host does not wait for them. The sums
    are made as in every `Communicator`, in the order of the ranks, not by NCCL. NCCL's other way to begin, a store over
    TCP in place of MPI, is known to hang when a process fails.

    Examples
    --------
    >>> control = MPI()  # doctest: +SKIP
    >>> backend = cupyx.distributed.init_process_group(control.size, control.rank, use_mpi=True)  # doctest: +SKIP
    >>> communicator = NCCL(backend, control)  # doctest: +SKIP
    """

    stages = False

    def __init__(self, backend: Any, control: Communicator, calls: Any = None) -> None:
        if int(backend.rank) != control.rank:
            raise ValueError(f"NCCL: backend has rank {backend.rank} and control {control.rank}, expected the same")
        super().__init__(control.rank, control.size)
        self._backend, self._control = backend, control
        self._calls = optional("NCCL", "cupy.cuda.nccl", "cuda12") if calls is None else calls

    def transfer(self, sends: Mapping[int, Array], receives: Mapping[int, Array]) -> None:
        """As `Communicator.transfer`: by NCCL, and what is NumPy's by `control`."""
        if any(isinstance(array, np.ndarray) for array in (*sends.values(), *receives.values())):
            self._control.transfer(sends, receives)
            return
        self._calls.groupStart()
        for peer, array in sends.items():
            self._backend.send(_bytes(array), peer)
        for peer, array in receives.items():
            self._backend.recv(_bytes(array), peer)
        self._calls.groupEnd()

    def _duplicate(self) -> NCCL:
        return NCCL(self._backend, self._control.duplicate(), self._calls)

    def abort(self) -> None:
        """End all ranks at once."""
        self._control.abort()


def _bytes(array: Array) -> Array:
    """A contiguous array as bytes, which NCCL takes of every dtype."""
    return array.reshape(-1).view("uint8")
