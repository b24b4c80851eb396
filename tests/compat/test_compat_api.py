"""The names of `gpucnn.compat`: their signatures, which are others' and do not change, and their documentation."""

from __future__ import annotations

import doctest
import inspect
import pickle
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from docstrings import documented, sections_of

from gpucnn import compat
from gpucnn.compat import chainer, cudnn, from_scratch, thinc

CONVOLUTION = "pad, stride, dilation, groups, *"
LAYOUTS = "auto_tune, tensor_core, d_layout=0, w_layout=0"
TRAINING = (
    "x, gamma, beta, running_mean, running_var, mean, inv_std, eps, decay, is_for_conv2d, cudnn_mode, debug, d_layout=0"
)

# As CuPy 13 has them.
CUDNN = {
    "convolution_forward": f"x, W, b, y, {CONVOLUTION}, {LAYOUTS}",
    "convolution_backward_data": f"W, x, b, y, {CONVOLUTION}, deterministic, {LAYOUTS}",
    "convolution_backward_filter": f"x, gy, gW, {CONVOLUTION}, deterministic, {LAYOUTS}",
    "pooling_forward": "x, y, ksize, stride, pad, mode",
    "pooling_backward": "x, y, gy, ksize, stride, pad, mode",
    "batch_normalization_forward_training": TRAINING,
    "batch_normalization_forward_training_ex": TRAINING,
    "batch_normalization_forward_inference": "x, gamma, beta, mean, var, eps, is_for_conv2d, cudnn_mode, d_layout=0",
    "batch_normalization_backward": (
        "x, gamma, gy, mean, inv_std, eps, is_for_conv2d, cudnn_mode, debug, d_layout=0, *, reserve_space=None"
    ),
    "activation_forward": "x, mode, coef=0.0",
    "activation_backward": "x, y, gy, mode, coef=0.0",
    "softmax_forward": "x, axis, algorithm",
    "softmax_backward": "y, gy, axis, algorithm",
    "get_max_workspace_size": "",
    "set_max_workspace_size": "size",
    "getVersion": "",
    "get_build_version": "",
}

# As Chainer 7 has them.
POOLED = "x, ksize, stride=None, pad=0"
MAX_POOLED, UNPOOLED = f"{POOLED}, cover_all=True, return_indices=False", f"{POOLED}, outsize=None, cover_all=True"
UPSAMPLED = f"x, indexes, {UNPOOLED.removeprefix('x, ')}"
CONVOLVED = "x, W, b=None, stride=1, pad=0"
CHAINER = {
    "convolution_2d": f"{CONVOLVED}, cover_all=False, *, dilate=1, groups=1",
    **{f"convolution_{rank}": f"{CONVOLVED}, cover_all=False, dilate=1, groups=1" for rank in ("1d", "3d", "nd")},
    "deconvolution_2d": f"{CONVOLVED}, outsize=None, *, dilate=1, groups=1",
    **{f"deconvolution_{rank}": f"{CONVOLVED}, outsize=None, dilate=1, groups=1" for rank in ("1d", "3d", "nd")},
    "dilated_convolution_2d": f"{CONVOLVED}, dilate=1, cover_all=False",
    "depthwise_convolution_2d": CONVOLVED,
    "local_convolution_2d": "x, W, b=None, stride=1",
    **{f"max_pooling_{rank}": MAX_POOLED for rank in ("1d", "2d", "3d", "nd")},
    "average_pooling_2d": POOLED,
    **{f"average_pooling_{rank}": f"{POOLED}, pad_value=0" for rank in ("1d", "3d", "nd")},
    **{f"unpooling_{rank}": UNPOOLED for rank in ("1d", "2d", "3d", "nd")},
    **{f"upsampling_{rank}": UPSAMPLED for rank in ("1d", "2d", "3d", "nd")},
    "im2col": "x, ksize, stride=1, pad=0, cover_all=False, dilate=1",
    "im2col_gpu": "img, kh, kw, sy, sx, ph, pw, cover_all=False, dy=1, dx=1, out_h=None, out_w=None",
    "col2im_gpu": "col, sy, sx, ph, pw, h, w, dy=1, dx=1",
    "get_conv_outsize": "size, k, s, p, cover_all=False, d=1",
    "get_deconv_outsize": "size, k, s, p, cover_all=False, d=1",
}

FROM_SCRATCH = {
    "im2col": "input_data, filter_h, filter_w, stride=1, pad=0",
    "col2im": "col, input_shape, filter_h, filter_w, stride=1, pad=0",
    "im2col_array": "img, kernel_size, stride, pad, to_matrix=True",
    "col2im_array": "col, img_shape, kernel_size, stride, pad, to_matrix=True",
}

# As thinc 9 has them.
THINC = {
    "seq2col": "seq, nW, *, lengths=None",
    "backprop_seq2col": "dY, nW, *, lengths=None",
}

