"""Batches of arrays, in an order and with augmentations that a seed alone determines."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from gpucnn.backends import backend_of, receive
from gpucnn.data.augmentation import Augmentation
from gpucnn.data.images import Host, Seed

Array = Any
Batch = tuple[Array, Array]


class Loader:
    """Batches of images and labels: ``for x, y in loader`` goes through all of them once, an epoch.

    Parameters
    ----------
    x : array [N, …]
        The images; NumPy's, or on a device, where the batches are then gathered.
    y : array [N, …]
        The label of each.
    batch_size : int
        The size of a batch.
    shuffle : bool
        Whether each epoch goes through them in a new order.
    rng : Generator, int or None
        The source of orders and augmentations: the same int makes the same batches in each run.
    augment : callable, optional
        ``augment(x, rng) -> x`` for a batch of NumPy's, such as `Shift`, `Flip`, `Crop`, or a `Compose` of them.
    drop_last : bool
        Whether a last batch of fewer than `batch_size` is left out.
    prefetch : int
        The number of batches that a thread prepares ahead; 0 prepares each on demand.
    shard : tuple of two ints
        (rank, size): each of `size` loaders with the same arguments and another rank gives its share of every batch.

    Raises
    ------
    TypeError
        x or y is not an array, `batch_size` or `prefetch` not an int, or `shard` no pair of ints.
    ValueError
        x and y differ in length, there is no batch, or a number is out of range.

    Notes
    -----
    The order of epoch e is drawn by a generator seeded with (seed, e), the augmentation of its batch b by one seeded
    with (seed, e, b). So a batch depends neither on threads nor on the batches before it, and three numbers are the
    loader's whole state: a loader that is given them by `load_state_dict` continues with the batch that would have come
    next. An epoch that was left early is not resumed: the next iteration begins the next epoch.

    Of several shards `batch_size` is the size of a whole batch, and the seed the same. Batch b of all of them together,
    in the order of the ranks, is batch b of one loader, so each sample comes once an epoch, and the state of one shard
    is that of all, and of any number. Sizes of shares differ by at most one, and can be 0 in a small last batch. What
    `augment` draws for a share is seeded with (seed, e, b, rank).

    Attributes
    ----------
    epoch : int
        The epoch that is under way, or begins next.
    batch : int
        The number of its batches handed out.

    Examples
    --------
    >>> loader = Loader(np.arange(5.0), np.arange(5), batch_size=2, shuffle=True, rng=0)
    >>> len(loader), [y.tolist() for _, y in loader]
    (3, [[3, 4], [2, 0], [1]])
    """

    def __init__(
        self,
        x: Array,
        y: Array,
        batch_size: int = 32,
        shuffle: bool = False,
        rng: Seed = None,
        augment: Augmentation | None = None,
        drop_last: bool = False,
        prefetch: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        for name, values in (("x", x), ("y", y)):
            if not receive("Loader", {name: values})[1][0].ndim:
                raise ValueError(f"Loader: {name} has no axes, expected one value or image a sample")
        if len(x) != len(y):
            raise ValueError(f"Loader: x has {len(x)} elements and y {len(y)}, expected as many")
        self.x, self.y = x, y
        self.batch_size = _integer("batch_size", batch_size, 1)
        self.prefetch = _integer("prefetch", prefetch, 0)
        self.shuffle, self.augment, self.drop_last = shuffle, augment, drop_last
        self.shard = _shard(shard)
        if not len(self):
            raise ValueError(
                f"Loader: {len(x)} elements make no batch of {self.batch_size}, expected at least one batch"
            )
        self.seed = int(np.random.default_rng(rng).integers(2**63))
        self.epoch = 0
        self.batch = 0
        self._restored = False

    def __len__(self) -> int:
        """The number of batches of an epoch."""
        n = len(self.x)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the next epoch, or the rest of the restored one."""
        if self.batch and not self._restored:
            self.epoch, self.batch = self.epoch + 1, 0
        self._restored = False
        epoch, order = self.epoch, self._order(self.epoch)
        for batch, pair in enumerate(self._batches(epoch, self.batch, order), start=self.batch):
            self.epoch, self.batch = epoch, batch + 1
            yield pair
        self.epoch, self.batch = epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """The state for `load_state_dict` to resume from: seed, epoch, and the number of its batches handed out."""
        return {"seed": self.seed, "epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from the state of a loader with the same data and arguments.

        Parameters
        ----------
        state : mapping
            As `state_dict` gave it.

        Raises
        ------
        KeyError
            A number is missing; nothing was changed.
        ValueError
            A number is negative, or there are fewer batches; nothing was changed.
        """
        missing = [name for name in ("seed", "epoch", "batch") if name not in state]
        if missing:
            raise KeyError(f"Loader.load_state_dict: got {sorted(state)}, expected seed, epoch and batch")
        seed, epoch, batch = (int(state[name]) for name in ("seed", "epoch", "batch"))
        if min(seed, epoch, batch) < 0 or batch > len(self):
            raise ValueError(f"Loader: the state is at batch {batch} of epoch {epoch}, expected at most {len(self)}")
        self.seed, self.epoch, self.batch = seed, epoch, batch
        self._restored = True

    def _order(self, epoch: int) -> Host:
        n = len(self.x)
        return self._generator(epoch).permutation(n) if self.shuffle else np.arange(n)

    def _generator(self, *place: int) -> np.random.Generator:
        """The random generator of an epoch, or of one of its batches."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=place))

    def _prepared(self, epoch: int, batch: int, order: Host) -> Batch:
        """Batch `batch` of an epoch."""
        rank, size = self.shard
        at = order[batch * self.batch_size : (batch + 1) * self.batch_size]
        at = at[rank * len(at) // size : (rank + 1) * len(at) // size]
        x, y = (values[backend_of(values).xp.asarray(at)] for values in (self.x, self.y))
        place = (epoch, batch) if size == 1 else (epoch, batch, rank)
        return (x if self.augment is None else self.augment(x, self._generator(*place))), y

    def _batches(self, epoch: int, start: int, order: Host) -> Iterator[Batch]:
        """From batch `start` on; prepared ahead if `prefetch` says so."""
        if not self.prefetch:
            yield from (self._prepared(epoch, batch, order) for batch in range(start, len(self)))
            return
        ahead: deque[Future[Batch]] = deque()
        executor = ThreadPoolExecutor(1, "gpucnn-loader")
        try:
            for batch in range(start, len(self)):
                ahead.append(executor.submit(self._prepared, epoch, batch, order))
                if len(ahead) > self.prefetch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _shard(value: Any) -> tuple[int, int]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"Loader: shard is {value!r}, expected a tuple (rank, size)")
    rank, size = _integer("shard's rank", value[0], 0), _integer("shard's size", value[1], 1)
    if rank >= size:
        raise ValueError(f"Loader: shard is {value}, expected a rank below the size")
    return rank, size


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"Loader: {name} is a {type(value).__name__}, expected an int")
    if value < least:
        raise ValueError(f"Loader: {name} is {value}, expected at least {least}")
    return int(value)
