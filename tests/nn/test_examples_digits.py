"""The digits example in short, and what it shares with the one about clothes."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpucnn import nn
from gpucnn.data import Images
from gpucnn.examples import _report, digits, fashion

for module in ("matplotlib", "safetensors", "sklearn", "threadpoolctl"):
    pytest.importorskip(module, reason=f"{module} is not installed")


@pytest.mark.thorough
def test_digits_are_learned_the_same_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path / "a"), "--epochs", "6", "--target", "0.9"]
    assert digits.main(arguments) == 0
    said = capsys.readouterr().out
    assert "epoch 6/6" in said
    assert "of 359 images that the network never saw, which reaches the target of 90%" in said.splitlines()[-1]
    history = nn.History.from_json((tmp_path / "a" / "history.json").read_text())
    assert len(history) == 6
    assert history.validation_accuracies[-1] >= 0.9
    assert (tmp_path / "a" / "run.png").read_bytes().startswith(b"\x89PNG")
    model = digits.network(np.random.default_rng(1))
    nn.load_weights(model, tmp_path / "a" / "weights.safetensors")
    weights = nn.read_weights(tmp_path / "a" / "weights.safetensors")
    assert all(np.array_equal(model.state_dict()[name], array) for name, array in weights.items())


@pytest.mark.thorough
def test_a_run_repeats_and_a_target_that_was_missed_is_an_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        assert digits.main(["--out", str(tmp_path / name), "--epochs", "1", "--target", "1"]) == 1
    assert "short of the target of 100%" in capsys.readouterr().out.splitlines()[-1]
    first, second = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_it_runs_as_a_module() -> None:
    ran = subprocess.run([sys.executable, "-m", "gpucnn.examples.digits", "--help"], capture_output=True, text=True)
    assert ran.returncode == 0
    assert "--epochs" in ran.stdout


# --- Clothes ------------------------------------------------------------------------------------------------------


def test_clothes_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for part, n in (("train", 128), ("t10k", 40)):
        y = (np.arange(n) % 10).astype(np.uint8)
        x = rng.integers(0, 40, (n, 28, 28), dtype=np.uint8)
        x[np.arange(n), 2 * y + 2] = 255  # a bright row tells the class
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            header = struct.pack(f">2xBB{array.ndim}I", 8, array.ndim, *array.shape)
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--epochs", "6", "--target", "0.5"]
    assert fashion.main(arguments) == 0
    assert "of 40 images" in capsys.readouterr().out.splitlines()[-1]
    assert len(json.loads((tmp_path / "out" / "history.json").read_text())["losses"]) == 6


def test_missing_clothes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fashion.main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "install Debian's package dataset-fashion-mnist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- The picture --------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(("wrong", "channels"), [(0, 1), (7, 3), (30, 1)])
def test_the_picture_takes_any_number_of_misread_images(tmp_path: Path, wrong: int, channels: int) -> None:
    rng = np.random.default_rng(0)
    test = Images(rng.random((40, channels, 4, 4), dtype=np.float32), np.arange(40) % 2, ("even", "odd"))
    probabilities = np.eye(2)[(test.y + (np.arange(40) < wrong)) % 2]
    history = nn.History([2.0], [0.5], [1.5], [0.6], [0.1], [1.0])
    _report.draw(tmp_path / "run.png", "A run", history, test, probabilities)
    assert (tmp_path / "run.png").stat().st_size > 10_000
