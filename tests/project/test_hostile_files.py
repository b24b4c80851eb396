"""Hostile model files: a sample of those of `hostile.py`, which reads 10,000 in some minutes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest

from gpucnn import onnx
from gpucnn.onnx import execution

FORBIDDEN = {
    "open": "open('/etc/hostname').close()",
    "write": "open(sys.argv[1], 'w').close()",
    "start": "os.system('true')",
    "unpickle": "pickle.loads(b'cposix\\nsystem\\n.')",
    "delete": "os.path.exists(sys.argv[1]) and os.remove(sys.argv[1])",
}


@pytest.mark.thorough
def test_hostile_files_are_read_or_refused() -> None:
    pytest.importorskip("onnx.checker", reason="onnx is not installed")
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    assert hostile.attack(400, seed=1) == []


def test_what_is_bounded_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx.checker", reason="onnx is not installed")
    for data, message in (
        (hostile.with_functions(40), "has more than 1048576 nodes with those of its functions"),
        (hostile.with_functions(80, calls=1), "its functions call each other more than 64 deep, or in a circle"),
        (hostile.with_data_at("a" * 5000), "which is no file: File name too long"),
        (hostile.with_data_at("link"), "outside the folder of the model"),
    ):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to("/etc/hostname")
        (tmp_path / "model.onnx").write_bytes(data)
        with pytest.raises(onnx.ModelError, match=f"^model.onnx: .*{re.escape(message)}"):
            onnx.load(tmp_path / "model.onnx")
    model = onnx.load(hostile.with_functions(4))
    assert [node.op for node in model._graph.nodes] == ["Relu"] * 16
    monkeypatch.setattr(execution, "MOST_TURNS", 10)
    x = np.ones((2, 4), np.float32)
    assert onnx.load(hostile.turning(10)).run([x])[0][0, 0] == 2.0**10
    with pytest.raises(onnx.ModelError, match="its loops have more than 10 turns in one run"):
        onnx.load(hostile.turning(11)).run([x])


def test_what_a_file_must_not_do_is_seen(tmp_path: Path) -> None:
    code = "import os, pickle, sys; from pathlib import Path; import hostile; seen = []\n"
    code += "watching = hostile.watch(Path(sys.argv[1]).parent, seen); watching[0] = True\n"
    code += "\n".join(f"{done}; print({name!r}, len(seen)); seen.clear()" for name, done in FORBIDDEN.items())
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(hostile.__file__).parent)
    assert [line.split()[0] for line in ran.stdout.splitlines() if line.split()[1] != "0"] == list(FORBIDDEN)


def test_a_mutant_is_always_the_same() -> None:
    files = {kind: [hostile.a_zip(), hostile.a_legacy_file()] for kind in hostile.KINDS if kind != "zip"}
    files["zip"] = [hostile.a_zip()]
    some = [hostile.mutant(files, [b"bomb"], 3, number) for number in range(30)]
    assert some == [hostile.mutant(files, [b"bomb"], 3, number) for number in range(30)]
    assert some[0] == ("onnx", b"bomb")
    assert len({data for _, data in some}) > 20
