"""Properties of a call of any operation: the results of the oracle and PyTorch, and how they lie in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import reference
from array_backends import WRITING, ArrayBackend
from convolution_cases import bits, poisoned_memory
from pooling_cases import as_tuple
from tolerances import assert_close, summed

import gpucnn.functional as F

Array = np.ndarray[Any, Any]
Arrays = tuple[Array | None, ...]
SUMS = ("conv", "locally_connected", "linear")  # sums of products, which are wider than small integers
HANDED_OVER = {  # what the forward returns on request, and the backward takes
    "max_pool": ("return_indices", ("indices",)),
    **dict.fromkeys(
        ("batch_norm", "group_norm", "instance_norm", "layer_norm"), ("return_statistics", ("mean", "rstd"))
    ),
    "rms_norm": ("return_statistics", ("rstd",)),
}


@dataclass(frozen=True)
class Case:
    """One call of an operation, and what the oracle says of its results and gradients."""

    name: str
    arrays: dict[str, Array | None]  # by parameter, in the order of the gradients
    options: dict[str, Any]
    grad: Array  # of the result
    expected: Callable[[], Any]
    expected_gradients: Callable[[], Arrays]  # one for each of `arrays`
    peer: Callable[..., Any] | None = None  # PyTorch's way to the same, where it is not the function of this name
    has_peer_result: bool = True  # whether PyTorch's result is the one that its gradient is of
    rank: int | None = None  # of images whose memory order results have; 0 for results that are contiguous
    copies: str = ""  # "forward", "backward" or "forward backward": whose numbers are some of those given, unchanged
    infinite: bool = False  # whether infinities may meet, of which NumPy warns
    factor: float = 1.0  # by which rounding is amplified
    gradient_factor: float = 1.0

    @property
    def forward(self) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(F, self.name)
        return function

    @property
    def backward(self) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(F, f"{self.name}_backward")
        return function

    @property
    def first(self) -> Array:
        """The array that names the dtype, and the memory order of images."""
        array = next(iter(self.arrays.values()))
        assert array is not None
        return array

    @property
    def arguments(self) -> dict[str, Any]:
        return {**self.arrays, **self.options}

    @property
    def handed_over(self) -> tuple[str, tuple[str, ...]] | None:
        return next((handed for family, handed in HANDED_OVER.items() if family in self.name), None)

    def quiet(self) -> AbstractContextManager[Any]:
        """The context in which NumPy does not warn of infinities that meet, where they may."""
        return np.errstate(invalid="ignore") if self.infinite else np.errstate()

    def dtype_like(self, array: Array) -> np.dtype[Any]:
        """The dtype of a result that an argument of the same meaning had."""
        return summed(array.dtype) if self.name.startswith(SUMS) else array.dtype


def run(backend: ArrayBackend, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """As `backend.run`, twice: both must agree to the bit, leave the arguments as they were and share none of them.

    Only the norms move running statistics.
    """
    moved = ("running_mean", "running_var") if function.__name__ in WRITING else ()
    arrays = [*args, *(value for key, value in kwargs.items() if key not in moved)]
    arrays = [array for array in arrays if isinstance(array, np.ndarray)]
    before = [array.tobytes() for array in arrays]
    first, again = (backend.run(function, *args, **kwargs) for _ in range(2))
    assert bits(first) == bits(again)
    for result in as_tuple(first):
        assert result is None or isinstance(result, np.ndarray)
        assert not any(result is not None and np.shares_memory(result, array) for array in arrays)
    assert [array.tobytes() for array in arrays] == before, "an argument was written to"
    return first


def assert_order(result: Array, first: Array, rank: int | None) -> None:
    """Raise unless a result has no gaps, and its channels last where those of the first array are.

    Of a first array with axes of one element the order is open, unless it is contiguous.
    """
    last = bool(rank) and not first.flags.c_contiguous and np.moveaxis(first, -rank - 1, -1).flags.c_contiguous
    if rank is None or (last and 1 in first.shape[-rank - 1 :]):
        return
    dense = np.moveaxis(result, -rank - 1, -1) if last else result
    assert dense.flags.c_contiguous, f"strides are {result.strides}, those of the first array {first.strides}"


def check_results(backend: ArrayBackend, case: Case) -> None:
    """Raise unless a call gives what the oracle gives, again and again, in new arrays of the right dtype and order."""
    flag, handed = case.handed_over or ("", ())
    with poisoned_memory(), case.quiet():
        results = as_tuple(run(backend, case.forward, **case.arguments, **({flag: True} if flag else {})))
    with case.quiet():
        y, *others = as_tuple(case.expected())
    x = case.first
    assert_close(results[0], y, case.dtype_like(x), case.factor)
    if "forward" in case.copies:
        np.testing.assert_array_equal(reference.wide(results[0]), y)
    wide = np.dtype(np.float32) if x.itemsize == 2 else x.dtype
    for name, result, expected in zip(handed, results[1:], others, strict=True):
        assert_close(result, expected, np.dtype(np.int64) if name == "indices" else wide)
    for result in results:
        assert_order(result, x, case.rank)
    if flag:
        with case.quiet():
            alone = backend.run(case.forward, **case.arguments)
        assert alone.dtype == results[0].dtype
        np.testing.assert_array_equal(*map(reference.wide, (alone, results[0])))


def check_gradients(backend: ArrayBackend, case: Case, needs: tuple[bool, ...] | None = None) -> None:
    """Raise unless the gradients are the oracle's, and the same where some are left out or results are handed over."""
    with poisoned_memory():
        grads = run(backend, case.backward, case.grad, **case.arguments)
    expected = case.expected_gradients()
    for (key, array), grad, wanted in zip(case.arrays.items(), grads, expected, strict=True):
        assert (grad is None) == (array is None or wanted is None), key
        if grad is not None:
            assert_close(grad, wanted, case.dtype_like(array), case.gradient_factor)
            if "backward" in case.copies:
                np.testing.assert_array_equal(reference.wide(grad), wanted)
    if case.first.dtype.name in ("float16", "bfloat16") and "dtype" in case.backward.__annotations__:
        with poisoned_memory():
            wide = run(backend, case.backward, case.grad, **case.arguments, dtype=np.float32)
        assert bits(wide[0]) == bits(grads[0])
        for grad, wanted in zip(wide[1:], expected[1:], strict=True):
            if grad is not None:
                assert_close(grad, wanted, np.float32, case.gradient_factor)
    if case.rank is not None and grads[0] is not None:
        assert_order(grads[0], case.grad, case.rank)
    if needs is not None:
        some = backend.run(case.backward, case.grad, **case.arguments, needs=needs)
        assert bits(some) == [grad if need else None for grad, need in zip(bits(grads), needs, strict=True)]
    if case.handed_over is not None:
        flag, names = case.handed_over
        results = backend.run(case.forward, **case.arguments, **{flag: True})[1:]
        again = backend.run(case.backward, case.grad, **case.arguments, **dict(zip(names, results, strict=True)))
        assert bits(again) == bits(grads)


