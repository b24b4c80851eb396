"""The sweep over drawn layers: what is drawn, what is reported, and the files of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_fakes import gpu_run, measured

from benchmarks import environment, publishing, sweep
from benchmarks import timing as benchmark_timing
from benchmarks.cases import LAYERS, Case
from benchmarks.layers import ConvLayer
from benchmarks.plots import draw_scatter
from benchmarks.providers.gpucnn import GpucnnNumpy
from benchmarks.results import Run, rows_of


class Peer(GpucnnNumpy):
    name = "PyTorch"
    ours = False


# Layers -------------------------------------------------------------------------------------------


def test_the_same_layers_are_drawn_each_time_and_fewer_are_the_first_of_them():
    layers = sweep.draw_layers()
    assert layers == sweep.draw_layers()
    assert sweep.draw_layers(30) == layers[:30]
    assert sweep.draw_layers(seed=sweep.SEED + 1) != layers
    assert [(layer.name, layer.cpu_batch, layer.channels, layer.size) for layer in layers[:3]] == [
        ("000-k3s1", 3, 315, (34, 34)),
        ("001-k3s1d2g4", 2, 4, (24, 24)),
        ("002-k7s1d2g13", 1, 65, (34, 34)),
    ]


def test_drawn_layers_differ_from_each_other_and_from_the_tables():
    forms = [sweep._form(layer) for layer in sweep.draw_layers()]
    assert len(set(forms)) == sweep.COUNT
    assert not set(forms) & {sweep._form(layer) for layer in LAYERS}
    names = {Case(layer, o, layer.cpu_batch).id for layer in sweep.draw_layers() for o in layer.operations}
    assert len(names) > 500


def test_a_layer_of_the_table_is_drawn_again(monkeypatch):
    known = next(layer for layer in LAYERS if isinstance(layer, ConvLayer) and layer.network == "DeepLabV3")
    small = iter([known, replace(known, channels=5, out_channels=7), known, replace(known, channels=7, out_channels=9)])
    monkeypatch.setattr(sweep, "KINDS", (lambda _: next(small),))
    assert [layer.channels for layer in sweep.draw_layers(2)] == [5, 7]


def test_drawn_layers_are_of_all_kinds_and_take_some_milliseconds():
    layers = sweep.draw_layers()
    convolutions = [layer for layer in layers if isinstance(layer, ConvLayer)]
    assert {layer.family for layer in layers} == {
        "dense convolution", "1x1 convolution", "dilated convolution", "grouped convolution", "depthwise convolution",
        "pooling", "normalization",
    }  # fmt: skip
    assert {layer.kernel for layer in convolutions} == {(1, 1), (3, 3), (5, 5), (7, 7)}
    assert {layer.stride for layer in convolutions} == {(1, 1), (2, 2)}
    assert {layer.dilation for layer in convolutions} == {(1, 1), (2, 2)}
    assert {layer.channels % 2 for layer in convolutions} == {0, 1}
    assert {layer.cpu_batch for layer in layers} == set(sweep.BATCHES)
    assert {size for layer in layers for size in layer.size} <= set(range(7, 113))
    for layer in layers:
        assert layer.channels % getattr(layer, "groups", 1) == 0
        for operation in layer.operations:
            case = Case(layer, operation, layer.cpu_batch)
            assert min(layer.output_shape(1)) > 0
            assert case.flops <= sweep.MAX_FLOPS
            assert case.least_bytes <= sweep.MAX_BYTES


# Reports ------------------------------------------------------------------------------------------


@pytest.fixture
def three():
    """A convolution of two sizes and a norm: ratios to the peer of 2, 0.5 and 4."""
    names = "resnet-50/conv1/forward", "resnet-50/conv2_3x3/forward", "resnet-50/bn1/backward"
    return gpu_run(*(measured(name, 1e-3, 1e-3 * ratio) for name, ratio in zip(names, (2, 0.5, 4), strict=True)))


def test_the_least_ratio_of_each_group_comes_with_its_case(three):
    assert [(row.record.layer, row.ratio) for row in sweep.least(rows_of(three))] == [("conv2_3x3", 0.5), ("bn1", 4)]
    by_group, by_family, least = sweep.tables(three)
    assert "| convolution | forward | 2 |" in by_group.markdown()
    assert "| dense convolution | forward | 2 |" in by_family.markdown()
    assert least.markdown().splitlines()[2].startswith("| ResNet-50 conv2_3x3 | forward |")
    assert "geometric mean 1.59, least 0.50, at least 1 in 67%" in sweep.summary(three)


def test_without_a_peer_there_is_no_ratio_and_no_figure(three, tmp_path):
    alone = replace(three, records=tuple(replace(r, outcomes=r.outcomes[:1]) for r in three.records))
    assert sweep.summary(alone).startswith("3 cases of drawn layers.\n")
    assert draw_scatter(alone, tmp_path / "x.png") == []
    assert draw_scatter(three, tmp_path / "x.png") == [tmp_path / "x.png"]
    assert draw_scatter(alone, tmp_path / "x.png") == []
    assert not (tmp_path / "x.png").exists()


# A run --------------------------------------------------------------------------------------------


@pytest.fixture
def run_command(folders, monkeypatch, tmp_path):
    """Run the command on the first four layers; its status, and the files that it wrote."""
    monkeypatch.setattr("benchmarks.providers.PROVIDERS", (GpucnnNumpy, Peer))
    monkeypatch.setattr(sweep, "BUDGET_S", 0.1)
    for name in ("WARM_S", "PAUSE_S"):
        monkeypatch.setattr(benchmark_timing, name, 0.0)

    def run(*arguments):
        status = sweep.main(["--layers", "4", "--threads", "1", "--out", str(tmp_path / "local"), *arguments])
        device = environment.slug(environment.device_name(), 1)
        found = (tmp_path / "local").iterdir() if (tmp_path / "local").exists() else ()
        return status, {path.name.removeprefix(f"{device}-sweep-filtered"): path for path in found}

    return run


def test_a_run_writes_its_files_and_prints_means(run_command, capsys):
    status, files = run_command("--filter", "forward")
    assert status == 0
    assert set(files) == {".json", ".md", ".png"}
    run = Run.load(files[".json"])
    assert [record.id for record in run.records] == [f"drawn/{layer.name}/forward" for layer in sweep.draw_layers(4)]
    assert {o.status for record in run.records for o in record.outcomes} == {"timed"}
    assert (run.tier, run.complete, run.environment["device"]["threads"]) == ("sweep", False, 1)
    assert set(run.environment["versions"]) == {"Python", "NumPy", "gpucnn NumPy", "PyTorch"}
    printed = capsys.readouterr().out
    for text in ("Geometric means by group", "The least ratio", "geometric mean", f"wrote {files['.png']}"):
        assert text in printed
    assert "## Geometric means by family" in files[".md"].read_text()
    assert not publishing.RESULTS.exists()


def test_faults_and_mistakes_have_their_statuses(run_command, monkeypatch, capsys):
    monkeypatch.setattr(Peer, "results", lambda self, returned: [returned * 2])
    status, files = run_command("--filter", "000,forward", "--filter", "forward")
    assert status == publishing.EXIT_FAULT
    assert {o.status for record in Run.load(files[".json"]).records for o in record.outcomes} == {"timed", "wrong"}
    assert "WRONG drawn/000-k3s1/forward, PyTorch: output" in capsys.readouterr().out
    assert run_command("--filter", "no such layer")[0] == publishing.EXIT_USAGE
    assert run_command("--publish")[0] == publishing.EXIT_USAGE
    assert "not published: only a whole run is published" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sweep.parse(["--layers", "0"])


def test_an_interrupted_run_keeps_what_it_has(run_command, monkeypatch):
    def prepare(self, case, arrays, prepare=GpucnnNumpy.prepare):
        if case.layer.name.startswith("001"):
            raise KeyboardInterrupt
        return prepare(self, case, arrays)

    monkeypatch.setattr(Peer, "prepare", prepare)
    status, files = run_command("--filter", "forward")
    assert status == publishing.EXIT_INTERRUPTED
    assert len(Run.load(files["-partial.json"]).records) == 1
