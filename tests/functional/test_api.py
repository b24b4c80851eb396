"""The public names: their signatures, gradients, documentation and examples, and how they present themselves."""

from __future__ import annotations

import doctest
import inspect
import pickle
import pydoc
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numpy as np
import pytest
from calls import ALIASES, ARRAYS, CALLS, as_tensors, fresh, has_peer, peer_of, said_name
from docstrings import documented, sections_of
from tolerances import assert_close

import gpucnn
import gpucnn.functional as F
import gpucnn.geometry
from gpucnn.numerics import precision

# --- Names and signatures -----------------------------------------------------------------------------------------

FORWARDS = [name for name in F.__all__ if not name.endswith("_backward") and name not in ALIASES]

Array = np.ndarray[Any, Any]
Shown = list[tuple[str, Any, Any]]


def shown(name: str) -> Shown:
    """Name, kind and default of each parameter."""
    parameters = inspect.signature(getattr(F, name)).parameters
    return [(key, parameter.kind, parameter.default) for key, parameter in parameters.items()]


def test_every_name_is_there() -> None:
    names = {name + end for name in (*FORWARDS, *ALIASES) for end in ("", "_backward")}
    assert set(F.__all__) == names == set(CALLS)
    assert list(F.__all__) == sorted(F.__all__)
    assert all(callable(getattr(F, name)) for name in names)
    assert F.unfold is F.im2col
    assert F.fold is F.col2im
    assert F.unfold_backward is F.im2col_backward
    assert F.fold_backward is F.col2im_backward


def test_no_other_name_is_public() -> None:
    modules = [import_module(f"gpucnn.functional.{found.name}") for found in iter_modules(F.__path__)]
    defined = {
        name
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not re.search(r"\._|_nd(_|$)", f"{module.__name__}.{name}")
    }
    assert defined == set(F.__all__)


@pytest.mark.parametrize("name", FORWARDS)
def test_parameters_are_those_of_the_family(name: str) -> None:
    """Of every rank the same, with arrays that have no default but None, and what must be given in every call."""
    parameters = shown(name)
    empty = inspect.Parameter.empty
    assert parameters == shown(re.sub("[123]d", "2d", name))
    assert all(default in (empty, None) for key, _, default in parameters if key in ARRAYS)
    keys = {key for key, *_ in parameters}
    assert {key for key, _, default in parameters if default is empty} <= set(CALLS[name]) <= keys
    assert "rank" not in keys


def test_relatives_take_the_same_arguments() -> None:
    """Where PyTorch has no such function to compare with."""
    for name, relative, without in (
        ("locally_connected2d", "conv2d", ("groups", "out")),
        ("sum_pool2d", "avg_pool2d", ("count_include_pad", "divisor_override")),
    ):
        assert shown(name) == [parameter for parameter in shown(relative) if parameter[0] not in without]
    finishes = [shown(name)[-5:] for name in ("batch_norm", "instance_norm", "layer_norm", "rms_norm", "group_norm")]
    assert all(finish == finishes[0] for finish in finishes)
    assert [key for key, *_ in finishes[0]] == ["return_statistics", "residual", "activation", "negative_slope", "out"]


@pytest.mark.parametrize("name", FORWARDS)
def test_each_backward_takes_the_gradient_and_the_very_same_arguments(name: str) -> None:
    keyword = inspect.Parameter.KEYWORD_ONLY
    direction = name.rpartition("_")[2]
    upstream = f"grad_grad_{direction}" if direction in ("input", "weight") else "grad_output"
    handed = [key for key in CALLS[f"{name}_backward"] if key not in (upstream, *CALLS[name])]
    of_results = ("return_statistics", "out", "dtype")
    has_filters = re.fullmatch(r"conv[123]d|conv_transpose.d|locally_connected.d|linear", name)
    expected = [
        (upstream, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty),
        *[parameter for parameter in shown(name) if parameter[0] not in of_results],
        *[(array, keyword, None) for array in handed],
        ("needs", keyword, None),
        *([("dtype", keyword, None)] if has_filters else []),
    ]
    assert shown(f"{name}_backward") == expected


