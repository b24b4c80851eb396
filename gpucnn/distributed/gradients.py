"""Gradients summed over ranks, bucket by bucket, while the backward computes the next ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np

from gpucnn.backends import backend_of
from gpucnn.distributed.communicator import Communicator, shares

__all__ = ["GradientReducer", "volume"]

MEGABYTE = 2**20


class GradientReducer:
    """A block in which a backward runs: after it each gradient is the sum over all ranks.

    Parameters
    ----------
    parameters : iterable of Parameter
        Those of a model, as ``model.parameters()`` gives them: one that several modules share comes several times.
    communicator : Communicator
        The ranks.
    bucket_mb : float
        The size of a message in MiB: gradients are sent when so many are complete.

    Raises
    ------
    ValueError
        `bucket_mb` is not above 0.

    Notes
    -----
    Buckets are filled in the reverse order of the parameters, which is that of a backward, and are summed in one order
    on all ranks, by a thread in the background where the arrays are NumPy's. For other arrays it is the calling thread
    that sends, and whether that waits is the communicator's matter.

    A parameter that has no gradient on a rank counts as zeros there; if it has none on any rank, it stays without. The
    gradients are views of the buckets, which the next block writes to.

    For the mean over the whole batch, let each rank begin its backward with ``loss.backward(n / total)``, where its
    loss is the mean over n of all the total samples; `gpucnn.nn.fit` does.

    Examples
    --------
    >>> from gpucnn import nn
    >>> from gpucnn.distributed import local
    >>> layer, (communicator,) = nn.Linear(2, 1), local(1)
    >>> y = layer(np.ones((4, 2), np.float32))
    >>> with GradientReducer(layer.parameters(), communicator):
    ...     grad = layer.backward(np.ones_like(y))
    >>> layer.bias.grad
    array([4.], dtype=float32)
    """

    def __init__(self, parameters: Iterable[Any], communicator: Communicator, bucket_mb: float = 25.0) -> None:
        self._bucket_bytes = _bytes("GradientReducer", bucket_mb)
        given = list(parameters)
        self._uses = Counter(given)  # the number of modules that add to each gradient
        self._parameters = list(dict.fromkeys(given))
        self._communicator = communicator if communicator.size == 1 else communicator.duplicate()
        self._thread = ThreadPoolExecutor(1, "gpucnn-gradients")  # begins with the first bucket
        self._buckets: list[_Bucket] = []
        self._learned: list[Any] = []

    def __enter__(self) -> GradientReducer:
        learned = [parameter for parameter in self._parameters if parameter.requires_grad]
        if learned != self._learned:
            self._learned = learned
            self._buckets = [_Bucket(each) for each in buckets(learned, self._bucket_bytes)]
        self._left = {parameter: self._uses[parameter] for parameter in learned}
        self._home = {parameter: bucket for bucket in self._buckets for parameter in bucket.parameters}
        self._missing = {bucket: len(bucket.parameters) for bucket in self._buckets}
        self._sums: list[Future[Any]] = []
        if self._communicator.size > 1:
            for parameter in learned:
                parameter.on_accumulate = self._added
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._communicator.size == 1:
            return
        for parameter in self._learned:
            parameter.on_accumulate = None
        if kind is not None:  # sums that are under way are left: the others may never come to them
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = ThreadPoolExecutor(1, "gpucnn-gradients")
            return
        self._send(len(self._buckets))
        for bucket, each in zip(self._buckets, self._sums, strict=True):
            each.result()
            bucket.hand_out()

    def _added(self, parameter: Any) -> None:
        """Note that a module has added to a gradient; send the buckets that are complete by that."""
        self._left[parameter] -= 1
        if self._left[parameter] > 0:
            return
        if self._left[parameter] < 0:
            raise RuntimeError(
                f"GradientReducer: the gradient of {parameter!r} is added to more often than modules share it, "
                "expected one call of Parameter.accumulate for each module and backward"
            )
        self._missing[self._home[parameter]] -= 1
        at = len(self._sums)
        while at < len(self._buckets) and not self._missing[self._buckets[at]]:
            at += 1
        self._send(at)

    def _send(self, until: int) -> None:
        """Sum the buckets up to number `until` that are not under way, in their order."""
        for bucket in self._buckets[len(self._sums) : until]:
            bucket.fill()
            if isinstance(bucket.flat, np.ndarray):
                self._sums.append(self._thread.submit(self._communicator.all_reduce, bucket.flat))
            else:
                done: Future[Any] = Future()
                done.set_result(self._communicator.all_reduce(bucket.flat))
                self._sums.append(done)


class _Bucket:
    """Gradients of some parameters one after the other, and for each the number of ranks that have one."""

    def __init__(self, parameters: list[Any]) -> None:
        self.parameters = parameters
        like = parameters[0].data
        sizes = [parameter.size for parameter in parameters]
        ends = np.cumsum([0, *sizes]).tolist()
        self.flat = backend_of(like).xp.empty(bucket_elements(parameters), like.dtype)
        self._views = [
            self.flat[start:end].reshape(parameter.shape)
            for parameter, start, end in zip(parameters, ends[:-1], ends[1:], strict=True)
        ]
        self._counts = self.flat[ends[-1] :]
        self._has: list[bool] = []

    def fill(self) -> None:
        """Take the gradients of this rank."""
        self._has = [parameter.grad is not None for parameter in self.parameters]
        for parameter, view, has in zip(self.parameters, self._views, self._has, strict=True):
            view[...] = parameter.grad if has else 0
        self._counts[...] = backend_of(self.flat).xp.asarray(np.array(self._has, self.flat.dtype))

    def hand_out(self) -> None:
        """Give each parameter the sum. Only where this rank has no gradient it asks whether another one has."""
        for at, parameter in enumerate(self.parameters):
            if self._has[at] or float(self._counts[at]):
                parameter.grad = self._views[at]


def _bytes(op: str, bucket_mb: float) -> float:
    if not bucket_mb > 0:
        raise ValueError(f"{op}: bucket_mb is {bucket_mb}, expected more than 0")
    return bucket_mb * MEGABYTE


def buckets(parameters: list[Any], least_bytes: float) -> Iterator[list[Any]]:
    """Parameters from the last to the first, in groups of one dtype that have at least so many bytes."""
    waiting: dict[Any, list[Any]] = {}
    for parameter in reversed(parameters):
        kind = parameter.data.dtype
        waiting.setdefault(kind, []).append(parameter)
        if sum(each.data.nbytes for each in waiting[kind]) >= least_bytes:
            yield waiting.pop(kind)
    yield from waiting.values()


def bucket_elements(parameters: list[Any]) -> int:
    """The number of elements that are sent for the parameters of a bucket."""
    return sum(int(parameter.size) for parameter in parameters) + len(parameters)


def volume(parameters: Iterable[Any], rank: int, size: int, bucket_mb: float = 25.0) -> int:
    """The bytes that a rank sends to sum the gradients of parameters over all ranks, once.

    Parameters
    ----------
    parameters : iterable of Parameter
        As for `GradientReducer`.
    rank, size : int
        The rank, and the number of all.
    bucket_mb : float
        The size of a message in MiB.

    Returns
    -------
    int
        ``Communicator.bytes_sent`` grows by it in each backward.

    Raises
    ------
    ValueError
        `bucket_mb` is not above 0.

    Notes
    -----
    Of E elements (each parameter has one more, by which ranks know who has a gradient) a rank sums a share of e: it
    sends the other E - e elements to those who sum them, and its sums to all others, which are (size - 1) e.
    Over all ranks that is ``2 (size - 1) E`` elements.

    Examples
    --------
    >>> from gpucnn import nn
    >>> volume(nn.Linear(10, 10).parameters(), 0, 2)  # two ranks: (100 + 10 + 2) elements of four bytes
    448
    """
    learned = [parameter for parameter in dict.fromkeys(parameters) if parameter.requires_grad]
    total = 0
    for bucket in buckets(learned, _bytes("volume", bucket_mb)):
        elements = bucket_elements(bucket)
        share = shares(elements, size)[rank]
        own = share.stop - share.start
        total += (elements - own + (size - 1) * own) * int(bucket[0].data.dtype.itemsize)
    return total
