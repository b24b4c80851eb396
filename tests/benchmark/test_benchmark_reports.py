"""Reports of the benchmarks: their arithmetic, tables, figures and files, of a CPU's run and of a GPU's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bench_fakes import TRANSITION, A, B, case_of, gpu_run, layer_of, measured, on_host, outcome, printed, timing

from benchmarks import plots, report, results, targets
from benchmarks.cases import Case, select
from benchmarks.gpu import fallback
from benchmarks.results import Outcome, Ratios, Record, Run, rows_of, summarize

MARKERS = report.README_MARKERS

# Arithmetic ---------------------------------------------------------------------------------------


def test_rows_compare_with_the_quickest_peer_and_the_binding_limit(small_run):
    computing, moving = rows_of(small_run)
    flops = 2 * 64 * 64 * 9 * 224 * 224
    assert (computing.peer, computing.ratio) == ("quick", pytest.approx(0.5))
    assert (computing.unit, computing.rate) == ("GFLOP/s", pytest.approx(flops / 0.074))
    assert computing.share == pytest.approx(flops / 100e9 / 0.074)
    assert (moving.unit, moving.ratio, moving.peer) == ("GB/s", None, "")
    assert moving.share == pytest.approx(4 * 4 * 64 * 112**2 / 10e9 / 2e-3)
    assert computing.timing.spread == pytest.approx(0.2)


def test_summaries_are_geometric_means(small_run):
    (record, _) = small_run.records
    faster = replace(record, outcomes=(outcome("ours", 37, True), outcome("slow", 296)))
    (summary,) = summarize(rows_of(replace(small_run, records=(record, faster))))
    assert (summary.kind, summary.operation) == ("dense convolution", "forward")
    assert (summary.cases, summary.best.cases) == (2, 2)
    assert summary.best.mean == pytest.approx(2)  # of 0.5 and 8
    assert (summary.best.lowest, summary.best.highest) == (pytest.approx(0.5), pytest.approx(8))
    assert summary.named["PyTorch"] is None
    assert results.geometric_mean([1, 100]) == pytest.approx(10)


def test_summaries_name_pytorch_beside_the_quickest_peer(small_run):
    records = [
        replace(small_run.records[0], outcomes=(outcome("ours", 10, True), *peers))
        for peers in (
            [outcome("PyTorch", 20), outcome("PyTorch channels_last", 1), outcome("quick", 5)],
            [outcome("PyTorch", 5), outcome("quick", 80)],
            [outcome("PyTorch channels_last", 10)],
        )
    ]
    rows = rows_of(replace(small_run, records=records))
    assert [row.peer for row in rows] == ["PyTorch channels_last", "PyTorch", "PyTorch channels_last"]
    assert [row.ratio_to("PyTorch") for row in rows] == [pytest.approx(2), pytest.approx(0.5), None]
    (summary,) = summarize(rows)
    assert summary.named["PyTorch"] == Ratios(2, pytest.approx(1), pytest.approx(0.5), pytest.approx(2))
    assert summary.best == Ratios(3, pytest.approx(0.05 ** (1 / 3)), pytest.approx(0.1), pytest.approx(1))
    means = report.summary_table("family", [summary]).markdown().splitlines()
    assert means[0] == "| family | operation | cases | of limit | to PyTorch | range | to best | range |"
    assert means[2].endswith("| 1.00 | 0.50 to 2.00 | 0.37 | 0.10 to 1.00 |")
    assert "| 2.00 | 0.10 | PyTorch channels_last |" in report.case_table(rows).markdown()
    line = report.progress_line(records[0], rows[0])
    assert line.endswith(": 10 ms, 0.10 x PyTorch channels_last, 2.00 x PyTorch")
    assert report.progress_line(records[1], rows[1]).endswith(": 10 ms, 0.50 x PyTorch")


def test_targets_beside_what_was_reached() -> None:
    run = gpu_run(measured(A, 1e-4, 2e-4), measured("mobilenetv2/dw_960/backward_input", 1e-4, 1e-4), measured(B))
    depthwise, norm = targets.reached(rows_of(run), run.cache_bytes)
    assert (depthwise.target.name, depthwise.cases, norm.target.name) == ("depthwise convolution", 2, "norm backward")
    assert depthwise.ratio == pytest.approx(2**0.5)
    moved = case_of(A, 64).least_bytes
    assert moved > run.cache_bytes > case_of("mobilenetv2/dw_960/backward_input", 64).least_bytes
    assert depthwise.share == pytest.approx(moved / 3e12 / 1e-4)  # of the larger case alone
    assert depthwise.host_s == pytest.approx(7.9e-6)
    assert depthwise.host_ratio == pytest.approx(7.9 / 7.5)
    assert depthwise.met == {"ratio": False, "share": False, "host_s": True, "host_ratio": True}
    assert norm.met["ratio"]
    text = report.markdown_report(run)
    assert "| depthwise convolution | float32 | 2 | **1.41** | 1.50 |" in text
    assert "| 7.9 µs | 1.05 |" in text
    assert "| 0.05 | 7.9 | 1.05 |" in text  # warm, host, over a raw launch


def test_float16_has_its_own_limit_and_rows() -> None:
    half = measured("resnet-50/conv1/forward/float16", 1e-3, 1e-3)
    row = rows_of(gpu_run(half))[0]
    assert row.share == pytest.approx(max(half.flops / 750e12, half.least_bytes / 3e12) / 1e-3)
    assert "| convolution, float16 | forward | 1 |" in report.markdown_summary(gpu_run(half))


def with_others(record: Record, cupy: float, host: float) -> Record:
    """A record with the times of plain CuPy and of the NumPy backend."""
    plain = Outcome("plain CuPy", False, "timed", timing(cupy))
    return replace(record, outcomes=(*record.outcomes, plain, on_host(host)))


def test_the_tables_compare_with_numpy_and_with_plain_cupy() -> None:
    run = gpu_run(with_others(measured(A), 8e-4, 0.05), with_others(measured(B), 2e-4, 0.005), measured(TRANSITION))
    rows = rows_of(run)
    assert [row.peer for row in rows] == ["PyTorch"] * 3
    (tiny,) = rows_of(gpu_run(with_others(measured(A), 8e-4, 1e-6)))
    assert (tiny.peer, tiny.ratio) == ("PyTorch", pytest.approx(2))  # the NumPy backend is no peer, be it the quickest
    assert [row.ratio_to("gpucnn NumPy") for row in rows] == [pytest.approx(500), pytest.approx(50), None]
    text = report.markdown_report(run)
    headings = (heading for heading in report.CASE_HEADINGS if heading not in report.IN_ORDERS)
    assert f"| {' | '.join(headings)} |" in text
    assert "| 2.00 | 8.00 | 2.00 | PyTorch | 0.2 | 50 | 500 |" in text
    assert (
        "| group | operation | cases | of limit | to PyTorch | range | to plain CuPy | to best | range | to NumPy |"
        in text
    )
    assert "the same arrays on the host (Some CPU, 2 threads), while the GPU was idle" in text
    without = report.markdown_report(gpu_run(measured(A)))
    assert "NumPy" not in without
    assert "CuPy" not in without


def on_cpu(case: Case, c_order: float, channels_last: float, numpy: float, *peers: Outcome) -> Record:
    """A record with the times, in ms, of gpucnn's implementations on a CPU and of peers."""
    names = {"gpucnn compiled": c_order, "gpucnn compiled channels_last": channels_last, "gpucnn NumPy": numpy}
    return Record.of(case, [*(outcome(name, time, True) for name, time in names.items()), *peers])


