"""Warm-up before the first call: `warmup` compiles what calls need, in parallel, and plans the calls.

`wait_for_builds` waits for what is compiled meanwhile.
"""

from __future__ import annotations

import copy
import inspect
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from gpucnn import functional, nn
from gpucnn.backends import Backend, backend_named, backend_of
from gpucnn.backends.cpu import builds
from gpucnn.backends.cuda.device import background
from gpucnn.backends.cuda.device.simulator_runtime import SimulatorRuntime
from gpucnn.backends.cuda.launch.dry_run import DryRun
from gpucnn.backends.listening import listening
from gpucnn.geometry.arguments import integer, is_sequence

Array = Any
Case = tuple[Any, Any]

MAX_THREADS = 8  # that compile concurrently
LINE_SECONDS = 2.0  # between two lines of progress
_INTEGERS = frozenset({"indices", "target"})


@dataclass(frozen=True)
class WarmUp:
    """The result of a warm-up.

    Attributes
    ----------
    cases : int
        Calls and models that were run.
    compiled : int
        Programs, or builds of CPU kernels, that had to be compiled.
    found : int
        Those that an earlier process, or this one, had compiled.
    seconds : float
        The time it took.
    """

    cases: int
    compiled: int
    found: int
    seconds: float


def warmup(
    cases: Iterable[Case] = (),
    *,
    backend: str = "cuda",
    dtype: Any = "float32",
    channels_last: bool = False,
    backward: bool = False,
    progress: bool = True,
) -> WarmUp:
    """Compile and plan calls ahead, so that the first ones take no longer than others.

    Parameters
    ----------
    cases : iterable of (str, dict) or (nn.Module, sequence of int)
        Calls: the name of an operation of `gpucnn.functional` and its arguments, where a shape stands for each array.
        Or models, and the shape of their input with its batch axis. The CPU kernels need none.
    backend : "cuda", "simulator", "compiled" or "numpy"
        The backend whose arrays the calls will be made with. Models are run where their parameters are.
    dtype : dtype
        Of the arrays, but for indices, targets and masks.
    channels_last : bool
        Whether `input` and `grad_output` have their channels innermost in memory.
    backward : bool
        Warm the backward up as well; of a model in training mode.
    progress : bool
        Show progress: a bar in a terminal with rich installed, lines elsewhere.

    Returns
    -------
    WarmUp

    Raises
    ------
    ValueError
        There is no such operation, a shape does not fit, or a case is no pair.
    TypeError
        An operation has no such argument, or what stands for an array is no shape.
    RuntimeError
        The backend cannot be used here.

    Notes
    -----
    The calls are made twice, on arrays of zeros. The first is a dry run: it yields the programs, which are then
    compiled in several threads, where NVRTC and g++ allow it. Then all is launched, so that kernels are loaded, plans
    are made and CuPy's pool of the current stream has the memory. One case at a time is in memory.

    On a CPU calls are checked and their geometry is kept, models are run once. With "compiled" all CPU kernels are
    compiled that are not on disk, as many at once as there are cores, whatever the cases; ``python -m gpucnn --build``
    does that too. NumPy compiles nothing.

    With ``GPUCNN_BUILDS=background`` both builds of each kernel are compiled, so that other sizes do not wait either.

    A model is run as a copy: neither its statistics nor its gradients change.

    Examples
    --------
    >>> done = warmup([("conv2d", {"input": (8, 64, 56, 56), "weight": (64, 64, 3, 3), "padding": 1})], backend="numpy")
    >>> done.cases, done.compiled
    (1, 0)
    """
    started = time.perf_counter()
    found = compiled = 0
    if backend == "compiled":
        compiled = builds.load_all(lambda done, total: shown(done, "CPU kernels ready", total, progress))
        found = len(builds.builds()) - compiled
    options = Options("warmup", backend_named(backend), np.dtype(dtype), channels_last, backward)
    prepared = [_prepared(index, case, options) for index, case in enumerate(cases)]
    for runtime in dict.fromkeys(case.runtime for case in prepared):
        sources = _sources(runtime, [case for case in prepared if case.runtime is runtime])
        fresh = _compiled(runtime, sources, progress)
        compiled, found = compiled + fresh, found + len(sources) - fresh
    launching = [case for case in prepared if case.is_model or case.runtime is not None]
    with background.at_once():
        for case in shown(launching, "cases run", len(launching), progress):
            case.run()
    return WarmUp(len(prepared), compiled, found, time.perf_counter() - started)


