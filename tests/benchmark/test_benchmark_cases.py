"""The benchmarks' table of layers and its costs; the arrays of a case."""

from __future__ import annotations

import numpy as np
import pytest
from bench_fakes import layer_of

from benchmarks import __main__ as command
from benchmarks import results, targets
from benchmarks.cases import LAYERS, Case, select
from benchmarks.data import PIECE, normal
from benchmarks.layers import ConvLayer, ResampleLayer
from benchmarks.results import Record


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


def test_half_the_width_is_half_the_bytes() -> None:
    by_id = {case.id: case for case in select("full", device="gpu")}
    for identifier, case in by_id.items():
        if case.dtype == "float16" and "max_pool" not in identifier and case.operation != "backward":
            assert 2 * case.least_bytes == by_id[identifier.removesuffix("/float16")].least_bytes, identifier
    cast = by_id["resnet-50/conv2_out_cast/pack"]
    assert cast.least_bytes == 6 * 64 * 64 * 56 * 56
    assert cast.dtypes == ("float32", "float16")
    assert by_id["resnet-50/conv2_out_cast/unpack"].dtypes == ("float16", "float32")
    assert by_id["resnet-50/conv2_out/pack/float16"].least_bytes == 4 * 64 * 64 * 56 * 56


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


def test_a_gpu_has_more_cases_and_what_its_targets_are_about_comes_first() -> None:
    cases = select("default", device="gpu")
    kind = [(case.family, case.operation, case.dtype) for case in cases]
    assert kind[0][0] == "depthwise convolution"
    first = {name: min(place for place, (family, *_) in enumerate(kind) if family == name) for name, *_ in kind}
    assert first["normalization"] < first["pooling"] < first["layout"] < first["unfolding"] < first["dense convolution"]
    half = [case for case in cases if case.dtype == "float16"]
    assert {case.family for case in half} >= {
        "depthwise convolution", "pooling", "normalization", "layout", "bias and activation", "dense convolution"
    }  # fmt: skip
    assert len({case.id for case in cases}) == len(cases)
    assert all(case.batch == case.layer.gpu_batch for case in cases)
    on_cpu = select("full")
    assert {case.dtype for case in on_cpu} == {"float32"}
    assert not {"layout", "bias and activation"} & {case.family for case in on_cpu}
    assert {case.dtype for case in select("quick", device="gpu")} == {"float32"}


def test_every_target_is_of_cases_that_exist() -> None:
    for target in targets.TARGETS:
        kinds = {case.operation for case in select("quick", device="gpu") if case.family == target.family}
        assert kinds & set(target.operations)
        assert {case.family for case in select("default", device="gpu")} >= {target.family}
        all_operations = {o for layer in LAYERS if layer.family == target.family for o in layer.operations}
        assert set(target.operations) <= all_operations


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


def test_large_arrays_are_the_same_however_many_threads_draw_them() -> None:
    shape = (3, PIECE // 2 + 7)
    one, other = (normal(np.random.default_rng(5), shape, "float32") for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert len(np.unique(one[:, :1000])) > 2900
    assert abs(float(one.mean())) < 0.01
    assert normal(np.random.default_rng(5), shape, "float16").dtype == np.float16
