"""The benchmark of whole networks: what each implementation computes, the checks, and the reports."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from bench_fakes import CPU_FACTS, CPU_LIMITS, outcome, printed

from benchmarks import __main__ as command
from benchmarks import environment, publishing, report
from benchmarks.networks import memory, session
from benchmarks.networks import report as network_report
from benchmarks.networks.cases import NETWORKS, Network, NetworkCase, select_networks
from benchmarks.networks.checking import find_difference
from benchmarks.networks.onnx_graph import averages, graph_of
from benchmarks.networks.plots import draw_networks
from benchmarks.networks.runners import (
    RUNNERS,
    GpucnnNetwork,
    GpucnnNetworkChannelsLast,
    OnnxRuntimeNetwork,
    PyTorchNetwork,
    PyTorchNetworkChannelsLast,
)
from benchmarks.networks.subject import make_subject
from benchmarks.providers.base import Provider
from benchmarks.results import Outcome, Run
from gpucnn import nn
from gpucnn.functional import adaptive_avg_pool2d

STAGES = [(1, 8, 1, 1), (6, 16, 2, 2), (3, 16, 1, 1)]


def small(name, model, twin):
    return Network(name, model, twin, size=64, classes=5)


SMALL = (
    small(
        "ResNet-18",
        lambda models, seed: models.resnet18(5, width=4, rng=seed),
        lambda torch: torch.ResNet((2, 2, 2, 2), 5, 4, False),
    ),
    small(
        "ResNet-50",
        lambda models, seed: models.resnet50(5, width=2, rng=seed),
        lambda torch: torch.ResNet((3, 4, 6, 3), 5, 2, True),
    ),
    small(
        "MobileNetV2",
        lambda models, seed: models.MobileNetV2(5, stages=STAGES, dropout=0.0, last_channels=24, rng=seed),
        lambda torch: torch.MobileNetV2(STAGES, 5, 32, 24),
    ),
    small(
        "VGG-11",
        lambda models, seed: models.vgg11(5, width=3, hidden=12, dropout=0.0, rng=seed),
        lambda torch: torch.VGG([3, "M", 6, "M", 12, 12, "M", 24, 24, "M", 24, 24, "M"], 5, 12, False),
    ),
)

small_networks = pytest.mark.parametrize("network", SMALL, ids=lambda network: network.name)


class Stub(Provider):
    """A provider that only names and times its runner's calls."""

    requires = ()

    def version(self):
        return "1"

    def prepare(self, case, arrays):
        raise NotImplementedError


class Ours(Stub):
    name = "ours"
    ours = True


class Peer(Stub):
    name = "PyTorch"


class Other(Stub):
    name = "other peer"


def results_of(runner, subject, operation):
    return session.first_call(runner, subject, operation)[1]


# Cases --------------------------------------------------------------------------------------------


def test_each_tier_has_its_networks():
    assert [case.id for case in select_networks("quick")] == [
        "resnet-18/64x64/inference",
        "resnet-18/64x64/training_step",
    ]
    names = ["resnet-18", "resnet-50", "mobilenetv2", "vgg-11"]
    expected = [f"{name}/224x224/{operation}" for name in names for operation in ("inference", "training_step")]
    assert [case.id for case in select_networks("default")] == expected
    assert [case.id for case in select_networks("full")] == expected
    assert select_networks()[2].shapes == "4x3x224x224 -> 4x1000"


def test_filters_are_those_of_layers():
    assert {case.id.split("/")[0] for case in select_networks("default", ["vgg,50", "inference"])} == {
        "resnet-50",
        "vgg-11",
    }
    assert select_networks("default", ["whole network"]) == select_networks("default")
    assert select_networks("default", ["depthwise"]) == []


def test_the_command_lists_them_on_the_cpu_alone(capsys):
    command.main(["--list", "--quick", "--filter", "whole network", "--device", "cpu"])
    assert "resnet-18/64x64/training_step" in capsys.readouterr().out
    command.main(["--list", "--quick", "--filter", "whole network", "--device", "simulator"])
    assert capsys.readouterr().out == "0 cases\n"


