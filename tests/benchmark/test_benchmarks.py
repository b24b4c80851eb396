"""The benchmark suite: its table, its arithmetic, its checker and its reports."""

from __future__ import annotations

import io
import itertools
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import cases, environment, kernel_profile, plots, publishing, report, results, session, timing
from benchmarks.cases import LAYERS, Case, select
from benchmarks.checking import EPS, expect
from benchmarks.data import make_arrays, pool_maximum
from benchmarks.gpu.cuts import Cut, fault_of
from benchmarks.gpu.device import Device
from benchmarks.layers import ConvLayer, NormLayer, PoolLayer, ResampleLayer, UnfoldLayer
from benchmarks.providers import Provider
from benchmarks.results import Outcome, Ratios, Record, Run, rows_of, summarize
from benchmarks.timing import Limits, Timing

ROOT = Path(__file__).parents[2]


def layer_of(network, name):
    return next(layer for layer in LAYERS if (layer.network, layer.name) == (network, name))


# The table ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "name", "shape"),
    [
        ("AlexNet", "conv1", (1, 96, 55, 55)),
        ("AlexNet", "conv2", (1, 256, 27, 27)),
        ("ResNet-50", "conv1", (1, 64, 112, 112)),
        ("ResNet-50", "conv3_3x3_s2", (1, 128, 28, 28)),
        ("ResNet-50", "max_pool", (1, 64, 56, 56)),
        ("ResNet-50", "global_avg", (1, 2048, 1, 1)),
        ("EfficientNet-B0", "dw5_672_s2", (1, 672, 7, 7)),
        ("U-Net", "bottom", (1, 1024, 30, 30)),
        ("U-Net", "up1", (1, 512, 56, 56)),
        ("DCGAN", "generator5", (1, 3, 64, 64)),
        ("wav2vec 2.0", "encoder2", (1, 512, 1599)),
        ("C3D", "pool2", (1, 128, 8, 28, 28)),
        ("YOLOv3-SPP", "spp13", (1, 512, 19, 19)),
        ("ViT-B", "layer_norm", (1, 197, 768)),
    ],
)
def test_layers_have_their_published_sizes(network, name, shape):
    assert layer_of(network, name).output_shape(1) == shape


def test_identifiers_are_unique_and_tiers_nest():
    full = [case.id for case in select("full")]
    assert len(set(full)) == len(full)
    assert {c.id for c in select("quick")} < {c.id for c in select("default")} < set(full)
    assert {case.family for case in select("quick")} >= {"dense convolution", "pooling"}


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{layer.network}-{layer.name}")
def test_layers_are_consistent(layer):
    if isinstance(layer, ConvLayer):
        assert layer.channels % layer.groups == 0 == layer.out_channels % layer.groups
    if isinstance(layer, ResampleLayer) and layer.kind == "unpool":
        assert all(o % i == 0 for o, i in zip(layer.output, layer.size, strict=True))
    for operation in layer.operations:
        case = Case(layer, operation, layer.batch("cpu"))
        assert min(layer.output_shape(case.batch)) > 0
        assert case.least_bytes > 0
        assert (case.flops > 0) == isinstance(layer, ConvLayer)
    assert layer.batch("gpu") >= layer.batch("cpu")


def test_costs_by_hand():
    vgg = Case(layer_of("VGG-16", "conv1_2"), "forward", 1)
    assert vgg.flops == 2 * 64 * 64 * 9 * 224 * 224
    assert vgg.least_bytes == 4 * (64 * 224 * 224 * 2 + 64 * 64 * 9 + 64)
    grouped = Case(layer_of("AlexNet", "conv2"), "backward_weight", 2)
    assert grouped.flops == 2 * 2 * 27 * 27 * 256 * 48 * 25
    assert grouped.least_bytes == 4 * (2 * 27 * 27 * (96 + 256) + 256 * 48 * 25)
    up = Case(layer_of("U-Net", "up1"), "backward_input", 1)
    assert up.flops == 2 * 28 * 28 * 1024 * 512 * 4
    pooled = layer_of("ResNet-50", "max_pool")
    assert pooled.least_bytes("forward", 1) == 4 * 64 * (112**2 + 56**2)
    assert pooled.least_bytes("backward", 1) == 4 * 64 * 112**2 + (4 + 8) * 64 * 56**2
    norm = layer_of("ResNet-50", "bn1")
    assert norm.least_bytes("training", 2) == 4 * 2 * 2 * 64 * 112**2
    assert norm.least_bytes("backward", 2) == 4 * 3 * 2 * 64 * 112**2