def wait_for_builds() -> None:
    """Wait until no kernel is left to compile in the background, where ``GPUCNN_BUILDS`` is ``background``.

    Later calls launch the builds for their sizes, if calls of the same sizes and arguments were made at least twice
    before: what was called once is not compiled. Otherwise there is nothing to wait for.

    Examples
    --------
    >>> wait_for_builds()
    """
    background.wait()


# --- Cases --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """The settings common to all cases: the caller, the backend, and whether arrays hold random numbers or zeros."""

    op: str
    backend: Backend
    dtype: np.dtype[Any]
    channels_last: bool
    backward: bool
    random: bool = False


@dataclass(frozen=True)
class _Prepared:
    """A case: `call` makes its calls on arrays of a NumPy-like module, by default on those of `backend`."""

    call: Callable[[Any], None]
    backend: Backend
    is_model: bool
    said: str

    @property
    def runtime(self) -> Any:
        return getattr(self.backend, "runtime", None)

    def run(self, xp: Any = None) -> None:
        try:
            self.call(self.backend.xp if xp is None else xp)
        except Exception as error:
            error.add_note(f"warmup: {self.said}")
            raise


def _prepared(index: int, case: Any, options: Options) -> _Prepared:
    what, given = _pair(options.op, index, case)
    if isinstance(what, str):
        _, make = operation_call(index, case, options)
        return _Prepared(lambda xp: make(xp)(), options.backend, False, f"case {index} is {what} with {given}")
    if not isinstance(what, nn.Module):
        kind = type(what).__name__
        raise TypeError(f"warmup: case {index} is of type {kind}, expected the name of an operation or a Module")
    shape = _shape(f"warmup: case {index}", "the shape of the input", given)
    parameters = [parameter.data for parameter in what.parameters()]
    backend = backend_of(*parameters[:1]) if parameters else options.backend
    dtype = parameters[0].dtype if parameters else options.dtype
    return _Prepared(partial(_run_model, what, shape, dtype, options), backend, True, f"case {index} is a model")


def _pair(op: str, index: int, case: Any) -> tuple[Any, Any]:
    if not isinstance(case, tuple | list) or len(case) != 2:
        raise ValueError(
            f"{op}: case {index} is {case!r}, expected an operation and its arguments, or a model and a shape"
        )
    what, given = case
    return what, given


def operation_call(index: int, case: Any, options: Options) -> tuple[str, Callable[[Any], Callable[[], None]]]:
    """The name of a case's operation, and a function of a NumPy-like module that makes its arrays and returns its call.

    Raises
    ------
    TypeError, ValueError
        As `warmup`, or the case is a model.
    """
    name, given = _pair(options.op, index, case)
    where = f"{options.op}: case {index}, {name}"
    if name not in functional.__all__:
        raise ValueError(
            f"{options.op}: case {index} is {name!r}, expected the name of an operation of gpucnn.functional"
        )
    if not isinstance(given, Mapping):
        raise TypeError(f"{where}, has arguments {given!r}, expected a dict of them by name")
    operation = getattr(functional, name)
    try:
        inspect.signature(operation).bind(**given)
    except TypeError as error:
        raise TypeError(f"{where}: {error}") from None
    shapes = {
        parameter: _shape(where, parameter, given[parameter])
        for parameter, annotation in operation.__annotations__.items()
        if str(annotation).startswith("Array") and given.get(parameter) is not None and parameter != "return"
    }
    return name, partial(_made, operation, dict(given), shapes, options)


