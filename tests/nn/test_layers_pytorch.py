"""Every layer against PyTorch's of that name: outputs, gradients and states, with each argument that layers take."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from layer_cases import Case, of
from tolerances import assert_close
from torch_peers import compare, load

import gpucnn.functional as F
from gpucnn import nn

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # PyTorch copies

# Inputs without a batch axis too, and each argument at another value than its default.


CONFIGS = [
    of("Conv1d", (2, 4, 9), 4, 6, 3, stride=2, padding=1, dilation=2, groups=2),
    of("Conv1d", (4, 9), 4, 2, 3, padding="same", dilation=2, bias=False),
    of("Conv1d", (2, 3, 6), 3, 2, 2, padding="valid"),
    of("Conv1d", (2, 2, 6), 2, 3, 3, padding=2, padding_mode="reflect"),
    of("Conv2d", (2, 4, 7, 6), 4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
    of("Conv2d", (3, 6, 5), 3, 2, 2, padding="same", bias=False),
    of("Conv2d", (2, 2, 4, 5), 2, 3, (3, 2), stride=(1, 2), padding=(3, 1), padding_mode="reflect"),
    of("Conv2d", (2, 4, 5), 2, 3, (3, 2), stride=(2, 1), padding=(1, 2), padding_mode="replicate"),
    of("Conv2d", (2, 2, 4, 5), 2, 3, 3, padding=(0, 2), padding_mode="circular"),
    of("Conv3d", (2, 2, 4, 5, 3), 2, 3, (1, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1), dilation=(1, 2, 1)),
    of("Conv3d", (3, 4, 5, 3), 3, 3, 2, groups=3, bias=False),
    of("Conv3d", (2, 2, 4, 5, 4), 2, 3, (2, 3, 1), padding=(1, 2, 0), padding_mode="circular"),
    of("Conv3d", (1, 2, 4, 4, 4), 2, 3, 3, padding=2, padding_mode="reflect"),
    of("ConvTranspose1d", (2, 4, 5), 4, 2, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False),
    of("ConvTranspose1d", (3, 4), 3, 2, 2, dilation=3),
    of("ConvTranspose2d", (4, 3, 4), 4, 6, (3, 2), (2, 3), (1, 0), (0, 2), groups=2, dilation=(2, 1)),
    of("ConvTranspose2d", (2, 3, 4, 4), 3, 2, 4, stride=2, padding=1, bias=False),
    of("ConvTranspose3d", (2, 2, 3, 2, 3), 2, 4, (2, 1, 3), (1, 2, 1), (1, 0, 1), (0, 1, 1), 2, False, (1, 1, 2)),
    of("Linear", (4, 5), 5, 3),
    of("Linear", (5,), 5, 3, bias=False),
    of("Linear", (2, 3, 4, 5), 5, 2),
    of("MaxPool1d", (2, 3, 9), 3),
    of("MaxPool1d", (3, 10), 3, stride=2, padding=1, dilation=2, ceil_mode=True),
    of("MaxPool2d", (2, 3, 8, 8), (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), ceil_mode=True),
    of("MaxPool2d", (3, 7, 8), 2),
    of("MaxPool3d", (2, 3, 5, 4, 6), (2, 1, 3), (2, 1, 2), (1, 0, 1), (1, 1, 2), ceil_mode=True),
    of("AvgPool1d", (2, 3, 10), 3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    of("AvgPool1d", (3, 9), 2),
    of("AvgPool2d", (3, 8, 9), (3, 2), stride=(2, 3), padding=(1, 0), ceil_mode=True, count_include_pad=False),
    of("AvgPool2d", (2, 3, 7, 8), 3, padding=1, divisor_override=7),
    of("AvgPool3d", (2, 3, 5, 4, 6), (2, 1, 3), (2, 1, 2), (1, 0, 1), True, False),
    of("AvgPool3d", (3, 5, 4, 6), 2, divisor_override=2),
    of("LPPool1d", (2, 3, 10), 2.5, 3, stride=2, ceil_mode=True),
    of("LPPool1d", (3, 9), 3, 2),
    of("LPPool2d", (2, 3, 8, 8), 2, (3, 2), stride=(2, 1), ceil_mode=True),
    of("LPPool2d", (3, 7, 8), 1, 2),
    of("LPPool3d", (2, 3, 5, 4, 6), 2.5, (2, 1, 3), stride=(2, 1, 2), ceil_mode=True),
    of("AdaptiveMaxPool1d", (3, 7), 3),
    of("AdaptiveMaxPool2d", (2, 3, 7, 5), (None, 3)),
    of("AdaptiveMaxPool3d", (2, 3, 7, 5, 4), (2, 1, 4)),
    of("AdaptiveAvgPool1d", (2, 3, 7), (4,)),
    of("AdaptiveAvgPool2d", (3, 7, 5), 2),
    of("AdaptiveAvgPool3d", (2, 3, 7, 5, 4), (3, None, 2)),
    of("Upsample", (2, 3, 4), scale_factor=2),
    of("Upsample", (2, 3, 4), 7, mode="linear"),
    of("Upsample", (2, 3, 4, 3), (5, 2), mode="bilinear", align_corners=True),
    of("Upsample", (2, 3, 4, 3), scale_factor=(2.0, 1.5), mode="bilinear", align_corners=False),
    of("Upsample", (2, 3, 4, 3, 2), scale_factor=1.5),
    of("Upsample", (2, 3, 4, 3, 2), scale_factor=2, mode="trilinear"),
    of("BatchNorm1d", (5, 3), 3),
    of("BatchNorm1d", (4, 3, 5), 3, eps=1e-3, momentum=0.7, affine=False),
    of("BatchNorm2d", (4, 3, 5, 2), 3, eps=1e-3, momentum=None),
    of("BatchNorm2d", (4, 3, 5, 2), 3, affine=False, track_running_stats=False),
    of("BatchNorm3d", (2, 3, 2, 4, 3), 3, momentum=0.7, track_running_stats=False),
    of("InstanceNorm1d", (3, 5), 3, eps=1e-3, momentum=0.7, affine=True, track_running_stats=True),
    of("InstanceNorm2d", (4, 3, 5, 2), 3, affine=True),
    of("InstanceNorm2d", (3, 5, 2), 3),
    of("InstanceNorm3d", (2, 3, 2, 4, 3), 3, track_running_stats=True),
    of("LayerNorm", (2, 3, 5), 5, eps=1e-3),
    of("LayerNorm", (2, 3, 5), (3, 5), bias=False),
    of("LayerNorm", (3, 5), [3, 5], elementwise_affine=False),
    of("GroupNorm", (2, 6, 3, 3), 3, 6, eps=1e-3),
    of("GroupNorm", (3, 4), 2, 4, affine=False),
    of("ReLU", (3, 4)),
    of("ReLU6", (3, 4)),
    of("LeakyReLU", (3, 4)),
    of("LeakyReLU", (2, 3, 4), negative_slope=0.5),
    of("Tanh", (5,)),
    of("Sigmoid", (3, 4)),
    of("GELU", (3, 4)),
    of("GELU", (3, 4), approximate="tanh"),
    of("Softmax", (2, 3, 4), dim=1),
    of("Softmax", (3, 4), -1),
    of("Identity", (3, 4)),
    of("Flatten", (2, 3, 4, 5)),
    of("Flatten", (2, 3, 4, 5), start_dim=2, end_dim=-1),
    of("Flatten", (2, 3, 4), 0, 1),
]


@pytest.mark.table(30)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
@pytest.mark.parametrize("case", CONFIGS, ids=str)
def test_layers_are_pytorchs(torch: Any, case: Case, training: bool, dtype: Any) -> None:
    """PyTorch computes in float64."""
    ours = case.layer(dtype).train(training)
    theirs = getattr(torch.nn, case.name)(*case.args, **case.options).double().train(training)
    load(torch, theirs, ours)
    factor = 100 if "Norm" in case.name else 10 if "Pool" in case.name else 4  # few values: 1 / std is large
    compare(torch, ours, theirs, case.input(dtype), 3, factor)
    load(torch, theirs, ours)


def test_each_argument_has_another_value_than_its_default() -> None:
    tried: dict[str, set[str]] = {}
    takes: dict[str, set[str]] = {}
    for config in CONFIGS:
        signature = inspect.signature(getattr(nn, config.name))
        family = config.name.rstrip("123d")
        takes.setdefault(family, set()).update(signature.parameters)
        bound = signature.bind(*config.args, **config.options).arguments
        other = {name for name, value in bound.items() if value != signature.parameters[name].default}
        tried.setdefault(family, set()).update(other)
    lacking = {family: takes[family] - tried[family] - {"dtype", "rng", "return_indices"} for family in takes}
    assert {family: names for family, names in lacking.items() if names} == {
        **{family: {"bias"} for family in ("BatchNorm", "InstanceNorm", "GroupNorm")},  # in a test of its own
        "AvgPool": {"dilation"},  # not PyTorch's, as the next ones
        "LPPool": {"padding", "dilation"},
    }


def test_pools_pass_on_what_pytorchs_do_not_take() -> None:
    x = abs(np.random.default_rng(0).standard_normal((2, 3, 7)))
    options = {"padding": 1, "dilation": 2}
    np.testing.assert_array_equal(nn.AvgPool1d(3, **options)(x), F.avg_pool1d(x, 3, **options))
    np.testing.assert_array_equal(nn.LPPool1d(2, 3, **options)(x), F.lp_pool1d(x, 2, 3, **options))


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


@pytest.mark.parametrize(
    ("rank", "kernel", "stride", "sizes"),
    [(1, 2, None, (7,)), (1, 2, 3, (6,)), (2, 3, None, (7, 5)), (2, 1, 2, (4, 5)), (3, 2, 3, (5, 6, 3))],
)
def test_unpooling_of_given_indices(
    torch: Any, rank: int, kernel: int, stride: int | None, sizes: tuple[int, ...]
) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, *sizes))
    pools = [getattr(library, f"MaxPool{rank}d")(kernel, stride, return_indices=True) for library in (nn, torch.nn)]
    unpool, peer = (getattr(library, f"MaxUnpool{rank}d")(kernel, stride) for library in (nn, torch.nn))
    (y, indices), (ty, tindices) = pools[0](x), pools[1](torch.from_numpy(x))
    np.testing.assert_array_equal(indices, tindices.numpy())
    ty.requires_grad_()
    up, expected = unpool(y, indices, sizes), peer(ty, tindices, output_size=list(sizes))
    np.testing.assert_array_equal(up, expected.detach().numpy())
    grad = np.random.default_rng(1).standard_normal(up.shape)
    expected.backward(torch.from_numpy(grad))
    np.testing.assert_array_equal(unpool.backward(grad), ty.grad.numpy())


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


@pytest.mark.parametrize("name", sorted({config.name for config in CONFIGS} | {"MaxUnpool1d", "Dropout"}))
def test_arguments_and_defaults_are_pytorchs(torch: Any, name: str) -> None:
    theirs = inspect.signature(getattr(torch.nn, name)).parameters
    ours = inspect.signature(getattr(nn, name)).parameters
    left_out = {"device", "inplace", "dtype", "recompute_scale_factor", "args", "kwargs"}
    if "ConvTranspose" in name:
        left_out.add("padding_mode")  # knows one value only
    if "Norm" in name and name != "LayerNorm":
        left_out.add("bias")  # by keyword only, and young
    expected = [key for key in theirs if key not in left_out]
    assert list(ours)[: len(expected)] == expected
    for key in set(expected) - {"dim"}:  # which PyTorch guesses, with a warning
        assert ours[key].default == theirs[key].default, key
