"""Sampling at the positions of a grid, affine grids, and their gradients: a spatial transformer's parts."""

from __future__ import annotations

from typing import Any

from gpucnn.backends.dtypes import FLOATING, accumulator
from gpucnn.backends.replaying import replayed
from gpucnn.functional._call import Array, Call, Needs, choice, image_shape, lifted, lowered, needed, shape_argument
from gpucnn.geometry import GridGeometry
from gpucnn.geometry.arguments import boolean

__all__ = ["affine_grid", "affine_grid_backward", "grid_sample", "grid_sample_backward"]

_MODES, _PADDINGS = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")

# --- Sampling -------------------------------------------------------------------------------------------------------


@replayed
def grid_sample(
    input: Array,
    grid: Array,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Array:
    """Sample images at given positions.

    Parameters
    ----------
    input : array [N, C, H, W] or [N, C, D, H, W]
        Floating-point.
    grid : array [N, OH, OW, 2] or [N, OD, OH, OW, 3]
        For each sample its position along W, then along H, then along D: -1 and 1 are the ends of the axis. In the
        dtype of `input`.
    mode : str
        ``"bilinear"`` (in volumes trilinear), ``"nearest"`` (of two the even one), or, for images, ``"bicubic"``.
    padding_mode : str
        Values outside: ``"zeros"``, ``"border"`` (the nearest value inside) or ``"reflection"`` (at the ends).
    align_corners : bool
        The ends of an axis are the centres of its first and last value, not their borders.

    Returns
    -------
    array [N, C, OH, OW] or [N, C, OD, OH, OW]
        In the dtype and memory order of `input`.

    Raises
    ------
    TypeError
        The dtype is not supported, dtypes differ, or `align_corners` is no bool.
    ValueError
        Shapes do not fit, or there is no such mode.

    See Also
    --------
    grid_sample_backward, affine_grid, interpolate

    Notes
    -----
    As PyTorch's. A NaN in `grid` is taken as -1, which PyTorch's documentation says, and so is an infinity with
    ``"reflection"``; other infinities are far outside. A value of weight 0 is not read: its NaN or infinity reaches no
    output. The cubic is Keys' with a = -0.75. Positions are computed in float32 for 16-bit arrays.

    References
    ----------
    M. Jaderberg, K. Simonyan, A. Zisserman, K. Kavukcuoglu, *Spatial transformer networks*, NeurIPS 2015,
    arXiv:1506.02025v3.

    Examples
    --------
    >>> x = np.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> grid_sample(x, np.array([[[[0.0, 0.0], [-0.5, 0.5], [9.0, 9.0]]]]))
    array([[[[2.5, 3. , 0. ]]]])
    """
    call = Call("grid_sample", FLOATING, input=input, grid=grid)
    x, positions = call.arrays
    geometry = _sampling(call, x, positions, mode, padding_mode, align_corners)
    rank = geometry.rank
    y = call.image((*x.shape[:2], *positions.shape[1:-1]), rank, like=x)
    call.backend.grid_sample(lifted(x, rank), _lifted_grid(positions, rank), y, geometry)
    return call.result(lowered(y, rank, like=x))


def grid_sample_backward(
    grad_output: Array,
    input: Array,
    grid: Array,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    *,
    needs: Needs = None,
) -> tuple[Array | None, ...]:
    """Gradients of `grid_sample`.

    Parameters
    ----------
    grad_output : array [N, C, OH, OW] or [N, C, OD, OH, OW]
        Gradient of the loss with respect to the output.
    input, grid, mode, padding_mode, align_corners
        As they were given to `grid_sample`.
    needs : sequence of 2 bools, optional
        Which gradients to compute; the others are None.

    Returns
    -------
    tuple of (array or None)
        Gradients with respect to `input`, and with respect to `grid` in C order.

    Raises
    ------
    TypeError, ValueError
        As `grid_sample`, or `grad_output` does not have the output's shape.

    Notes
    -----
    The gradient with respect to `input` repeats bit for bit: on a GPU the weights of all samples are sorted by the
    value that they are of, and each value adds its own in their order. That costs a sort of 64-bit integers, one for
    each weight, whatever the number of channels, and 20 bytes of workspace a weight (24 in float64) in addition to the
    sort's own: a sample has 1, 4 or 16 weights in images, and 1 or 8 in volumes. The gradient with respect to `grid` is
    0 for ``"nearest"`` and for positions that are held at the border.

    Examples
    --------
    >>> x, grid = np.array([[[[1.0, 2.0]]]]), np.zeros((1, 1, 1, 2))
    >>> grad_x, grad_grid = grid_sample_backward(np.ones((1, 1, 1, 1)), x, grid)
    >>> grad_x, grad_grid.ravel()
    (array([[[[0.5, 0.5]]]]), array([ 1.  , -0.75]))
    """
    call = Call("grid_sample_backward", FLOATING, grad_output=grad_output, input=input, grid=grid)
    grad, x, positions = call.arrays
    geometry = _sampling(call, x, positions, mode, padding_mode, align_corners)
    rank = geometry.rank
    call.expect_shape("grad_output", grad, (*x.shape[:2], *positions.shape[1:-1]))
    of_x, of_grid = needed(call.op, needs, 2)
    if not (of_x or of_grid):
        return None, None
    grad_x = call.image(x.shape, rank, like=grad) if of_x else None
    grad_grid = call.backend.empty(positions.shape, call.dtype, on=x) if of_grid else None
    call.backend.grid_sample_backward(
        lifted(grad, rank),
        lifted(x, rank),
        _lifted_grid(positions, rank),
        grad_x,
        None if grad_grid is None else _lifted_grid(grad_grid, rank),
        geometry,
    )
    return call.result((None if grad_x is None else lowered(grad_x, rank, like=x), grad_grid))


def _sampling(call: Call, x: Array, grid: Array, mode: Any, padding_mode: Any, align_corners: Any) -> GridGeometry:
    """The checked geometry.

    Raises
    ------
    TypeError, ValueError
        As `grid_sample`.
    """
    rank = x.ndim - 2
    if rank not in (2, 3):
        raise ValueError(f"{call.op}: input has {x.ndim} dimensions, expected 4 (N, C, H, W) or 5 (N, C, D, H, W)")
    image_shape(call.op, "input", x.shape, rank)
    if grid.ndim != rank + 2 or (grid.shape[0], grid.shape[-1]) != (x.shape[0], rank) or 0 in grid.shape[1:]:
        wanted = f"({x.shape[0]}, {'OH, OW' if rank == 2 else 'OD, OH, OW'}, {rank})"
        raise ValueError(f"{call.op}: grid has shape {grid.shape}, expected {wanted} for input of shape {x.shape}")
    choice(call.op, "mode", mode, _MODES if rank == 2 else _MODES[:2], f"for {rank}-d images")
    choice(call.op, "padding_mode", padding_mode, _PADDINGS)
    sizes, outs = ((1,) * (3 - rank) + tuple(shape) for shape in (x.shape[2:], grid.shape[1:-1]))
    return GridGeometry(rank, sizes, outs, mode, padding_mode, boolean(call.op, "align_corners", align_corners))


def _lifted_grid(grid: Array, rank: int) -> Array:
    """A view [N, OD, OH, OW, rank]."""
    return grid if rank == 3 else grid[:, None]


# --- Affine grids -----------------------------------------------------------------------------------------------------


def affine_grid(theta: Array, size: Any, align_corners: bool = False) -> Array:
    """The grid of an affine map, for `grid_sample`.

    Parameters
    ----------
    theta : array [N, 2, 3] or [N, 3, 4]
        Floating-point: for each image the matrix that takes (x, y, 1), or (x, y, z, 1), of an output to its sample.
    size : sequence of int
        The output's shape, (N, C, OH, OW) or (N, C, OD, OH, OW).
    align_corners : bool
        As it will be given to `grid_sample`.

    Returns
    -------
    array [N, OH, OW, 2] or [N, OD, OH, OW, 3]
        In the dtype of `theta`.

    Raises
    ------
    TypeError
        The dtype is not supported, or a parameter is of another type.
    ValueError
        Shapes do not fit.

    See Also
    --------
    affine_grid_backward, grid_sample

    Examples
    --------
    >>> affine_grid(np.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]), (1, 1, 1, 2))
    array([[[[-0.5,  0. ],
             [ 0.5,  0. ]]]])
    """
    call = Call("affine_grid", FLOATING, theta=theta)
    (matrices,) = call.arrays
    shape = _grid_shape(call, matrices, size)
    centres = _centres(call, shape, align_corners)
    wide = call.promoted(matrices)[(..., *(None,) * len(centres))]  # [N, rank, rank + 1, 1, …]
    grid = call.backend.empty(shape, call.dtype, on=matrices)
    for row in range(len(centres)):
        total = wide[:, row, -1]
        for column, centre in enumerate(centres):
            total = total + wide[:, row, column] * centre
        grid[..., row] = total
    return call.result(grid)


def affine_grid_backward(
    grad_output: Array, theta: Array, size: Any, align_corners: bool = False, *, needs: Needs = None
) -> tuple[Array | None]:
    """Gradient of `affine_grid`.

    Parameters
    ----------
    grad_output : array [N, OH, OW, 2] or [N, OD, OH, OW, 3]
        Gradient of the loss with respect to the grid.
    theta, size, align_corners
        As they were given to `affine_grid`.
    needs : sequence of 1 bool, optional
        Whether to compute it.

    Returns
    -------
    tuple of (array or None)
        Gradient with respect to `theta`.

    Raises
    ------
    TypeError, ValueError
        As `affine_grid`, or `grad_output` does not have the grid's shape.

    Examples
    --------
    >>> theta = np.zeros((1, 2, 3))
    >>> affine_grid_backward(np.ones((1, 1, 2, 2)), theta, (1, 1, 1, 2))[0]
    array([[[0., 0., 2.],
            [0., 0., 2.]]])
    """
    call = Call("affine_grid_backward", FLOATING, grad_output=grad_output, theta=theta)
    grad, matrices = call.arrays
    shape = _grid_shape(call, matrices, size)
    call.expect_shape("grad_output", grad, shape)
    centres = _centres(call, shape, align_corners)
    if not needed(call.op, needs, 1)[0]:
        return (None,)
    wide = call.promoted(grad)
    grad_theta = call.backend.empty(matrices.shape, call.dtype, on=matrices)
    sums = call.backend.empty(shape[:1], wide.dtype, on=matrices)
    for row in range(len(centres) if shape[0] else 0):
        for column, centre in enumerate([*centres, 1]):
            products = (wide[..., row] * centre).reshape(1, shape[0], -1)
            call.backend.channel_sums(products, sums)
            grad_theta[:, row, column] = sums
    return call.result((grad_theta,))


def _grid_shape(call: Call, theta: Array, size: Any) -> tuple[int, ...]:
    """The grid's shape.

    Raises
    ------
    TypeError, ValueError
        As `affine_grid`.
    """
    shape = shape_argument(call.op, "size", size)
    rank = len(shape) - 2
    if rank not in (2, 3) or 0 in shape[1:]:
        wanted = "4 (N, C, OH, OW) or 5 (N, C, OD, OH, OW) sizes, of at least 1 but for N"
        raise ValueError(f"{call.op}: size is {shape}, expected {wanted}")
    expected = (shape[0], rank, rank + 1)
    if theta.shape != expected:
        raise ValueError(f"{call.op}: theta has shape {theta.shape}, expected {expected} for size {shape}")
    return (shape[0], *shape[2:], rank)


def _centres(call: Call, shape: tuple[int, ...], align_corners: Any) -> list[Array]:
    """The coordinates of the outputs' centres along W, H and D, each broadcast against [N, *out]."""
    aligned = boolean(call.op, "align_corners", align_corners)
    found = []
    for axis, length in reversed([*enumerate(shape[1:-1], start=1)]):
        steps = call.xp.arange(length, dtype=accumulator(call.dtype))
        centre = steps * (2 / max(1, length - 1)) - (length > 1) if aligned else (2 * steps + 1) / length - 1
        found.append(centre.reshape(-1, *(1,) * (len(shape) - 2 - axis)))
    return found