def _shape(where: str, what: str, value: Any) -> tuple[int, ...]:
    if not is_sequence(value):
        raise TypeError(f"{where}: {what} is {value!r}, expected a shape")
    return tuple(integer(where, what, size, 0, "a shape") for size in value)


def _made(
    operation: Callable[..., Any],
    given: dict[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    options: Options,
    xp: Any,
) -> Callable[[], None]:
    """The call of an operation, and of its backward where that is wanted, on new arrays."""
    arrays = {name: _array(xp, name, shape, options) for name, shape in shapes.items()}
    bound = inspect.signature(operation).bind(**given | arrays)
    backward = getattr(functional, f"{operation.__name__}_backward", None) if options.backward else None

    def call() -> None:
        result = operation(*bound.args, **bound.kwargs)
        if backward is not None:
            first = result[0] if isinstance(result, tuple) else result
            grad = _array(xp, "grad_output", first.shape, options)
            taken = inspect.signature(backward).parameters
            backward(grad, *bound.args, **{name: value for name, value in bound.kwargs.items() if name in taken})

    return call


def _array(xp: Any, name: str, shape: Sequence[int], options: Options) -> Array:
    dtype = np.dtype(np.int64) if name in _INTEGERS else np.dtype(bool) if name == "mask" else options.dtype
    if options.channels_last and name in ("input", "grad_output") and len(shape) > 2:
        n, c, *space = shape
        return xp.moveaxis(_array(xp, "", (n, *space, c), options), -1, 1)
    if options.random and dtype.kind == "f":
        return xp.asarray(np.random.default_rng(0).standard_normal(shape).astype(dtype))
    return xp.zeros(tuple(shape), dtype)


def _run_model(model: Any, shape: tuple[int, ...], dtype: Any, options: Options, xp: Any) -> None:
    twin = copy.deepcopy(model)
    x = _array(xp, "input", shape, replace(options, dtype=dtype))
    if options.backward:
        y = twin.train()(x)
        twin.backward(xp.zeros_like(y))
    else:
        with nn.inference():
            twin.eval()(x)


# --- Programs -----------------------------------------------------------------------------------------------------


def _sources(runtime: Any, cases: Sequence[_Prepared]) -> list[tuple[Any, Any]]:
    """The programs of the cases, and the devices that they are for; where there is no runtime, only their checks."""
    dry = DryRun(SimulatorRuntime() if runtime is None else runtime)  # the simulator's arrays stand for NumPy's
    with listening(dry):
        for case in cases:
            if not case.is_model:
                case.run(dry.xp)
            elif runtime is not None:
                case.run()
    return [] if runtime is None else [(source, device) for (source, _), device in dry.sources.items()]


def _compiled(runtime: Any, sources: Sequence[tuple[Any, Any]], progress: bool) -> int:
    """Compile the programs; return how many had to be compiled."""
    if not sources:
        return 0
    with ThreadPoolExecutor(MAX_THREADS) as threads:
        asked = [threads.submit(runtime.prepare, source, device) for source, device in sources]
        return sum(future.result() for future in shown(as_completed(asked), "programs ready", len(asked), progress))


# --- Progress -----------------------------------------------------------------------------------------------------


def shown(items: Iterable[Any], done: str, total: int, progress: bool) -> Iterator[Any]:
    """The items one by one, with a report of how many were taken."""
    if not progress or not total:
        yield from items
        return
    if sys.stderr.isatty():
        try:
            track = import_module("rich.progress").track
            console = import_module("rich.console").Console(stderr=True)
        except ModuleNotFoundError:
            pass
        else:
            yield from track(items, f"warmup: {done}", total, console=console, transient=True)
            return
    said = time.perf_counter()
    for count, item in enumerate(items, start=1):
        yield item
        if count == total or time.perf_counter() - said >= LINE_SECONDS:
            print(f"warmup: {done} {count}/{total}", file=sys.stderr, flush=True)
            said = time.perf_counter()
