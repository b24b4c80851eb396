"""A run that was ended at any moment goes on bit for bit."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
from refusals import refused
from runs import BATCHES, EPOCHS, EndedError, bits, loader, run, small_network

from gpucnn import nn

pytest.importorskip("safetensors")


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


class Noisy(list):
    """Batches with noise of the caller's generator."""

    rng: np.random.Generator

    def __iter__(self) -> Any:
        for x, y in super().__iter__():
            yield x + self.rng.standard_normal(x.shape, np.float32), y


def test_the_callers_generator_goes_on(tmp_path: Path) -> None:
    def noisy(path: Path | None, at: int | None = None, seed: int = 0) -> Any:
        batches, rng = Noisy(loader("list", 0)), np.random.default_rng(seed)
        batches.rng = rng
        return run("list", "SGD", None, path, at, seed=seed, loader=batches, rng=rng)

    with pytest.raises(EndedError):
        noisy(tmp_path / "run", at=BATCHES + 2)
    assert noisy(tmp_path / "run", seed=7) == noisy(None)


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
    wider, shorter = small_network(channels=4), nn.Sequential(*list(small_network().children())[:4])
    refused(
        ValueError,
        (
            "…of another run, …load_state_dict: 0.weight has shape (3, 1, 3, 3)…",
            lambda: run("Loader", "SGD", None, path, model=wider),
        ),
        ("…holds generators of …model.4…, expected…", lambda: run("Loader", "SGD", None, path, model=shorter)),
        ("…run holds […'loader', …], expected a run with […", lambda: run("list", "SGD", None, path)),
    )
    nn.save_weights(small_network(), path)
    foreign = "…run holds weights, expected a file of save_checkpoint…"
    refused(ValueError, (foreign, lambda: run("Loader", "SGD", None, path)))
    path.write_bytes(path.read_bytes()[:-1])
    refused(ValueError, ("…run is no whole safetensors file…", lambda: run("Loader", "SGD", None, path)))


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "generators": lambda state: state["generators"]["rng"].update(bit_generator="MT19937"),
    "schedule": lambda state: state["schedule"].update(patience="long"),
    "optimizer": lambda state: state["optimizer"]["state"][3].update(momentum_buffer=np.ones(9)),
    "loader": lambda state: state["loader"].update(batch=99),
    "a weight's shape": lambda state: state["model"].update({"5.bias": np.ones(9)}),
    "a weight's type": lambda state: state["model"].update({"5.bias": "text"}),
    "best weights": lambda state: state["best_weights"].update({"5.bias": np.ones(9)}),
    "history": lambda state: state["run"]["history"].update(lost=[]),
}


@pytest.mark.parametrize("part", WRONG)
def test_a_run_is_loaded_whole_or_not_at_all(tmp_path: Path, part: str) -> None:
    run("Loader", "SGD", None, tmp_path / "run", epochs=1)
    state = nn.load_checkpoint(tmp_path / "run")
    WRONG[part](state)
    nn.save_checkpoint(tmp_path / "run", state)
    model, batches, rng = small_network(5), loader("Loader", 5), np.random.default_rng(5)
    optimizer = nn.SGD(model.parameters(), 0.1, momentum=0.9)
    schedule = nn.ReduceLROnPlateau(optimizer, patience=3)

    def everything() -> Any:
        generators = rng.bit_generator.state, model[4].rng.bit_generator.state
        return bits(model), optimizer.state_dict(), schedule.state_dict(), batches.state_dict(), generators

    before = everything()
    options: dict[str, Any] = {"optimizer": optimizer, "schedule": schedule, "validation": loader("list", 0)[:1]}
    options |= {"checkpoint": tmp_path / "run", "rng": rng, "early_stopping": 2, "epochs": 3, "progress": False}
    with pytest.raises(ValueError, match="is of another run"):
        nn.fit(model, batches, loss=nn.CrossEntropyLoss(), **options)
    assert everything() == before


# --- Killed -------------------------------------------------------------------------------------------------------


def begun(folder: Path, name: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, runs.__file__, str(folder / f"{name}.run"), str(folder / f"{name}.weights")]
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
