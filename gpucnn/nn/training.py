"""Training: the loop over epochs and batches, with checkpoints and early stopping."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpucnn.backends import backend_of
from gpucnn.backends.dtypes import accumulator
from gpucnn.nn._chain import expect_module, pair_of
from gpucnn.nn._progress import Display, display
from gpucnn.nn._ranks import Alone, Numbers
from gpucnn.nn.checkpoints import File, load_checkpoint, save_checkpoint
from gpucnn.nn.history import History
from gpucnn.nn.keeping import evaluation, modes
from gpucnn.nn.losses import Loss
from gpucnn.nn.module import Array, Module
from gpucnn.nn.optimizers import Optimizer, clip_grad_norm_
from gpucnn.nn.precision import cast
from gpucnn.nn.precision import mixed_precision as mixed
from gpucnn.nn.scaling import LossScaler
from gpucnn.nn.schedules import ReduceLROnPlateau, Schedule

__all__ = ["Checkpoint", "EarlyStopping", "Evaluation", "evaluate", "fit"]

Batches = Iterable[tuple[Array, Array]]
Callback = Callable[[Module, History], Any]

MEASURES = {
    "loss": "losses",
    "accuracy": "accuracies",
    "validation_loss": "validation_losses",
    "validation_accuracy": "validation_accuracies",
}


class Evaluation(NamedTuple):
    """The measures of `evaluate`.

    Attributes
    ----------
    loss : float
        The mean over all targets that count, however they are divided into batches; NaN where none does.
    accuracy : float or None
        The share of targets whose class has the largest output; NaN where none counts, None where they are no classes.
    """

    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Checkpoint:
    """The file in which `fit` keeps a run, and the interval between writes.

    Attributes
    ----------
    path : str or path
        The file, see `save_checkpoint`.
    every : int or None
        Write after this number of batches, in addition to the end of each epoch.
    resume : bool
        Whether to resume from a file that already exists; else it is replaced.
    """

    path: File
    every: int | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"Checkpoint: every is {self.every}, expected at least 1 batch, or None")


@dataclass(frozen=True)
class EarlyStopping:
    """The rule by which `fit` stops early. The best epoch's weights are restored, whether it stopped or not.

    A measure that is NaN is never the best: such an epoch is one without an improvement, the first one included.

    Attributes
    ----------
    patience : int
        Stop after this number of epochs in a row without an improvement.
    monitor : str
        The measure compared: "validation_loss", "validation_accuracy", "loss" or "accuracy".
    min_delta : float
        The least improvement that counts.
    """

    patience: int = 5
    monitor: str = "validation_loss"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"EarlyStopping: patience is {self.patience}, expected at least 1 epoch")
        if self.monitor not in MEASURES:
            raise ValueError(f"EarlyStopping: monitor is {self.monitor!r}, expected one of {', '.join(MEASURES)}")

    def improves(self, value: float, best: float | None) -> bool:
        """Whether `value` is better than `best`, where there is one; NaN never is."""
        if math.isnan(value):
            return False
        if best is None or math.isnan(best):
            return True
        gain = value - best if self.monitor.endswith("accuracy") else best - value
        return gain > self.min_delta


def evaluate(model: Module, loader: Batches, loss: Loss) -> Evaluation:
    """A model's loss and accuracy over batches, in evaluation mode; modes are restored after it.

    Parameters
    ----------
    model : Module
        The network.
    loader : iterable of (x, y)
        The batches; NumPy's are moved to where the model is.
    loss : Loss
        With the reduction "mean" or "sum"; what is measured is the mean for both.

    Returns
    -------
    Evaluation
        Loss and accuracy, over all targets that count: not ignored, and weighted as the loss weights them.

    Raises
    ------
    TypeError
        The loss is not a Loss, or the loader does not give pairs.
    ValueError
        There are no batches, or the loss is not reduced to one number.

    Examples
    --------
    >>> from gpucnn import nn
    >>> x = np.array([[1.0, 0.0], [1.0, 0.0]])
    >>> evaluate(nn.Sequential(), [(x, np.array([0, 1]))], nn.CrossEntropyLoss()).accuracy
    0.5
    """
    expect_module("evaluate", model)
    _check_loss("evaluate", loss)
    return _evaluated(model, loader, loss).result()


def _evaluated(model: Module, loader: Batches, loss: Loss) -> _Tally:
    """The sums of `evaluate`."""
    xp, tally = _xp_of(model), _Tally()
    with evaluation(model):
        for batch in loader:
            x, y = (xp.asarray(array) for array in pair_of("evaluate", batch))
            output = model(x)
            tally.add(loss(output, y), output, y, loss)
    if not tally.batches:
        raise ValueError("evaluate: loader gave no batch, expected at least one")
    return tally


def fit(
    model: Module,
    loader: Batches,
    *,
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    validation: Batches | None = None,
    schedule: Schedule | None = None,
    checkpoint: File | Checkpoint | None = None,
    early_stopping: int | EarlyStopping | None = None,
    clip_norm: float | None = None,
    mixed_precision: str | None = None,
    scaler: LossScaler | None = None,
    rng: np.random.Generator | int | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    communicator: Any = None,
) -> History:
    """Train a model.

    Parameters
    ----------
    model : Module
        The network. Its modes are restored after the training.
    loader : iterable of (x, y)
        The batches of an epoch, such as a `gpucnn.data.Loader` or a list. NumPy's arrays are moved to where the model
        is.
    loss : Loss
        With the reduction "mean" or "sum". The history has the mean over all targets that count for both.
    optimizer : Optimizer
        Over the model's parameters.
    epochs : int
        The total number, including those before a resumption.
    validation : iterable of (x, y), optional
        Batches to evaluate on after each epoch.
    schedule : Schedule, optional
        Takes a step after each epoch, or after each batch where its `per_batch` says so. A `ReduceLROnPlateau` follows
        the validation's loss, or else that of training; a loss that is NaN counts as no improvement.
    checkpoint : str, path or Checkpoint, optional
        A file that always holds the whole run. If it is there, the run goes on from it, bit for bit as if it had not
        been interrupted.
    early_stopping : int or EarlyStopping, optional
        Stop after this number of epochs without a lower validation loss, and restore the best weights.
    clip_norm : float, optional
        Scale each batch's gradients to this norm if theirs is larger, by `clip_grad_norm_`.
    mixed_precision : "float16" or "bfloat16", optional
        Compute in 16 bits with float32 parameters, as within `gpucnn.nn.mixed_precision`.
    scaler : LossScaler, optional
        Scales the loss; by default one does with `mixed_precision` "float16", none otherwise.
    rng : Generator or int, optional
        Seeds the generators of the modules, such as dropouts, when a run begins.
    progress : bool
        Show a bar with loss, accuracy and time left in a terminal with rich installed, lines elsewhere.
    callbacks : sequence of callable
        Each is called as ``callback(model, history)`` after each epoch; if one returns True, the run stops.
    communicator : gpucnn.distributed.Communicator, optional
        The ranks that train the model together; each calls `fit` with its share of all batches, such as that of a
        ``Loader(…, shard=(rank, size))``.

    Returns
    -------
    History
        Of all epochs, those before a resumption included.

    Raises
    ------
    ModuleNotFoundError
        The package safetensors, for `checkpoint`, or ml_dtypes, for bfloat16, is not installed.
    TypeError
        An argument is of another type.
    ValueError
        The loader gives no batches, an option is out of range, the optimizer has none of the model's parameters, the
        schedule is another optimizer's, or the checkpoint is of another run.

    See Also
    --------
    evaluate, Checkpoint, EarlyStopping, History, LossScaler

    Notes
    -----
    A checkpoint holds the model, the optimiser, the schedule, the scaler, the history, the best weights of early
    stopping, the states of all generators, and where in the epoch the run is. Generators are `rng` and the attribute
    ``rng`` of each module, where that is a `numpy.random.Generator`. A loader or validation with ``state_dict()`` and
    ``load_state_dict(state)`` saves its own position: the state is taken between two batches, and an equal loader that
    loads it continues, when iterated, with the batch that would have come next. With any other iterable, batches
    already done are skipped, so it must give the same ones in each epoch.

    Ctrl-C stops after the batch under way, writes the checkpoint, and returns the history so far; a second one stops
    immediately.

    With a `communicator` all ranks begin with the weights of the first one. Gradients are those of the mean over the
    targets of all ranks, summed in a fixed order by a `gpucnn.distributed.GradientReducer` before they are scaled back
    and clipped, so that weights have the same bits on all ranks. Running statistics are those of the first rank, except
    where a `gpucnn.distributed.SyncBatchNorm` has those of all. Losses and accuracies are over all ranks; the first one
    shows progress and writes the checkpoint, from which any number of ranks can go on. Callbacks are called on all.

    Examples
    --------
    >>> from gpucnn import nn
    >>> x = np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32)
    >>> y = (x[:, 0] > x[:, 1]).astype(int)
    >>> model = nn.Sequential(nn.Linear(2, 2, rng=0))
    >>> optimizer = nn.SGD(model.parameters(), lr=0.5)
    >>> batches = [(x[:32], y[:32]), (x[32:], y[32:])]
    >>> history = fit(model, batches, loss=nn.CrossEntropyLoss(), optimizer=optimizer, epochs=20, progress=False)
    >>> history.accuracies[-1] > 0.9
    True
    """
    _check(model, loss, optimizer, schedule, epochs)
    stopping = EarlyStopping(early_stopping) if isinstance(early_stopping, int) else early_stopping
    if isinstance(early_stopping, bool) or not isinstance(stopping, EarlyStopping | None):
        raise TypeError(f"fit: early_stopping is {early_stopping!r}, expected a number of epochs or nn.EarlyStopping")
    if stopping is not None and stopping.monitor.startswith("validation") and validation is None:
        raise ValueError(f"fit: early_stopping watches {stopping.monitor}, expected validation batches")
    if scaler is not None and not isinstance(scaler, LossScaler):
        raise TypeError(f"fit: scaler is a {type(scaler).__name__}, expected an nn.LossScaler")
    if scaler is None and mixed_precision == "float16":
        scaler = LossScaler()
    keeping = checkpoint if isinstance(checkpoint, Checkpoint | None) else Checkpoint(checkpoint)
    generators = _generators(model, rng)
    ranks = Alone() if communicator is None else import_module("gpucnn.distributed.training").Ranks(communicator)
    ranks.check(model, optimizer, {"loader": loader} | ({} if validation is None else {"validation": validation}))
    shown = display(epochs, progress and ranks.rank == 0)
    run = _Run(
        model,
        loader,
        loss,
        optimizer,
        epochs,
        validation,
        schedule,
        keeping,
        stopping,
        clip_norm,
        scaler,
        generators,
        shown,
        ranks,
    )
    try:
        precision = nullcontext() if mixed_precision is None else mixed(mixed_precision)
        with _training(model), precision, _interruptions() as run.interruption:
            run.begin(rng)
            run.go_on(callbacks)
    finally:
        shown.close()
    return run.history


def _check(model: Any, loss: Any, optimizer: Any, schedule: Any, epochs: Any) -> None:
    expect_module("fit", model)
    _check_loss("fit", loss)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"fit: optimizer is a {type(optimizer).__name__}, expected an nn.Optimizer")
    if schedule is not None and not isinstance(schedule, Schedule):
        raise TypeError(f"fit: schedule is a {type(schedule).__name__}, expected an nn.Schedule")
    if schedule is not None and schedule.optimizer is not optimizer:
        raise ValueError("fit: schedule changes another optimizer, expected the one that is given as well")
    own = {id(parameter) for parameter in model.parameters()}
    if own.isdisjoint(id(parameter) for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError("fit: optimizer has no parameter of the model, expected one made of model.parameters()")
    if isinstance(epochs, bool) or not isinstance(epochs, int | np.integer):
        raise TypeError(f"fit: epochs is a {type(epochs).__name__}, expected an int")
    if epochs < 0:
        raise ValueError(f"fit: epochs is {epochs}, expected at least 0")


def _check_loss(op: str, loss: Any) -> None:
    if isinstance(loss, type) or not (callable(loss) and hasattr(loss, "backward")):
        raise TypeError(f"{op}: loss is {loss!r}, expected a loss such as nn.CrossEntropyLoss()")
    if getattr(loss, "reduction", "mean") == "none":
        raise ValueError(f"{op}: loss has the reduction 'none', expected 'mean' or 'sum'")


# --- The run ------------------------------------------------------------------------------------------------------


@dataclass
class _Interruption:
    """Whether the run is to stop as soon as possible."""

    asked: bool = False


@dataclass
class _Run:
    """A training run: its parts and its position."""

    model: Module
    loader: Batches
    loss: Loss
    optimizer: Optimizer
    epochs: int
    validation: Batches | None
    schedule: Schedule | None
    checkpoint: Checkpoint | None
    early_stopping: EarlyStopping | None
    clip_norm: float | None
    scaler: LossScaler | None
    generators: dict[str, np.random.Generator]
    display: Display
    ranks: Any  # an `Alone`, or what does the same with others

    def __post_init__(self) -> None:
        self.history = History()
        self.interruption = _Interruption()
        self.xp = _xp_of(self.model)
        self.length = len(self.loader) if isinstance(self.loader, Sized) else None
        self._begin_epoch()
        self.best: float | None = None
        self.best_weights: dict[str, Array] = {}

    def _begin_epoch(self) -> None:
        self.batch = 0  # batches of the epoch that are done
        self.tally = _Tally()
        self.seconds = 0.0  # that the epoch took before a resumption

    @property
    def epoch(self) -> int:
        """The number of epochs that are done."""
        return len(self.history)

    # --- Going on -------------------------------------------------------------------------------------------------

    def begin(self, rng: np.random.Generator | int | None) -> None:
        """Resume the run that the checkpoint holds, or begin one, seeded by `rng`, and write it."""
        path = None if self.checkpoint is None else Path(self.checkpoint.path)
        state = None
        if self.checkpoint is not None and path is not None and self.checkpoint.resume:
            state = self.ranks.first(lambda: load_checkpoint(path) if path.exists() else None)
        if path is not None and state is not None:
            self._load(path, state)
            at = f" after {self.batch} batches" if self.batch else ""
            self.display.line(f"going on from {path}: {self.epoch} of {self.epochs} epochs done{at}")
            return
        _seed(self.model, rng)
        self.ranks.begin(self.model, self.generators)
        if path is not None:
            self.ranks.first(lambda: path.parent.mkdir(parents=True, exist_ok=True))
            self._save()

    def go_on(self, callbacks: Sequence[Callback]) -> None:
        """Train until the last epoch, or until there is a reason to stop."""
        self.history.interrupted = False
        try:
            while self.epoch < self.epochs and not self._out_of_patience():
                if not self._epoch(callbacks):
                    break
        except KeyboardInterrupt:  # a second one, at any point: the last checkpoint stands
            if not isinstance(self.ranks, Alone):  # the others are at another point, and would wait
                raise
            self.interruption.asked = True
        self.history.interrupted = self.interruption.asked
        if self.history.interrupted:
            self.display.line(f"interrupted after {self.epoch} epochs and {self.batch} batches")
        elif self.best_weights:
            self.model.load_state_dict(self.best_weights)

    def _epoch(self, callbacks: Sequence[Callback]) -> bool:
        """The rest of an epoch; whether to go on."""
        begun = time.perf_counter() - self.seconds
        for pair in self._batches():
            self._step(*pair_of("fit", pair))
            self.batch += 1
            self.seconds = time.perf_counter() - begun
            self.display.advance(self.epoch, self.batch, self.length, self.tally.text)
            if self.batch != self.length:  # else the end of the epoch follows immediately
                if self.ranks.stops(self.interruption.asked):
                    self.interruption.asked = True
                    self._save()
                    return False
                if self.checkpoint and self.checkpoint.every and self.batch % self.checkpoint.every == 0:
                    self._save()
        self.ranks.ended()
        if not self.batch:
            raise ValueError(
                f"fit: loader gave no batch in epoch {self.epoch + 1}, expected an iterable that begins anew each epoch"
            )
        self.length = self.batch
        self._end_epoch(begun)
        asked = False
        for callback in callbacks:
            try:
                asked = bool(callback(self.model, self.history)) or asked
            except KeyboardInterrupt:
                self.interruption.asked = True
        asked, self.interruption.asked = self.ranks.agreed(asked, self.interruption.asked)
        self._save()
        return not (asked or self.interruption.asked)

    def _batches(self) -> Iterator[Any]:
        """The remaining batches of the epoch."""
        batches = iter(self.loader)
        return batches if hasattr(self.loader, "load_state_dict") else islice(batches, self.batch, None)

    def _step(self, x: Array, y: Array) -> None:
        """Learn from one batch."""
        self.model.train()
        x, y = self.xp.asarray(x), self.xp.asarray(y)
        output = self.model(x)
        value = self.loss(output, y)
        self.model.zero_grad()
        self.optimizer.zero_grad()
        asked = self.interruption.asked
        scale = None if self.scaler is None else self.scaler.scale
        with nullcontext() if scale is None else np.errstate(over="ignore", invalid="ignore"):  # it finds its limit so
            self.ranks.backward(self.model, self.loss, output, y, scale, asked)
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            if self.clip_norm is not None:
                learned = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
                clip_grad_norm_(learned, self.clip_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.schedule is not None and self.schedule.per_batch:
            self.schedule.step()
        self.tally.add(value, output, y, self.loss)

    def _end_epoch(self, begun: float) -> None:
        """Measure, change the learning rate, and check whether this was the best epoch."""
        history = self.history
        tallies = {"": self.tally}
        if self.validation is not None:
            tallies["validation_"] = _evaluated(self.model, self.validation, self.loss)
        measured = {
            prefix: _Tally.of_all(self.ranks.tallies(tally.numbers())).result() for prefix, tally in tallies.items()
        }
        for prefix, (loss, accuracy) in measured.items():
            getattr(history, f"{prefix}losses").append(loss)
            if accuracy is not None:
                getattr(history, f"{prefix}accuracies").append(accuracy)
        history.learning_rates.append(float(self.optimizer.param_groups[0]["lr"]))
        history.seconds.append(time.perf_counter() - begun)
        parts = [_measures(*measures, prefix.replace("_", " ")) for prefix, measures in measured.items()]
        rate, seconds = history.learning_rates[-1], history.seconds[-1]
        self.display.line(
            f"epoch {self.epoch}/{self.epochs}: {', '.join(parts)}, learning rate {rate:.3g}, {seconds:.1f} s"
        )
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(list(measured.values())[-1].loss)
        elif self.schedule is not None and not self.schedule.per_batch:
            self.schedule.step()
        if self.early_stopping is not None:
            self._compare(self.early_stopping)
        self._begin_epoch()

    def _compare(self, stopping: EarlyStopping) -> None:
        values = getattr(self.history, MEASURES[stopping.monitor])
        if not values:
            raise ValueError(f"fit: early_stopping watches {stopping.monitor}, which this loss and targets do not have")
        if stopping.improves(values[-1], self.best):
            self.best, self.history.best_epoch = values[-1], self.epoch - 1
            self.best_weights = {name: array.copy() for name, array in self.model.state_dict().items()}

    def _out_of_patience(self) -> bool:
        if self.early_stopping is None:
            return False
        best = self.history.best_epoch
        return self.epoch - (0 if best is None else best + 1) >= self.early_stopping.patience

    # --- Keeping --------------------------------------------------------------------------------------------------

    def _stateful(self) -> dict[str, Any]:
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
            "loader": self.loader,
            "validation": self.validation,
        }
        return {name: part for name, part in parts.items() if hasattr(part, "load_state_dict")}

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        generators = {name: each.bit_generator.state for name, each in self.generators.items()}
        run = {
            "history": asdict(self.history),
            "batch": self.batch,
            "tallies": self.ranks.tallies(self.tally.numbers()),
            "seconds": self.seconds,
            "best": self.best,
            "generators": self.ranks.others(generators),
        }
        if self.ranks.rank:
            return
        state = {name: part.state_dict() for name, part in self._stateful().items()}
        state["generators"], state["run"] = generators, run
        state["best_weights"] = self.best_weights
        save_checkpoint(self.checkpoint.path, state)

    def _load(self, path: Path, state: dict[str, Any]) -> None:
        parts = self._stateful()
        expected = {*parts, "generators", "run", "best_weights"}
        if set(state) != expected:
            raise ValueError(f"fit: {path} holds {sorted(state)}, expected a run with {sorted(expected)}")
        if set(state["generators"]) != set(self.generators):
            raise ValueError(
                f"fit: {path} holds generators of {sorted(state['generators'])}, expected {sorted(self.generators)}"
            )
        run = state["run"]
        try:
            history, tally = History.from_dict(run["history"]), self._own_tally(run["tallies"])
            batch, seconds, best = run["batch"], run["seconds"], run["best"]
            state["generators"] = self.ranks.own(state["generators"], run.get("generators", []))
            if state["best_weights"]:
                self.model.matched(state["best_weights"])
            self._load_parts(parts, state)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"fit: {path} is of another run, expected one of this model: {error.args[0]}") from error
        self.history, self.tally = history, tally
        self.batch, self.seconds, self.best = batch, seconds, best
        self.best_weights = {name: self.xp.asarray(array) for name, array in state["best_weights"].items()}

    def _own_tally(self, tallies: Sequence[Numbers]) -> _Tally:
        """The tally of this rank in a checkpoint; where that is of another number of ranks the first one has all."""
        if len(tallies) == self.ranks.size:
            return _Tally(*tallies[self.ranks.rank])
        return _Tally(batches=tallies[0][4]) if self.ranks.rank else _Tally.of_all(tallies)

    def _load_parts(self, parts: dict[str, Any], state: dict[str, Any]) -> None:
        """Load the parts and the generators; they are restored if a later one refuses its state."""
        self.model.matched(state["model"])  # checked first: the model has most to undo and is loaded last
        undo: list[Callable[[], Any]] = []
        try:
            for name, generator in self.generators.items():
                undo.append(partial(setattr, generator.bit_generator, "state", generator.bit_generator.state))
                generator.bit_generator.state = state["generators"][name]
            for name in (name for name in ("schedule", "scaler", "optimizer", "validation", "loader") if name in parts):
                undo.append(partial(parts[name].load_state_dict, parts[name].state_dict()))
                parts[name].load_state_dict(state[name])
        except BaseException:
            for step in reversed(undo):
                step()
            raise
        self.model.load_state_dict(state["model"])


# --- What it is made of -------------------------------------------------------------------------------------------


class _Tally:
    """Sums over batches. They are read from a device late and in order, so that it need not wait for each."""

    def __init__(
        self, loss: float = 0.0, count: float = 0.0, hits: int = 0, targets: int | None = None, batches: int = 0
    ) -> None:
        self._loss, self._count, self._hits, self._targets = loss, count, hits, targets
        self.batches = batches
        self._pending: list[tuple[Any, Any, bool, tuple[Any, Any] | None]] = []

    @classmethod
    def of_all(cls, tallies: Sequence[Numbers]) -> _Tally:
        """The sums over all ranks, added in their order; the number of batches is that of each."""
        losses, counts, hits, targets, batches = zip(*tallies, strict=True)
        known = [each for each in targets if each is not None]
        return cls(sum(losses), sum(counts), sum(hits), sum(known) if known else None, batches[0])

    def add(self, value: Array, output: Array, target: Array, loss: Loss) -> None:
        """Count a batch in, whose loss is `value`."""
        count = loss.count(output, target) if isinstance(loss, Loss) else len(output)
        classes = None
        if target.dtype.kind in "iu" and output.ndim == target.ndim + 1:
            counted = target != getattr(loss, "ignore_index", -100)
            hits = (cast(output, accumulator(output.dtype)).argmax(min(1, output.ndim - 1)) == target) & counted
            classes = hits.sum(), counted.sum()
        self._pending.append((value, count, getattr(loss, "reduction", "mean") == "sum", classes))
        self.batches += 1

    def numbers(self) -> Numbers:
        """The sums: loss, the divisor of its mean, hits, class targets if there are any, batches."""
        for value, count, summed, classes in self._pending:
            weight = float(count)
            if summed or weight:  # the mean of no target is NaN, and counts as nothing
                self._loss += float(value) * (1.0 if summed else weight)
            self._count += weight
            if classes is not None:
                self._hits += int(classes[0])
                self._targets = (self._targets or 0) + int(classes[1])
        self._pending.clear()
        return self._loss, self._count, self._hits, self._targets, self.batches

    def result(self) -> Evaluation:
        """The means."""
        loss, count, hits, targets, _ = self.numbers()
        accuracy = None if targets is None else hits / targets if targets else math.nan
        return Evaluation(loss / count if count else math.nan, accuracy)

    def text(self) -> str:
        """The means in words."""
        return _measures(*self.result())


def _measures(loss: float, accuracy: float | None, prefix: str = "") -> str:
    return f"{prefix}loss {loss:.4f}" + ("" if accuracy is None else f", {prefix}accuracy {accuracy:.2%}")


def _xp_of(model: Module) -> Any:
    """The array functions of the device that holds the model; NumPy's if it has no arrays."""
    first = next((array for array in model.state_dict().values() if array.ndim), None)
    return np if first is None else backend_of(first).xp