@pytest.mark.parametrize("name", FORWARDS)
def test_each_backward_returns_a_gradient_for_each_array_in_its_shape(name: str) -> None:
    arguments = fresh(f"{name}_backward")
    arrays = [parameter for parameter in inspect.signature(getattr(F, name)).parameters if parameter in ARRAYS]
    grads = getattr(F, f"{name}_backward")(**arguments)
    assert isinstance(grads, tuple)
    assert len(grads) == len(arrays)
    for array, grad in zip(arrays, grads, strict=True):
        without = array in ("indices", "running_mean", "running_var", "pos_weight") or (
            ("cross_entropy" in name and array == "weight") or (name == "cross_entropy" and array == "target")
        )
        assert (grad is None) == without
        assert grad is None or (grad.shape, grad.dtype) == (arguments[array].shape, arguments[array].dtype)


# --- PyTorch's names, order and defaults --------------------------------------------------------------------------

PEERS = [name for name in FORWARDS if name != "dropout"]  # whose numbers are random
ONLY_HERE = {"lp_pool": ("padding", "dilation"), "avg_pool": ("dilation",), "avg_pool1d": ("divisor_override",)}


def shared_parameters(name: str) -> list[str]:
    only_here = {key for family, keys in ONLY_HERE.items() if name.startswith(family) for key in keys}
    return [key for key, kind, _ in shown(name) if kind is not inspect.Parameter.KEYWORD_ONLY and key not in only_here]


@pytest.mark.parametrize("positional", [True, False])
@pytest.mark.parametrize("name", PEERS)
def test_a_call_means_what_it_means_to_pytorch(torch: Any, name: str, positional: bool) -> None:
    """The same arguments in the same order, or under the same names, if PyTorch has the operation."""
    if not has_peer(torch, name):
        return
    given = {key: value for key, value in CALLS[name].items() if key in shared_parameters(name)}
    if name == "interpolate":
        given |= {"mode": "bilinear", "align_corners": True}
    elif name == "pad":
        given |= {"value": 2.0}
    arguments = {key: fresh(name, **given)[key] for key in shared_parameters(name)}
    tensors = as_tensors(torch, arguments)
    if positional:
        result, expected = getattr(F, name)(*arguments.values()), peer_of(torch, name)(*tensors.values())
    else:
        result, expected = getattr(F, name)(**arguments), peer_of(torch, name)(**tensors)
    assert_close(result, expected.numpy())


def outcome(function: Any, arguments: dict[str, Any]) -> Array | None:
    """The result of a call, None where it is refused."""
    try:
        return np.asarray(function(**arguments))
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PEERS)
def test_what_is_left_out_means_what_it_means_to_pytorch(torch: Any, name: str) -> None:
    """The same default of each argument, or that there is none, if PyTorch has the operation."""
    if not has_peer(torch, name):
        return
    known = shared_parameters(name)
    for left_out in known:
        arguments = {key: value for key, value in fresh(name).items() if key in known and key != left_out}
        ours = outcome(getattr(F, name), {**arguments})
        theirs = outcome(peer_of(torch, name), as_tensors(torch, arguments))
        if left_out == "dim":  # which PyTorch guesses, with a warning
            assert ours is None
            continue
        assert (ours is None) == (theirs is None), left_out
        if ours is not None:
            assert_close(ours, theirs)


# --- Documentation ------------------------------------------------------------------------------------------------

GEOMETRY = [name for name in gpucnn.geometry.__all__ if inspect.isfunction(getattr(gpucnn.geometry, name))]


@pytest.mark.parametrize(
    "function",
    [getattr(F, name) for name in F.__all__ if name not in ALIASES]
    + [getattr(gpucnn.geometry, name) for name in GEOMETRY]
    + [gpucnn.backends.backend_of, gpucnn.precision],
    ids=lambda function: function.__name__,
)
def test_docstrings_name_each_parameter_and_say_what_returns_and_what_is_raised(function: Any) -> None:
    sections = sections_of(function)
    assert sections["Summary"].strip()
    assert sorted(documented(sections["Parameters"])) == sorted(inspect.signature(function).parameters)
    assert sections["Raises"].strip()
    assert function is gpucnn.precision or sections["Returns"].strip()
    assert not re.search(r"\{[\w.*]+\}", function.__doc__), "a placeholder was left"


@pytest.mark.parametrize(
    "documented",
    [getattr(F, name) for name in F.__all__] + [getattr(gpucnn.nn, name) for name in gpucnn.nn.__all__],
    ids=lambda documented: getattr(documented, "__name__", ""),
)
def test_examples_write_shapes_out(documented: Any) -> None:
    assert not re.search(r">>> .*(\d,?\) ([+*] \(|\* \d)|\*\*[123]\b)", documented.__doc__ or "")


def run_examples(found: Any, name: str, names: dict[str, Any]) -> int:
    """Run the examples in one docstring and say how many there were."""
    runner = doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    for test in doctest.DocTestFinder().find(found, name, module=False, globs=dict(names)):  # type: ignore[arg-type]
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
    return runner.tries


