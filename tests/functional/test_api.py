"""The public names: their signatures, gradients, documentation and examples, and how they present themselves."""

from __future__ import annotations

import doctest
import inspect
import pickle
import pydoc
import re
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np
import pytest
from calls import ALIASES, ARRAYS, CALLS, fresh, said_name
from docstrings import documented, sections_of
from tolerances import assert_close

import gpucnn
import gpucnn.functional as F
import gpucnn.geometry
from gpucnn.numerics import NOT_COMPUTED, precision

# --- Signatures that stay: PyTorch's, and those of earlier versions; {n} stands for 1, 2 and 3 ------------------------

CONV = "weight, bias=None, stride=1, padding=0, dilation=1, groups=1"
FINISH = ", residual=None, activation=None, negative_slope=0.01"
SIGNATURES = {
    "conv{n}d": f"input, {CONV}",
    "conv{n}d_input": "input_size, weight, grad_output, stride=1, padding=0, dilation=1, groups=1",
    "conv{n}d_weight": "input, weight_size, grad_output, stride=1, padding=0, dilation=1, groups=1",
    "conv_transpose{n}d": "input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1",
    "locally_connected{n}d": "input, weight, bias=None, stride=1, padding=0, dilation=1",
    "im2col": "input, kernel_size, dilation=1, padding=0, stride=1",
    "col2im": "input, output_size, kernel_size, dilation=1, padding=0, stride=1",
    "max_pool{n}d": (
        "input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False"
    ),
    "avg_pool{n}d": (
        "input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None, "
        "dilation=1"
    ),
    "sum_pool{n}d": "input, kernel_size, stride=None, padding=0, ceil_mode=False, dilation=1",
    "lp_pool{n}d": "input, norm_type, kernel_size, stride=None, ceil_mode=False, padding=0, dilation=1",
    "adaptive_max_pool{n}d": "input, output_size, return_indices=False",
    "adaptive_avg_pool{n}d": "input, output_size",
    "max_unpool{n}d": "input, indices, kernel_size, stride=None, padding=0, output_size=None",
    "bed_of_nails{n}d": "input, scale_factor",
    "interpolate": "input, size=None, scale_factor=None, mode='nearest', align_corners=None",
    "batch_norm": (
        "input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5, *, "
        "return_statistics=False" + FINISH
    ),
    "instance_norm": (
        "input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, "
        "eps=1e-5, *, return_statistics=False" + FINISH
    ),
    "layer_norm": "input, normalized_shape, weight=None, bias=None, eps=1e-5, *, return_statistics=False" + FINISH,
    "group_norm": "input, num_groups, weight=None, bias=None, eps=1e-5, *, return_statistics=False" + FINISH,
    "linear": "input, weight, bias=None",
    "bias_activation": "input, bias=None, residual=None, activation='relu', negative_slope=0.01",
    "relu": "input",
    "leaky_relu": "input, negative_slope=0.01",
    "sigmoid": "input",
    "gelu": "input, *, approximate='none'",
    "softmax": "input, dim",
    "log_softmax": "input, dim",
    "cross_entropy": (
        "input, target, weight=None, *, ignore_index=-100, reduction='mean', label_smoothing=0.0"
    ),
    "binary_cross_entropy_with_logits": "input, target, weight=None, *, reduction='mean', pos_weight=None",
    "dropout": "input, p=0.5, training=True, *, rng=None, return_mask=False",
    "pad": "input, pad, mode='constant', value=None",
}  # fmt: skip
SIGNATURES |= {  # what writes to an array of the caller's
    name: f"{SIGNATURES[name]}{',' if '*' in SIGNATURES[name] else ', *,'} out=None"
    for name in (
        "conv{n}d", "conv{n}d_input", "conv{n}d_weight", "conv_transpose{n}d", "im2col", "col2im", "max_pool{n}d",
        "avg_pool{n}d", "sum_pool{n}d", "adaptive_max_pool{n}d", "adaptive_avg_pool{n}d", "batch_norm",
        "bias_activation", "instance_norm", "layer_norm", "group_norm", "linear",
    )
}  # fmt: skip
FIXED = {name.format(n=n): text for name, text in SIGNATURES.items() for n in ((1, 2, 3) if "{n}" in name else "-")}
FORWARDS = [name for name in F.__all__ if not name.endswith("_backward") and name not in ALIASES]

Shown = list[tuple[str, Any, Any]]


def shown(signature: inspect.Signature) -> Shown:
    return [(name, parameter.kind, parameter.default) for name, parameter in signature.parameters.items()]


def expected_signature(text: str) -> Shown:
    return shown(inspect.signature(eval(f"lambda {text}: None")))


def test_every_name_is_there() -> None:
    names = {name + end for name in (*FORWARDS, *ALIASES) for end in ("", "_backward")}
    assert set(F.__all__) == names
    assert FIXED.keys() <= names
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


@pytest.mark.parametrize("name", FIXED)
def test_signatures(name: str) -> None:
    assert shown(inspect.signature(getattr(F, name))) == expected_signature(FIXED[name])


