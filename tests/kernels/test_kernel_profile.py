"""The command that profiles the kernels on the benchmarks' layers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from benchmarks import kernel_gains, kernel_profile, publishing
from benchmarks.kernel_profile import Row, cases_of, main, markdown

ROW = Row(
    case="net/pool/forward", family="pooling", order="channels first", dtype="float32", shapes="", kernel="max_pool",
    moved_bytes=135, least_bytes=100, sectors=105, ideal_sectors=100, requests=10, worst_conflict=2,
    divergent_branches=0, barriers=0, wide_share=0.975,
)  # fmt: skip


def test_what_is_allowed() -> None:
    assert ROW.excesses == []
    assert replace(ROW, moved_bytes=136).excesses == ["moved"]
    assert replace(ROW, sectors=106).excesses == ["sectors"]
    assert replace(ROW, worst_conflict=3).excesses == ["conflict"]
    assert replace(ROW, family="normalization").excesses == ["moved"]
    assert replace(ROW, family="normalization", moved_bytes=110).excesses == []
    assert replace(ROW, family="depthwise convolution").excesses == []


def test_the_table_counts_what_is_beyond() -> None:
    text = markdown([ROW, replace(ROW, worst_conflict=4, kernel="slow")])
    assert "1 of 2 launches are within" in text
    assert "| `slow` | 1.350 | 1.050 | 4 | 98% | 0.00 | conflict |" in text


def test_every_family_that_memory_limits_has_cases() -> None:
    families = {case.family for case in cases_of([])}
    assert all(any(word in family for family in families) for word in kernel_profile.FAMILIES)
    assert "dense convolution" not in families


@pytest.mark.thorough
@pytest.mark.usefixtures("compiler")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--filter", "c3d/pool2/forward", "--lines", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "c3d/pool2/forward" in printed
    assert "blocks of" in printed  # the lines
    rows = json.loads((tmp_path / "kernel-profile-filtered.json").read_text())
    assert {row["order"] for row in rows} == {"channels first", "channels last"}
    assert all(row["moved_bytes"] >= row["least_bytes"] > 0 for row in rows)
    assert "max_pool" in (tmp_path / "kernel-profile-filtered.md").read_text()
    assert (tmp_path / "kernel-profile-filtered.png").stat().st_size > 10_000


@pytest.mark.thorough
@pytest.mark.usefixtures("compiler")
def test_only_a_profile_of_all_cases_replaces_the_committed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    committed, local = tmp_path / "committed", tmp_path / "local"
    monkeypatch.setattr(publishing, "RESULTS", committed)
    for narrower in (["--filter", "pool2"], ["--dtype", "float16"]):
        with pytest.raises(SystemExit):
            main([*narrower, "--publish"])
        assert "the committed profile is of all cases in float32" in capsys.readouterr().err
    few = cases_of(["c3d/pool2/forward"])
    monkeypatch.setattr(kernel_profile, "cases_of", lambda filters, dtypes: few)
    assert main(["--dtype", "float16", "--out", str(local)]) == 0
    assert not committed.exists()
    assert main(["--out", str(local), "--publish"]) == 0
    written = [folder / f"kernel-profile.{end}" for folder in (local, committed) for end in ("json", "md", "png")]
    assert set(written) == {*local.glob("kernel-profile.*"), *committed.iterdir()}
    printed = capsys.readouterr().out
    assert all(f"wrote {path}\n" in printed for path in written)


@pytest.mark.thorough
def test_no_case_is_a_mistaken_call(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--filter", "no such layer"]) == kernel_profile.EXIT_USAGE
    assert "no case matches" in capsys.readouterr().err


def test_gains_are_shares_of_the_plain_paths() -> None:
    layer = "resnet-50/max_pool/forward, channels first"
    page = kernel_gains.markdown(
        {layer: {"bytes": 4_000_000, "instructions": 9_000}}, {layer: {"bytes": 16_000_000, "instructions": 6_000}}
    )
    assert f"| {layer} | 4.0 | 16.0 | 75% | 9.0 | 6.0 | -50% |" in page


def test_gains_are_of_cases_that_there_are() -> None:
    names = [case.id for case in cases_of([])]
    layers = [layer for layers in kernel_gains.LAYERS.values() for layer in layers]
    assert all(any(name.startswith(layer) for name in names) for layer in layers)


@pytest.mark.thorough
@pytest.mark.usefixtures("compiler")
def test_the_plain_paths_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_gains, "LAYERS", {"pooling tiles": ("resnet-50/global_avg/forward",)})
    staged = kernel_gains.counts()
    code = "from benchmarks import kernel_gains as g; g.LAYERS = {'pooling': ('resnet-50/global_avg/forward',)}; "
    command = [sys.executable, "-c", code + "g.main(['--plain'])"]
    plain = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert staged.keys() == plain.keys()
    name = "resnet-50/global_avg/forward, channels first"
    assert staged[name]["bytes"] < plain[name]["bytes"] / 2