def test_filters_narrow_and_commas_widen():
    chosen = select("full", ["alexnet,VGG", "conv1", "forward"])
    assert {c.id.split("/")[0] for c in chosen} == {"alexnet", "vgg-16"}
    assert all(c.operation == "forward" and "conv1" in c.id for c in chosen)
    assert {c.family for c in select("full", ["depthwise"])} == {"depthwise convolution"}
    assert select("full", ["no such thing"]) == []
    assert command.split_filters(["vgg", "torch,onnx", "forward"]) == (
        ["torch", "onnx"],
        ["vgg", "forward"],
    )


# The checker --------------------------------------------------------------------------------------

SMALL_CONVOLUTIONS = [
    cases._conv("small", "plain", 4, 6, 7, 3, padding=1, bias=True, cpu_batch=2),
    cases._conv("small", "all", 4, 6, (9, 8), (3, 2), (2, 3), (2, 1), (2, 1), 2, cpu_batch=2),
    cases._conv("small", "strided", 3, 4, 8, 2, stride=3),  # some inputs are never read
    cases._conv("small", "line", 4, 4, (11,), 3, stride=2, padding=1, groups=4),
    cases._conv("small", "space", 2, 2, (4, 5, 3), 2, padding=1, bias=True),
    cases._conv("small", "up", 4, 6, 4, 4, 2, 1, groups=2, transposed=True, cpu_batch=2, bias=True),
]


def fault(case, expectations, results):
    return fault_of(Cut(case), case, expectations, results, Device())


def naive_convolution(layer, x, y, weight):
    """Every product of a convolution, once: (output, input gradient, weight gradient)."""
    big, small, out_size, in_size = x, y, layer.out_size, layer.size
    if layer.transposed:
        big, small, out_size, in_size = y, x, layer.size, layer.out_size
    forward, to_big, to_weight = (np.zeros(a.shape) for a in (small, big, weight))
    outs, ins = weight.shape[0] // layer.groups, weight.shape[1]
    for o in np.ndindex(*out_size):
        for tap in np.ndindex(*layer.kernel):
            axes = zip(o, layer.stride, layer.padding, layer.dilation, tap, strict=True)
            i = tuple(a * s - p + d * t for a, s, p, d, t in axes)
            if not all(0 <= a < extent for a, extent in zip(i, in_size, strict=True)):
                continue
            for n, oc, c in itertools.product(range(x.shape[0]), range(len(weight)), range(ins)):
                channel = oc // outs * ins + c
                forward[(n, oc, *o)] += big[(n, channel, *i)] * weight[(oc, c, *tap)]
                to_big[(n, channel, *i)] += small[(n, oc, *o)] * weight[(oc, c, *tap)]
                to_weight[(oc, c, *tap)] += small[(n, oc, *o)] * big[(n, channel, *i)]
    return (to_big, forward, to_weight) if layer.transposed else (forward, to_big, to_weight)


@pytest.mark.parametrize("operation", ["forward", "backward_input", "backward_weight"])
@pytest.mark.parametrize("layer", SMALL_CONVOLUTIONS, ids=lambda layer: layer.name)
def test_convolution_checker(layer, operation):
    case = Case(layer, operation, layer.cpu_batch)
    arrays = make_arrays(case)
    x = arrays.get("input", np.zeros(layer.input_shape(case.batch), np.float32))
    y = arrays.get("grad_output", np.zeros(layer.output_shape(case.batch), np.float32))
    weight = arrays.get("weight", np.zeros(layer.weight_shape, np.float32))
    place = layer.operations.index(operation)
    right = naive_convolution(layer, x, y, weight)[place]
    if "bias" in arrays:
        right += arrays["bias"].reshape(-1, *(1,) * layer.rank)
    right = right.astype(np.float32)
    expectations = expect(case, arrays)
    assert fault(case, expectations, [right]) is None
    assert math.prod(right.shape) == expectations[0].values.size  # so small that all is checked
    for spot in {(0,) * right.ndim, tuple(e - 1 for e in right.shape)}:
        wrong = right.copy()
        wrong[spot] += 1e-3
        assert "expected" in fault(case, expectations, [wrong])


