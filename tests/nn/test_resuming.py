"""A run that was ended at any moment goes on bit for bit."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpucnn import nn
from gpucnn.data import Loader, Shift

pytest.importorskip("safetensors")

BATCHES, EPOCHS = 4, 3


class EndedError(Exception):
    pass


class Ending(nn.CrossEntropyLoss):
    """A loss at whose `at`-th gradient the run ends, as a kill would end it."""

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def backward(self, grad_output: Any = 1.0) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise EndedError
        return super().backward(grad_output)


def network(seed: int = 0, channels: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, rng=seed),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3, rng=seed),
        nn.Linear(16 * channels, 2, rng=seed),
    )


def loader(kind: str, seed: int) -> Any:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCHES * 5, 1, 6, 6)).astype(np.float32)
    y = (x.mean((1, 2, 3)) > 0).astype(int)
    if kind == "list":
        return [(x[start : start + 5], y[start : start + 5]) for start in range(0, len(x), 5)]
    return Loader(x, y, 5, shuffle=True, rng=seed, augment=Shift(1), prefetch=2)


def run(kind: str, optimizer: str, every: int | None, path: Any, at: int | None = None, **options: Any) -> Any:
    """A run from seeds that a resumed one does not share, if `options` say so: weights, state, history."""
    seed = options.pop("seed", 0)
    model = options.pop("model", None) or network(seed)
    learner = nn.Adam(model.parameters()) if optimizer == "Adam" else nn.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = nn.CosineAnnealingLR(learner, EPOCHS) if kind == "list" else nn.ReduceLROnPlateau(learner, patience=0)
    history = nn.fit(
        model,
        loader(kind, seed),
        loss=Ending(at),
        optimizer=learner,
        **{
            "epochs": EPOCHS,
            "validation": loader("list", 0)[:1],
            "schedule": schedule,
            "checkpoint": None if path is None else nn.Checkpoint(path, every=every),
            "early_stopping": 2,
            "rng": np.random.default_rng(seed),
            "progress": False,
            **options,
        },
    )
    weights = {name: np.asarray(array).tobytes() for name, array in model.state_dict().items()}
    states = [
        {name: value if name == "step" else value.tobytes() for name, value in state.items()}
        for state in learner.state_dict()["state"].values()
    ]
    history.seconds = [0.0] * len(history)
    return weights, states, learner.param_groups[0]["lr"], schedule.state_dict(), history


@pytest.mark.table(2)
@pytest.mark.parametrize(
    ("kind", "optimizer", "every"),
    [("list", "SGD", 1), ("Loader", "Adam", 1), ("Loader", "SGD", 3), ("list", "Adam", None)],
)
def test_it_goes_on_from_each_batch(tmp_path: Path, kind: str, optimizer: str, every: int | None) -> None:
    undisturbed = run(kind, optimizer, every, None)
    for at in range(1, BATCHES * EPOCHS + 1, 1 if (kind, every) == ("Loader", 1) else 3):
        path = tmp_path / f"run{at}"
        with pytest.raises(EndedError):
            run(kind, optimizer, every, path, at)
        assert run(kind, optimizer, every, path, seed=9) == undisturbed, at


def test_it_goes_on_when_it_ends_again_and_again(tmp_path: Path) -> None:
    undisturbed = run("Loader", "Adam", 1, None)
    ends = 0
    while True:
        try:
            result = run("Loader", "Adam", 1, tmp_path / "run", at=2, seed=ends)
        except EndedError:
            ends += 1
            continue
        break
    assert ends == BATCHES * EPOCHS - 1
    assert result == undisturbed


class Noisy(list):  # type: ignore[type-arg]
    """Batches with noise of the caller's generator."""

    rng: np.random.Generator

    def __iter__(self) -> Any:
        for x, y in super().__iter__():
            yield x + self.rng.standard_normal(x.shape, np.float32), y


def noisy_run(path: Path | None, at: int | None = None, seed: int = 0) -> dict[str, bytes]:
    model, batches, rng = network(seed), Noisy(loader("list", 0)), np.random.default_rng(seed)
    batches.rng = rng
    optimizer = nn.SGD(model.parameters(), 0.1)
    checkpoint = None if path is None else nn.Checkpoint(path)
    options: dict[str, Any] = {"rng": rng, "checkpoint": checkpoint, "progress": False, "epochs": EPOCHS}
    nn.fit(model, batches, loss=Ending(at), optimizer=optimizer, **options)
    return {name: np.asarray(array).tobytes() for name, array in model.state_dict().items()}


def test_the_callers_generator_goes_on(tmp_path: Path) -> None:
    with pytest.raises(EndedError):
        noisy_run(tmp_path / "run", at=BATCHES + 2)
    assert noisy_run(tmp_path / "run", seed=7) == noisy_run(None)


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    first = run("Loader", "Adam", None, tmp_path / "run")
    assert run("Loader", "Adam", None, tmp_path / "run", seed=3) == first


def test_more_epochs_go_on(tmp_path: Path) -> None:
    run("list", "SGD", None, tmp_path / "run", epochs=2, early_stopping=None)
    longer = run("list", "SGD", None, tmp_path / "run", early_stopping=None, seed=4)
    assert longer == run("list", "SGD", None, None, early_stopping=None)


def test_patience_that_has_run_out_stays_so(tmp_path: Path) -> None:
    stopping = nn.EarlyStopping(1, min_delta=100.0)
    first = run("list", "SGD", None, tmp_path / "run", early_stopping=stopping, epochs=9)
    assert len(first[-1]) == 2
    assert run("list", "SGD", None, tmp_path / "run", early_stopping=stopping, epochs=9, seed=2) == first


