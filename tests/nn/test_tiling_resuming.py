"""Runs by tiles that are killed go on where they were, to the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpucnn import nn

RUN = """
    import os, signal, sys
    import numpy as np
    from gpucnn import nn

    folder, kind, fatal = sys.argv[1], sys.argv[2], int(sys.argv[3])
    count = 0

    def moment():
        global count
        count += 1
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    class Watched:
        def __init__(self, array):
            self.array, self.shape, self.dtype = array, array.shape, array.dtype

        def __getitem__(self, key):
            moment()
            return self.array[key]

        def __setitem__(self, key, value):
            self.array[key][..., ::2] = value[..., ::2]
            moment()  # half of the tile is written
            self.array[key] = value
            moment()

        def flush(self):
            moment()
            self.array.flush()

    replace = os.replace
    os.replace = lambda *names: (moment(), replace(*names), moment())
    layers = [nn.Conv2d(1, 3, 5, padding=2, rng=0), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1, rng=1)]
    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3, rng=2)]
    model = nn.Sequential(*layers, *(ends if kind == "pooled" else []))
    x = Watched(np.load(f"{folder}/x.npy"))
    out = Watched(np.load(f"{folder}/y.npy", mmap_mode="r+"))
    nn.tiled(model, x, tile=8, out=out, resume=f"{folder}/journal", progress=False)
"""


def run(folder: Path, kind: str, fatal: int) -> int:
    """The exit code of a run that kills itself at its `fatal`-th moment; 0 is no moment."""
    code = [sys.executable, "-c", textwrap.dedent(RUN), str(folder), kind, str(fatal)]
    return subprocess.run(code, check=False).returncode


def begin(folder: Path, kind: str) -> None:
    folder.mkdir()
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((2, 1, 24, 30)).astype(np.float32))
    np.save(folder / "y.npy", np.full((2, 3) if kind == "pooled" else (2, 2, 24, 30), np.nan, np.float32))


@pytest.mark.parametrize("kind", ["map", "pooled"])
@pytest.mark.table(2)
def test_killed_runs_go_on_to_the_same_bytes(kind: str, tmp_path: Path) -> None:
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    for folder in (killed, undisturbed):
        begin(folder, kind)
    assert run(undisturbed, kind, 0) == 0
    moments = np.random.default_rng(1).integers(2, 20 if kind == "map" else 12, 10 if kind == "map" else 4)
    done = [0]
    for fatal in moments:
        if run(killed, kind, int(fatal)) == 0:
            break
        journal = killed / "journal"
        done.append(json.loads(journal.read_bytes())["done"] if journal.exists() else 0)
        assert done[-1] >= done[-2]
    assert 0 < done[1 + len(done) // 2] < 24, "kills are to hit a run that is begun"
    assert run(killed, kind, 0) == 0
    assert (killed / "y.npy").read_bytes() == (undisturbed / "y.npy").read_bytes()
    assert np.isfinite(np.load(killed / "y.npy")).all()
    assert not (killed / "journal").exists()


class StoppedError(Exception):
    pass


class Stopping:
    """An image of which only so many parts can be read."""

    def __init__(self, array: Any, reads: int) -> None:
        self.array, self.shape, self.dtype, self.left = array, array.shape, array.dtype, reads

    def __getitem__(self, key: Any) -> Any:
        if not self.left:
            raise StoppedError
        self.left -= 1
        return self.array[key]


def stopped(model: nn.Module, x: Any, out: Any, journal: Path, reads: int = 2) -> None:
    with pytest.raises(StoppedError):
        nn.tiled(model, Stopping(x, reads), tile=4, out=out, resume=journal, progress=False)


def test_done_tiles_are_not_computed_again(tmp_path: Path) -> None:
    model, x = nn.Conv2d(1, 1, 3, padding=1, rng=0), np.ones((1, 1, 8, 8), np.float32)
    out = np.zeros_like(x)
    stopped(model, x, out, tmp_path / "journal", reads=3)
    rest = Stopping(x, 1)
    nn.tiled(model, rest, tile=4, out=out, resume=tmp_path / "journal", progress=False)
    assert out.tobytes() == model(x).tobytes()


def test_a_tile_is_flushed_before_the_journal_has_it(tmp_path: Path) -> None:
    model, x, journal = nn.ReLU(), np.ones((1, 1, 4, 4), np.float32), tmp_path / "journal"
    events = []

    class Out:
        shape, dtype = x.shape, x.dtype

        def __setitem__(self, key: Any, value: Any) -> None:
            events.append("write")

        def flush(self) -> None:
            done = json.loads(journal.read_bytes())["done"] if journal.exists() else 0
            events.append(f"flush after {done}")

    nn.tiled(model, x, tile=(4, 2), out=Out(), resume=journal, progress=False)
    assert events == ["write", "flush after 0", "write", "flush after 1", "flush after 2"]


def test_a_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    model, x = nn.Conv2d(1, 1, 3, padding=1, rng=0), np.ones((1, 1, 8, 8), np.float32)
    out, journal = np.zeros_like(x), tmp_path / "journal"
    stopped(model, x, out, journal)
    other = nn.Conv2d(1, 1, 3, padding=1, rng=1)
    more = np.ones((1, 1, 8, 9), np.float32)
    for names, arguments in {
        "model and weights": (other, x, out, 4),
        "shape of x": (model, more, np.zeros_like(more), 4),
        "tile": (model, x, out, 5),
    }.items():
        *given, out_, tile = arguments
        with pytest.raises(ValueError, match=f"of which differ: {names}; remove it"):
            nn.tiled(*given, tile=tile, out=out_, resume=journal, progress=False)
    journal.write_text("{}")
    with pytest.raises(ValueError, match="no journal"):
        nn.tiled(model, x, tile=4, out=out, resume=journal, progress=False)
