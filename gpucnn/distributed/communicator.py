"""The base of communicators: collectives in a fixed order, made of messages between two ranks."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from gpucnn.backends import backend_of
from gpucnn.backends.dtypes import accumulator

__all__ = ["Communicator", "shares"]

Array = Any
Self = TypeVar("Self", bound="Communicator")


class Communicator:
    """The ranks of a computation, and messages between them; a subclass sends them by its `transfer`.

    Attributes
    ----------
    rank : int
        The number of this process, from 0.
    size : int
        The number of all.
    bytes_sent : int
        The bytes of all messages that this rank has sent, those of duplicates included.
    stages : bool
        Whether arrays in a device's memory go through the host's. Where they do not, `transfer` is handed them.

    Notes
    -----
    All ranks make the same calls in the same order, with arrays of the same shapes and dtypes. Every collective sends
    each value directly to those that need it, and sums are added in the order of the ranks: ((rank 0 + rank 1) +
    rank 2) + …, in float32 for 16 bits, rounded once. So results have the same bits on all ranks and in every run.
    """

    stages = True

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._sent = 0
        self._duplicates: list[Communicator] = []

    # --- What a subclass defines ----------------------------------------------------------------------------------

    def transfer(self, sends: Mapping[int, Array], receives: Mapping[int, Array]) -> None:
        """Send each array in `sends` to its rank, fill each in `receives` from its; all are contiguous, none empty."""
        raise NotImplementedError(f"{type(self).__name__} defines no transfer")

    def _duplicate(self: Self) -> Self:
        raise NotImplementedError(f"{type(self).__name__} defines no _duplicate")

    def abort(self) -> None:
        """End all ranks."""
        raise NotImplementedError(f"{type(self).__name__} defines no abort")

    # --- Messages -------------------------------------------------------------------------------------------------

    @property
    def bytes_sent(self) -> int:
        """The bytes sent so far."""
        return self._sent + sum(each.bytes_sent for each in self._duplicates)

    def duplicate(self: Self) -> Self:
        """A communicator of the same ranks whose messages are not mixed up with this one's: for another thread."""
        made = self._duplicate()
        self._duplicates.append(made)
        return made

    def send(self, array: Array, to: int) -> None:
        """Send an array to a rank, which receives one of its shape and dtype."""
        self.exchange({to: array}, {})

    def receive(self, array: Array, source: int) -> Array:
        """Fill `array` by what a rank sends; it is returned."""
        self.exchange({}, {source: array})
        return array

    def exchange(self, sends: Mapping[int, Array], receives: Mapping[int, Array]) -> None:
        """Send and receive at once, to and from any other ranks: neighbours that do so do not wait for each other.

        Parameters
        ----------
        sends : mapping of int to array
            The array for each rank that gets one.
        receives : mapping of int to array
            The array to fill from each rank that sends one.

        Raises
        ------
        ValueError
            A rank is this one, or none of the communicator's.
        """
        for peer in (*sends, *receives):
            if not 0 <= peer < self.size or peer == self.rank:
                raise ValueError(f"Communicator: peer is {peer}, expected one of {self.size} ranks but not {self.rank}")
        outgoing = {peer: self._sendable(array) for peer, array in sends.items() if array.size}
        incoming = {peer: self._fillable(array) for peer, array in receives.items() if array.size}
        self.transfer(outgoing, incoming)
        self._sent += sum(array.nbytes for array in outgoing.values())
        for peer, array in incoming.items():
            if array is not receives[peer]:
                receives[peer][...] = backend_of(receives[peer]).xp.asarray(array)

    def _sendable(self, array: Array) -> Array:
        """A contiguous array for `transfer` with the values of `array`."""
        xp = backend_of(array).xp
        if self.stages and xp is not np:
            return np.ascontiguousarray(xp.asnumpy(array))
        return xp.ascontiguousarray(array)

    def _fillable(self, array: Array) -> Array:
        """A contiguous array for `transfer` of the form of `array`, itself if it can be."""
        xp = backend_of(array).xp
        if self.stages and xp is not np:
            return np.empty(array.shape, array.dtype)
        return array if array.flags.c_contiguous else xp.empty(array.shape, array.dtype)

    # --- Collectives ----------------------------------------------------------------------------------------------

    def all_gather(self, array: Array) -> Array:
        """The arrays of all ranks, in their order: [size, *shape]."""
        gathered = backend_of(array).xp.empty((self.size, *array.shape), array.dtype)
        gathered[self.rank] = array
        self.exchange(dict.fromkeys(self._peers(), array), {peer: gathered[peer : peer + 1] for peer in self._peers()})
        return gathered

    def broadcast(self, array: Array, root: int = 0) -> Array:
        """Fill `array` on all ranks by that of `root`; it is returned."""
        if self.rank == root:
            self.exchange(dict.fromkeys(self._peers(), array), {})
            return array
        return self.receive(array, root)

    def all_reduce(self, array: Array) -> Array:
        """Replace `array` by the sum of the arrays of all ranks; it is returned.

        Notes
        -----
        Each rank sums a share of the elements, as `shares` divides them, and sends it to the others: it sends
        ``2 (size - 1) / size`` times the array on average, as much as a ring.
        """
        xp = backend_of(array).xp
        staged = self.stages and xp is not np
        flat = (xp.asnumpy(array) if staged else array).reshape(-1)
        self._sum(flat)
        if staged or not array.flags.c_contiguous:  # else flat is a view
            array[...] = xp.asarray(flat).reshape(array.shape)
        return array

    def _sum(self, flat: Array) -> None:
        xp, parts = backend_of(flat).xp, [flat[share] for share in shares(flat.size, self.size)]
        own = parts[self.rank]
        addends = {peer: xp.empty(own.shape, own.dtype) for peer in self._peers()}
        self.exchange({peer: parts[peer] for peer in self._peers()}, addends)
        addends[self.rank] = own
        total = addends[0].astype(accumulator(flat.dtype), copy=False)
        with np.errstate(over="ignore", invalid="ignore"):  # a loss scaler finds its limit by these
            for rank in range(1, self.size):
                total += addends[rank]
            if total is not own:
                own[...] = total
        self.exchange(dict.fromkeys(self._peers(), own), {peer: parts[peer] for peer in self._peers()})

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self.all_gather(np.zeros(1, np.uint8))

    def _peers(self) -> list[int]:
        """The other ranks."""
        return [peer for peer in range(self.size) if peer != self.rank]

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        """The communicator itself: a copy of a model has the same ranks."""
        return self


def shares(count: int, size: int) -> list[slice]:
    """`count` elements divided into `size` ranges in order, whose lengths differ by at most one.

    Examples
    --------
    >>> shares(5, 2)
    [slice(0, 2, None), slice(2, 5, None)]
    """
    bounds = [rank * count // size for rank in range(size + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]