def _generators(model: Module, rng: Any) -> dict[str, np.random.Generator]:
    """All generators of the run by name."""
    if rng is not None and not isinstance(rng, int | np.integer | np.random.Generator):
        raise TypeError(f"fit: rng is {rng!r}, expected None, a seed or a numpy.random.Generator")
    found = {f"model.{name}": module.rng for name, module in model.named_modules() if hasattr(module, "rng")}
    generators = {name: each for name, each in found.items() if isinstance(each, np.random.Generator)}
    return {**generators, "rng": rng} if isinstance(rng, np.random.Generator) else generators


def _seed(model: Module, rng: np.random.Generator | int | None) -> None:
    """Seed the generators of the modules by `rng`, each once; None leaves them as they are."""
    if rng is not None:
        source = np.random.default_rng(rng)
        for bits in {id(each): each.bit_generator for each in _generators(model, None).values()}.values():
            bits.state = type(bits)(int(source.integers(2**63))).state


@contextmanager
def _training(model: Module) -> Iterator[None]:
    """Within the block no gradient of the input is computed; after it the modes are restored."""
    needs = model.needs_input_grad
    model.needs_input_grad = False
    try:
        with modes(model):
            yield
    finally:
        model.needs_input_grad = needs


@contextmanager
def _interruptions() -> Iterator[_Interruption]:
    """Within the block the first Ctrl-C only requests a stop, where this program handles the signal."""
    interruption = _Interruption()

    def ask(number: int, frame: Any) -> None:
        if interruption.asked:
            raise KeyboardInterrupt
        interruption.asked = True

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interruption
        return
    signal.signal(signal.SIGINT, ask)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