@pytest.fixture
def compiled_run(small_run):
    """A convolution that is quicker in C order, and a norm that is quicker channels last."""
    computing = Case(layer_of("VGG-16", "conv1_2"), "forward", 1)
    moving = Case(layer_of("ResNet-50", "bn1"), "training", 2)
    records = (
        on_cpu(computing, 40, 50, 80, outcome("PyTorch", 60), outcome("quick", 20)),
        on_cpu(moving, 4, 2, 1, outcome("PyTorch", 8)),
    )
    return replace(small_run, records=records, networks=records)


def test_what_is_compiled_is_one_subject_in_its_quicker_order_beside_numpy(compiled_run):
    assert (compiled_run.subjects, compiled_run.peers) == (["gpucnn compiled"], ["PyTorch", "quick"])
    computing, moving = rows_of(compiled_run)
    assert [row.timing.median for row in (computing, moving)] == [0.04, 0.002]
    assert {order: timing.median for order, timing in moving.orders.items()} == {
        "C order": 0.004,
        "channels_last": 2e-3,
    }
    assert [(row.peer, row.ratio) for row in (computing, moving)] == [("quick", 0.5), ("PyTorch", 4)]
    assert [row.ratio_to("gpucnn NumPy") for row in (computing, moving)] == [2, 0.5]  # never a peer
    text = report.markdown_report(compiled_run)
    assert "| to best | best peer | best ms | NumPy ms | to NumPy | C order ms | channels_last ms |" in text
    assert "| 4.00 | PyTorch | 8 | 1 | 0.50 | 4 | 2 |" in text
    assert "to best | range | to NumPy |" in text
    assert "gpucnn compiled is in the quicker of C order and channels_last on each case" in text
    assert "on the host" not in text
    line = report.progress_line(compiled_run.records[1], moving)
    assert line.endswith(": 2 ms, 4.00 x PyTorch, 0.50 x gpucnn NumPy")