@pytest.mark.parametrize("name", [name for name in F.__all__ if name not in ALIASES])
def test_examples_of_operations(name: str) -> None:
    tries = run_examples(getattr(F, name), name, {**vars(F), "np": np})
    assert tries or re.search("d_(input|weight)_backward$", name)


PACKAGE = Path(gpucnn.__file__).parent
INTERNAL = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] in ("backends", "geometry")]
WITH_EXAMPLES = {
    ".".join(("gpucnn", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in (*INTERNAL, PACKAGE / "functional/_family.py", PACKAGE / "numerics.py", PACKAGE / "information.py")
    if ">>> " in path.read_text()
}


@pytest.mark.parametrize("name", sorted(WITH_EXAMPLES))
def test_examples_of_modules(name: str) -> None:
    module = import_module(name)
    found = doctest.testmod(module)
    assert not found.failed
    assert found.attempted == len(re.findall(r">>> (?!.*SKIP)", inspect.getsource(module)))


# --- How they present themselves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", F.__all__)
def test_names_modules_and_pickles(name: str) -> None:
    function = getattr(F, name)
    assert function.__name__ == function.__qualname__ == said_name(name)
    assert function.__module__.startswith("gpucnn.functional.")
    assert pickle.loads(pickle.dumps(function)) is function
    annotations = set(function.__annotations__) - {"return"}
    assert annotations == set(inspect.signature(function).parameters)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_help_shows_the_rank(n: int) -> None:
    text = pydoc.render_doc(getattr(F, f"conv{n}d"), renderer=pydoc.plaintext)
    assert f"conv{n}d(" in text
    assert f"{n}-d convolution" in text
    assert {1: "KW]", 2: "KH, KW]", 3: "KD, KH, KW]"}[n] in text
    assert "rank" not in inspect.signature(getattr(F, f"conv{n}d")).parameters


def test_pythons_own_messages_about_arguments_name_the_function() -> None:
    calls: list[Callable[[], Any]] = [
        lambda: F.conv2d(),  # type: ignore[call-arg]
        lambda: F.conv2d(np.ones((1, 1, 2, 2))),  # type: ignore[call-arg]
        lambda: F.conv2d(*range(20)),  # type: ignore[arg-type]
        lambda: F.conv2d(1, 2, strides=2),  # type: ignore[call-arg]
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"^conv2d\(\) "):
            call()
    with pytest.raises(TypeError, match=r"^max_pool3d_backward\(\) missing 3 required positional arguments"):
        F.max_pool3d_backward()  # type: ignore[call-arg]


def test_the_package_has_these_names_and_no_others() -> None:
    assert sorted(gpucnn.__all__) == dir(gpucnn)
    parts = {"backends", "compat", "data", "distributed", "functional", "geometry", "nn", "onnx", "simulator"}
    choices = {"algorithm", "backend", "get_num_threads", "precision", "set_num_threads", "workspace_limit"}
    copies = {"channels_first", "channels_last"}
    others = {"__version__", "explain", "info", "release_memory", "tune", "tuned", "wait_for_builds", "warmup"}
    assert set(gpucnn.__all__) == others | choices | copies | parts
    assert all(getattr(gpucnn, name) is not None for name in gpucnn.__all__)
    assert gpucnn.functional is F
    assert gpucnn.precision is precision
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", gpucnn.__version__)
    with pytest.raises(AttributeError, match=r"^module 'gpucnn' has no attribute 'cudnn'$"):
        gpucnn.cudnn  # noqa: B018
    for module in (gpucnn.functional, gpucnn.geometry, gpucnn.backends):
        assert all(hasattr(module, name) for name in module.__all__)


# --- Precision ----------------------------------------------------------------------------------------------------


def test_full_float32_is_computed_within_a_block_as_outside_it() -> None:
    arguments = fresh("conv2d")
    expected = F.conv2d(**arguments)
    with gpucnn.precision("fp32"):
        np.testing.assert_array_equal(F.conv2d(**arguments), expected)
    with pytest.raises(KeyError), gpucnn.precision("fp32"):
        raise KeyError


@pytest.mark.parametrize("mode", ["fp64", "TF32", "", None, 32, []])
def test_precision_of_no_known_mode(mode: Any) -> None:
    message = f"precision: mode is {mode!r}, expected 'fp32', 'tf32' or 'fp32x3'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"), gpucnn.precision(mode):
        pass