def other_cases():
    pool = {"network": "small", "name": "pool", "channels": 2, "cpu_batch": 2}
    window = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0)}
    small = [
        PoolLayer(**pool, size=(7, 6), kind="max", **window),
        PoolLayer(**pool, size=(7, 6), kind="avg", **window),
        PoolLayer(**pool, size=(7, 5), kind="adaptive_avg", output=(3, 2)),
        UnfoldLayer(**pool, size=(7, 6), **window),
        ResampleLayer(**pool, size=(3, 4), kind="nearest", output=(6, 8)),
        ResampleLayer(**pool, size=(3, 4), kind="bilinear", output=(7, 9)),
        ResampleLayer(**pool, size=(3, 4), kind="unpool", output=(6, 8)),
    ]
    norm = {"network": "small", "name": "norm", "channels": 6, "size": (4, 5), "cpu_batch": 3}
    small += [NormLayer(**norm, kind=kind, groups=3) for kind in ("batch", "layer", "group", "instance")]
    return [Case(layer, name, layer.cpu_batch) for layer in small for name in layer.operations]


@pytest.mark.parametrize(
    "case",
    other_cases(),
    ids=lambda case: f"{getattr(case.layer, 'kind', 'unfold')}-{case.operation}",
)
def test_planted_errors_are_found(case):
    expectations = expect(case, make_arrays(case))
    right = [np.asarray(e.values, dtype=np.float32) for e in expectations]
    assert fault(case, expectations, right) is None
    for place in range(len(right)):
        wrong = [array.copy() for array in right]
        wrong[place].flat[-1] += 1e-2
        assert expectations[place].name in fault(case, expectations, wrong)
    assert "float64" in fault(case, expectations, [a.astype(np.float64) for a in right])
    assert "shape" in fault(case, expectations, [a[..., :1] for a in right])
    assert "not finite" in fault(case, expectations, [a * np.float32(np.nan) for a in right])
    assert "arrays came back" in fault(case, expectations, [*right, right[0]])


@pytest.mark.parametrize("kind", ["batch", "layer", "group", "instance"])
def test_expected_norm_gradients_are_derivatives(kind):
    layer = NormLayer(network="n", name="n", channels=6, size=(4, 5), kind=kind, groups=3)
    forward = Case(layer, layer.operations[0], 3)
    backward = Case(layer, "backward", 3)
    arrays = {name: array.astype(np.float64) for name, array in make_arrays(backward).items()}
    gradients = dict(zip(("input", "weight", "bias"), expect(backward, arrays), strict=True))
    rng = np.random.default_rng(0)
    for name, expectation in gradients.items():
        step = 1e-5 * rng.standard_normal(arrays[name].shape)
        above, below = (expect(forward, arrays | {name: arrays[name] + sign * step})[0].values for sign in (1, -1))
        change = (arrays["grad_output"] * (above - below)).sum() / 2
        assert change == pytest.approx((expectation.values * step).sum(), rel=1e-6)


def linear_backwards():
    kinds = ("avg", "adaptive_avg", "nearest", "bilinear")
    backwards = [case for case in other_cases() if case.operation == "backward"]
    return [case for case in backwards if case.layer.kind in kinds]


@pytest.mark.parametrize("case", linear_backwards(), ids=lambda case: case.layer.kind)
def test_expected_linear_gradients_are_adjoints(case):
    layer = case.layer
    x = np.random.default_rng(1).standard_normal(layer.input_shape(case.batch))
    y = expect(replace(case, operation="forward"), {"input": x})[0].values
    arrays = make_arrays(case)
    gx = expect(case, arrays)[0].values
    assert (y * arrays["grad_output"]).sum() == pytest.approx((x * gx).sum())