def test_a_run_may_begin_anew(tmp_path: Path) -> None:
    first = run("list", "SGD", None, tmp_path / "new" / "run", seed=1)
    again = nn.Checkpoint(str(tmp_path / "new" / "run"), resume=False)
    assert run("list", "SGD", None, None, checkpoint=again, seed=2) != first
    assert run("list", "SGD", None, None, checkpoint=again, seed=1) == first
    assert run("list", "SGD", None, None, checkpoint=str(tmp_path / "new" / "run"), seed=3) == first


def test_it_says_where_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EndedError):
        run("list", "SGD", 1, tmp_path / "run", at=BATCHES + 3)
    run("list", "SGD", 1, tmp_path / "run", progress=True)
    text = capsys.readouterr().out
    assert text.startswith(f"going on from {tmp_path / 'run'}: 1 of 3 epochs done after 2 batches\nepoch 2/3: ")


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run("Loader", "SGD", None, path)
    with pytest.raises(ValueError, match=r"of another run, .*load_state_dict: 0.weight has shape \(3, 1, 3, 3\)"):
        run("Loader", "SGD", None, path, model=network(channels=4))
    with pytest.raises(ValueError, match=r"holds generators of .*model.4.*, expected"):
        run("Loader", "SGD", None, path, model=nn.Sequential(*list(network().children())[:4]))
    with pytest.raises(ValueError, match=r"run holds \[.*'loader', .*\], expected a run with \["):
        run("list", "SGD", None, path)
    nn.save_weights(network(), path)
    with pytest.raises(ValueError, match="run holds weights, expected a file of save_checkpoint"):
        run("Loader", "SGD", None, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="run is no whole safetensors file"):
        run("Loader", "SGD", None, path)


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("generators", lambda state: state["generators"]["rng"].update(bit_generator="MT19937")),
        ("schedule", lambda state: state["schedule"].update(patience="long")),
        ("optimizer", lambda state: state["optimizer"]["state"][3].update(momentum_buffer=np.ones(9))),
        ("loader", lambda state: state["loader"].update(batch=99)),
        ("model", lambda state: state["model"].update({"5.bias": np.ones(9)})),
        ("model", lambda state: state["model"].update({"5.bias": np.ones(2, complex)})),
        ("best weights", lambda state: state["best_weights"].update({"5.bias": np.ones(9)})),
        ("history", lambda state: state["run"]["history"].update(lost=[])),
    ],
)
def test_a_run_is_loaded_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, wrong: Any
) -> None:
    run("Loader", "SGD", None, tmp_path / "run", epochs=1)
    state = nn.load_checkpoint(tmp_path / "run")
    wrong(state)
    monkeypatch.setattr("gpucnn.nn.training.load_checkpoint", lambda path: state)
    model, batches, rng = network(5), loader("Loader", 5), np.random.default_rng(5)
    optimizer = nn.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = nn.ReduceLROnPlateau(optimizer, patience=3)

    def everything() -> Any:
        generators = rng.bit_generator.state, model[4].rng.bit_generator.state
        weights = {name: np.asarray(array).tobytes() for name, array in model.state_dict().items()}
        return weights, optimizer.state_dict(), schedule.state_dict(), batches.state_dict(), generators

    before = everything()
    options: dict[str, Any] = {"checkpoint": tmp_path / "run", "rng": rng, "early_stopping": 2, "progress": False}
    with pytest.raises(ValueError, match="is of another run"):
        nn.fit(
            model,
            batches,
            loss=nn.CrossEntropyLoss(),
            optimizer=optimizer,
            schedule=schedule,
            validation=loader("list", 0)[:1],
            epochs=3,
            **options,
        )
    assert everything() == before


# --- Killed -------------------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).with_name("run_to_be_killed.py")


def begun(folder: Path, name: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, str(SCRIPT), str(folder / f"{name}.run"), str(folder / f"{name}.weights")]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


@pytest.mark.thorough
def test_a_run_killed_at_ten_random_moments_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    chance = random.Random(20260101)
    process = begun(tmp_path, "undisturbed")
    said = process.communicate()[0]
    assert process.returncode == 0
    batches = said.count("batch")
    assert batches == 120
    for _ in range(10):
        process = begun(tmp_path, "killed")
        assert process.stdout is not None
        for _ in range(chance.randint(1, 6)):
            assert process.stdout.readline() == "batch\n"
        time.sleep(chance.uniform(0, 0.01))  # anywhere in a batch, an evaluation or the writing of a checkpoint
        process.kill()
        process.communicate()
        assert process.returncode != 0, "it had ended by itself"
        assert not (tmp_path / "killed.weights").exists()
        assert nn.load_checkpoint(tmp_path / "killed.run")["run"]["batch"] % 2 == 0  # a whole file, at each moment
    process = begun(tmp_path, "killed")
    said = process.communicate()[0]
    assert process.returncode == 0
    assert 0 < said.count("batch") < batches
    assert (tmp_path / "killed.weights").read_bytes() == (tmp_path / "undisturbed.weights").read_bytes()
    runs = [nn.load_checkpoint(tmp_path / f"{name}.run") for name in ("killed", "undisturbed")]
    for each in runs:
        each["run"]["history"].pop("seconds")
    np.testing.assert_equal(runs[0], runs[1])
