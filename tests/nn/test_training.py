"""`fit` and `evaluate`: what they compute, measure, show and refuse. Resumption is in test_resuming.py."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from refusals import refused, refuses
from runs import bits

import gpucnn.functional as F
from gpucnn import nn
from gpucnn.installing import install_command
from gpucnn.nn import _progress

Batches = list[tuple[Any, Any]]


def network(seed: int = 0) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6, rng=seed), nn.ReLU(), nn.Dropout(0.2, rng=seed), nn.Linear(6, 3, rng=seed + 1))


def data(batches: int = 4, size: int = 8, seed: int = 0) -> Batches:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batches, size, 4)).astype(np.float32)
    return [(each, each[:, :3].argmax(1)) for each in x]


REGRESSION = [(x, x[:, :3].copy()) for x, _ in data()]


def train(model: nn.Module, batches: Any, **options: Any) -> nn.History:
    optimizer = options.pop("optimizer", None) or nn.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = options.pop("loss", None) or nn.CrossEntropyLoss()
    return nn.fit(model, batches, **{"loss": loss, "optimizer": optimizer, "epochs": 3, "progress": False, **options})


# --- What it computes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_a_fit_is_its_loop_by_hand(clip_norm: float | None) -> None:
    batches, validation = data(), data(2, seed=1)
    by_hand, optimizer_loss = network(), nn.CrossEntropyLoss()
    optimizer = nn.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    losses, accuracies = [], []
    for _ in range(3):
        values, hits = [], []
        for x, y in batches:
            output = by_hand(x)
            values.append(float(optimizer_loss(output, y)))
            hits.append((output.argmax(1) == y).mean())
            by_hand.zero_grad()
            by_hand.backward(optimizer_loss.backward())
            if clip_norm is not None:
                assert nn.clip_grad_norm_(by_hand.parameters(), clip_norm) > clip_norm
            optimizer.step()
        losses.append(np.mean(values))
        accuracies.append(np.mean(hits))
    model = network()
    history = train(model, batches, validation=validation, clip_norm=clip_norm)
    assert bits(model) == bits(by_hand)
    assert history.losses == pytest.approx(losses, rel=1e-12)
    assert history.accuracies == pytest.approx(accuracies, rel=1e-12)
    by_hand.eval()
    outputs = [(by_hand(x), y) for x, y in validation]
    expected = np.mean([float(optimizer_loss(output, y)) for output, y in outputs])
    assert history.validation_losses[-1] == pytest.approx(expected, rel=1e-12)
    assert history.validation_accuracies[-1] == np.mean([(output.argmax(1) == y).mean() for output, y in outputs])
    assert len(history) == len(history.seconds) == len(history.learning_rates) == 3


def test_it_trains_on_every_backend(backend: ArrayBackend) -> None:
    host, device = network(), network().map_arrays(backend.asarray)
    for model in (host, device):  # dropout draws other numbers elsewhere
        model[2].p = 0.0
    expected = train(host, data(), validation=data(1), clip_norm=0.5, early_stopping=2)
    history = train(device, data(), validation=data(1), clip_norm=0.5, early_stopping=2)
    assert history.losses == pytest.approx(expected.losses, rel=1e-5)
    assert history.accuracies == expected.accuracies
    for ours, theirs in zip(device.parameters(), host.parameters(), strict=True):
        np.testing.assert_allclose(backend.asnumpy(ours.data), theirs.data, rtol=1e-4, atol=1e-6)


def test_ignored_targets_do_not_count() -> None:
    scores = np.eye(3)[None]  # [1, C, L], right at each of the three places
    target = np.array([[0, -100, 1]])
    loss = nn.CrossEntropyLoss()
    assert nn.evaluate(nn.Sequential(), [(scores, target)], loss).accuracy == 0.5
    some = np.array([[0, 1, 1]])
    assert nn.evaluate(nn.Sequential(), [(scores, some)], nn.CrossEntropyLoss(ignore_index=0)).accuracy == 0.5
    none = nn.evaluate(nn.Sequential(), [(scores, np.full((1, 3), -100))], loss)
    assert math.isnan(none.accuracy)
    assert math.isnan(none.loss)


WEIGHT = np.array([1, 10, 0.1])
LOSSES: dict[str, Callable[..., nn.Loss]] = {
    "plain": nn.CrossEntropyLoss,
    "ignored": partial(nn.CrossEntropyLoss, ignore_index=2),
    "weighted": partial(nn.CrossEntropyLoss, WEIGHT),
    "both": partial(nn.CrossEntropyLoss, np.array([3.0, 0, 9]), ignore_index=2),
    "smoothed": partial(nn.CrossEntropyLoss, WEIGHT, label_smoothing=0.3),
    # of targets that are no classes:
    "squares": nn.MSELoss,
    "logits": nn.BCEWithLogitsLoss,
    "probabilities": nn.CrossEntropyLoss,
}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", LOSSES)
def test_measures_do_not_depend_on_the_batches(backend: ArrayBackend, kind: str, reduction: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((9, 3, 4, 4)), rng.integers(0, 3, (9, 4, 4))
    y[7:] = 2  # ignored by some of the losses: their last batch has nothing that counts
    y[4:7, 1:] = 2
    classes = kind not in ("squares", "logits", "probabilities")
    if not classes:
        y = rng.dirichlet(np.ones(3), (9, 4, 4)).transpose(0, 3, 1, 2)
    model = nn.Sequential(nn.Conv2d(3, 3, 1, rng=0, dtype=np.float64)).map_arrays(backend.asarray)
    whole = float(LOSSES[kind]().map_arrays(backend.asarray)(model(backend.asarray(x)), backend.asarray(y)))
    loss = LOSSES[kind](reduction=reduction).map_arrays(backend.asarray)
    measured = [
        nn.evaluate(model, [(x[start:end], y[start:end]) for start, end in pairwise(cuts)], loss)
        for cuts in ((0, 9), (0, 4, 7, 9), range(10))
    ]
    for each in measured:
        assert each.loss == pytest.approx(whole, rel=1e-12)
        assert each.accuracy == measured[0].accuracy
    assert (measured[0].accuracy is not None) == classes
    optimizer = nn.SGD(model.parameters(), lr=0.0)
    batches = [(x[:4], y[:4]), (x[4:7], y[4:7]), (x[7:], y[7:])]
    history = train(model, batches, loss=loss, optimizer=optimizer, validation=batches, epochs=1)
    assert history.losses == pytest.approx([whole], rel=1e-12)
    assert history.validation_losses == pytest.approx([whole], rel=1e-12)
    assert history.accuracies == history.validation_accuracies == ([measured[0].accuracy] if classes else [])


@pytest.mark.parametrize("per_batch", [False, True])
def test_a_schedule_takes_its_steps(per_batch: bool) -> None:
    model = network()
    optimizer = nn.SGD(model.parameters(), lr=1.0)
    schedule = nn.ExponentialLR(optimizer, 0.5)
    schedule.per_batch = per_batch
    history = train(model, data(), optimizer=optimizer, schedule=schedule)
    assert schedule.last_epoch == (12 if per_batch else 3)
    assert history.learning_rates == ([0.5**4, 0.5**8, 0.5**12] if per_batch else [1.0, 0.5, 0.25])


@pytest.mark.parametrize("validated", [False, True])
def test_a_plateau_follows_the_loss(validated: bool) -> None:
    model = network()
    optimizer = nn.SGD(model.parameters(), lr=0.1)
    schedule = nn.ReduceLROnPlateau(optimizer)
    history = train(model, data(), optimizer=optimizer, schedule=schedule, validation=data(1) if validated else None)
    assert schedule.best == min(history.validation_losses if validated else history.losses)


def test_a_seed_decides_the_dropouts() -> None:
    runs = []
    for seed in (3, 3, 4, None):
        model = network()
        train(model, data(), rng=seed if seed != 4 else np.random.default_rng(4))
        runs.append(bits(model))
    assert runs[0] == runs[1]
    assert len({tuple(run.values()) for run in runs}) == 3


def test_modes_and_flags_are_restored() -> None:
    model = network()
    model[2].training = False
    seen = []
    train(model, data(), callbacks=[lambda model, history: seen.append(model[2].training)])
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert seen == [True] * 3
    assert model.needs_input_grad
    model.eval()
    nn.evaluate(model, data(), nn.CrossEntropyLoss())
    assert not model.training
    with pytest.raises(RuntimeError, match="backward has no forward"):
        model[0].backward(np.zeros((8, 6), np.float32))


# --- Early stopping and callbacks ---------------------------------------------------------------------------------


class Given(nn.Loss):
    """A loss whose value in evaluation is given epoch by epoch."""

    reduction = "mean"

    def __init__(self, values: list[float]) -> None:
        self.values, self.calls = values, 0
        self.real = nn.CrossEntropyLoss()

    def forward(self, output: Any, target: Any) -> Any:  # type: ignore[override]
        value = self.real(output, target)
        if vars(self.real).get("_kept") is not None:
            return value
        self.calls += 1
        return np.asarray(self.values[self.calls - 1])

    def backward(self, grad_output: Any = 1.0) -> Any:
        return self.real.backward(grad_output)


@pytest.mark.parametrize(
    ("losses", "options", "epochs", "best"),
    [
        ([5.0, 3.0, 4.0, 3.5, 3.0, 1.0], {"patience": 3}, 5, 1),
        ([3.0, 2.8, math.nan], {"patience": 9, "min_delta": 0.5}, 3, 0),  # restored at the last epoch too
        ([math.nan, 3.0, math.nan, 2.0, math.nan], {"patience": 2}, 5, 3),  # a NaN is never the best
        ([math.nan] * 9, {"patience": 2}, 2, None),
    ],
)
def test_early_stopping_restores_the_best_weights(
    losses: list[float], options: dict[str, Any], epochs: int, best: int | None
) -> None:
    model, states = network(), []
    history = train(
        model,
        data(),
        loss=Given(losses),
        validation=data(1),
        epochs=len(losses),
        early_stopping=nn.EarlyStopping(**options),
        callbacks=[lambda model, history: states.append(bits(model))],
    )
    assert history.validation_losses == pytest.approx(losses[:epochs], nan_ok=True)
    assert history.best_epoch == best
    assert bits(model) == states[-1 if best is None else best]
    assert all(state != states[0] for state in states[1:])


def test_accuracy_is_better_where_it_is_higher() -> None:
    stopping = nn.EarlyStopping(monitor="validation_accuracy", min_delta=0.01)
    assert stopping.improves(0.9, 0.8)
    assert not stopping.improves(0.805, 0.8)
    assert not stopping.improves(math.nan, 0.8)
    assert stopping.improves(0.1, math.nan)
    assert not stopping.improves(math.nan, None)
    assert nn.EarlyStopping().improves(0.7, 0.8)
    history = train(network(), data(), early_stopping=nn.EarlyStopping(1, "accuracy"), epochs=30)
    assert history.best_epoch == int(np.argmax(history.accuracies))


def test_a_callback_stops_the_run() -> None:
    history = train(network(), data(), callbacks=[lambda model, history: len(history) == 2, lambda *_: None], epochs=9)
    assert len(history) == 2
    assert not history.interrupted


# --- Interruption -------------------------------------------------------------------------------------------------


class Interrupting(list):  # type: ignore[type-arg]
    """Batches, at one of which Ctrl-C is pressed, `times` times."""

    def __init__(self, batches: Batches, at: int, times: int = 1) -> None:
        super().__init__(batches)
        self.at, self.times, self.given = at, times, 0

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            self.given += 1
            if self.given == self.at:
                for _ in range(self.times):
                    signal.raise_signal(signal.SIGINT)
            yield batch


@pytest.mark.parametrize("at", [1, 3, 4, 6])
def test_control_c_stops_after_the_batch_and_leaves_a_checkpoint(tmp_path: Path, at: int) -> None:
    undisturbed = network()
    expected = train(undisturbed, data())
    model = network()
    history = train(model, Interrupting(data(), at), checkpoint=tmp_path / "run")
    assert history.interrupted
    assert len(history) == at // 4
    assert nn.load_checkpoint(tmp_path / "run")["run"]["batch"] == at % 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    other = network(5)
    resumed = train(other, data(), checkpoint=tmp_path / "run")
    assert bits(other) == bits(undisturbed)
    assert resumed.losses == expected.losses
    assert not resumed.interrupted


def test_a_second_control_c_stops_at_once(tmp_path: Path) -> None:
    model = network()
    history = train(model, Interrupting(data(), 6, times=2), checkpoint=tmp_path / "run")
    assert history.interrupted
    assert len(history) == 1
    assert nn.load_checkpoint(tmp_path / "run")["run"]["batch"] == 0  # the end of the first epoch


def test_an_interrupted_callback_stops_after_its_epoch(tmp_path: Path) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    history = train(network(), data(), callbacks=[interrupt], checkpoint=tmp_path / "run")
    assert history.interrupted
    assert len(history) == 1
    assert len(nn.load_checkpoint(tmp_path / "run")["run"]["history"]["losses"]) == 1


def test_another_thread_leaves_signals_alone() -> None:
    done: list[nn.History] = []
    thread = threading.Thread(target=lambda: done.append(train(network(), data())))
    thread.start()
    thread.join()
    assert len(done[0]) == 3


def test_a_program_with_a_handler_of_its_own_keeps_it() -> None:
    called: list[int] = []
    old = signal.signal(signal.SIGINT, lambda *_: called.append(1))
    try:
        assert not train(network(), Interrupting(data(), 2)).interrupted
    finally:
        signal.signal(signal.SIGINT, old)
    assert called == [1]


# --- Errors -------------------------------------------------------------------------------------------------------


def tried(**options: Any) -> nn.History:
    return train(network(), data(), **options)


test_wrong_arguments_are_refused = refuses(
    ValueError,
    ("fit: loss has the reduction 'none'…", lambda: tried(loss=nn.MSELoss("none"))),
    ("fit: epochs is -1, expected at least 0", lambda: tried(epochs=-1)),
    ("fit: early_stopping watches validation_loss, expected validation batches…", lambda: tried(early_stopping=3)),
    (
        "…early_stopping watches accuracy, which this loss and targets do not have…",
        lambda: train(network(), REGRESSION, loss=nn.MSELoss(), early_stopping=nn.EarlyStopping(1, "accuracy")),
    ),
    (
        "fit: optimizer has no parameter of the model, expected …model.parameters()…",
        lambda: tried(optimizer=nn.SGD(network().parameters())),
    ),
    (
        "fit: schedule changes another optimizer, expected the one that is given…",
        lambda: tried(schedule=nn.StepLR(nn.SGD(network().parameters()), 1)),
    ),
    ("fit: loader gave no batch in epoch 1, expected an iterable that begins anew…", lambda: train(network(), [])),
    ("fit: loader gave no batch in epoch 2…", lambda: train(network(), iter(data()))),
    ("…a batch of 3 things, expected (x, y)…", lambda: train(network(), [(1, 2, 3)])),
    ("evaluate: loader gave no batch…", lambda: nn.evaluate(network(), [], nn.CrossEntropyLoss())),
    (
        "evaluate: loss has the reduction 'none'…",
        lambda: nn.evaluate(network(), data(), nn.CrossEntropyLoss(reduction="none")),
    ),
    ("Checkpoint: every is 0, expected at least 1 batch…", lambda: nn.Checkpoint("run", every=0)),
    ("EarlyStopping: patience is 0…", lambda: nn.EarlyStopping(0)),
    (
        "EarlyStopping: monitor is 'val_loss', expected one of loss, accuracy…",
        lambda: nn.EarlyStopping(monitor="val_loss"),
    ),
)

LOSS, MODEL = nn.CrossEntropyLoss(), "model is a list, expected a Module…"
SINGLE = "loader gave a ndarray as a batch, expected (x, y); a single batch goes in a list, [(x, y)]"

test_wrong_types_are_refused = refuses(
    TypeError,
    ("fit: loss is <class …expected a loss such as…", lambda: tried(loss=nn.CrossEntropyLoss)),
    ("fit: optimizer is a str, expected an nn.Optimizer…", lambda: tried(optimizer="SGD")),
    ("fit: schedule is a float, expected an nn.Schedule…", lambda: tried(schedule=0.1)),
    ("fit: epochs is a float, expected an int…", lambda: tried(epochs=2.0)),
    ("fit: rng is '0', expected None, a seed…", lambda: tried(rng="0")),
    *(
        (
            f"fit: early_stopping is {wrong!r}, expected a number of epochs or nn.EarlySt…",
            lambda wrong=wrong: tried(early_stopping=wrong),
        )
        for wrong in (True, "3")
    ),
    (f"fit: {SINGLE}", lambda: train(network(), data()[0])),
    (f"evaluate: {SINGLE}", lambda: nn.evaluate(network(), data()[0], LOSS)),
    ("cached_features: loader gave a ndarray …, [(x, y)]", lambda: nn.cached_features(network(), data()[0])),
    ("evaluate: loss is <function…", lambda: nn.evaluate(network(), data(), F.cross_entropy)),
    (f"evaluate: {MODEL}", lambda: nn.evaluate(data(), network(), LOSS)),
    (f"fit: {MODEL}", lambda: nn.fit(data(), network(), loss=LOSS, optimizer=None, epochs=1)),
    (f"cached_features: {MODEL}", lambda: nn.cached_features(data(), network())),
    (f"save_weights: {MODEL}", lambda: nn.save_weights([], "weights")),
    (f"load_weights: {MODEL}", lambda: nn.load_weights([], "weights")),
    ("save_weights: model is a str, expected a Module…", lambda: nn.save_weights("weights", network())),
    ("evaluate: model is the class Linear, expected a Module…", lambda: nn.evaluate(nn.Linear, data(), LOSS)),
)


# --- What is shown ------------------------------------------------------------------------------------------------


def test_lines_are_shown_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(network(), data(), progress=True, validation=data(1))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("epoch 2/3: loss ")
    for word in ("accuracy", "validation loss", "validation accuracy", "learning rate 0.1, 0.", "%"):
        assert word in lines[1]
    monkeypatch.setattr(_progress.Lines, "interval", 0.0)
    train(network(), data(), progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15
    assert lines[2].startswith("epoch 1/3, batch 3/4: loss ")
    assert lines[2].endswith(" s left")
    train(network(), iter(data()), progress=True, epochs=1)
    assert capsys.readouterr().out.startswith("epoch 1/1, batch 1: loss ")
    train(network(), data())
    assert capsys.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(_progress.Bar, "interval", 0.0)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    train(network(), data(), progress=True)
    train(network(), iter(data()), progress=True, epochs=1)
    text = terminal.getvalue()
    assert "epoch 3/3: loss" in text
    assert "━" in text
    monkeypatch.setitem(sys.modules, "rich.console", None)
    train(network(), data(), progress=True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.6, "1 h 00 min"), (7300, "2 h 01 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert _progress.duration(seconds) == text


# --- Histories ----------------------------------------------------------------------------------------------------


def test_a_history_goes_to_json_and_back(tmp_path: Path) -> None:
    history = train(network(), data(), validation=data(1), early_stopping=2)
    assert nn.History.from_json(history.to_json()) == history
    history.losses[1] = math.nan
    history.to_json(tmp_path / "history.json")
    strict = json.loads((tmp_path / "history.json").read_text(), parse_constant=pytest.fail)
    assert strict["losses"][1] is None
    assert math.isnan(nn.History.from_dict(strict).losses[1])
    with pytest.raises(ValueError, match="History: got 'loss', expected of"):
        nn.History.from_dict({"loss": []})
    with pytest.raises(TypeError, match="History: got a list, expected a dict of"):
        nn.History.from_json("[]")


def test_a_history_is_shown_as_a_table() -> None:
    history = nn.History([2.0, math.nan], [0.5, 0.75], [1.25, 1.5], [0.4, 1.0], [0.1, 1e-5], [0.25, 12.0], best_epoch=0)
    history.interrupted = True
    assert str(history).splitlines() == [
        "epoch    loss  accuracy  validation loss  validation accuracy  learning rate  seconds",
        "    1  2.0000    50.00%           1.2500               40.00%            0.1      0.2  best",
        "    2     nan    75.00%           1.5000              100.00%          1e-05     12.0",
        "interrupted",
    ]
    assert str(nn.History()) == "no epoch"
    assert repr(nn.History([1.0])).startswith("History(losses=[1.0]")


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_history_is_drawn(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    history = train(network(), data(), validation=data(1), early_stopping=2)
    history.learning_rates[-1] /= 2
    history.plot(tmp_path / f"run.{kind}")
    nn.History([1.0], seconds=[1.0]).plot(tmp_path / f"short.{kind}")
    assert (tmp_path / f"run.{kind}").stat().st_size > (tmp_path / f"short.{kind}").stat().st_size > 1000
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    message = f"History.plot: matplotlib is not installed: {install_command('train')}"
    refused(ModuleNotFoundError, (message, lambda: history.plot(tmp_path / f"run.{kind}")))


def test_training_loads_neither_rich_nor_matplotlib_unasked() -> None:
    code = "import sys, gpucnn.nn; print([m for m in ('rich', 'matplotlib', 'safetensors') if m in sys.modules])"
    with os.popen(f'"{sys.executable}" -c "{code}"') as ran:
        assert ran.read().strip() == "[]"