@pytest.mark.parametrize("network", [NETWORKS[0]], ids=["ResNet-18"])
def test_the_work_of_a_batch_is_counted(network):
    subject = make_subject(replace(network, size=224, batch=2))
    assert subject.multiply_adds() == 2 * 1_814_073_344
    assert subject.parameters == 11_689_512
    training = session.record_of(NetworkCase(network, "training_step"), subject, 10, [])
    assert (training.flops, training.least_bytes) == (60, 4 * (2 * 3 * 224**2 + 4 * 11_689_512))
    inference = session.record_of(NetworkCase(network, "inference"), subject, 10, [])
    assert (inference.flops, inference.least_bytes) == (20, 4 * (2 * 3 * 224**2 + 11_689_512))


# Implementations ----------------------------------------------------------------------------------


@pytest.mark.table(1)
@small_networks
@pytest.mark.parametrize("kind", [PyTorchNetwork, PyTorchNetworkChannelsLast])
@pytest.mark.parametrize("operation", ["inference", "training_step"])
def test_pytorch_computes_what_gpucnn_does(torch, network, kind, operation):
    """In float64, where what is not rounding shows."""
    subject = make_subject(network).in_float64()
    actual, expected = (results_of(runner(1), subject, operation) for runner in (GpucnnNetwork, kind))
    assert list(actual) == list(expected)
    largest = max(float(np.linalg.norm(array)) for array in expected.values())
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=1e-9, atol=1e-10 * largest, err_msg=name)


@pytest.mark.thorough
@small_networks
def test_the_onnx_graph_computes_what_gpucnn_does(network):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    subject = make_subject(network)
    actual, expected = (results_of(runner(1), subject, "inference") for runner in (OnnxRuntimeNetwork, GpucnnNetwork))
    assert find_difference(actual, expected, {}) is None
    assert OnnxRuntimeNetwork(1).refuses("training_step") == "no gradients"


@pytest.mark.thorough
@pytest.mark.parametrize("network", NETWORKS[1:], ids=lambda network: network.name)
def test_each_network_of_the_table_is_the_same_with_torch(torch, network):
    from benchmarks.networks import pytorch

    with torch.device("meta"):
        twin = network.twin(pytorch)
    expected = {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()}
    model = network.model(nn.models, 0)
    assert {name: np.shape(array) for name, array in model.state_dict().items()} == expected
    dropouts = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert set(dropouts) <= {0.0}


def test_a_module_that_the_walk_does_not_know_is_an_error():
    pytest.importorskip("onnx", reason="ONNX is not installed")
    with pytest.raises(TypeError, match="Tanh is none of the modules that it knows"):
        graph_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh()), (1, 3, 8, 8))


@pytest.mark.parametrize(("size", "out"), [(2, 7), (14, 7), (5, 3), (7, 7)])
def test_adaptive_averages_are_a_product(size, out, rng):
    x = rng.standard_normal((1, 1, size, size)).astype(np.float32)
    matrix = averages(size, out)
    np.testing.assert_allclose(matrix @ x @ matrix.T, adaptive_avg_pool2d(x, out), rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
def test_inference_keeps_nothing_and_changes_nothing():
    subject = make_subject(SMALL[0])
    before = {name: array.copy() for name, array in subject.state.items()}
    for operation in ("inference", "training_step"):
        results_of(GpucnnNetwork(1), subject, operation)
    assert all(np.array_equal(array, before[name]) for name, array in subject.state.items())
    assert all(vars(module).get("_kept") is None for module in subject.model.modules())


# The check ----------------------------------------------------------------------------------------


def gradients(scale=1.0):
    return {
        "loss": np.float32(2.0),
        "gradient of weight": np.full(4, 0.5 * scale, np.float32),
        "gradient of bias": np.full(4, 1e-9, np.float32),
        "weight": np.full(4, 1 - 0.1 * scale, np.float32),
        "count": np.array(1),
    }


START = {"weight": np.ones(4, np.float32), "count": np.array(0)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient of weight": np.full(4, 0.65, np.float32)}, "gradient of weight differs by 0.3 of norm 1"),
        ({"weight": np.full(4, 0.87, np.float32)}, "the change of weight differs by 0.06 of norm 0.2"),
        ({"weight": np.ones(4, np.float32)}, "the change of weight differs by 0.2 of norm 0.2"),
        ({"loss": np.float32(2.001)}, "loss differs by 0.001 of norm 2"),
        ({"count": np.array(0)}, "the change of count differs by 1"),
        ({"weight": np.ones(3, np.float32)}, "weight has shape (3,), expected (4,)"),
        ({"weight": np.ones(4)}, "weight has dtype float64, expected float32"),
        ({"weight": np.full(4, np.nan, np.float32)}, "weight is not finite"),
        ({"more": np.ones(4)}, "names differ: more"),
    ],
)
def test_planted_errors_are_found(change, message):
    assert find_difference(gradients(), gradients(), START) is None
    assert find_difference(gradients() | change, gradients(), START).startswith(message)