def test_an_order_that_fails_or_an_implementation_alone_is_no_different(compiled_run):
    def kept(*names):
        return replace(
            compiled_run,
            records=tuple(
                replace(r, outcomes=tuple(o for o in r.outcomes if o.provider in names)) for r in compiled_run.records
            ),
            networks=(),
        )

    names = ["gpucnn compiled", "gpucnn compiled channels_last", "gpucnn NumPy"]
    for name in names:
        alone = kept(name, "PyTorch")
        assert alone.subjects == [name]
        assert [row.orders for row in rows_of(alone)] == [{}, {}]
    assert [row.timing.median for row in rows_of(kept(names[2]))] == [0.08, 0.001]
    failed = Outcome(names[0], True, "wrong", note="so it was")
    record = replace(compiled_run.records[0], outcomes=(failed, *compiled_run.records[0].outcomes[1:]))
    (row,) = rows_of(replace(compiled_run, records=(record,)))
    assert (row.subject, row.timing.median) == (names[0], 0.05)


def test_the_terminal_has_room_for_what_is_compiled(compiled_run):
    longest = max(select("full"), key=lambda case: len(f"{case.layer.network} {case.layer.name}"))
    record = on_cpu(longest, 1234.5, 1234.5, 1e5, outcome("PyTorch", 123456), outcome("PyTorch channels_last", 12345))
    text = printed(replace(compiled_run, records=(*compiled_run.records, record)))
    assert "…" not in text
    for word in (f"{longest.layer.network} {longest.layer.name}", "PyTorch channels_last", "to NumPy"):
        assert word in text


# Files --------------------------------------------------------------------------------------------


def test_json_keeps_everything(small_run, tmp_path):
    path = tmp_path / "run.json"
    on_gpu = gpu_run(measured(A), measured(B, status="failed"))
    for run in (small_run, replace(small_run, networks=small_run.records), replace(on_gpu, unreached=("a", "b"))):
        run.save(path)
        assert Run.load(path) == run
    small_run.save(path)
    assert "null" not in path.read_text()  # what is measured on a GPU alone is not there
    path.write_text(path.read_text().replace('"schema": 3', '"schema": 99'))
    with pytest.raises(ValueError, match="schema 99"):
        Run.load(path)


