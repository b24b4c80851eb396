"""Messages and collectives of ranks that are threads, staged arrays, and NCCL's calls by a stand-in."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from rank_threads import on_ranks

from gpucnn.distributed import NCCL, local
from gpucnn.distributed.communicator import shares


class Backend:
    """What NCCL's wrapper does with arrays of a device, by another communicator."""

    def __init__(self, communicator: Any) -> None:
        self.rank, self._communicator = communicator.rank, communicator

    def send(self, array: Any, peer: int) -> None:
        assert array.dtype == np.uint8
        self._communicator.transfer({peer: array}, {})

    def recv(self, array: Any, peer: int) -> None:
        assert array.dtype == np.uint8
        self._communicator.transfer({}, {peer: array})


class Calls:
    """The part of cupy.cuda.nccl that makes one call of several."""

    def __init__(self) -> None:
        self.depth, self.groups = 0, 0

    def groupStart(self) -> None:  # noqa: N802
        self.depth, self.groups = self.depth + 1, self.groups + 1

    def groupEnd(self) -> None:  # noqa: N802
        self.depth -= 1


def made(kind: str, communicator: Any) -> Any:
    if kind == "threads":
        return communicator
    return NCCL(Backend(communicator.duplicate()), communicator, Calls())


KINDS = ["threads", "NCCL"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_sums_are_in_the_order_of_the_ranks(backend: ArrayBackend, kind: str, size: int) -> None:
    rng = np.random.default_rng(0)
    for dtype in ("float16", "float32", "float64", "int64"):
        for shape in ((), (1,), (7,), (3, 4, 5), (0,)):
            values = (rng.standard_normal((size, *shape)) * 10.0 ** rng.integers(-3, 4, (size, *shape))).astype(dtype)
            expected = values[0].astype(np.float32 if dtype == "float16" else dtype)
            for value in values[1:]:
                expected = expected + value
            work = lambda each, values=values: made(kind, each).all_reduce(backend.asarray(np.array(values[each.rank])))  # noqa: E731
            for result in on_ranks(size, work):
                assert backend.asnumpy(result).tobytes() == expected.astype(dtype).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_collectives_and_neighbours(backend: ArrayBackend, kind: str) -> None:
    def work(given: Any) -> None:
        communicator, rank = made(kind, given), given.rank
        own = backend.asarray(np.array([[rank, 1], [2, 3]], np.float32))
        gathered = backend.asnumpy(communicator.all_gather(own))
        assert gathered.tolist() == [[[each, 1], [2, 3]] for each in range(3)]
        flipped = backend.asarray(np.array([[rank, 1], [2, 3]], np.float32)).T  # not contiguous
        communicator.all_reduce(flipped)
        assert backend.asnumpy(flipped).tolist() == [[3, 6], [3, 9]]
        for root in range(3):
            sent = communicator.broadcast(backend.asarray(np.full((2, 2), rank, np.int64)).T, root)
            assert (backend.asnumpy(sent) == root).all()
        left, right = backend.asarray(np.zeros(2)), backend.asarray(np.ones(2) * rank)
        communicator.exchange({(rank + 1) % 3: right}, {(rank - 1) % 3: left})
        assert (backend.asnumpy(left) == (rank - 1) % 3).all()
        if rank == 0:
            communicator.send(backend.asarray(np.arange(4.0)), 2)
        elif rank == 2:
            assert backend.asnumpy(communicator.receive(backend.asarray(np.zeros(4)), 0)).tolist() == [0, 1, 2, 3]
        communicator.barrier()

    on_ranks(3, work)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_bytes_are_counted(kind: str, size: int) -> None:
    def work(given: Any) -> list[int]:
        communicator = made(kind, given)
        sent = []
        for call in (
            lambda: communicator.all_reduce(np.zeros(10, np.float32)),
            lambda: communicator.all_gather(np.zeros((3, 2), np.float64)),
            lambda: communicator.broadcast(np.zeros(5, np.int16), root=size - 1),
            lambda: communicator.duplicate().all_gather(np.zeros(3, np.uint8)),
        ):
            before = communicator.bytes_sent
            call()
            sent.append(communicator.bytes_sent - before)
        return sent

    sent = on_ranks(size, work)
    own = [share.stop - share.start for share in shares(10, size)]
    assert sum(own) == 10
    assert [row[0] for row in sent] == [4 * (10 - each + (size - 1) * each) for each in own]
    assert sum(row[0] for row in sent) == 2 * (size - 1) * 40
    assert {row[1] for row in sent} == {48 * (size - 1)}
    assert [row[2] for row in sent] == [0] * (size - 1) + [10 * (size - 1)]
    assert {row[3] for row in sent} == {3 * (size - 1)}


def test_a_duplicate_has_messages_of_its_own() -> None:
    def work(communicator: Any) -> list[float]:
        other = communicator.duplicate()
        if communicator.rank == 0:
            communicator.send(np.array([1.0]), 1)
            other.send(np.array([2.0]), 1)
            return []
        return [other.receive(np.zeros(1), 0)[0], communicator.receive(np.zeros(1), 0)[0]]

    assert on_ranks(2, work)[1] == [2.0, 1.0]


def test_copies_of_models_have_the_same_ranks() -> None:
    communicator = local(2)[1]
    assert copy.deepcopy({"ranks": communicator})["ranks"] is communicator


def test_nccl_makes_one_call_of_an_exchange() -> None:
    calls = Calls()

    def work(communicator: Any) -> None:
        group = calls if communicator.rank == 0 else Calls()
        nccl = NCCL(Backend(communicator.duplicate()), communicator, group)
        nccl.all_gather(np.zeros(2))  # of the host's arrays: by the other communicator
        assert group.groups == 0
        assert nccl.duplicate().rank == communicator.rank

    on_ranks(2, work)
    with pytest.raises(ValueError, match="backend has rank 1 and control 0"):
        NCCL(Backend(local(2)[1]), local(2)[0], calls)


def test_errors() -> None:
    communicator = local(2)[0]
    for peer in (0, 2, -1):
        with pytest.raises(ValueError, match=f"peer is {peer}, expected one of 2 ranks but not 0"):
            communicator.send(np.zeros(1), peer)
    with pytest.raises(ValueError, match="size is 0"):
        local(0)
    communicator.abort()
    with pytest.raises(RuntimeError, match="rank 0 waited for rank 1, but all were ended"):
        communicator.receive(np.zeros(1), 1)


def test_the_first_error_of_a_rank_ends_all() -> None:
    def work(communicator: Any) -> None:
        if communicator.rank == 1:
            raise ZeroDivisionError
        communicator.barrier()

    with pytest.raises(ZeroDivisionError):
        on_ranks(3, work)
