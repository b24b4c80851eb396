"""cuDNN's batch normalisation against its definition: each layout and mode, running statistics, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference_norms
from array_backends import ArrayBackend
from refusals import refuses
from strategies import numbers
from tolerances import assert_close

from gpucnn.compat import cudnn

Array = np.ndarray[Any, Any]
PER_ACTIVATION, SPATIAL, PERSISTENT = range(3)
NCHW, NHWC = range(2)
EPS, DECAY = 1e-3, 0.7

# The shape of x, whether it is of images, mode and layout, and the axes that share no mean.
LAYOUTS = [
    pytest.param((4, 3, 5, 2), True, SPATIAL, NCHW, (1,), id="images"),
    pytest.param((4, 3, 5, 2), True, PERSISTENT, NCHW, (1,), id="images, persistent"),
    pytest.param((4, 3, 5), True, SPATIAL, NCHW, (1,), id="1-d images"),
    pytest.param((2, 3, 4, 3, 2), True, SPATIAL, NCHW, (1,), id="3-d images"),
    pytest.param((4, 5, 2, 3), True, SPATIAL, NHWC, (3,), id="images, channels last"),
    pytest.param((4, 3, 2, 2), True, PER_ACTIVATION, NCHW, (1, 2, 3), id="a mean for each position"),
    pytest.param((6, 5), False, PER_ACTIVATION, NCHW, (1,), id="rows"),
    pytest.param((2, 3, 5), False, SPATIAL, NCHW, (2,), id="rows of three axes"),
]
DTYPES = [
    ("float16", "float16"),
    ("float16", "float32"),
    ("float32", "float32"),
    ("float32", "float64"),
    ("float64",) * 2,
]


class Batch:
    """An x, its parameters, and x as [N, C] with a mean for each C, as the oracle takes it."""

    def __init__(self, shape: tuple[int, ...], kept: tuple[int, ...], dtypes: tuple[str, str]) -> None:
        rng, self.kept, self.shape = np.random.default_rng(5), kept, shape
        self.wide = "float64" if dtypes[0] == "float64" else "float32"
        self.x, self.gy = (numbers(rng, shape, dtypes[0]) for _ in range(2))
        self.x += 3
        sizes = tuple(shape[axis] for axis in kept)
        self.gamma, self.beta, self.mean = (numbers(rng, sizes, dtypes[1]) for _ in range(3))
        self.var = np.abs(numbers(rng, sizes, dtypes[1])) + np.ones((), dtypes[1])

    def rows(self, array: Array) -> Array:
        others = [axis for axis in range(len(self.shape)) if axis not in self.kept]
        moved = array.transpose(*others, *self.kept)
        return moved.reshape(int(np.prod([self.shape[axis] for axis in others])), -1)

    def whole(self, rows: Array) -> Array:
        others = [axis for axis in range(len(self.shape)) if axis not in self.kept]
        order = [*others, *self.kept]
        return rows.reshape([self.shape[axis] for axis in order]).transpose(np.argsort(order))

    def normalised(self, training: bool = True) -> reference_norms.BatchNorm:
        parameters = (array.ravel() for array in (self.mean, self.var, self.gamma, self.beta))
        return reference_norms.batch_norm(
            self.rows(self.x), *parameters, training=training, momentum=1 - DECAY, eps=EPS
        )


@pytest.mark.table(20)
@pytest.mark.parametrize("dtypes", DTYPES, ids=" and ".join)
@pytest.mark.parametrize(("shape", "images", "mode", "layout", "kept"), LAYOUTS)
def test_training(
    backend: ArrayBackend, shape: Any, images: bool, mode: int, layout: int, kept: Any, dtypes: Any
) -> None:
    batch = Batch(shape, kept, dtypes)
    expected = batch.normalised()
    x, gy, gamma, beta, mean, var = map(
        backend.asarray, (batch.x, batch.gy, batch.gamma, batch.beta, batch.mean.copy(), batch.var.copy())
    )
    y, saved, inv_std = cudnn.batch_normalization_forward_training(
        x, gamma, beta, mean, var, None, None, EPS, DECAY, images, mode, False, layout
    )
    assert_close(backend.asnumpy(y), batch.whole(expected.y), dtypes[0], factor=4)  # a rounded x, less its mean of 3
    assert_close(backend.asnumpy(saved), expected.mean.reshape(gamma.shape), batch.wide)
    assert_close(backend.asnumpy(inv_std), expected.rstd.reshape(gamma.shape), batch.wide)
    assert expected.running_mean is not None
    assert expected.running_var is not None
    for array, updated in ((mean, expected.running_mean), (var, expected.running_var)):
        found = backend.asnumpy(array)
        assert found.dtype == dtypes[1]
        coarser = min(batch.wide, dtypes[1], key=lambda name: np.dtype(name).itemsize)
        assert_close(found.astype(coarser), updated.reshape(gamma.shape), coarser)

    gx, ggamma, gbeta = cudnn.batch_normalization_backward(
        x, gamma, gy, saved, inv_std, EPS, images, mode, False, layout, reserve_space=None
    )
    gradients = reference_norms.batch_norm_backward_graph(
        batch.rows(batch.gy), batch.rows(batch.x), None, None, batch.gamma.ravel(), training=True, eps=EPS
    )
    dtype = dtypes[1] if dtypes[1] == batch.wide else dtypes[0]
    assert_close(backend.asnumpy(gx), batch.whole(gradients[0]), dtypes[0], factor=4)
    assert_close(backend.asnumpy(ggamma), gradients[1].reshape(gamma.shape), dtype, factor=4)
    assert_close(backend.asnumpy(gbeta), gradients[2].reshape(gamma.shape), dtype)


@pytest.mark.table(8)
@pytest.mark.parametrize(("shape", "images", "mode", "layout", "kept"), LAYOUTS)
def test_inference(backend: ArrayBackend, shape: Any, images: bool, mode: int, layout: int, kept: Any) -> None:
    batch = Batch(shape, kept, ("float32", "float32"))
    arrays = batch.x, batch.gamma, batch.beta, batch.mean, batch.var
    y = backend.run(cudnn.batch_normalization_forward_inference, *arrays, EPS, images, mode, layout)
    assert_close(y, batch.whole(batch.normalised(training=False).y), "float32", factor=4)


def test_buffers_for_the_statistics_are_filled_and_only_y_is_returned(backend: ArrayBackend) -> None:
    batch = Batch((4, 3, 5, 2), (1,), ("float32", "float32"))
    x, gamma, beta = map(backend.asarray, (batch.x, batch.gamma, batch.beta))
    mean, inv_std = (backend.asarray(np.full((1, 3, 1, 1), np.nan, np.float32)) for _ in range(2))
    arguments = x, gamma, beta, None, None, mean, inv_std, EPS, DECAY, True, SPATIAL, False
    y = cudnn.batch_normalization_forward_training(*arguments)
    expected = batch.normalised()
    assert_close(backend.asnumpy(y), batch.whole(expected.y), "float32", factor=4)
    assert_close(backend.asnumpy(mean)[0, :, 0, 0], expected.mean, "float32")
    assert_close(backend.asnumpy(inv_std)[0, :, 0, 0], expected.rstd, "float32")
    reserved, again = cudnn.batch_normalization_forward_training_ex(*arguments)
    assert reserved is None
    np.testing.assert_array_equal(backend.asnumpy(again), backend.asnumpy(y))


def test_the_ex_function_puts_the_reserved_space_first(backend: ArrayBackend) -> None:
    batch = Batch((4, 3), (1,), ("float64", "float64"))
    x, gamma, beta = map(backend.asarray, (batch.x, batch.gamma, batch.beta))
    arguments = x, gamma, beta, None, None, None, None, EPS, DECAY, False, SPATIAL, False
    reserved, *results = cudnn.batch_normalization_forward_training_ex(*arguments)
    assert reserved is None
    for result, expected in zip(results, cudnn.batch_normalization_forward_training(*arguments), strict=True):
        np.testing.assert_array_equal(backend.asnumpy(result), backend.asnumpy(expected))


def test_running_statistics_of_any_strides_are_updated(backend: ArrayBackend) -> None:
    batch = Batch((4, 3, 2, 2), (1, 2, 3), ("float32", "float32"))
    x, gamma, beta = map(backend.asarray, (batch.x, batch.gamma, batch.beta))
    mean, var = (
        backend.asarray(array.transpose(2, 1, 0).copy()).transpose(2, 1, 0) for array in (batch.mean, batch.var)
    )
    cudnn.batch_normalization_forward_training(
        x, gamma, beta, mean, var, None, None, EPS, DECAY, True, PER_ACTIVATION, False
    )
    expected = batch.normalised()
    assert expected.running_mean is not None
    assert expected.running_var is not None
    assert_close(backend.asnumpy(mean), expected.running_mean.reshape(3, 2, 2), "float32")
    assert_close(backend.asnumpy(var), expected.running_var.reshape(3, 2, 2), "float32")


def test_pytorch_normalises_the_same(torch: Any) -> None:
    batch = Batch((4, 3, 5, 2), (1,), ("float64", "float64"))
    x, gamma, beta = (torch.from_numpy(array.copy()).requires_grad_() for array in (batch.x, batch.gamma, batch.beta))
    mean, var = (torch.from_numpy(array.copy()) for array in (batch.mean, batch.var))
    y = torch.nn.functional.batch_norm(x, mean, var, gamma, beta, training=True, momentum=1 - DECAY, eps=EPS)
    y.backward(torch.from_numpy(batch.gy))
    ours = batch.mean.copy(), batch.var.copy()
    found, saved, inv_std = cudnn.batch_normalization_forward_training(
        batch.x, batch.gamma, batch.beta, *ours, None, None, EPS, DECAY, True, SPATIAL, False
    )
    gradients = cudnn.batch_normalization_backward(
        batch.x, batch.gamma, batch.gy, saved, inv_std, EPS, True, SPATIAL, False
    )
    theirs = y.detach(), mean, var, x.grad, gamma.grad, beta.grad
    for array, tensor in zip((found, *ours, *gradients), theirs, strict=True):
        assert_close(array, tensor.numpy())


def training(**changed: Any) -> Any:
    given: dict[str, Any] = {
        "x": np.ones((4, 3, 2, 2)), "gamma": np.ones(3), "beta": np.ones(3), "running_mean": None, "running_var": None,
        "mean": None, "inv_std": None, "eps": EPS, "decay": DECAY, "is_for_conv2d": True, "cudnn_mode": SPATIAL,
        "debug": False,
    }  # fmt: skip
    return cudnn.batch_normalization_forward_training(**{**given, **changed})


test_wrong_values = refuses(
    ValueError,
    (
        "batch_normalization_forward_training: got one of mean and inv_std, expected both or none",
        lambda: training(mean=np.ones(3)),
    ),
    (
        "batch_normalization_forward_training: got one of running_mean and running_var, expected both or none",
        lambda: training(running_var=np.ones(3)),
    ),
    (
        "batch_normalization_forward_training: gamma has 4 values, expected 3, one for each mean",
        lambda: training(gamma=np.ones(4)),
    ),
    (
        "batch_normalization_forward_training: beta has 3 values, expected 12, one for each mean",
        lambda: training(cudnn_mode=PER_ACTIVATION, gamma=np.ones(12)),
    ),
    (
        "batch_normalization_forward_training: inv_std has 1 values, expected 3, one for each mean",
        lambda: training(mean=np.ones(3), inv_std=np.ones(1)),
    ),
    (
        "batch_normalization_forward_training: cudnn_mode is 3, expected 0 (CUDNN_BATCHNORM_PER_ACTIVATION), "
        "1 (CUDNN_BATCHNORM_SPATIAL), 2 (CUDNN_BATCHNORM_SPATIAL_PERSISTENT)",
        lambda: training(cudnn_mode=3),
    ),
    (
        "batch_normalization_forward_training: d_layout is -1, expected 0 (CUDNN_TENSOR_NCHW), 1 (CUDNN_TENSOR_NHWC)",
        lambda: training(d_layout=-1),
    ),
    (
        "batch_normalization_forward_training: x has 1 dimensions, expected at least 2",
        lambda: training(x=np.ones(3)),
    ),
    ("batch_norm: eps is 0, expected more than 0 in training", lambda: training(eps=0)),
    (
        "batch_norm: input has shape (1, 3), expected more than one value per channel",
        lambda: training(x=np.ones((1, 3))),
    ),
    (
        "batch_normalization_backward: gy has shape (4, 3), expected that of x, (4, 3, 2, 2)",
        lambda: cudnn.batch_normalization_backward(
            np.ones((4, 3, 2, 2)), np.ones(3), np.ones((4, 3)), np.ones(3), np.ones(3), EPS, True, SPATIAL, False
        ),
    ),
)

test_wrong_types = refuses(
    TypeError,
    (
        "batch_normalization_forward_training: x has dtype int64, expected float16, float32, float64",
        lambda: training(x=np.ones((4, 3, 2, 2), np.int64)),
    ),
    (
        "batch_normalization_forward_training: gamma has dtype int64, expected float16, float32, float64",
        lambda: training(gamma=np.ones(3, np.int64)),
    ),
    ("batch_normalization_forward_training: beta is None, expected an array", lambda: training(beta=None)),
    (
        "batch_normalization_backward: x has dtype float64 and gy float32, expected one dtype for all",
        lambda: cudnn.batch_normalization_backward(
            np.ones((4, 3)), np.ones(3), np.ones((4, 3), np.float32), np.ones(3), np.ones(3), EPS, True, SPATIAL, False
        ),
    ),
)