CONSTANTS = {
    "CUDNN_DATA_FLOAT": 0, "CUDNN_DATA_DOUBLE": 1, "CUDNN_DATA_HALF": 2, "CUDNN_TENSOR_NCHW": 0, "CUDNN_TENSOR_NHWC": 1,
    "CUDNN_POOLING_MAX": 0, "CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING": 1,
    "CUDNN_POOLING_AVERAGE_COUNT_EXCLUDE_PADDING": 2, "CUDNN_POOLING_MAX_DETERMINISTIC": 3,
    "CUDNN_ACTIVATION_SIGMOID": 0, "CUDNN_ACTIVATION_RELU": 1, "CUDNN_ACTIVATION_TANH": 2,
    "CUDNN_ACTIVATION_CLIPPED_RELU": 3, "CUDNN_ACTIVATION_ELU": 4, "CUDNN_ACTIVATION_IDENTITY": 5,
    "CUDNN_SOFTMAX_FAST": 0, "CUDNN_SOFTMAX_ACCURATE": 1, "CUDNN_SOFTMAX_LOG": 2, "CUDNN_SOFTMAX_MODE_INSTANCE": 0,
    "CUDNN_SOFTMAX_MODE_CHANNEL": 1, "CUDNN_BATCHNORM_PER_ACTIVATION": 0, "CUDNN_BATCHNORM_SPATIAL": 1,
    "CUDNN_BATCHNORM_SPATIAL_PERSISTENT": 2, "CUDNN_CONVOLUTION": 0, "CUDNN_CROSS_CORRELATION": 1,
    "CUDNN_NOT_PROPAGATE_NAN": 0, "CUDNN_PROPAGATE_NAN": 1, "CUDNN_NON_DETERMINISTIC": 0, "CUDNN_DETERMINISTIC": 1,
    "CUDNN_DEFAULT_MATH": 0, "CUDNN_TENSOR_OP_MATH": 1, "CUDNN_STATUS_SUCCESS": 0,
}  # fmt: skip

LISTS = [(cudnn, CUDNN), (chainer, CHAINER), (from_scratch, FROM_SCRATCH), (thinc, THINC)]
FUNCTIONS = [getattr(module, name) for module, names in LISTS for name in names]


def shown(function: Any) -> str:
    """The signature without annotations."""
    signature = inspect.signature(function)
    parameters = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))[1:-1]


@pytest.mark.table(1000)
@pytest.mark.parametrize(
    ("module", "name", "signature"),
    [(module, name, signature) for module, names in LISTS for name, signature in names.items()],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_signatures_are_the_library_s(module: Any, name: str, signature: str) -> None:
    function = getattr(module, name)
    assert shown(function) == signature
    assert function.__name__ == function.__qualname__ == name
    assert pickle.loads(pickle.dumps(function)) is function


def test_no_other_name_is_public() -> None:
    assert set(cudnn.__all__) == {*CUDNN, *CONSTANTS, "CuDNNError", "available"}
    assert set(chainer.__all__) == set(CHAINER)
    assert set(from_scratch.__all__) == set(FROM_SCRATCH)
    assert set(thinc.__all__) == set(THINC)
    for module in (cudnn, chainer, from_scratch, thinc, compat):
        assert list(module.__all__) == sorted(module.__all__)
    with pytest.raises(AttributeError, match=r"^module 'gpucnn\.compat' has no attribute 'keras'$"):
        compat.keras  # noqa: B018


def test_constants_are_cudnn_s() -> None:
    assert {name: getattr(cudnn, name) for name in CONSTANTS} == CONSTANTS


def test_the_error_pickles() -> None:
    error = pickle.loads(pickle.dumps(cudnn.CuDNNError("status 3")))
    assert isinstance(error, RuntimeError)
    assert error.args == ("status 3",)


@pytest.mark.table(1000)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_docstrings_name_each_parameter(function: Any) -> None:
    sections = sections_of(function)
    assert sections["Summary"].strip()
    if not sections["Summary"].startswith("As `"):  # of one rank, as the function for all
        assert sorted(documented(sections.get("Parameters", ""))) == sorted(inspect.signature(function).parameters)


@pytest.mark.table(1000)
@pytest.mark.parametrize(
    ("module", "least"),
    [
        ("cudnn.batch_normalization", 4), ("cudnn.convolution", 4), ("cudnn.elementwise", 4), ("cudnn.library", 1),
        ("cudnn.pooling", 2), ("chainer.columns", 5), ("chainer.convolution", 4), ("chainer.pooling", 2),
        ("chainer.unpooling", 2), ("from_scratch", 4), ("thinc", 2),
    ],
)  # fmt: skip
def test_examples(module: str, least: int) -> None:
    found = doctest.testmod(import_module(f"gpucnn.compat.{module}"), extraglobs={"np": np})
    assert found.failed == 0
    assert found.attempted >= least
