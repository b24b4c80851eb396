"""Every layer against PyTorch's of that name: outputs, gradients and states, with each argument that layers take."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from layer_cases import CONFIGS, Case
from tolerances import assert_close
from torch_peers import compare, load

import gpucnn.functional as F
from gpucnn import nn

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # PyTorch copies


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
        ("RMSNorm", ((2, 3),), {}),
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
    if "Norm" in name and name not in ("LayerNorm", "LocalResponseNorm", "RMSNorm"):
        left_out.add("bias")  # by keyword only, and young
    expected = [key for key in theirs if key not in left_out]
    assert list(ours)[: len(expected)] == expected
    for key in set(expected) - {"dim"}:  # which PyTorch guesses, with a warning
        assert ours[key].default == theirs[key].default, key
