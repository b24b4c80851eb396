"""Fully connected layers as convolutions, so that a network slides over larger images, and a convolution as a matrix.

A linear layer that reads a whole feature map [C, H, W] is a convolution with an H×W kernel at its one position. Written
as one it also runs on larger maps, and computes there what the network would compute on each crop, but the crops
share their common work. A crop begins at each multiple of the product of the network's strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from gpucnn.backends import backend_of
from gpucnn.nn._chain import chain, twin
from gpucnn.nn.activation import Flatten, Softmax
from gpucnn.nn.containers import Sequential
from gpucnn.nn.convolution import ConvNd, ConvTransposeNd, LocallyConnectedNd
from gpucnn.nn.keeping import evaluation, inference
from gpucnn.nn.linear import Linear
from gpucnn.nn.module import Module, Parameter
from gpucnn.nn.normalization import BatchNormNd
from gpucnn.nn.pooling import AdaptiveAvgPoolNd, AdaptiveNd, AvgPoolNd, MaxPoolNd
from gpucnn.nn.sliding import POINTWISE, below, named, reach

__all__ = ["conv_to_linear", "linear_to_conv"]

# --- Linear layers as convolutions --------------------------------------------------------------------------------


def linear_to_conv(model: Module, input_shape: Sequence[int]) -> Sequential:
    """The same network with convolutions for its linear layers: it slides over images larger than `input_shape`.

    The first linear layer after a Flatten becomes a convolution with a kernel of the size of the flattened feature map,
    the others 1×1 convolutions; BatchNorm1d between them becomes that of images. Dropout, activations and all layers
    before stay. An adaptive pool becomes the pool with the windows that it has at `input_shape`.

    Parameters
    ----------
    model : Module
        A Sequential, possibly of Sequentials, of which all layers up to Flatten are convolutions, pools, batch norms,
        activations, dropout, and Residual or Concat of these; the classifiers of `gpucnn.nn.models` are such.
    input_shape : sequence of int
        (C, *space) of the images that `model` takes.

    Returns
    -------
    Sequential
        In [N, C, *space] with any space not smaller than in `input_shape`, out the scores as a map [N, K, *map], 1×1
        for `input_shape`. Layers keep their names (Flatten is gone), so its state dict has the same names. Modes and
        frozen parameters stay as they are; the arrays are those of `model`, not copies: copy.deepcopy the result to
        train it by itself.

    Raises
    ------
    TypeError
        A layer cannot slide: it normalises over its whole input, is locally connected, or enlarges images; a batch norm
        without running statistics; a module whose order of running its parts is unknown.
    ValueError
        An adaptive pool's windows are not evenly spaced at `input_shape`; Flatten is not of all axes but the first; a
        layer of flattened features has no equal for images; a size does not fit.

    Notes
    -----
    *What equals what.* With valid convolutions and pools (no padding, no ceil_mode), prediction m of the map is the
    network's for the crop from ``m * stride`` on, at every m; stride is the product of all strides, and
    `sliding_geometry` says ``exact=True``. Sums may be added in another order, so they agree to rounding. Where strides
    do not divide sizes, a crop has last rows that no window reads; the map may then go on for crops that reach over the
    image by such rows.

    *With padding it is not so*: at each padded layer a crop alone is surrounded by zeros, a crop within an image by
    its neighbours. Predictions then differ, by as much as the network depends on its borders; they are equal only for
    an image of `input_shape` itself. Neither is wrong: the map saw more of the image.

    References
    ----------
    - P. Sermanet and others, *OverFeat: integrated recognition, localization and detection using convolutional
      networks*, 2014, arXiv:1312.6229v4, section 3.
    - J. Long, E. Shelhamer, T. Darrell, *Fully convolutional networks for semantic segmentation*, 2015,
      arXiv:1411.4038v2, section 3.1.

    Examples
    --------
    >>> from gpucnn import nn
    >>> network = nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(216, 10))
    >>> converted = linear_to_conv(network, (1, 16, 16))
    >>> converted[-1]
    Conv2d(6, 10, kernel_size=(6, 6), stride=(1, 1))
    >>> image = np.random.default_rng(0).normal(size=(1, 1, 20, 24)).astype("float32")
    >>> scores = converted(image)
    >>> scores.shape
    (1, 10, 3, 5)
    >>> bool(np.allclose(scores[:, :, 1, 3], network(image[:, :, 2:18, 6:22]), atol=1e-5))
    True
    """
    return _Conversion(model, tuple(int(size) for size in input_shape)).sequential("", model)


class _Conversion:
    """A walk through the layers with an image of zeros, to find the shapes.

    Once there was a Flatten, `x` stays the feature map that was flattened, and `flat` is True.
    """

    op = "linear_to_conv"

    def __init__(self, model: Module, input_shape: tuple[int, ...]) -> None:
        if len(input_shape) not in (2, 3, 4) or min(input_shape) < 1:
            raise ValueError(f"{self.op}: input_shape is {input_shape}, expected positive sizes (C, *space)")
        self.rank = len(input_shape) - 1
        data = next((parameter.data for parameter in model.parameters()), np.zeros(1, np.float32))
        self.x = backend_of(data).xp.zeros((1, *input_shape), data.dtype)
        self.flat = False

    @property
    def features(self) -> tuple[int, ...]:
        """The feature map's shape, without the batch."""
        return tuple(self.x.shape[1:])

    def sequential(self, name: str, module: Module) -> Sequential:
        """The converted children, those that stay."""
        parts = {part: self.layer(below(name, part), child) for part, child in chain(self.op, module).items()}
        if not name and self.flat and prod(self.features[1:]) > 1:
            raise ValueError(f"{self.op}: model ends with features {self.features} flattened, expected a Linear layer")
        converted = Sequential({part: layer for part, layer in parts.items() if layer is not None})
        converted.training = module.training
        return converted

    def layer(self, name: str, module: Any) -> Module | None:
        """The replacement of `module` in the converted network; None for nothing."""
        if isinstance(module, Sequential):
            return self.sequential(name, module)
        if isinstance(module, Flatten):
            self.flatten(name, module)
            return None
        if isinstance(module, Linear):
            return self.run(self.convolution(name, module))
        if isinstance(module, AdaptiveNd):
            pool = self.pool(name, module)
            return pool and self.run(pool)
        if self.flat and isinstance(module, BatchNormNd):
            return self.run(self.batch_norm(name, module))
        other: Any = twin(module)
        if self.flat and isinstance(module, Softmax) and module.dim == -1:
            other.dim = 1  # the classes are the last axis of scores, the second of a map
        elif self.flat and not isinstance(module, POINTWISE):
            raise ValueError(f"{self.op}: {named(name, module)} follows Flatten, expected a Linear or pointwise layer")
        reach(self.op, name, other)
        return self.run(other)

    def run(self, layer: Module) -> Module:
        """`layer`, after running it on the image of zeros."""
        with evaluation(layer):
            self.x = layer(self.x)
        return layer

    def flatten(self, name: str, module: Any) -> None:
        """No conversion: only the layers after it are converted."""
        if (module.start_dim, module.end_dim) not in ((1, -1), (1, self.rank + 1)):
            raise ValueError(
                f"{self.op}: {named(name, module)} has start_dim={module.start_dim}, end_dim={module.end_dim}, "
                "expected 1 and -1: all axes but the batch"
            )
        self.flat = True

    def convolution(self, name: str, linear: Any) -> Module:
        """The convolution that reads the whole feature map."""
        if not self.flat:
            raise ValueError(f"{self.op}: {named(name, linear)} acts on images' last axis, expected Flatten before it")
        if linear.weight.shape[1] != prod(self.features):
            raise ValueError(
                f"{self.op}: {named(name, linear)} takes {linear.weight.shape[1]} features, expected "
                f"{prod(self.features)} of the feature map {self.features}"
            )
        channels, *kernel = self.features
        outputs = linear.weight.shape[0]
        conv = ConvNd.member(self.rank)(1, 1, 1, bias=False)  # small: its weight is replaced
        conv.in_channels, conv.out_channels, conv.kernel_size = channels, outputs, tuple(kernel)
        conv.weight = Parameter(linear.weight.data.reshape(outputs, *self.features), linear.weight.requires_grad)
        if linear.bias is not None:
            conv.bias = Parameter(linear.bias.data, linear.bias.requires_grad)
        return conv.train(linear.training)

    def batch_norm(self, name: str, norm: Any) -> Module:
        """The batch norm of images, with the same numbers."""
        if prod(self.features[1:]) > 1:
            raise ValueError(
                f"{self.op}: {named(name, norm)} normalises each value of the flattened features {self.features}, "
                "expected it after a Linear layer, or before Flatten"
            )
        other = BatchNormNd.member(self.rank)(1)
        vars(other).update(vars(twin(norm)))
        return other

    def pool(self, name: str, module: Any) -> Module | None:
        """The pool with the same windows at this size; None where each window is one value."""
        kernel, stride = [], []
        for full, output in zip(self.features[1:], module.output_size, strict=True):
            count = full if output is None else output
            if full % count:
                raise ValueError(
                    f"{self.op}: {named(name, module)} makes {count} windows of {full} values, expected a divisor of "
                    f"{full}: those of others differ in size, and do not slide"
                )
            kernel.append(full // count)
            stride.append(full // count if count > 1 else 1)  # one window is met wherever a crop begins
        if getattr(module, "return_indices", False):
            raise TypeError(f"{self.op}: {named(name, module)} cannot slide: it returns indices")
        if max(kernel) == 1:
            return None
        family: type[AvgPoolNd] | type[MaxPoolNd] = AvgPoolNd if isinstance(module, AdaptiveAvgPoolNd) else MaxPoolNd
        pool = family.member(self.rank)(tuple(kernel), tuple(stride))
        return pool.train(module.training)


# --- A convolution as the matrix of a linear layer ----------------------------------------------------------------

LARGEST_MATRIX = 2**26  # elements: 256 MiB of float32


def conv_to_linear(conv: Module, input_shape: Sequence[int]) -> Linear:
    """A convolution as a linear layer of flattened images: its dense matrix, for small cases.

    Parameters
    ----------
    conv : Conv1d … Conv3d, ConvTranspose1d … ConvTranspose3d, LocallyConnected1d … LocallyConnected3d
        With any stride, padding, dilation and groups.
    input_shape : sequence of int
        (C, *space) of its input.

    Returns
    -------
    Linear
        Its weight [OC * prod(output space), C * prod(space)] holds, in row (oc, position), the weights of filter oc at
        the inputs that it reads there, and zeros elsewhere. Its arrays are its own.

    Raises
    ------
    TypeError
        `conv` is another layer.
    ValueError
        The matrix or its columns' images would hold more than 2**26 numbers, or `input_shape` does not fit.

    Notes
    -----
    Column j is the convolution of the image that is 1 at j and 0 elsewhere. Few of the numbers differ: each
    row holds the same F·F·C weights, shifted, so in one dimension the matrix is a band, in two a band of bands
    (Toeplitz). That is what a convolution is among linear layers: mostly zeros, and the rest shared.

    *Two matrices of one convolution.* im2col does not build this matrix. It gathers what each row reads into columns,
    so that the filters [OC, C·F·F] alone are multiplied: ``filters @ im2col(x)``. Gathering is linear too, so the
    matrix here is the filters times that of im2col: ``filters @ im2col(I)``, as the second example shows.

    The matrix's transpose is the transposed convolution, which is the gradient with respect to the input.

    Examples
    --------
    >>> import gpucnn.functional as F
    >>> from gpucnn import nn
    >>> conv = nn.Conv1d(1, 1, 3, bias=False)
    >>> conv.weight.data[:] = [[[1, 2, 3]]]
    >>> conv_to_linear(conv, (1, 5)).weight.data.astype(int)
    array([[1, 2, 3, 0, 0],
           [0, 1, 2, 3, 0],
           [0, 0, 1, 2, 3]])

    The same from im2col of the five images with a single 1, [5, 3 taps, 3 positions]:

    >>> columns = F.im2col(np.eye(5, dtype="float32").reshape(5, 1, 5), (3,))
    >>> np.einsum("k,jkp->pj", conv.weight.data.ravel(), columns).astype(int)
    array([[1, 2, 3, 0, 0],
           [0, 1, 2, 3, 0],
           [0, 0, 1, 2, 3]])
    """
    if not isinstance(conv, (ConvNd, ConvTransposeNd, LocallyConnectedNd)):
        raise TypeError(f"conv_to_linear: conv is a {type(conv).__name__}, expected a layer that convolves")
    shape = tuple(int(size) for size in input_shape)
    if shape[:1] != (conv.in_channels,):
        raise ValueError(f"conv_to_linear: input_shape is {shape}, expected (C, *space) with C = {conv.in_channels}")
    inputs = prod(shape)
    _expect_small(inputs * inputs, shape)
    layer: Any = twin(conv)
    bias, layer.bias = layer.bias, None
    xp: Any = backend_of(layer.weight.data).xp
    with inference():
        output = layer(xp.eye(inputs, dtype=layer.weight.data.dtype).reshape(inputs, *shape))
    outputs = prod(output.shape[1:])
    _expect_small(inputs * outputs, shape)
    linear = Linear(1, 1, bias=False)  # small: its weight is replaced
    linear.in_features, linear.out_features = inputs, outputs
    linear.weight = Parameter(xp.ascontiguousarray(output.reshape(inputs, outputs).T))
    if bias is not None:
        each = bias.data.reshape(bias.shape[0], *(bias.shape[1:] or (1,) * (output.ndim - 2)))
        linear.bias = Parameter(xp.broadcast_to(each, output.shape[1:]).reshape(outputs).copy())
    return linear


def _expect_small(elements: int, shape: tuple[int, ...]) -> None:
    if elements > LARGEST_MATRIX:
        raise ValueError(
            f"conv_to_linear: for input_shape {shape} a matrix of {elements} numbers is needed, expected at most "
            f"{LARGEST_MATRIX}: it is for small cases"
        )
