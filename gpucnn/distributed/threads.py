"""Ranks that are threads of this process: to test a program for many devices without any."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping

from gpucnn.distributed.communicator import Array, Communicator

__all__ = ["local"]

POLL = 0.05  # seconds between two looks at whether another rank has failed

Channel = tuple[int, ...]
Mail = dict[tuple[Channel, int, int], "queue.Queue[Array]"]


class Local(Communicator):
    """A rank that is a thread; `local` makes them."""

    def __init__(self, rank: int, size: int, mail: Mail, ended: threading.Event, channel: Channel = ()) -> None:
        super().__init__(rank, size)
        self._mail, self._ended, self._channel = mail, ended, channel

    def transfer(self, sends: Mapping[int, Array], receives: Mapping[int, Array]) -> None:
        """As `Communicator.transfer`, by copies."""
        for peer, array in sends.items():
            self._letters(self.rank, peer).put(array.copy())
        for peer, array in receives.items():
            array[...] = self._next(peer).reshape(array.shape)

    def _letters(self, source: int, to: int) -> queue.Queue[Array]:
        return self._mail.setdefault((self._channel, source, to), queue.Queue())

    def _next(self, peer: int) -> Array:
        """The next array that a rank has sent to this one."""
        while not self._ended.is_set():
            try:
                return self._letters(peer, self.rank).get(timeout=POLL)
            except queue.Empty:
                continue
        raise RuntimeError(f"local: rank {self.rank} waited for rank {peer}, but all were ended")

    def _duplicate(self) -> Local:
        channel = (*self._channel, len(self._duplicates))  # all ranks make them in the same order
        return Local(self.rank, self.size, self._mail, self._ended, channel)

    def abort(self) -> None:
        """End all ranks: a `RuntimeError` is raised on each that waits for a message."""
        self._ended.set()


def local(size: int) -> list[Communicator]:
    """Communicators of `size` ranks in this process, one for each of as many threads.

    Parameters
    ----------
    size : int
        The number of ranks.

    Returns
    -------
    list of Communicator
        By rank. If a thread fails it should call ``abort()``, so that the others do not wait for it.

    Raises
    ------
    ValueError
        There would be none.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> import numpy as np
    >>> with ThreadPoolExecutor(2) as threads:
    ...     for total in threads.map(lambda each: each.all_reduce(np.array([each.rank, 1.0])), local(2)):
    ...         print(total)
    [1. 2.]
    [1. 2.]
    """
    if size < 1:
        raise ValueError(f"local: size is {size}, expected at least 1")
    mail: Mail = {}
    ended = threading.Event()
    return [Local(rank, size, mail, ended) for rank in range(size)]