def test_gradients_may_differ_by_what_rectifiers_do_to_rounding():
    assert find_difference(gradients(1.05), gradients(), START) is None
    noise = {"gradient of bias": np.full(4, -1e-9, np.float32)}  # of terms that cancel
    assert find_difference(gradients() | noise, gradients(), START) is None


class Doubling(GpucnnNetwork):
    """Wrong: its logits and losses are twice what they should be."""

    def prepare(self, subject, operation):
        prepared = super().prepare(subject, operation)
        first = "logits" if operation == "inference" else "loss"
        return replace(prepared, results=lambda value: (own := prepared.results(value)) | {first: 2 * own[first]})


class Raising(GpucnnNetwork):
    def prepare(self, subject, operation):
        raise RuntimeError("out of order")


@pytest.mark.thorough
@pytest.mark.parametrize("operation", ["inference", "training_step"])
def test_what_is_wrong_or_fails_is_not_timed(operation):
    runners = {Ours(1): GpucnnNetwork(1), Peer(1): GpucnnNetwork(1), Other(1): Doubling(1), Stub(1): Raising(1)}
    subject = make_subject(SMALL[0])
    type(list(runners)[3]).name = "stub"
    outcomes, ready = session.check(NetworkCase(SMALL[0], operation), subject, runners)
    assert [outcome.status for outcome in outcomes.values()] == ["timed", "timed", "wrong", "failed"]
    assert [provider.name for provider in ready] == ["ours", "PyTorch"]
    notes = [outcome.note for outcome in outcomes.values()]
    assert notes[2].endswith("(compared with PyTorch)")
    assert notes[3] == "RuntimeError: out of order"


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "status"), [(GpucnnNetwork, "timed"), (Doubling, "wrong")])
@pytest.mark.parametrize("operation", ["inference", "training_step"])
def test_without_a_peer_results_are_held_against_float64(kind, status, operation):
    outcomes, ready = session.check(NetworkCase(SMALL[0], operation), make_subject(SMALL[0]), {Ours(1): kind(1)})
    (outcome,) = outcomes.values()
    assert outcome.status == status
    assert bool(ready) == (status == "timed")
    assert status == "timed" or outcome.note.endswith("(compared with gpucnn in float64)")


# Memory -------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_peaks_of_memory_are_counted_where_the_system_does():
    growth = memory.growth_during(lambda: np.ones(1 << 24, np.uint8).sum())
    if growth is None:
        pytest.skip("this system counts no peaks")
    assert 0.9 * (1 << 24) < growth < 3 * (1 << 24)
    before = memory.held_bytes()
    kept = np.ones(1 << 24, np.uint8)
    assert memory.held_bytes() - before > 0.9 * kept.nbytes


@pytest.mark.thorough
def test_where_nothing_is_counted_there_is_no_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    monkeypatch.setattr(memory, "PEAK_RESET", tmp_path / "no folder" / "clear_refs")
    assert memory.held_bytes() is None
    assert memory.growth_during(lambda: None) is None
    assert session.with_peak(Outcome("ours", True, "timed"), session.Ready(lambda: None, None)).peak_bytes is None


# A run --------------------------------------------------------------------------------------------