@pytest.mark.parametrize("name", FORWARDS)
def test_each_backward_takes_the_gradient_and_the_very_same_arguments(name: str) -> None:
    forward = shown(inspect.signature(getattr(F, name)))
    keyword = inspect.Parameter.KEYWORD_ONLY
    direction = name.rpartition("_")[2]
    upstream = f"grad_grad_{direction}" if direction in ("input", "weight") else "grad_output"
    handed = [key for key in CALLS[f"{name}_backward"] if key not in (upstream, *CALLS[name])]
    expected = [
        (upstream, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty),
        *[parameter for parameter in forward if parameter[0] not in ("return_statistics", "out")],
        *[(array, keyword, None) for array in handed],
        ("needs", keyword, None),
    ]
    assert shown(inspect.signature(getattr(F, f"{name}_backward"))) == expected


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

PEERS = [name for name in FIXED if not re.search("locally|sum_pool|nails|dropout|bias_activation", name)]
ONLY_HERE = {"lp_pool": ("padding", "dilation"), "avg_pool": ("dilation",), "avg_pool1d": ("divisor_override",)}


def peer_of(torch: Any, name: str) -> Any:
    if re.search("d_(input|weight)$", name):
        return getattr(torch.nn.grad, name)
    names = {other: alias for alias, other in ALIASES.items()}
    return getattr(torch.nn.functional, names.get(name, name))


def shared_parameters(name: str) -> list[str]:
    only_here = {key for family, keys in ONLY_HERE.items() if name.startswith(family) for key in keys}
    names = [key for key, kind, _ in expected_signature(FIXED[name]) if kind is not inspect.Parameter.KEYWORD_ONLY]
    return [key for key in names if key not in only_here]


@pytest.mark.parametrize("positional", [True, False])
@pytest.mark.parametrize("name", PEERS)
def test_a_call_means_what_it_means_to_pytorch(torch: Any, name: str, positional: bool) -> None:
    """The same arguments in the same order, or under the same names."""
    given = {key: value for key, value in CALLS[name].items() if key in shared_parameters(name)}
    if name == "interpolate":
        given |= {"mode": "bilinear", "align_corners": True}
    elif name == "pad":
        given |= {"value": 2.0}
    arguments = {key: fresh(name, **given)[key] for key in shared_parameters(name)}
    tensors = {
        key: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
        for key, value in arguments.items()
    }
    if positional:
        result, expected = getattr(F, name)(*arguments.values()), peer_of(torch, name)(*tensors.values())
    else:
        result, expected = getattr(F, name)(**arguments), peer_of(torch, name)(**tensors)
    assert_close(result, expected.numpy())


def test_defaults_are_those_of_pytorch(torch: Any) -> None:
    assert {name for name in FORWARDS if hasattr(torch.nn.functional, name)} <= FIXED.keys()
    compared = 0
    for name in PEERS:
        try:
            theirs = inspect.signature(peer_of(torch, name)).parameters
        except ValueError:  # built in
            continue
        if "kwargs" in theirs:  # hidden behind a dispatch
            continue
        ours = inspect.signature(getattr(F, name)).parameters
        shared = [key for key in ours if key in theirs]
        assert shared == [key for key in theirs if key in ours], name
        assert set(shared_parameters(name)) <= set(theirs), name
        for key in set(shared) - {"dim"}:  # which PyTorch guesses, with a warning
            assert ours[key].default == theirs[key].default, (name, key)
        compared += 1
    assert compared > 20


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


@pytest.mark.parametrize(
    ("module", "least"),
    [
        ("gpucnn.geometry.arguments", 0),
        ("gpucnn.geometry.axes", 0),
        ("gpucnn.geometry.geometries", 0),
        ("gpucnn.geometry.networks", 5),
        ("gpucnn.geometry.sizes", 5),
        ("gpucnn.functional._family", 1),
        ("gpucnn.backends", 2),
        ("gpucnn.backends.base", 0),
        ("gpucnn.numerics", 2),
        ("gpucnn.information", 3),
    ],
)
def test_examples_of_modules(module: str, least: int) -> None:
    found = doctest.testmod(import_module(module))
    assert found.failed == 0
    assert found.attempted >= least


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
    parts = {"backends", "data", "functional", "geometry", "nn", "simulator"}
    choices = {"algorithm", "get_num_threads", "precision", "set_num_threads"}
    copies = {"channels_first", "channels_last"}
    others = {"__version__", "explain", "info", "tune", "tuned", "warmup"}
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


@pytest.mark.parametrize("mode", NOT_COMPUTED)
def test_what_is_not_computed_is_refused(mode: str) -> None:
    message = f"precision: mode is {mode!r}, by which nothing is computed yet; expected 'fp32'"
    with pytest.raises(NotImplementedError, match=f"^{re.escape(message)}"), gpucnn.precision(mode):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("mode", ["fp64", "TF32", "", None, 32, []])
def test_precision_of_no_known_mode(mode: Any) -> None:
    message = f"precision: mode is {mode!r}, expected 'fp32'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"), gpucnn.precision(mode):
        pass