def test_pool_maximum_takes_the_first_of_equals_and_skips_padding():
    layer = cases._pool("small", "pool", "max", 1, 2, 2, stride=2, padding=1)
    best, indices = pool_maximum(np.array([[[[-1, -2], [-3, -4]]]], np.float32), layer)
    assert best.tolist() == [[[[-1, -2], [-3, -4]]]]
    assert indices.tolist() == [[[[0, 1], [2, 3]]]]
    same = replace(layer, padding=(0, 0))
    assert pool_maximum(np.ones((1, 1, 2, 2), np.float32), same)[1].item() == 0


def test_tolerances_are_far_below_one_missing_term():
    case = Case(layer_of("ResNet-50", "conv5_3x3"), "forward", 1)
    (expectation,) = expect(case, make_arrays(case))
    typical_term = 1 / math.sqrt(512 * 9)  # of unit inputs and scaled weights
    assert np.max(expectation.tolerance) < typical_term / 10
    assert np.max(expectation.tolerance) > 10 * EPS


# A run --------------------------------------------------------------------------------------------


class Halves(Provider):
    """Average pooling by 2x2 in NumPy: right, and all that it takes."""

    name = "halves"
    requires = ("numpy",)
    ours = True
    takes = ("densenet-121/transition1/forward",)

    def version(self):
        return "1"

    def refuses(self, case):
        return None if case.id in self.takes else "not halves"

    def prepare(self, case, arrays):
        n, c, h, w = arrays["input"].shape
        x = arrays["input"].reshape(n, c, h // 2, 2, w // 2, 2)
        return lambda: x.mean((3, 5), dtype=np.float32)


class Slow(Halves):
    name = "slow peer"
    ours = False

    def prepare(self, case, arrays):
        call = super().prepare(case, arrays)
        return lambda: [call(), call(), call()][0]


class Wrong(Halves):
    name = "wrong peer"
    ours = False

    def prepare(self, case, arrays):
        call = super().prepare(case, arrays)

        def planted():
            result = call()
            result[-1, -1, -1, -1] += 1
            return result

        return planted


class Raising(Halves):
    name = "raising peer"
    ours = False

    def prepare(self, case, arrays):
        raise RuntimeError("out of order")


class Interrupted(Halves):
    name = "interrupted"
    takes = (*Halves.takes, "vit-b/layer_norm/forward")

    def prepare(self, case, arrays):
        if "layer_norm" in case.id:
            raise KeyboardInterrupt
        return super().prepare(case, arrays)


@pytest.fixture
def run_command(monkeypatch, tmp_path):
    """Run the command with the given providers, limits that cost nothing, and its own folder."""
    monkeypatch.setattr(environment, "confine", lambda threads: None)
    monkeypatch.setattr(timing, "measure_limits", lambda *_: Limits(1e11, "NumPy", 1e10))
    monkeypatch.setitem(command.BUDGET_S, "quick", 0.5)
    monkeypatch.setattr(publishing, "RESULTS", tmp_path / "committed")
    monkeypatch.setattr(publishing, "LOCAL", tmp_path / "local")
    local = tmp_path / "local"

    def run(providers, *arguments):
        monkeypatch.setattr("benchmarks.providers.PROVIDERS", providers)
        status = command.main(["--quick", "--device", "cpu", "--out", str(local), *arguments])
        device = environment.slug(environment.device_name(), environment.available_cpus())
        found = local.iterdir() if local.exists() else ()
        return status, {path.name.removeprefix(device + "-"): path for path in found}

    return run


def test_a_run_writes_all_its_files_and_says_where(run_command, capsys):
    status, files = run_command((Halves, Slow), "--filter", "transition1")
    assert status == 0
    assert not publishing.RESULTS.exists()
    printed = capsys.readouterr().out
    assert all(f"wrote {path}\n" in printed for path in files.values())
    assert set(files) == {f"quick-filtered{end}" for end in (".json", ".md", "-roofline.png", "-speedup.png")}
    run = Run.load(files["quick-filtered.json"])
    assert not run.complete
    assert run.environment["versions"]["halves"] == "1"
    (row,) = rows_of(run)
    assert (row.subject, row.peer) == ("halves", "slow peer")
    assert {o.status for r in run.records for o in r.outcomes} == {"timed", "refused"}


def test_a_wrong_result_is_red_untimed_and_fails_the_run(run_command, capsys):
    status, files = run_command((Halves, Wrong, Raising), "--filter", "transition1/forward")
    assert status == command.EXIT_FAULT
    (record,) = Run.load(files["quick-filtered.json"]).records
    assert [o.status for o in record.outcomes] == ["timed", "wrong", "failed"]
    assert [o.timing is None for o in record.outcomes] == [False, True, True]
    printed = capsys.readouterr().out
    assert "WRONG" in printed
    assert "RuntimeError: out of order" in printed


def test_an_interrupted_run_keeps_what_it_has(run_command):
    status, files = run_command((Interrupted,), "--filter", "transition1,layer_norm")
    assert status == command.EXIT_INTERRUPTED
    run = Run.load(files["quick-filtered-partial.json"])
    assert not run.complete
    statuses = {record.id: record.outcomes[0].status for record in run.records}
    assert statuses == {
        "densenet-121/transition1/forward": "timed",
        "densenet-121/transition1/backward": "refused",
    }


def test_mistaken_calls(run_command, capsys):
    assert run_command((Halves,), "--filter", "no such layer")[0] == command.EXIT_USAGE
    assert run_command((Halves,), "--providers", "nobody")[0] == command.EXIT_USAGE
    assert command.main(["--list", "--quick", "--filter", "alexnet"]) == 0
    assert "alexnet/conv1/backward_weight" in capsys.readouterr().out
    for mistake in (["--threads", "0"], ["--quick", "--full"], ["--readme", "README.md"]):
        with pytest.raises(SystemExit):
            command.parse(mistake)
    assert "--readme FILE is part of publishing: add --publish" in capsys.readouterr().err


# Committed results --------------------------------------------------------------------------------


def test_git_ignores_what_a_run_writes_by_default():
    assert command.parse([]).out == publishing.LOCAL
    written = publishing.LOCAL / "some-cpu.json"
    assert subprocess.run(["git", "check-ignore", "-q", written], cwd=ROOT).returncode == 0
    committed = publishing.RESULTS / "some-cpu.json"
    assert subprocess.run(["git", "check-ignore", "-q", committed], cwd=ROOT).returncode == 1


@pytest.mark.parametrize("parse", [command.parse, kernel_profile.main], ids=["benchmarks", "kernel_profile"])
def test_the_folder_of_committed_results_is_no_place_to_write_to(parse, capsys):
    with pytest.raises(SystemExit):
        parse(["--out", str(publishing.RESULTS)])
    assert "holds the committed results; --publish replaces them" in capsys.readouterr().err


@pytest.fixture
def publish(monkeypatch, tmp_path, small_run):
    """Publish a run's JSON where `small_run` has been published before; exit status, and the run that is committed."""
    monkeypatch.setattr(environment, "confine", lambda threads: None)
    monkeypatch.setattr(publishing, "RESULTS", tmp_path / "committed")
    monkeypatch.setattr(publishing, "LOCAL", tmp_path / "local")
    readme = tmp_path / "README.md"
    readme.write_text("\n".join(report.README_MARKERS["cpu"]))
    publishing.write(small_run, publishing.RESULTS / "some-cpu")

    def run(changed, *arguments):
        (tmp_path / "measured").mkdir(exist_ok=True)
        changed.save(tmp_path / "measured" / "some-cpu.json")
        measured = ["--report", str(tmp_path / "measured" / "some-cpu.json"), "--out", str(tmp_path / "local")]
        status = command.main([*measured, "--publish", *arguments])
        return status, Run.load(publishing.RESULTS / "some-cpu.json")

    return run


@pytest.mark.table(1)
def test_a_published_run_replaces_the_committed_one_and_the_readmes_block(publish, small_run, tmp_path, capsys):
    again = replace(small_run, seconds=2.0)
    status, committed = publish(again, "--readme", str(tmp_path / "README.md"))
    assert (status, committed) == (0, again)
    assert "[The cases and all families](committed/some-cpu.md)" in (tmp_path / "README.md").read_text()
    printed = capsys.readouterr().out
    for name in ("local/some-cpu.json", "committed/some-cpu.json", "committed/some-cpu-speedup.png", "README.md"):
        assert f"wrote {tmp_path / name}\n" in printed


def busy_with(load):
    return lambda run: replace(run, environment=run.environment | {"device": run.environment["device"] | load})


@pytest.mark.table(1)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda run: replace(run, records=run.records[1:]), "compares with quick, slow, which this run does not"),
        (busy_with({"load": 0.7}), "the machine is busy (load 0.7, at most 0.5 for a result to commit)"),
        (busy_with({"kind": "gpu", "utilization": 0.3}), "the GPU is busy with other work (30% of the time)"),
        (busy_with({"kind": "gpu", "load": 1.1}), "the machine is busy (load 1.1, at most 1 for a result to commit)"),
        (lambda run: replace(run, complete=False), "only a whole run is published"),
        (lambda run: replace(run, tier="quick"), "only a whole run is published"),
    ],
    ids=["fewer peers", "busy", "busy GPU", "busy host of a GPU", "partial", "quick"],
)
def test_no_lesser_run_replaces_a_committed_result(publish, small_run, tmp_path, capsys, change, reason):
    readme = (tmp_path / "README.md").read_text()
    status, committed = publish(change(small_run), "--readme", str(tmp_path / "README.md"))
    assert (status, committed) == (command.EXIT_USAGE, small_run)
    assert (tmp_path / "README.md").read_text() == readme
    assert (tmp_path / "local" / "some-cpu.json").exists()
    error = capsys.readouterr().err
    assert error.startswith("not published: ")
    assert reason in error


