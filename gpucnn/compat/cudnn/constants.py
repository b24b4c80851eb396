"""The constants of ``cupy.cuda.cudnn`` that the functions take; their numbers are cuDNN's."""

from __future__ import annotations

CUDNN_STATUS_SUCCESS = 0

CUDNN_DATA_FLOAT = 0
CUDNN_DATA_DOUBLE = 1
CUDNN_DATA_HALF = 2

CUDNN_DEFAULT_MATH = 0
CUDNN_TENSOR_OP_MATH = 1

CUDNN_NOT_PROPAGATE_NAN = 0
CUDNN_PROPAGATE_NAN = 1

CUDNN_NON_DETERMINISTIC = 0
CUDNN_DETERMINISTIC = 1

CUDNN_TENSOR_NCHW = 0
CUDNN_TENSOR_NHWC = 1

CUDNN_CONVOLUTION = 0
CUDNN_CROSS_CORRELATION = 1

CUDNN_POOLING_MAX = 0
CUDNN_POOLING_AVERAGE_COUNT_INCLUDE_PADDING = 1
CUDNN_POOLING_AVERAGE_COUNT_EXCLUDE_PADDING = 2
CUDNN_POOLING_MAX_DETERMINISTIC = 3

CUDNN_ACTIVATION_SIGMOID = 0
CUDNN_ACTIVATION_RELU = 1
CUDNN_ACTIVATION_TANH = 2
CUDNN_ACTIVATION_CLIPPED_RELU = 3
CUDNN_ACTIVATION_ELU = 4
CUDNN_ACTIVATION_IDENTITY = 5

CUDNN_SOFTMAX_FAST = 0
CUDNN_SOFTMAX_ACCURATE = 1
CUDNN_SOFTMAX_LOG = 2

CUDNN_SOFTMAX_MODE_INSTANCE = 0
CUDNN_SOFTMAX_MODE_CHANNEL = 1

CUDNN_BATCHNORM_PER_ACTIVATION = 0
CUDNN_BATCHNORM_SPATIAL = 1
CUDNN_BATCHNORM_SPATIAL_PERSISTENT = 2

FLOATS = frozenset({"float16", "float32", "float64"})
"""The dtypes that cuDNN computes in."""


__all__ = [name for name in globals() if name.startswith("CUDNN_")]


def one_of(op: str, name: str, value: object, *constants: str) -> str:
    """The name of the constant that `value` is.

    Raises
    ------
    ValueError
        It is none of `constants`.
    """
    numbers = {constant: globals()[constant] for constant in constants}
    for constant, number in numbers.items():
        if value == number:
            return constant
    listed = ", ".join(f"{number} ({constant})" for constant, number in numbers.items())
    raise ValueError(f"{op}: {name} is {value!r}, expected {listed}")


def is_channels_last(op: str, name: str, layout: object) -> bool:
    """Whether a layout is that of arrays [N, *space, C].

    Raises
    ------
    ValueError
        There is no such layout.
    """
    return one_of(op, name, layout, "CUDNN_TENSOR_NCHW", "CUDNN_TENSOR_NHWC") == "CUDNN_TENSOR_NHWC"
