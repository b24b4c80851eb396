"""Errors of layers for arguments and inputs that they cannot take."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend
from layer_cases import CASES, CONFIGS, Case, outcome
from refusals import refused, refuses, saying

import gpucnn.functional as F
from gpucnn import nn
from gpucnn.geometry import same_padding

BY_CALL = ("Upsample", "Softmax", "Flatten")  # what they take is checked with the input
ARGUMENTS: dict[tuple[str, str], dict[str, Any]] = {
    (case.name, name): arguments
    for case in (*CONFIGS, *CASES.values())
    if type(case) is Case and case.name not in BY_CALL
    for signature in [inspect.signature(getattr(nn, case.name))]
    for arguments in [signature.bind(*case.args, **case.options).arguments]
    for name in signature.parameters
    if name not in ("rng", "dtype")
}
ZEROS = ("padding", "output_padding", "eps", "momentum", "negative_slope", "p", "alpha", "beta", "k")
NEGATIVES = ("momentum", "negative_slope", "divisor_override", "alpha", "beta", "k")


@pytest.mark.parametrize(("layer", "name"), ARGUMENTS)
def test_each_argument_is_checked_and_named(layer: str, name: str) -> None:
    wrong = [object(), *([] if name in ZEROS else [0]), *([] if name in NEGATIVES else [-1])]
    for bad in wrong:
        with pytest.raises((TypeError, ValueError), match=saying(f"{layer}: {name} is {bad!r}…expected …")):
            getattr(nn, layer)(**ARGUMENTS[layer, name] | {name: bad})


test_arguments_that_do_not_fit = refuses(
    ValueError,
    ("Conv2d: kernel_size has 3 values, expected 2", lambda: nn.Conv2d(1, 1, (3, 3, 3))),
    ("Conv2d: padding is 'full', expected numbers, 'valid'…", lambda: nn.Conv2d(1, 1, 3, padding="full")),
    ("Conv2d: in_channels is 4, expected a multiple of groups = 3", lambda: nn.Conv2d(4, 6, 3, groups=3)),
    ("Conv2d: out_channels is 4, expected a multiple of groups = 3", lambda: nn.Conv2d(6, 4, 3, groups=3)),
    (
        "Conv2d: padding_mode is 'mirror', expected one of ('zeros', 'reflect', 'replicate', 'circular')",
        lambda: nn.Conv2d(1, 1, 3, padding_mode="mirror"),
    ),
    ("LocallyConnected2d: input_size has 3 values, expected 2", lambda: nn.LocallyConnected2d(1, 1, (5, 5, 5), 3)),
    ("LocallyConnected1d: window of axis 0 spans…", lambda: nn.LocallyConnected1d(1, 1, 2, 3)),
    ("AdaptiveAvgPool2d: output_size has 3 values, expected 2", lambda: nn.AdaptiveAvgPool2d((1, 2, 3))),
    ("MaxUnpool2d: kernel_size is 0, expected at least 1", lambda: nn.MaxUnpool2d(0)),
    ("Upsample: got size None and scale_factor None, expected just one of them", lambda: nn.Upsample()),
    ("Upsample: got size 2 and scale_factor 2, expected just one of them", lambda: nn.Upsample(2, 2)),
    ("Upsample: mode is 'lanczos', expected 'nearest', …", lambda: nn.Upsample(2, mode="lanczos")),
    ("LayerNorm: normalized_shape is empty, expected at least one axis", lambda: nn.LayerNorm(())),
    ("RMSNorm: normalized_shape is empty, expected at least one axis", lambda: nn.RMSNorm([])),
    ("RMSNorm: eps is -1.0, expected a finite number of at least 0.0", lambda: nn.RMSNorm(3, eps=-1)),
    ("GroupNorm: num_channels is 4, expected a multiple of num_groups = 3", lambda: nn.GroupNorm(3, 4)),
    ("Dropout: p is 1.5, expected a finite number in [0.0, 1.0]", lambda: nn.Dropout(1.5)),
)

INPUTS: list[tuple[nn.Module, tuple[int, ...], str]] = [
    (nn.Conv2d(3, 4, 3), (2, 4, 5, 5), "conv2d: … shape (2, 4, 5, 5), expected (N, C, H, W) with C = 3, for weight…"),
    (nn.Conv2d(3, 4, 3), (5, 5), "conv2d: input has 2 dimensions, expected 4 (N, C, H, W) or 3 (C, H, W)…"),
    (nn.Conv2d(3, 4, 7), (1, 3, 5, 5), "conv2d: window of axis 0 spans…"),
    (nn.Conv2d(3, 4, 3, padding_mode="reflect"), (5, 5), "Conv2d: input has 2 dimensions, expected 4 (N, C, H, W) or…"),
    (nn.ConvTranspose1d(3, 4, 3), (2, 4, 5), "conv_transpose1d: …"),
    (nn.LocallyConnected2d(1, 1, (4, 5), 3), (1, 1, 5, 5), "…: input has spatial size (5, 5), expected (4, 5)…"),
    (nn.LocallyConnected1d(1, 1, 4, 3), (4,), "…: input has 1 dimensions, expected 3 (N, C, W) or 2…"),
    (nn.Linear(3, 2), (4, 5), "linear: input has shape (4, 5), expected (*, 3) as weight (OUT, IN) has…"),
    (nn.MaxPool2d(2), (4,), "max_pool2d: input has 1 dimensions…"),
    (nn.AvgPool2d(2), (1, 1, 1, 1), "avg_pool2d: window of axis 0 spans…"),
    (nn.BatchNorm2d(3), (2, 3), "BatchNorm2d: input has 2 dimensions, expected 4 (N, C, H, W)…"),
    (nn.BatchNorm1d(3), (3,), "BatchNorm1d: input has 1 dimensions, expected 2 (N, C) or 3 (N, C, W)…"),
    (nn.BatchNorm2d(3), (2, 4, 5, 5), "BatchNorm2d: input has 4 channels, expected num_features = 3…"),
    (nn.BatchNorm2d(3), (1, 3, 1, 1), "batch_norm: … shape (1, 3, 1, 1), expected more than one value per…"),
    (nn.InstanceNorm2d(3), (2, 3), "…: input has 2 dimensions, expected 4 (N, C, H, W) or 3 (C, H, W)…"),
    (nn.InstanceNorm2d(3), (4, 5, 5), "InstanceNorm2d: input has 4 channels, expected num_features = 3…"),
    (nn.LayerNorm(3), (2, 4), "layer_norm: … shape (2, 4), expected it to end in normalized_shape = (3,)…"),
    (nn.RMSNorm(3), (2, 4), "rms_norm: … shape (2, 4), expected it to end in normalized_shape = (3,)…"),
    (nn.GroupNorm(2, 4), (2, 3, 4), "GroupNorm: input has shape (2, 3, 4), expected (N, 4, *space)…"),
    (nn.GroupNorm(2, 4), (4,), "GroupNorm: input has shape (4,), expected (N, 4, *space)…"),
    (nn.Softmax(2), (2, 3), "softmax: dim is 2, expected less than input's 2 dimensions…"),
    (nn.Flatten(2), (2, 3), "Flatten: input has shape (2, 3), expected axes start_dim = 2 to end_dim = -1…"),
    (nn.Flatten(1, 0), (2, 3), "Flatten: input has shape (2, 3), expected axes start_dim = 1 to end_dim = 0…"),
    (nn.Upsample(4), (2, 3), "interpolate: input has 2 dimensions, expected 3 to 5 (N, C, *space)…"),
]


@pytest.mark.parametrize(("layer", "shape", "message"), INPUTS, ids=[case[2] for case in INPUTS])
def test_inputs(layer: nn.Module, shape: tuple[int, ...], message: str) -> None:
    state = {name: array.copy() for name, array in layer.state_dict().items()}
    x = np.ones(shape, np.float32)
    refused(ValueError, (message, lambda: layer(x)))
    refused(RuntimeError, ("…has no forward…", lambda: layer.backward(x)))
    assert all(np.array_equal(array, state[name]) for name, array in layer.state_dict().items()), "it was changed"


@pytest.mark.parametrize("size", [(7, 8), (11, 8), (12, 7), (12, 10)])
def test_transposed_convolution_to_a_size_that_is_none_of_its(size: tuple[int, int]) -> None:
    layer = nn.ConvTranspose2d(1, 1, 3, stride=(2, 2))
    axis, wrong, least = next(
        (i, s, n) for i, (s, n) in enumerate(zip(size, (13, 9), strict=True)) if s not in (n, n + 1)
    )
    x = np.ones((1, 1, 6, 4), np.float32)
    same = nn.ConvTranspose2d(1, 1, 3, 2, padding="same")
    refused(
        ValueError,
        (
            f"ConvTranspose2d: output_size of axis {axis} is {wrong}, expected {least} to {least + 1}",
            lambda: layer(x, size),
        ),
        ("ConvTranspose2d: output_size is …, expected None with padding 'same'", lambda: same(x, size)),
    )


# --- What goes beyond PyTorch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect"])
@pytest.mark.parametrize("padding", [((0, 2), (1, 0)), "same", "same_lower"])
def test_uneven_padding(mode: str, padding: Any) -> None:
    """The same as padding the image before, by hand."""
    layer = nn.Conv2d(2, 3, (4, 2), 2, padding, padding_mode=mode, dtype=np.float64, rng=0)
    plain = nn.Conv2d(2, 3, (4, 2), 2, dtype=np.float64)
    plain.load_state_dict(layer.state_dict())
    x = np.random.default_rng(0).standard_normal((2, 2, 7, 6))
    named = isinstance(padding, str)
    pairs = same_padding((7, 6), (4, 2), 2, lower=padding == "same_lower") if named else padding
    pad = [*pairs[1], *pairs[0]]
    padded = F.pad(x, pad, "constant" if mode == "zeros" else mode)
    y = layer(x)
    np.testing.assert_allclose(y, plain(padded), atol=1e-12)
    grad = np.random.default_rng(1).standard_normal(y.shape)
    expected = F.pad_backward(plain.backward(grad), x, pad, "constant" if mode == "zeros" else mode)[0]
    np.testing.assert_allclose(layer.backward(grad), expected, atol=1e-12)
    np.testing.assert_allclose(layer.weight.grad, plain.weight.grad, atol=1e-12)  # type: ignore[arg-type]
    layer.needs_input_grad = False
    layer(x)
    assert layer.backward(grad) is None


GEOMETRY = {"stride": 2, "padding": 1}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "function", "arguments", "options"),
    [
        ("LocallyConnected", "locally_connected", (3, 2, 5, 3), GEOMETRY),
        ("SumPool", "sum_pool", (3,), GEOMETRY | {"dilation": 2, "ceil_mode": True}),
        ("BedOfNails", "bed_of_nails", (2,), {}),
    ],
)
def test_layers_that_pytorch_lacks_are_their_functions(
    rank: int, name: str, function: str, arguments: tuple[Any, ...], options: dict[str, Any], rng: np.random.Generator
) -> None:
    layer = getattr(nn, f"{name}{rank}d")(*arguments, **options)
    weights = [parameter.data for parameter in layer.parameters()]
    given = weights or arguments
    x = rng.standard_normal((2, 3, *(5,) * rank)).astype(np.float32)
    y = layer(x)
    np.testing.assert_array_equal(y, getattr(F, f"{function}{rank}d")(x, *given, **options))
    grad = rng.standard_normal(y.shape).astype(np.float32)
    expected = getattr(F, f"{function}{rank}d_backward")(grad, x, *given, **options)
    found = [layer.backward(grad), *(parameter.grad for parameter in layer.parameters())]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_batch_norm_in_evaluation_has_a_linear_backward() -> None:
    """Its statistics are constants, whatever happens to them between forward and backward."""
    layer = nn.BatchNorm1d(3, dtype=np.float64).eval()
    layer.running_var[...] = [1.0, 4.0, 9.0]  # type: ignore[index]
    layer(np.ones((5, 3)))
    layer.running_var[...] = 100.0  # type: ignore[index]
    grad = layer.backward(np.ones((5, 3)))
    np.testing.assert_allclose(grad, [[1, 1 / 2, 1 / 3]] * 5, rtol=1e-4)
    assert int(layer.num_batches_tracked) == 0  # type: ignore[call-overload]


def test_an_empty_batch_is_not_counted() -> None:
    layer = nn.BatchNorm2d(3, momentum=None)
    assert layer(np.ones((0, 3, 4, 4), np.float32)).shape == (0, 3, 4, 4)
    assert int(layer.num_batches_tracked) == 0  # type: ignore[call-overload]


# --- Arrays of other libraries, and dtypes ------------------------------------------------------------------------

test_what_is_no_array_is_refused_by_name = refuses(
    TypeError,
    ("…cast input, input.astype(numpy.float32)", lambda: nn.Conv2d(1, 1, 1)(np.ones((1, 1, 2, 2)))),
    ("linear: input is of type list, expected an array", lambda: nn.Linear(2, 2)([[1.0, 2.0]])),
    ("Parameter: data is of type list, expected an array…", lambda: nn.Parameter([1.0])),
    *(
        (f"{name}: input is of type list, expected an array", lambda layer=layer: layer([1.0, 2.0]))
        for name, layer in (
            ("Tanh", nn.Tanh()),
            ("ReLU6", nn.ReLU6()),
            ("Flatten", nn.Flatten()),
            ("sigmoid", nn.Sigmoid()),
            ("gelu", nn.GELU()),
            ("SiLU", nn.SiLU()),
        )
    ),
    (
        "Concat: branches give dtypes float64, float32, expected one; cast the input…",
        lambda: nn.Concat(nn.Identity(), Casting())(np.ones((1, 2, 3, 3))),
    ),
    (
        "Residual: body makes dtype float32 of it and the shortcut float64, expected on…",
        lambda: nn.Residual(Casting())(np.ones((1, 2, 3, 3))),
    ),
)


class Casting(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.astype(np.float32)


def test_parameters_are_numpys_or_cupys_and_tensors_are_told_the_way(torch: Any) -> None:
    way = "…input of torch and weight of numpy; expected one, …; numpy.from_dlpack(input) is one of numpy over the s…"
    linear, conv = nn.Linear(3, 2), nn.Conv2d(1, 2, 3)
    refused(
        TypeError,
        (
            "Parameter: data is a torch.Tensor, expected a NumPy or CuPy array; their fr…",
            lambda: nn.Parameter(torch.ones(3)),
        ),
        (
            "map_arrays: what function made is a torch.Tensor, expected a NumPy or CuPy…",
            lambda: nn.Linear(3, 2).map_arrays(torch.from_numpy),
        ),
        (way, lambda: linear(torch.ones(2, 3))),
        (way, lambda: conv(torch.ones(1, 1, 4, 4))),
    )
    assert linear(np.from_dlpack(torch.ones(2, 3))).shape == (2, 2)


def test_tensors_among_the_buffers_are_moved(torch: Any) -> None:
    layer = nn.BatchNorm2d(2)
    layer.running_mean = torch.full((2,), 3.0)
    layer.to("cpu")
    assert isinstance(layer.running_mean, np.ndarray)
    assert layer.running_mean.tolist() == [3, 3]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.layer().state_dict()])
def test_layers_without_weights_take_tensors_as_the_functions_do(torch: Any, name: str) -> None:
    layer, x = CASES[name].layer(), CASES[name].input(np.float32)
    found = outcome(layer, torch.from_numpy(x), torch.ones_like(layer(torch.from_numpy(x))))
    assert all(isinstance(found[key], torch.Tensor) for key in ("output", "grad_input"))
    if name != "Dropout":
        expected = outcome(layer, x, np.ones(tuple(found["output"].shape), np.float32))
        for key in ("output", "grad_input"):
            np.testing.assert_array_equal(found[key].numpy(), expected[key])


def test_tanh_computes_as_the_other_activations_do(backend: ArrayBackend) -> None:
    with pytest.raises(TypeError, match=r"^Tanh: input has dtype int64, expected floating-point"):
        nn.Tanh()(backend.asarray(np.ones(3, int)))
    x, layer = np.linspace(-3, 3, 24).reshape(2, 3, 4).astype(np.float16), nn.Tanh()
    y = backend.asnumpy(layer(backend.asarray(x.transpose(0, 2, 1))))
    grad = backend.asnumpy(layer.backward(backend.asarray(np.ones((2, 4, 3), np.float16))))
    assert y.dtype == grad.dtype == np.float16
    assert y.strides == x.transpose(0, 2, 1).strides
    np.testing.assert_array_equal(y, np.tanh(x.astype(np.float32)).astype(np.float16).transpose(0, 2, 1))
