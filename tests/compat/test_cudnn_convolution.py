"""cuDNN's three convolutions against naive loops: every rank, layout, group and memory order, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import reference
from array_backends import ArrayBackend
from covering import Covering, coverings
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from sample import examples
from strategies import ORDERS, arranged, numbers
from tolerances import assert_close

import gpucnn
from gpucnn.compat import cudnn
from gpucnn.numerics import choices

Array = np.ndarray[Any, Any]
HOW: dict[str, Any] = {"auto_tune": True, "tensor_core": "auto"}
AGAIN: dict[str, Any] = {"deterministic": False, **HOW}
NHWC = {"d_layout": cudnn.CUDNN_TENSOR_NHWC, "w_layout": cudnn.CUDNN_TENSOR_NHWC}


@dataclass(frozen=True)
class Layer:
    """A convolution, and how its arrays lie in memory."""

    windows: Covering
    groups: int
    channels: tuple[int, int, int]  # of the batch, and of a group: N, C, OC
    dtype: str
    orders: tuple[str, ...]
    d_layout: int
    w_layout: int
    bias: bool

    def arrays(self) -> tuple[Array, Array, Array]:
        """x, W and gy, channels first and in C order."""
        rng, (n, c, oc) = np.random.default_rng(7), self.channels
        shapes = (
            (n, c * self.groups, *self.windows.sizes),
            (oc * self.groups, c, *self.windows.kernel),
            (n, oc * self.groups, *self.windows.outs),
        )
        x, w, gy = (numbers(rng, shape, self.dtype) for shape in shapes)
        return x, w, gy

    def placed(self, array: Array, layout: int, order: str) -> Array:
        """An array as the call takes it."""
        return arranged(np.moveaxis(array, 1, -1).copy() if layout else array, order)

    def run(self, backend: ArrayBackend, function: Callable[..., None], given: list[Array], result: Array) -> Array:
        """What a call writes to the last of its arrays, which is full of NaN before."""
        arrays = [None if array is None else backend.asarray(array) for array in (*given, result)]
        how = HOW if function is cudnn.convolution_forward else AGAIN
        window = self.windows.pad, self.windows.stride, self.windows.dilation, self.groups
        returned = function(*arrays, *window, **how, d_layout=self.d_layout, w_layout=self.w_layout)
        assert returned is None
        return backend.asnumpy(arrays[-1])


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    rank_orders = tuple(draw(st.sampled_from(ORDERS)) for _ in range(3))
    return Layer(
        draw(coverings()),
        draw(st.integers(1, 3)),
        (draw(st.integers(0, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 2))),
        draw(st.sampled_from(["float16", "float32", "float64"])),
        rank_orders,
        draw(st.integers(0, 1)),
        draw(st.integers(0, 1)),
        draw(st.booleans()),
    )


def first(array: Array, layout: int) -> Array:
    return np.moveaxis(array, -1, 1) if layout else array


@examples(200)
@given(layer=layers())
def test_forward(backend: ArrayBackend, layer: Layer) -> None:
    x, w, gy = layer.arrays()
    b = numbers(np.random.default_rng(8), (w.shape[0],), layer.dtype) if layer.bias else None
    placed = [layer.placed(x, layer.d_layout, layer.orders[0]), layer.placed(w, layer.w_layout, layer.orders[1]), b]
    y = layer.placed(np.full_like(gy, np.nan), layer.d_layout, layer.orders[2])
    found = first(layer.run(backend, cudnn.convolution_forward, placed, y), layer.d_layout)
    assert_close(found, reference.conv(x, w, b, *layer.windows.loops, layer.groups), layer.dtype)


@examples(200)
@given(layer=layers())
def test_backward_data(backend: ArrayBackend, layer: Layer) -> None:
    x, w, gy = layer.arrays()
    b = numbers(np.random.default_rng(8), (x.shape[1],), layer.dtype) if layer.bias else None
    placed = [layer.placed(w, layer.w_layout, layer.orders[1]), layer.placed(gy, layer.d_layout, layer.orders[2]), b]
    gx = layer.placed(np.full_like(x, np.nan), layer.d_layout, layer.orders[0])
    found = first(layer.run(backend, cudnn.convolution_backward_data, placed, gx), layer.d_layout)
    expected = reference.conv_backward(gy, x, w, *layer.windows.loops, layer.groups)[0]
    if b is not None:
        expected = expected + reference.per_channel(b, x.ndim)
    assert_close(found, expected, layer.dtype)


@examples(200)
@given(layer=layers())
def test_backward_filter(backend: ArrayBackend, layer: Layer) -> None:
    x, w, gy = layer.arrays()
    placed = [layer.placed(x, layer.d_layout, layer.orders[0]), layer.placed(gy, layer.d_layout, layer.orders[2])]
    gw = layer.placed(np.full_like(w, np.nan), layer.w_layout, layer.orders[1])
    found = first(layer.run(backend, cudnn.convolution_backward_filter, placed, gw), layer.w_layout)
    expected = reference.conv_backward(gy, x, w, *layer.windows.loops, layer.groups)[1]
    assert_close(found, expected, layer.dtype)


def test_filters_flipped_by_negative_strides_make_a_convolution(backend: ArrayBackend) -> None:
    """As SigPy calls it: "full" convolution, with filters that are a view."""
    x, w = np.array([[[[1.0, 2.0, 3.0]]]]), np.array([[[[1.0, 10.0]]]])
    y = backend.asarray(np.full((1, 1, 1, 4), np.nan))
    flipped = backend.asarray(w)[..., ::-1]
    cudnn.convolution_forward(backend.asarray(x), flipped, None, y, (0, 1), (1, 1), (1, 1), 1, **HOW)
    np.testing.assert_array_equal(backend.asnumpy(y)[0, 0, 0], np.convolve(x[0, 0, 0], w[0, 0, 0]))


def test_real_and_imaginary_parts_are_convolved_in_place(backend: ArrayBackend) -> None:
    z = np.array([[[1 + 2j, 3 - 1j]]])
    y = backend.asarray(np.empty((1, 1, 2), np.complex128))
    w = backend.asarray(np.full((1, 1, 1), 3.0))
    for part in ("real", "imag"):
        source, target = getattr(backend.asarray(z), part), getattr(y, part)
        cudnn.convolution_forward(source, w, None, target, (0,), (1,), (1,), 1, **HOW)
    np.testing.assert_array_equal(backend.asnumpy(y), 3 * z)


@pytest.mark.parametrize("shape", [(3,), (1, 3, 1, 1)])
def test_a_bias_has_any_shape_and_may_be_wider(backend: ArrayBackend, shape: tuple[int, ...]) -> None:
    x, w, b = np.ones((1, 1, 2, 2), np.float16), np.ones((3, 1, 1, 1), np.float16), np.arange(3, dtype=np.float32)
    y = backend.asarray(np.empty((1, 3, 2, 2), np.float16))
    taken = backend.asarray(x), backend.asarray(w), backend.asarray(b.reshape(shape)), y
    cudnn.convolution_forward(*taken, (0, 0), (1, 1), None, 1, **HOW)
    np.testing.assert_array_equal(backend.asnumpy(y)[0, :, 0, 0], [1, 2, 3])


def test_a_window_larger_than_the_padded_image_covers_it() -> None:
    y = np.full((1, 1, 1), np.nan)
    cudnn.convolution_forward(np.ones((1, 1, 2)), np.ones((1, 1, 3)), None, y, (0,), (2,), (1,), 1, **HOW)
    assert y.item() == 2


@pytest.mark.parametrize("tensor_core", ["auto", "always", "never"])
@pytest.mark.parametrize("auto_tune", [True, False])
def test_what_chose_an_algorithm_changes_nothing(rng: np.random.Generator, tensor_core: str, auto_tune: bool) -> None:
    x, w = numbers(rng, (2, 3, 6, 5), "float32"), numbers(rng, (4, 3, 3, 3), "float32")
    y, other = (np.empty((2, 4, 6, 5), np.float32) for _ in range(2))
    window = (1, 1), (1, 1), (1, 1), 1
    cudnn.convolution_forward(x, w, None, y, *window, auto_tune=auto_tune, tensor_core=tensor_core)
    cudnn.convolution_forward(x, w, None, other, *window, **HOW)
    np.testing.assert_array_equal(y, other)


@pytest.mark.parametrize("direction", ["forward", "backward_data", "backward_filter"])
def test_pytorch_computes_the_same(torch: Any, rng: np.random.Generator, direction: str) -> None:
    x, w, gy = (numbers(rng, shape, "float64") for shape in ((2, 4, 9, 8), (6, 2, 3, 2), (2, 6, 4, 6)))
    window = (1, 2), (2, 2), (2, 1), 2
    tensors = [torch.from_numpy(array).requires_grad_() for array in (x, w)]
    expected = torch.nn.functional.conv2d(*tensors, None, window[1], window[0], window[2], window[3])
    expected.backward(torch.from_numpy(gy))
    y, gx, gw = map(np.empty_like, (gy, x, w))
    if direction == "forward":
        cudnn.convolution_forward(x, w, None, y, *window, **HOW)
        assert_close(y, expected.detach().numpy())
    elif direction == "backward_data":
        cudnn.convolution_backward_data(w, gy, None, gx, *window, **AGAIN)
        assert_close(gx, tensors[0].grad.numpy())
    else:
        cudnn.convolution_backward_filter(x, gy, gw, *window, **AGAIN)
        assert_close(gw, tensors[1].grad.numpy())


# --- Workspace ----------------------------------------------------------------------------------------------------


def test_the_workspace_is_bounded_once_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    module = cudnn.convolution
    monkeypatch.setattr(module, "_workspace", None)
    monkeypatch.setattr(gpucnn.functional, "conv1d", lambda *_, out: seen.append(choices().workspace_bytes))
    arrays = np.ones((1, 1, 2)), np.ones((1, 1, 1)), None, np.ones((1, 1, 2))
    assert cudnn.get_max_workspace_size() == 8 << 20
    cudnn.convolution_forward(*arrays, (0,), (1,), (1,), 1, **HOW)
    cudnn.set_max_workspace_size(12345)
    assert cudnn.get_max_workspace_size() == 12345
    cudnn.convolution_forward(*arrays, (0,), (1,), (1,), 1, **HOW)
    assert seen == [256 << 20, 12345]
    assert choices().workspace_bytes == 256 << 20


test_wrong_workspaces = refuses(
    ValueError,
    ("set_max_workspace_size: size is -1, expected at least 0", lambda: cudnn.set_max_workspace_size(-1)),
)

# --- What is refused ----------------------------------------------------------------------------------------------


def forward(**changed: Any) -> None:
    """A call of the forward of which some arguments are others."""
    given: dict[str, Any] = {
        "x": np.ones((2, 4, 5, 5)), "W": np.ones((6, 2, 3, 3)), "b": None, "y": np.ones((2, 6, 2, 2)),
        "pad": (0, 0), "stride": (2, 2), "dilation": (1, 1), "groups": 2, **HOW,
    }  # fmt: skip
    cudnn.convolution_forward(**{**given, **changed})


test_wrong_values = refuses(
    ValueError,
    (
        "convolution_forward: tensor_core is True, expected 'auto', 'always' or 'never'",
        lambda: forward(tensor_core=True),
    ),
    ("convolution_forward: x has 2 dimensions, expected 3 to 5 (N, C, *space)", lambda: forward(x=np.ones((4, 5)))),
    ("convolution_forward: W has 3 dimensions, expected 4, as x", lambda: forward(W=np.ones((6, 2, 3)))),
    ("convolution_forward: y has 5 dimensions, expected 4, as x", lambda: forward(y=np.ones((2, 6, 2, 2, 1)))),
    ("convolution_forward: pad has 3 values, expected 2", lambda: forward(pad=(0, 0, 0))),
    ("convolution_forward: pad is -1, expected at least 0", lambda: forward(pad=(0, -1))),
    ("convolution_forward: stride is 0, expected at least 1", lambda: forward(stride=(0, 1))),
    ("convolution_forward: dilation has 1 values, expected 2", lambda: forward(dilation=(1,))),
    ("convolution_forward: groups is 0, expected at least 1", lambda: forward(groups=0)),
    (
        "convolution_forward: x has shape (2, 4, 5, 5), expected (N, C, H, W) with C = 2, "
        "for W (OC, C / groups, KH, KW) has shape (6, 2, 3, 3)",
        lambda: forward(groups=1),
    ),
    (
        "convolution_forward: y has size 4 along spatial axis 1, expected 2",
        lambda: forward(y=np.ones((2, 6, 2, 4))),
    ),
    (
        "convolution_forward: y has size 4 along spatial axis 0, expected 2 or, with a window that overhangs, 3",
        lambda: forward(x=np.ones((2, 4, 6, 5)), y=np.ones((2, 6, 4, 2))),
    ),
    (
        "convolution_forward: window of axis 0 spans 3, expected at most the padded input, 0 + 1 + 0 = 1",
        lambda: forward(x=np.ones((2, 4, 1, 5)), y=np.ones((2, 6, 1, 2))),
    ),
    (
        "convolution_forward: y has shape (3, 6, 2, 2), expected (N, OC, *out) = (2, 6, 2, 2)",
        lambda: forward(y=np.ones((3, 6, 2, 2))),
    ),
    ("convolution_forward: b has 4 values, expected one for each of y's 6 channels", lambda: forward(b=np.ones(4))),
    (
        "convolution_forward: d_layout is 2, expected 0 (CUDNN_TENSOR_NCHW), 1 (CUDNN_TENSOR_NHWC)",
        lambda: forward(d_layout=2),
    ),
    (
        "convolution_forward: w_layout is 'NHWC', expected 0 (CUDNN_TENSOR_NCHW), 1 (CUDNN_TENSOR_NHWC)",
        lambda: forward(w_layout="NHWC"),
    ),
    (
        "convolution_backward_data: b has 6 values, expected one for each of y's 4 channels",
        lambda: cudnn.convolution_backward_data(
            np.ones((6, 2, 3, 3)), np.ones((2, 6, 2, 2)), np.ones(6), np.ones((2, 4, 5, 5)), (0, 0), (2, 2), (1, 1), 2,
            **AGAIN,
        ),
    ),
    (
        "convolution_backward_filter: gy has size 3 along spatial axis 0, expected 2",
        lambda: cudnn.convolution_backward_filter(
            np.ones((2, 4, 5, 5)), np.ones((2, 6, 3, 2)), np.ones((6, 2, 3, 3)), (0, 0), (2, 2), (1, 1), 2, **AGAIN
        ),
    ),
)  # fmt: skip


test_wrong_types = refuses(
    TypeError,
    (
        "convolution_forward: x has dtype int32, expected float16, float32, float64",
        lambda: forward(x=np.ones((2, 4, 5, 5), np.int32)),
    ),
    (
        "convolution_forward: x has dtype complex64, expected float16, float32, float64",
        lambda: forward(x=np.ones((2, 4, 5, 5), np.complex64)),
    ),
    (
        "convolution_forward: x has dtype float64 and W float32, expected one dtype for all",
        lambda: forward(W=np.ones((6, 2, 3, 3), np.float32)),
    ),
    (
        "convolution_forward: x has dtype float64 and y float16, expected one dtype for all",
        lambda: forward(y=np.ones((2, 6, 2, 2), np.float16)),
    ),
    (
        "convolution_forward: x has dtype float64 and b float32, expected one dtype for all",
        lambda: forward(b=np.ones(6, np.float32)),
    ),
    ("convolution_forward: y is None, expected an array", lambda: forward(y=None)),
    ("convolution_forward: W is of type list, expected an array", lambda: forward(W=[[1.0]])),
    (
        "convolution_forward: got arrays of two libraries, x of numpy and y of simulator; expected one…",
        lambda: forward(y=gpucnn.simulator.asarray(np.ones((2, 6, 2, 2)))),
    ),
    ("convolution_forward: stride is 1.5, expected an integer or 2 of them", lambda: forward(stride=1.5)),
    ("convolution_forward() missing 2 required keyword-only arguments…", lambda: cudnn.convolution_forward(*range(8))),  # type: ignore[call-arg,arg-type]
)