def test_older_files_load(tmp_path):
    """The first schema had no figures of a GPU, the second no networks."""
    path = tmp_path / "run.json"
    run = replace(gpu_run(measured(A), measured(B, status="failed")), unreached=("a", "b"))
    run.save(path)
    data = json.loads(path.read_text())
    data["schema"] = 1
    del data["unreached"], data["networks"], data["limits"]["other_flops"]
    for record in data["records"]:
        del record["dtype"], record["raw_launch_s"]
        for measurement in record["outcomes"]:
            for missing in ("warm", "host"):
                measurement.pop(missing, None)
    path.write_text(json.dumps(data))
    old = Run.load(path)
    assert old.records[0].outcomes[0].timing == run.records[0].outcomes[0].timing
    assert (old.unreached, old.networks) == ((), ())
    assert (old.records[0].dtype, old.records[0].outcomes[0].warm) == ("float32", None)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_readmes_block_of_a_device_is_replaced_and_nothing_else(device, small_run, tmp_path):
    run = small_run if device == "cpu" else gpu_run(measured(A))
    readme = tmp_path / "README.md"
    readme.write_text("".join(f"before {name} {start}\nold {name}\n{end}\n" for name, (start, end) in MARKERS.items()))
    for _ in range(2):  # the second time replaces the first
        report.update_readme(readme, run, "details.md")
    written = readme.read_text()
    assert all(f"before {name} {start}" in written for name, (start, _) in MARKERS.items())
    assert [name for name in MARKERS if f"old {name}" not in written] == [device]
    assert "(details.md)" in written
    rows = {
        "cpu": ["| convolution | forward | 1 | 50% | 0.50 | 0.50 to 0.50 |", "| normalization | all | 1 |"],
        "gpu": ["| depthwise convolution | all | 1 |", "cuDNN 9.10.2", "SM clock 1980 MHz"],
    }[device]
    assert [written.count(row) for row in rows] == [1] * len(rows)
    for absent in ("dense convolution", "| depthwise convolution | forward |", "target"):  # families, kinds: elsewhere
        assert absent not in written
    readme.write_text("".join(text for name, pair in MARKERS.items() if name != device for text in pair))
    with pytest.raises(ValueError, match="benchmark:start"):
        report.update_readme(readme, run, "details.md")


def test_the_committed_readme_has_both_places() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    for start, end in MARKERS.values():
        assert text.count(start) == text.count(end) == 1


# Tables and terminal ------------------------------------------------------------------------------


def test_markdown_has_a_row_a_case_and_columns_for_peers_that_were_timed(small_run):
    text = report.markdown_report(small_run)
    assert "| case | operation | shapes | ms | spread | rate | of limit | to best | best peer |" in text
    assert "| VGG-16 conv1_2 | forward | 1x64x224x224 -> 1x64x224x224 | 74 | 20% |" in text
    assert "| 0.50 | quick |" in text
    assert "PyTorch" not in text
    assert "CuPy" not in text
    alone = [replace(r, outcomes=r.outcomes[:1]) for r in small_run.records]
    text = report.markdown_report(replace(small_run, records=tuple(alone)))
    assert "| case | operation | shapes | ms | spread | rate | of limit |\n" in text
    assert "| family | operation | cases | of limit |\n" in text
    assert "peer" not in text
    assert "ratio =" not in text