@pytest.fixture
def run_command(folders, monkeypatch, tmp_path):
    """Run the command on a small network with the given runners; its status, and the files that it wrote."""
    monkeypatch.setitem(session.BUDGET_S, "quick", 0.1)
    quick = replace(SMALL[0], tiers=("quick",))
    monkeypatch.setattr(command, "select_networks", lambda tier, filters: select_networks(tier, filters, (quick,)))

    def run(runners, *arguments):
        monkeypatch.setattr("benchmarks.providers.PROVIDERS", tuple(runners))
        for kind, runner in runners.items():
            monkeypatch.setitem(RUNNERS, kind, runner)
        arguments = ["--quick", "--device", "cpu", "--filter", "whole network", "--out", str(tmp_path), *arguments]
        status = command.main(arguments)
        device = environment.slug(environment.device_name(), environment.available_cpus())
        return status, {path.name.removeprefix(device + "-"): path for path in tmp_path.iterdir()}

    return run


@pytest.mark.thorough
def test_a_run_of_networks_alone_writes_its_files(run_command, capsys):
    status, files = run_command({Ours: GpucnnNetwork, Peer: GpucnnNetwork})
    assert status == 0
    assert set(files) == {f"quick-filtered{end}" for end in (".json", ".md", "-networks.png")}
    run = Run.load(files["quick-filtered.json"])
    assert run.records == ()
    assert [record.operation for record in run.networks] == ["inference", "training_step"]
    for record in run.networks:
        assert [outcome.provider for outcome in record.outcomes] == ["ours", "PyTorch"]
        assert all(outcome.timing.samples >= 3 for outcome in record.outcomes)
    printed = capsys.readouterr().out
    assert "[  2/2] resnet-18/64x64/training_step: " in printed
    assert "Training step: ours and its peers" in printed
    assert "## Geometric means" not in files["quick-filtered.md"].read_text()


@pytest.mark.thorough
def test_a_wrong_network_fails_the_run(run_command, capsys):
    runners = {Ours: GpucnnNetwork, Peer: GpucnnNetwork, Other: Doubling}
    status, files = run_command(runners, "--filter", "inference")
    assert status == command.EXIT_FAULT
    assert "resnet-18/64x64/inference, other peer, wrong: logits differs by" in files["quick-filtered.md"].read_text()
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.thorough
def test_an_interrupted_run_keeps_the_networks_that_it_has(run_command):
    class Interrupted(GpucnnNetwork):
        def training_step(self, subject):
            raise KeyboardInterrupt

    status, files = run_command({Ours: Interrupted})
    assert status == command.EXIT_INTERRUPTED
    run = Run.load(files["quick-filtered-partial.json"])
    assert [record.operation for record in run.networks] == ["inference"]


def test_providers_that_run_no_network_leave_no_record():
    assert list(session.run(select_networks("quick"), [Ours(1)], 1.0, 3)) == []


# Reports ------------------------------------------------------------------------------------------


@pytest.fixture
def measured():
    """A run of networks alone: ONNX Runtime infers, and failed once."""
    names = ("gpucnn NumPy", "PyTorch", "PyTorch channels_last")
    subject = SimpleNamespace(parameters=0, images=SimpleNamespace(itemsize=4, size=25 * 10**6))
    networks = []

    def add(network, operation, *outcomes):
        networks.append(session.record_of(NetworkCase(network, operation), subject, 5 * 10**9, outcomes))

    for place, network in enumerate(NETWORKS[1:], 1):
        times = [outcome(name, (200 + 100 * k) * place, k == 0) for k, name in enumerate(names)]
        onnx = Outcome("ONNX Runtime", False, "failed", note="x") if place == 4 else outcome("ONNX Runtime", 50 * place)
        add(network, "inference", *times, onnx)
        steps = [outcome(name, 1000 * place, k == 0, peak=(k + 1) * 10**8) for k, name in enumerate(names)]
        add(network, "training_step", *steps, Outcome("ONNX Runtime", False, "refused", note="no gradients"))
    return Run("default", True, 1.0, CPU_FACTS, CPU_LIMITS, (), networks=tuple(networks))


def changed(run, change):
    """The run with what `change` makes of the outcomes of each network."""
    return replace(run, networks=tuple(replace(r, outcomes=tuple(change(r.outcomes))) for r in run.networks))


