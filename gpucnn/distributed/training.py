"""Collective steps of the ranks of `gpucnn.nn.fit`; `gpucnn.nn._ranks.Alone` is a process alone."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from gpucnn.backends import backend_of
from gpucnn.distributed.communicator import Array, Communicator
from gpucnn.distributed.gradients import GradientReducer

T = TypeVar("T")
Host = np.ndarray[Any, Any]
Numbers = tuple[float, float, int, int | None, int]


class Ranks:
    """The ranks of a communicator in a training run. All of them make the same calls, and decide alike."""

    def __init__(self, communicator: Communicator) -> None:
        for name in ("rank", "size", "all_gather", "broadcast", "all_reduce"):
            if not hasattr(communicator, name):
                raise TypeError(
                    f"fit: communicator is a {type(communicator).__name__} without {name}, expected a "
                    "gpucnn.distributed.Communicator such as MPI()"
                )
        self.rank, self.size = communicator.rank, communicator.size
        self._communicator = communicator
        self._reducer: GradientReducer | None = None
        self._stops = False

    def check(self, model: Any, optimizer: Any, loaders: Mapping[str, Any]) -> None:
        """Raise ValueError where ranks would learn from the same samples, or keep gradients to themselves."""
        place = (self.rank, self.size)
        for name, loader in loaders.items():
            shard = getattr(loader, "shard", place)
            if shard != place:
                raise ValueError(
                    f"fit: {name} has the shard {shard}, expected {place}: Loader(…, shard=(communicator.rank, "
                    "communicator.size))"
                )
        own = set(model.parameters())
        if not all(parameter in own for group in optimizer.param_groups for parameter in group["params"]):
            raise ValueError("fit: optimizer has parameters that are not the model's, whose gradients no rank sends")

    # --- Beginning ------------------------------------------------------------------------------------------------

    def first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank, for all of them; its exception is raised on all."""
        result: Any = None
        failed = False
        if self.rank == 0:
            try:
                result = make()
            except Exception as error:
                result, failed = _sendable(error), True
        failed, result = pickle.loads(self._communicated(pickle.dumps((failed, result))))
        if failed:
            raise result
        return result  # type: ignore[no-any-return]

    def begin(self, model: Any, generators: Mapping[str, np.random.Generator]) -> None:
        """Let all ranks begin with the first one's weights, and with generators that differ."""
        for array in model.state_dict().values():
            self._communicator.broadcast(array)
        states = self.first(lambda: {name: each.bit_generator.state for name, each in generators.items()})
        for name, generator in generators.items():
            if self.rank and name != "rng":  # which seeds the others, and is used by nothing else
                generator.bit_generator.state = _spread(states[name], self.rank)

    def own(self, states: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
        """The states of this rank's generators; a rank that a checkpoint does not know has others than all it knows."""
        if self.rank == 0:
            return states
        if self.rank <= len(others):
            return others[self.rank - 1]
        return {name: _spread(state, self.rank) for name, state in states.items()}

    # --- A batch --------------------------------------------------------------------------------------------------

    def backward(self, model: Any, loss: Any, output: Array, target: Array, scale: float | None, asked: bool) -> None:
        """The gradients of the whole batch, times `scale`: those of the mean over the targets of all ranks."""
        summed = getattr(loss, "reduction", "mean") == "sum"
        count = 1.0 if summed else float(loss.count(output, target)) if hasattr(loss, "count") else len(output)
        counts = self._meet(True, count, asked)
        total = 1.0 if summed else sum(counts)
        if count or not total:
            weight = count / total if total else 1.0
            grad = loss.backward(weight if scale is None else weight * scale)
        else:  # a mean over nothing is NaN, which would count
            grad = backend_of(output).xp.zeros(output.shape, output.dtype)
            if hasattr(loss, "forget"):
                loss.forget()
        if self._reducer is None:
            self._reducer = GradientReducer(model.parameters(), self._communicator)
        with self._reducer:
            model.backward(grad)
        self._share_buffers(model)

    def _share_buffers(self, model: Any) -> None:
        """Let all ranks have the first one's running statistics, as each sees other samples."""
        changed: dict[Any, list[Array]] = {}
        for module in model.modules():
            if module.training and not getattr(module, "equal_on_all_ranks", False):
                for name in module.buffer_names:
                    array = getattr(module, name)
                    if array is not None:
                        changed.setdefault(array.dtype, []).append(array)
        for arrays in changed.values():
            flat = backend_of(arrays[0]).xp.concatenate([array.reshape(-1) for array in arrays])
            self._communicator.broadcast(flat)
            start = 0
            for array in arrays:
                array[...] = flat[start : start + array.size].reshape(array.shape)
                start += array.size

    def _meet(self, has_batch: bool, count: float, asked: bool) -> list[float]:
        """The counts of all ranks, if all have a batch or none has one; notes whether any is asked to stop."""
        rows = self._communicator.all_gather(np.array([has_batch, count, asked], np.float64))
        with_batch = [rank for rank, row in enumerate(rows) if row[0]]
        if 0 < len(with_batch) < len(rows):
            raise ValueError(f"fit: only the loaders of ranks {with_batch} have another batch, expected as many on all")
        self._stops = bool(rows[:, 2].any())
        return [float(each) for each in rows[:, 1]]

    def ended(self) -> None:
        """Note that this rank has no further batch in the epoch."""
        self._meet(False, 0.0, False)

    def stops(self, asked: bool) -> bool:
        """Whether all ranks stop before the next batch, as they agreed when they last met."""
        return self._stops

    # --- Agreeing -------------------------------------------------------------------------------------------------

    def agreed(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any rank has it."""
        rows = self._communicator.all_gather(np.array(flags, np.uint8))
        return tuple(bool(each) for each in rows.any(axis=0))

    def tallies(self, numbers: Numbers) -> list[Numbers]:
        """The numbers of each rank's tally, in the order of ranks; all have had the same number of batches."""
        *sums, targets, batches = numbers
        rows = self._communicator.all_gather(np.array([*sums, -1 if targets is None else targets])).tolist()
        return [(loss, count, int(hits), None if of < 0 else int(of), batches) for loss, count, hits, of in rows]

    def others(self, states: dict[str, Any]) -> list[dict[str, Any]]:
        """The states of generators of the other ranks, in order; each rank gets those of all."""
        return [pickle.loads(self._communicated(pickle.dumps(states), rank)) for rank in range(1, self.size)]

    def _communicated(self, data: bytes, root: int = 0) -> bytes:
        """The bytes that one rank has."""
        length = self._communicator.broadcast(np.array([len(data)]), root)
        text = np.frombuffer(data, np.uint8).copy() if self.rank == root else np.empty(length[0], np.uint8)
        return bytes(self._communicator.broadcast(text, root))


def _sendable(error: Exception) -> Exception:
    """The error alone, or one of its text where it cannot be pickled, as some of compiled packages."""
    error.__cause__ = error.__context__ = None  # which tblib pickles too, where it is installed
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _spread(state: Mapping[str, Any], rank: int) -> Any:
    """The state of a generator that a rank has where the first one has `state`."""
    kind = getattr(np.random, state["bit_generator"])
    bits = kind()
    bits.state = state
    return kind([int(np.random.Generator(bits).integers(2**63)), rank]).state