def test_the_longest_names_fit_into_140_columns(small_run):
    longest = [
        max(select("full"), key=lambda case: len(f"{case.layer.network} {case.layer.name}")),
        max(select("full"), key=lambda case: len(f"{case.family}{case.operation}")),
    ]
    peers = outcome("PyTorch", 123456), outcome("PyTorch channels_last", 12345)
    records = [Record.of(case, (outcome("gpucnn NumPy", 1234.5, True), *peers)) for case in longest]
    text = printed(replace(small_run, records=records))
    assert "…" not in text
    for case in longest:
        for word in (f"{case.layer.network} {case.layer.name}", case.operation.replace("_", " "), case.family):
            assert word in text
    assert text.count("100.00 to 100.00") == 4  # to PyTorch, of two cases by group and by family
    assert text.count("PyTorch channels_last") == 2


def test_the_terminal_shows_rows_and_faults(small_run):
    fault = Outcome("slow", False, "wrong", note="output[0] is 1, expected 2")
    faulty = replace(small_run.records[1], outcomes=(small_run.records[1].outcomes[0], fault))
    text = printed(replace(small_run, records=(small_run.records[0], faulty)))
    for expected in ("VGG-16 conv1_2", "50 GFLOP/s", "0.50", "WRONG", "CPU only", "2 threads"):
        assert expected in text
    assert report.progress_line(faulty, None).endswith("slow WRONG: output[0] is 1, expected 2")
    text = printed(gpu_run(measured(A), measured(B, status="failed")), width=160)
    for expected in ("gpucnn: targets", "FAILED", "GPU: NVIDIA Fake 100"):
        assert expected in text
    assert [report.milliseconds(s) for s in (1.2345, 0.012345, 1e-5)] == ["1234", "12.3", "0.01"]


# Figures ------------------------------------------------------------------------------------------


def texts_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_legends_name_what_is_drawn_and_nothing_else(small_run):
    rows = rows_of(small_run)
    assert texts_of(plots._speedup(small_run, rows)) == ["forward"]  # the norm has no peer
    assert texts_of(plots._roofline(small_run, rows)) == ["forward, training", "dense convolution"]
    assert texts_of(plots._roofline(small_run, rows[1:])) == ["training"]
    pooled = Record.of(Case(layer_of("C3D", "pool2"), "backward", 1), [outcome("ours", 2, True), outcome("PyTorch", 3)])
    (row,) = rows_of(replace(small_run, records=(pooled,)))
    assert texts_of(plots._speedup(small_run, [row])) == ["backward", "over PyTorch"]
    assert texts_of(plots._roofline(small_run, [row])) == ["backward", "quickest peer (limited by memory)"]


def test_the_figure_over_numpy_has_what_was_timed(compiled_run) -> None:
    run = gpu_run(with_others(measured(A), 8e-4, 0.05), with_others(measured(B), 2e-4, 0.005), measured(TRANSITION))
    figure = plots._over_numpy(run, rows_of(run))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["depthwise convolution: 500", "normalization: 50"]
    assert texts_of(figure) == ["forward", "backward", "plain CuPy"]
    figure = plots._over_numpy(compiled_run, rows_of(compiled_run))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "dense convolution: 2",
        "normalization: 0.5",
    ]
    alone = gpu_run(fallback.added(measured(A), on_host(0.05)))
    assert texts_of(plots._over_numpy(alone, rows_of(alone))) == ["forward"]


@pytest.mark.table(1)
@pytest.mark.parametrize("operations", [("forward",), ("forward", "backward_input", "backward_weight")])
def test_the_legend_of_the_roofline_is_within_the_figure_and_below_its_axes(small_run, operations):
    """However many entries it has, in a figure with both panels or with one."""
    every = [case for case in select("full") if case.operation in operations or not case.flops]
    computing = [case for case in every if case.flops]
    for chosen in (every, computing, [case for case in every if not case.flops]):
        records = [Record.of(case, [outcome("ours", 74, True), outcome("PyTorch", 60)]) for case in chosen]
        figure = plots._roofline(small_run, rows_of(replace(small_run, records=tuple(records))))
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0
        assert all(box.y1 <= axes.get_tightbbox().y0 for axes in figure.axes)