def without(run, *names):
    """The run as it is where some implementations are not installed."""
    return changed(run, lambda outcomes: (o for o in outcomes if o.provider not in names))


def test_markdown_shows_each_peer_with_its_ratio(measured):
    text = report.markdown_report(measured)
    assert (
        "| network | gpucnn NumPy, ms | spread | of limit | PyTorch, ms | ratio | PyTorch channels_last, ms | ratio "
        "| ONNX Runtime, ms | ratio |" in text
    )
    line = "| ResNet-18, 4x3x224x224 | 200 | 20% | 50% | 300 | 1.50 | 400 | 2.00 | 50 | 0.25 |"
    assert line in text
    assert "| VGG-11, 4x3x224x224 | 800 | 20% | 12% | 1200 | 1.50 | 1600 | 2.00 | failed |  |" in text
    steps = text.partition("**Training step")[2]
    assert "ONNX Runtime" not in steps.partition("## Faults")[0]
    assert "| network | gpucnn NumPy | PyTorch | PyTorch channels_last |" in steps
    assert "| VGG-11, 4x3x224x224 | 100 | 200 | 300 |" in steps
    assert "- vgg-11/224x224/inference, ONNX Runtime, failed: x" in text


def test_absent_peers_and_uncounted_memory_leave_no_columns(measured):
    alone = without(measured, "PyTorch", "PyTorch channels_last", "ONNX Runtime")
    forms = [table.headings for table in network_report.tables(alone)]
    times = ("network", "gpucnn NumPy, ms", "spread", "of limit")
    assert forms == [times, times, ("network", "gpucnn NumPy")]
    uncounted = changed(alone, lambda outcomes: (replace(o, peak_bytes=None) for o in outcomes))
    assert [table.headings for table in network_report.tables(uncounted)] == [times, times]
    assert "memory" not in network_report.markdown_networks(uncounted)
    assert network_report.markdown_networks(replace(measured, networks=())) == ""


def test_what_is_compiled_is_in_its_quicker_order_beside_both(measured):
    more = (outcome("gpucnn compiled", 160, True), outcome("gpucnn compiled channels_last", 100, True))
    run = changed(measured, lambda outcomes: (*more, *outcomes))
    text = report.markdown_report(run)
    assert "Inference: gpucnn compiled and its peers" in text
    assert "| ONNX Runtime, ms | ratio | C order, ms | channels_last, ms |" in text
    assert "| ResNet-18, 4x3x224x224 | 100 | 20% | 100% | 200 | 2.00 | 300 | 3.00 |" in text
    assert "| 50 | 0.50 | 160 | 100 |" in text
    shown = printed(run)
    assert "…" not in shown
    assert "channels_last" in shown


@pytest.mark.thorough
@pytest.mark.parametrize("operation", ["inference", "training_step"])
def test_channels_last_computes_what_c_order_does(operation):
    subject = make_subject(SMALL[2])
    kinds = GpucnnNetwork, GpucnnNetworkChannelsLast
    expected, actual = (results_of(runner(1), subject, operation) for runner in kinds)
    assert find_difference(actual, expected, subject.state) is None


def test_the_terminal_shows_all_words_whole(measured):
    text = printed(measured)
    assert "…" not in text
    for word in ("MobileNetV2, 4x3x224x224", "channels_last", "Peak memory of a training step, MB", "FAILED"):
        assert word in text


def test_the_figure_is_drawn_with_the_peers_that_there_are_and_not_kept_without_networks(measured, tmp_path):
    stem = tmp_path / "some-cpu"
    for run in (
        measured,
        without(measured, "PyTorch", "ONNX Runtime"),
        replace(measured, networks=measured.networks[:1]),
    ):
        (path,) = draw_networks(run, stem)
        assert path == tmp_path / "some-cpu-networks.png"
        assert path.stat().st_size > 10_000
    assert draw_networks(replace(measured, networks=()), stem) == []
    assert not path.exists()


def test_publishing_draws_the_figure(measured, tmp_path):
    publishing.write(measured, tmp_path / "some-cpu")
    assert {"some-cpu.json", "some-cpu.md", "some-cpu-networks.png"} <= {path.name for path in tmp_path.iterdir()}