def test_what_will_not_be_published_is_not_measured(run_command, monkeypatch, capsys, small_run):
    monkeypatch.setattr(environment, "load", lambda: 0.0)
    monkeypatch.setattr(command, "measure", None)
    assert run_command((Halves, Slow), "--publish")[0] == command.EXIT_USAGE  # quick
    monkeypatch.setattr(command, "file_stem", lambda *_, **__: "some-cpu")
    publishing.write(small_run, publishing.RESULTS / "some-cpu")
    whole = ["--device", "cpu", "--out", str(publishing.RESULTS.parent / "local"), "--publish"]
    capsys.readouterr()
    assert command.main(whole) == command.EXIT_USAGE
    assert "which this run does not: install what is missing" in capsys.readouterr().err
    monkeypatch.setattr(environment, "load", lambda: 9.0)
    assert command.main(whole) == command.EXIT_USAGE
    assert "the machine is busy (load 9" in capsys.readouterr().err


def test_a_figure_that_a_run_does_not_draw_does_not_stay_from_the_run_before(small_run, tmp_path):
    written = publishing.write(small_run, tmp_path / "some-cpu")
    assert set(written) == set(tmp_path.iterdir())
    alone = [replace(r, outcomes=r.outcomes[:1]) for r in small_run.records]
    publishing.write(replace(small_run, records=tuple(alone)), tmp_path / "some-cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"some-cpu.json", "some-cpu.md", "some-cpu-roofline.png"}


def test_every_library_is_confined_to_the_threads_and_the_facts_say_so():
    code = """
from benchmarks import environment
environment.confine(1)
import gpucnn, json, threadpoolctl
facts = environment.describe(1, [])
assert facts["gpucnn_threads"] == gpucnn.get_num_threads() == 1
assert {pool["num_threads"] for pool in facts["thread_pools"]} == {1}
gpucnn.set_num_threads(3)
assert environment.describe(1, [])["gpucnn_threads"] == 3
environment.confine(2)
assert gpucnn.get_num_threads() == 2
"""
    environ = {**os.environ, "GPUCNN_NUM_THREADS": "7"}
    ran = subprocess.run([sys.executable, "-c", code], env=environ, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_without_gpucnn_there_are_no_threads_of_it(monkeypatch):
    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    assert "gpucnn_threads" not in environment.describe(1, [])


def test_only_a_whole_default_run_has_the_plain_name():
    names = {
        command.file_stem(tier, "some-cpu", filtered, interrupted)
        for tier in ("quick", "default", "full")
        for filtered in (False, True)
        for interrupted in (False, True)
    }
    assert len(names) == 12
    assert environment.slug("Intel(R) Xeon(R) CPU @ 2.20GHz", 4) == "intel-xeon-4-threads"
    assert environment.slug("AMD EPYC 7B13", 1) == "amd-epyc-7b13-1-thread"
    assert command.file_stem("default", "some-cpu", False, False) == "some-cpu"
    assert command.file_stem("full", "some-gpu", True, True) == "some-gpu-full-filtered-partial"


def test_processors_of_one_name_are_told_apart_by_their_vector_extensions(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    for flags, name in (
        ("fpu avx2 avx512f", "AMD EPYC (AVX-512)"),
        ("fpu avx2", "AMD EPYC (AVX2)"),
        ("fpu sse2", "AMD EPYC"),
    ):
        cpuinfo.write_text(f"processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: {flags}\n")
        assert environment.device_name(cpuinfo) == name
    assert environment.device_name(tmp_path / "none")
    assert environment.slug("AMD EPYC (AVX-512)", 2) == "amd-epyc-avx-512-2-threads"


def test_the_schedule_shares_what_is_left():
    schedule = session.Schedule(budget_s=100, cases=50)
    assert schedule.share() == pytest.approx(2, rel=0.01)
    schedule.done, schedule.overhead_s = 40, 200
    assert schedule.share() == pytest.approx(4)  # capped; five seconds overhead a case
    schedule.budget_s = 0
    assert schedule.share() == schedule.least_s


def test_interleaving_times_every_call_alike():
    order = []

    class Counting(Halves):
        def time(self, call, repeats):
            order.append(call)
            return 1e-3

    first, second = Counting(1), Counting(1)
    timings = timing.interleave({first: "a", second: "b"}, budget_s=0.0, max_rounds=9)
    assert {t.samples for t in timings.values()} == {timing.MIN_ROUNDS}
    assert order.count("a") == order.count("b")
    rounds = order[4:]  # after two warm-ups each; a warm call and a sample per turn
    assert rounds[:8] == ["a", "a", "b", "b", "b", "b", "a", "a"]


# Reports ------------------------------------------------------------------------------------------


def outcome(provider, milliseconds, ours=False):
    timing = Timing(milliseconds / 1e3, 0.9e-3 * milliseconds, 1.1e-3 * milliseconds, 5, 1)
    return Outcome(provider, ours, "timed", timing)


@pytest.fixture
def small_run():
    computing = Case(layer_of("VGG-16", "conv1_2"), "forward", 1)
    moving = Case(layer_of("ResNet-50", "bn1"), "training", 2)
    return Run(
        tier="default",
        complete=True,
        seconds=1.0,
        environment={
            "device": {"kind": "cpu", "name": "Some CPU", "cpus": 2, "threads": 2, "load": 0.1},
            "versions": {"NumPy": "2"},
            "date": "2026-01-01",
        },
        limits=Limits(100e9, "NumPy", 10e9),
        records=(
            Record.of(
                computing,
                [outcome("ours", 74, True), outcome("slow", 148), outcome("quick", 37)],
            ),
            Record.of(moving, [outcome("ours", 2, True), Outcome("slow", False, "refused")]),
        ),
    )


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


def test_groups_part_convolutions_by_direction_and_nothing_else():
    groups = {}
    for case in select("full"):
        groups.setdefault(results.by_group(Record.of(case, [])), set()).add((case.family, case.operation))
    directions = ("forward", "backward_input", "backward_weight")
    alone = ["depthwise convolution", "pooling", "normalization", "unfolding", "resampling"]
    assert list(groups) == [*(("convolution", name) for name in directions), *((name, "all") for name in alone)]
    families = {case.family for case in select("full") if case.flops} - {"depthwise convolution"}
    assert len(families) == 6
    for name in directions:
        assert groups["convolution", name] == {(family, name) for family in families}
    assert groups["depthwise convolution", "all"] == {("depthwise convolution", name) for name in directions}
    assert {operation for _, operation in groups["unfolding", "all"]} == {"im2col", "col2im"}


def test_json_keeps_everything(small_run, tmp_path):
    path = tmp_path / "run.json"
    small_run.save(path)
    assert Run.load(path) == small_run
    assert "null" not in path.read_text()  # what is measured on a GPU alone is not there
    path.write_text(path.read_text().replace('"schema": 3', '"schema": 99'))
    with pytest.raises(ValueError, match="schema 99"):
        Run.load(path)


def test_markdown_and_readme(small_run, tmp_path):
    text = report.markdown_report(small_run)
    assert "| VGG-16 conv1_2 | forward | 1x64x224x224 -> 1x64x224x224 | 74 | 20% |" in text
    assert "| 0.50 | quick |" in text
    assert "| case | operation | shapes | ms | spread | rate | of limit | to best | best peer |" in text
    readme = tmp_path / "README.md"
    start, end = report.README_MARKERS["cpu"]
    readme.write_text(f"before\n{start}\nold\n{end}\nafter\n")
    for _ in range(2):  # the second time replaces the first
        report.update_readme(readme, small_run, "details.md")
    written = readme.read_text()
    assert written.startswith("before\n")
    assert written.endswith("\nafter\n")
    assert "old" not in written
    assert "| group | operation | cases | of limit | to best | range |" in written
    assert written.count("| convolution | forward | 1 | 50% | 0.50 | 0.50 to 0.50 |") == 1
    assert written.count("| normalization | all | 1 |") == 1
    assert "dense convolution" not in written  # families are in the file behind the link
    assert "(details.md)" in written
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="benchmark:start"):
        report.update_readme(readme, small_run, "details.md")


def test_peers_that_were_not_timed_have_no_columns_and_no_legend(small_run):
    text = report.markdown_report(small_run)
    assert "PyTorch" not in text
    assert "CuPy" not in text
    alone = [replace(r, outcomes=r.outcomes[:1]) for r in small_run.records]
    text = report.markdown_report(replace(small_run, records=tuple(alone)))
    assert "| case | operation | shapes | ms | spread | rate | of limit |\n" in text
    assert "| family | operation | cases | of limit |\n" in text
    assert "peer" not in text
    assert "ratio =" not in text


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


def test_the_longest_names_fit_into_140_columns(small_run):
    longest = [
        max(select("full"), key=lambda case: len(f"{case.layer.network} {case.layer.name}")),
        max(select("full"), key=lambda case: len(f"{case.family}{case.operation}")),
    ]
    outcomes = (
        outcome("gpucnn NumPy", 1234.5, True),
        outcome("PyTorch", 123456),
        outcome("PyTorch channels_last", 12345),
    )
    records = [Record.of(case, outcomes) for case in longest]
    console = Console(width=140, record=True, file=io.StringIO())
    report.print_report(replace(small_run, records=records), console)
    printed = console.export_text()
    assert "…" not in printed
    for case in longest:
        for word in (f"{case.layer.network} {case.layer.name}", case.operation.replace("_", " "), case.family):
            assert word in printed
    assert printed.count("100.00 to 100.00") == 4  # to PyTorch, of two cases by group and by family
    assert printed.count("PyTorch channels_last") == 2


def test_terminal_report(small_run):
    fault = Outcome("slow", False, "wrong", note="output[0] is 1, expected 2")
    faulty = replace(small_run.records[1], outcomes=(small_run.records[1].outcomes[0], fault))
    run = replace(small_run, records=(small_run.records[0], faulty))
    console = Console(width=140, record=True, file=io.StringIO())
    report.print_report(run, console)
    printed = console.export_text()
    for expected in ("VGG-16 conv1_2", "50 GFLOP/s", "0.50", "WRONG", "CPU only", "2 threads"):
        assert expected in printed
    assert report.progress_line(faulty, None).endswith("slow WRONG: output[0] is 1, expected 2")
    assert [report.milliseconds(s) for s in (1.2345, 0.012345, 1e-5)] == ["1234", "12.3", "0.01"]


def test_short_calls_are_warmed_up_for_as_long_as_an_idle_cpu_takes_to_come_back() -> None:
    assert [timing.warming(seconds) for seconds in (0.02, 0.011, 1e-3, 0.0)] == [0, 2, 20, 1000]