def check_pytorch(backend: ArrayBackend, torch: Any, case: Case) -> None:
    """Raise unless PyTorch gives the same results and gradients."""
    with case.quiet():
        y = backend.run(case.forward, **case.arguments)
    grads = backend.run(case.backward, case.grad, **case.arguments)
    leaves = {key: None if array is None else torch.from_numpy(array.copy()) for key, array in case.arrays.items()}
    pairs = [(grad, leaf) for grad, leaf in zip(grads, leaves.values(), strict=True) if grad is not None]
    for _, leaf in pairs:
        leaf.requires_grad_()
    peer = partial(case.peer, torch) if case.peer else getattr(torch.nn.functional, case.name)
    expected = peer(**leaves, **case.options)
    if case.has_peer_result:
        assert_close(y, expected.detach().resolve_conj().numpy(), factor=case.factor)
    upstream = torch.from_numpy(case.grad.copy())
    theirs = torch.autograd.grad(expected, [leaf for _, leaf in pairs], upstream, materialize_grads=True)
    for (grad, _), other in zip(pairs, theirs, strict=True):
        assert_close(grad, other.resolve_conj().numpy(), factor=case.gradient_factor)


def check_slopes(backend: ArrayBackend, case: Case, tolerance: float) -> None:
    """Raise unless the gradients are those of finite differences."""
    grads = backend.run(case.backward, case.grad, **case.arguments)
    for (key, array), grad in zip(case.arrays.items(), grads, strict=True):
        if array is None or grad is None:
            continue

        def moved(array: Array, key: str = key) -> Array:
            result: Array = backend.run(case.forward, **{**case.arguments, key: np.asarray(array)})
            return result

        slope = reference.finite_difference(moved, array, case.grad)
        np.testing.assert_allclose(grad, slope, rtol=0, atol=tolerance, err_msg=key)
