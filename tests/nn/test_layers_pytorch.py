"""Every layer against PyTorch's of that name: outputs, gradients and states, for random configurations."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from layer_cases import randomised
from pooling_cases import torch_pools
from sample import examples
from strategies import extents, windows
from tolerances import assert_close
from torch_peers import compare, load

from gpucnn import nn

FEW = examples(40)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # PyTorch copies


@dataclass(frozen=True)
class Config:
    """A layer of both libraries: its name and arguments, and the shape of its input."""

    name: str
    args: tuple[Any, ...]
    shape: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    has_dtype: bool = False
    theirs: dict[str, Any] = field(default_factory=dict)  # options that PyTorch takes otherwise
    positive: bool = False
    factor: float = 1.0  # by which a tolerance is widened


@st.composite
def batches(draw: st.DrawFn, channels: int, sizes: tuple[int, ...], always: bool = False) -> tuple[int, ...]:
    """The shape of a batch of images, or of one image without a batch axis."""
    batch = draw(st.integers(0 if not always else 1, 3))
    return (batch, channels, *sizes) if batch else (channels, *sizes)


def check(torch: Any, config: Config, training: bool, double: bool, seed: int) -> None:
    """Forward, backward and state of both; PyTorch computes in float64."""
    dtype: Any = np.float64 if double else np.float32
    typed = {"dtype": dtype, "rng": seed} if config.has_dtype == "rng" else {"dtype": dtype} if config.has_dtype else {}
    ours = randomised(getattr(nn, config.name)(*config.args, **config.options, **typed), seed).train(training)
    theirs = getattr(torch.nn, config.name)(*config.args, **(config.options | config.theirs)).double().train(training)
    load(torch, theirs, ours)
    x = np.random.default_rng(seed).standard_normal(config.shape)
    x = (abs(x) + 0.1 if config.positive else x).astype(dtype)
    if "MaxPool" in config.name:
        assume(not np.isinf(ours(x)).any())  # a maximum of nothing, for which PyTorch's backward reads foreign memory
    compare(torch, ours, theirs, x, seed, config.factor)
    load(torch, theirs, ours)


def against_pytorch(configs: st.SearchStrategy[Config]) -> Any:
    """A test of `check` over configurations."""

    @FEW
    @given(config=configs, training=st.booleans(), double=st.booleans(), seed=st.integers(0, 99))
    def test(torch: Any, config: Config, training: bool, double: bool, seed: int) -> None:
        check(torch, config, training, double, seed)

    return test


# --- Convolution --------------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> Config:
    window = draw(windows(symmetric=True))
    groups, inputs, outputs = (draw(st.integers(1, 3)) for _ in range(3))
    options = {
        "stride": window.stride,
        "padding": window.padding,
        "dilation": window.dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    if draw(st.booleans()) and set(window.stride) == {1}:
        options["padding"] = draw(st.sampled_from(["same", "valid"]))
    channels = groups * inputs, groups * outputs
    shape = draw(batches(channels[0], window.sizes))
    if options["padding"] == "valid":
        spans = extents(window.kernel, window.dilation)
        shape = (*shape[: -window.rank], *map(max, zip(window.sizes, spans, strict=True)))
    return Config(f"Conv{window.rank}d", (*channels, window.kernel), shape, options, "rng", factor=4)  # type: ignore[arg-type]


@st.composite
def padded_convolutions(draw: st.DrawFn) -> Config:
    rank = draw(st.integers(1, 3))
    mode = draw(st.sampled_from(["reflect", "replicate", "circular"]))
    sizes = tuple(draw(st.integers(4, 6)) for _ in range(rank))
    padding = tuple(draw(st.integers(0, 3)) for _ in range(rank))
    kernel, stride = (tuple(draw(st.integers(1, 3)) for _ in range(rank)) for _ in range(2))
    options = {"stride": stride, "padding": padding, "padding_mode": mode}
    shape = draw(batches(2, sizes, always=mode == "reflect" or rank == 3))
    return Config(f"Conv{rank}d", (2, 3, kernel), shape, options, "rng", factor=4)  # type: ignore[arg-type]


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> Config:
    rank = draw(st.integers(1, 3))
    kernel, stride, dilation = (tuple(draw(st.integers(1, 3)) for _ in range(rank)) for _ in range(3))
    spans = extents(kernel, dilation)
    padding = tuple(draw(st.integers(0, span - 1)) for span in spans)
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    sizes = tuple(
        draw(st.integers(1 + -(-max(0, 2 * p + 1 - span - e) // s), 6))
        for p, span, e, s in zip(padding, spans, extra, stride, strict=True)
    )
    groups, inputs, outputs = (draw(st.integers(1, 2)) for _ in range(3))
    options = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation, "groups": groups}
    options["bias"] = draw(st.booleans())
    args = (groups * inputs, groups * outputs, kernel)
    shape = draw(batches(args[0], sizes))
    return Config(f"ConvTranspose{rank}d", args, shape, options, "rng", factor=4)  # type: ignore[arg-type]


test_convolution = against_pytorch(convolutions())
test_convolution_with_other_padding = against_pytorch(padded_convolutions())
test_transposed_convolution = against_pytorch(transposed_convolutions())


@pytest.mark.parametrize("output_size", [(11, 8), (2, 3, 12, 9), 11])
def test_transposed_convolution_to_a_size(torch: Any, output_size: Any) -> None:
    ours = nn.ConvTranspose2d(4, 3, 3, stride=(2, 2), padding=1, dtype=np.float64, rng=0)
    theirs = torch.nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1).double()
    load(torch, theirs, ours)
    x = np.random.default_rng(0).standard_normal((2, 4, 6, {(11, 8): 4, 11: 6}.get(output_size, 5)))
    size = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
    y = ours(x, output_size)
    assert_close(y, theirs(torch.from_numpy(x), output_size=size).detach().numpy())
    assert ours.backward(np.ones_like(y)).shape == x.shape


# --- Linear -------------------------------------------------------------------------------------------------------


@st.composite
def linears(draw: st.DrawFn) -> Config:
    inputs, outputs = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    leading = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    return Config("Linear", (inputs, outputs), (*leading, inputs), {"bias": draw(st.booleans())}, "rng")  # type: ignore[arg-type]


test_linear = against_pytorch(linears())

# --- Pooling ------------------------------------------------------------------------------------------------------


@st.composite
def pools(draw: st.DrawFn, kind: str) -> Config:
    pool = draw(torch_pools(kind))
    window, rank = pool.windows, pool.rank
    name = {"max": "MaxPool", "avg": "AvgPool", "lp": "LPPool"}[kind]
    options: dict[str, Any] = {"stride": pool.stride, "ceil_mode": pool.ceil_mode}
    args: tuple[Any, ...] = (window.kernel,)
    if kind == "max":
        options |= {"padding": window.padding, "dilation": window.dilation}
    elif kind == "avg":
        options |= {"padding": window.padding, "count_include_pad": draw(st.booleans())}
        if rank > 1:
            options["divisor_override"] = draw(st.sampled_from([None, 2, 7]))
    else:
        power = draw(st.sampled_from([1, 2, 3, 2.5]))
        args = (power, window.kernel if rank > 1 else window.kernel[0])  # PyTorch's 1-d one takes no sequences
        options["stride"] = window.stride if rank > 1 else window.stride[0]
    return Config(f"{name}{rank}d", args, (*pool.lead, *window.sizes), options, positive=kind == "lp", factor=10)


@st.composite
def adaptive_pools(draw: st.DrawFn) -> Config:
    rank = draw(st.integers(1, 3))
    name = draw(st.sampled_from(["AdaptiveMaxPool", "AdaptiveAvgPool"]))
    sizes = tuple(draw(st.integers(1, 7)) for _ in range(rank))
    out: Any = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    if rank > 1 and draw(st.booleans()):
        out = (None, *out[1:])
    if rank == 1 or draw(st.booleans()):
        out = out[-1]
    return Config(f"{name}{rank}d", (out,), draw(batches(2, sizes)))


test_max_pooling = against_pytorch(pools("max"))
test_average_pooling = against_pytorch(pools("avg"))
test_lp_pooling = against_pytorch(pools("lp"))
test_adaptive_pooling = against_pytorch(adaptive_pools())


@FEW
@given(
    rank=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.sampled_from([None, 2, 3]),
    sizes=st.tuples(*[st.integers(3, 7)] * 3),
)
def test_unpooling_of_given_indices(
    torch: Any, rank: int, kernel: int, stride: int | None, sizes: tuple[int, int, int]
) -> None:
    stride = None if stride is not None and stride < kernel else stride  # overlapping windows repeat indices
    x = np.random.default_rng(0).standard_normal((2, 3, *sizes[:rank]))
    ours = [getattr(nn, f"MaxPool{rank}d")(kernel, stride, return_indices=True), getattr(nn, f"MaxUnpool{rank}d")]
    theirs = [getattr(torch.nn, f"MaxPool{rank}d")(kernel, stride, return_indices=True)]
    unpool, peer = ours[1](kernel, stride), getattr(torch.nn, f"MaxUnpool{rank}d")(kernel, stride)
    y, indices = ours[0](x)
    ty, tindices = theirs[0](torch.from_numpy(x))
    np.testing.assert_array_equal(indices, tindices.numpy())
    ty.requires_grad_()
    up, expected = unpool(y, indices, sizes[:rank]), peer(ty, tindices, output_size=list(sizes[:rank]))
    np.testing.assert_array_equal(up, expected.detach().numpy())
    grad = np.random.default_rng(1).standard_normal(up.shape)
    expected.backward(torch.from_numpy(grad))
    np.testing.assert_array_equal(unpool.backward(grad), ty.grad.numpy())


@st.composite
def upsamplings(draw: st.DrawFn) -> Config:
    rank = draw(st.integers(1, 3))
    sizes = tuple(draw(st.integers(1, 5)) for _ in range(rank))
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[rank]
    options: dict[str, Any] = {"mode": draw(st.sampled_from(["nearest", linear]))}
    if draw(st.booleans()):
        options["size"] = tuple(draw(st.integers(1, 8)) for _ in range(rank))
    else:
        options["scale_factor"] = draw(st.sampled_from([2, 3, 1.5, (2.0,) * rank]))
    if options["mode"] != "nearest" and draw(st.booleans()):
        options["align_corners"] = draw(st.booleans())
    return Config("Upsample", (), draw(batches(2, sizes, always=True)), options)


test_upsampling = against_pytorch(upsamplings())

# --- Normalisation ------------------------------------------------------------------------------------------------


@st.composite
def tracking_norms(draw: st.DrawFn, name: str) -> Config:
    rank = draw(st.integers(1, 3))
    sizes = tuple(draw(st.integers(2, 5)) for _ in range(rank))
    shape: tuple[int, ...] = (draw(st.integers(2, 4)), 3, *sizes)
    if name == "BatchNorm" and rank == 1 and draw(st.booleans()):
        shape = (draw(st.integers(4, 9)), 3)
    elif name == "InstanceNorm" and draw(st.booleans()):
        shape = shape[1:]
    options: dict[str, Any] = {
        "eps": draw(st.sampled_from([1e-5, 1e-3])),
        "momentum": draw(st.sampled_from([0.1, 0.7, None] if name == "BatchNorm" else [0.1, 0.7])),
        "affine": draw(st.booleans()),
        "track_running_stats": draw(st.booleans()),
    }
    return Config(f"{name}{rank}d", (3,), shape, options, True, factor=100)  # few values: 1 / std is large


@st.composite
def row_norms(draw: st.DrawFn) -> Config:
    options: dict[str, Any] = {"eps": draw(st.sampled_from([1e-5, 1e-3]))}
    if draw(st.booleans()):
        groups, parts = draw(st.integers(1, 3)), draw(st.integers(2, 3))
        shape = (draw(st.integers(1, 3)), groups * parts, *draw(st.lists(st.integers(2, 4), max_size=3)))
        return Config("GroupNorm", (groups, groups * parts), shape, options | {"affine": draw(st.booleans())}, True,
                      factor=100)  # fmt: skip
    shape = (*draw(st.lists(st.integers(1, 3), max_size=2)), 3, *draw(st.lists(st.integers(2, 4), max_size=2)))
    axes = draw(st.integers(1, len(shape)))
    row = shape[-axes:] if np.prod(shape[-axes:]) > 1 else shape
    options |= {"elementwise_affine": draw(st.booleans()), "bias": draw(st.booleans())}
    given = row if len(row) > 1 or draw(st.booleans()) else row[0]
    return Config("LayerNorm", (given,), shape, options, True, factor=100)


test_batch_norm = against_pytorch(tracking_norms("BatchNorm"))
test_instance_norm = against_pytorch(tracking_norms("InstanceNorm"))
test_layer_and_group_norm = against_pytorch(row_norms())


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(4, bias=False, dtype=np.float64),
        nn.InstanceNorm2d(4, affine=True, bias=False, dtype=np.float64),
        nn.GroupNorm(2, 4, bias=False, dtype=np.float64),
        nn.LayerNorm((4, 3, 3), bias=False, dtype=np.float64),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_norms_that_only_scale(torch: Any, layer: Any) -> None:
    assert layer.bias is None
    assert repr(layer).endswith("bias=False)")
    peers = {"BatchNorm2d": torch.nn.BatchNorm2d(4), "InstanceNorm2d": torch.nn.InstanceNorm2d(4, affine=True)}
    peers |= {"GroupNorm": torch.nn.GroupNorm(2, 4), "LayerNorm": torch.nn.LayerNorm((4, 3, 3))}
    theirs = peers[type(layer).__name__].double()
    theirs.bias = None
    compare(torch, layer, theirs, np.random.default_rng(0).standard_normal((2, 4, 3, 3)))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_over_many_batches(torch: Any, momentum: float | None) -> None:
    ours = nn.BatchNorm2d(3, momentum=momentum, dtype=np.float64)
    theirs = torch.nn.BatchNorm2d(3, momentum=momentum).double()
    rng = np.random.default_rng(0)
    for turn in range(6):
        x = rng.standard_normal((4, 3, 5, 5)) * (turn + 1)
        ours.train(turn != 3)
        theirs.train(turn != 3)
        assert_close(ours(x), theirs(torch.from_numpy(x)).detach().numpy())
        for name, array in theirs.state_dict().items():
            assert_close(ours.state_dict()[name], array.numpy())
    assert int(ours.num_batches_tracked) == 5  # type: ignore[call-overload]


# --- Activations --------------------------------------------------------------------------------------------------

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@st.composite
def activations(draw: st.DrawFn) -> Config:
    name = draw(
        st.sampled_from(["ReLU", "ReLU6", "LeakyReLU", "Tanh", "Sigmoid", "GELU", "Softmax", "Identity", "Flatten"])
    )
    shape = draw(shapes)
    options: dict[str, Any] = {}
    if name == "LeakyReLU":
        options = {"negative_slope": draw(st.sampled_from([0.0, 0.01, 0.5]))}
    elif name == "Softmax":
        options = {"dim": draw(st.integers(-len(shape), len(shape) - 1))}
    elif name == "Flatten":
        first = draw(st.integers(0, len(shape) - 1))
        last = draw(st.integers(first, len(shape) - 1))
        options = {"start_dim": first, "end_dim": draw(st.sampled_from([last, last - len(shape)]))}
    return Config(name, (), shape, options)


test_activation = against_pytorch(activations())


def test_dropout_in_evaluation(torch: Any) -> None:
    ours, theirs = nn.Dropout(0.25, rng=0).eval(), torch.nn.Dropout(0.25).eval()
    x = np.random.default_rng(0).uniform(1, 2, (100, 100))
    assert ours(x) is x
    compare(torch, ours, theirs, x)


# --- What layers begin with ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        ("Conv2d", (32, 64, (3, 5)), {"groups": 2}),
        ("Conv1d", (32, 64, 3), {}),
        ("ConvTranspose2d", (32, 64, (3, 5)), {"groups": 2}),
        ("Linear", (300, 200), {}),
        ("BatchNorm2d", (4,), {}),
        ("LayerNorm", ((2, 3),), {}),
        ("GroupNorm", (2, 4), {}),
        ("InstanceNorm2d", (4,), {"affine": True, "track_running_stats": True}),
    ],
)
def test_first_parameters_are_distributed_as_pytorchs(
    torch: Any, name: str, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    seeded = {} if "Norm" in name else {"rng": 0}
    ours, theirs = getattr(nn, name)(*args, **options, **seeded), getattr(torch.nn, name)(*args, **options)
    for key, expected in theirs.state_dict().items():
        array, bound = ours.state_dict()[key], abs(expected.numpy()).max()
        assert array.shape == tuple(expected.shape)
        assert array.dtype == expected.numpy().dtype
        assert abs(array).max() == pytest.approx(bound, rel=0.1)
        assert array.std() == pytest.approx(expected.numpy().std(), rel=0.15)


PEERS = (
    *("Conv2d", "ConvTranspose2d", "MaxPool3d", "MaxUnpool1d", "AvgPool2d", "LPPool2d", "AdaptiveAvgPool2d"),
    *("AdaptiveMaxPool1d", "BatchNorm2d", "InstanceNorm3d", "LayerNorm", "GroupNorm", "Linear", "LeakyReLU", "Softmax"),
    *("Dropout", "Flatten", "Upsample"),
)


@pytest.mark.parametrize("name", PEERS)
def test_arguments_and_defaults_are_pytorchs(torch: Any, name: str) -> None:
    theirs = inspect.signature(getattr(torch.nn, name)).parameters
    ours = inspect.signature(getattr(nn, name)).parameters
    left_out = {"device", "inplace", "dtype", "recompute_scale_factor"}
    if name == "ConvTranspose2d":
        left_out.add("padding_mode")  # knows one value only
    expected = [key for key in theirs if key not in left_out]
    if "Norm" in name and name != "LayerNorm":
        expected.remove("bias") if "bias" in expected else None  # by keyword only, and young
    assert list(ours)[: len(expected)] == expected
    for key in set(expected) - {"dim"}:  # which PyTorch guesses, with a warning
        assert ours[key].default == theirs[key].default, key
