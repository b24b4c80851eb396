"""Agreement with PyTorch on invalid calls, but for differences listed with their reasons."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from calls import ARRAYS, CALLS, as_tensors, fresh, has_peer, peer_of
from hypothesis import given
from hypothesis import strategies as st
from sample import examples

import gpucnn.functional as F

FORWARDS = [name for name in CALLS if not name.endswith("_backward")]

MORE_HERE = {  # parameters that PyTorch's function has not, at values that change nothing
    "lp_pool": {"padding": 0, "dilation": 1},
    "avg_pool": {"dilation": 1},
    "avg_pool1d": {"divisor_override": None},
    "_norm": {"residual": None, "activation": None, "negative_slope": 0.01},
    "dropout": {"rng": 1, "return_mask": False},
}

TAKEN_HERE = [  # (operation, what PyTorch says, why it is taken here)
    ("max_pool|avg_pool", "at most half|equal to half", "padding may be as large as the window less one"),
    ("2col|2im|fold", "equals? to 2|Expected 3D or 4D|out of range", "images of one and three dimensions unfold too"),
    ("2col|2im|fold|max_pool|interpolate", "not implemented for 'Long'", "integers are taken where no mean is"),
    ("interpolate", "Anti-alias option is restricted", "filters may average along the axes of images of any rank"),
    ("avg_pool", "'divisor_override' must be int|Overflow when unpacking", "any number may divide"),
    ("adaptive|max_unpool", "has no len", "one size, or one None, stands for all axes"),
    ("", "must be bool, not numpy.bool", "NumPy's bool is a bool"),
    ("lp_pool|leaky|local_response", "int too big|negative int", "any finite number is a number"),
    ("d_weight", "Expected [345]-dimensional", "no batch, as in conv2d"),
    ("instance_norm", "select\\(\\)", "an empty batch normalises to an empty one"),
    ("lp_pool1d", "argument 'other'", "a sequence of one is an int for 1-d images"),
    ("pad", "is not supported for", "every mode pads arrays of any rank"),
    ("linear", "mat2 must be a matrix", "a weight [IN] may have a bias [], as PyTorch documents it"),
]  # fmt: skip

REFUSED_HERE = [  # (operation, what is said here, why it is refused here)
    ("", "expected (channels and spatial )?sizes? of at least 1", "there is nothing to compute on"),
    ("adaptive|interpolate", "size is 0, expected at least 1", "nothing would come out"),
    ("interpolate", "recompute_scale_factor is .*, expected True or False", "a number is no flag"),
    ("adaptive", "has 5 dimensions", "PyTorch forgets to check"),
    ("", "has . values, expected .", "a sequence has one value for each axis"),
    ("_norm|linear", "(weight|bias|running_mean|running_var) has shape", "no broadcasting, where PyTorch does some"),
    ("d_input|d_weight", "grad_output has shape", "no broadcasting, where PyTorch does some"),
    ("_norm", "eps is -1.0", "the root of a negative variance is NaN"),
    ("lp_pool", "norm_type is -?\\d.0, expected more than 0", "no such norm"),
    ("cross_entropy", "label_smoothing is -1.0", "a share is in [0, 1]"),
    ("cross_entropy", "target has shape \\(1,\\), expected \\(\\)", "an array of one class is not one class"),
    ("max_unpool", "(size|stride|padding) is -?., expected at least", "PyTorch forgets to check"),
    ("conv", "(size|stride|padding|dilation) is -?., expected at least", "PyTorch forgets to check an empty batch"),
    ("pad", "expected at most . with mode '(reflect|circular)'", "cropping comes first, and leaves too little"),
]  # fmt: skip


def refusal(function: Any, arguments: dict[str, Any]) -> str | None:
    """What the call's refusal says, None where it is taken."""
    try:
        function(**arguments)
    except Exception as error:
        return str(error) or repr(error)
    return None


def more_here(name: str) -> dict[str, Any]:
    if "adaptive" in name or name == "local_response_norm":
        return {}
    families = [family for family in MORE_HERE if family in name]
    return {key: value for family in families for key, value in MORE_HERE[family].items()}


def both(torch: Any, name: str, others: dict[str, Any]) -> tuple[str | None, str | None]:
    """What PyTorch and what we say to one call."""
    more = more_here(name)
    here = fresh(name, **{**more, **others})
    there = as_tensors(torch, {key: value for key, value in here.items() if key not in more})
    return refusal(peer_of(torch, name), there), refusal(getattr(F, name), here)


def is_listed(table: list[tuple[str, str, str]], name: str, said: str) -> bool:
    return any(re.search(names, name) and re.search(words, said) for names, words, _ in table)


JUNK = [
    None, "junk", "", True, False, np.True_, 1.5, 2.0, float("nan"), float("inf"), 1j, object(), {1: 1, 2: 2}, {1, 2},
    -1, 0, 1, 3, 6, 99, 2**70, -(2**70), np.int64(1), np.float64(1.5), (), (1,), (1, 1), (2, 2), (0, 0), (-1, 1),
    (1, 1, 1), (1, 1, 1, 1), [None, None], ("a", "b"), (1.5, 1.5),
]  # fmt: skip
JUNK_ARRAYS = [
    *map(np.ones, [(), 0, 3, 4, (2, 2), (4, 1), (4, 3, 3), (2, 4, 3, 3, 3), (2, 0, 5, 5), (2, 2, 0, 5), (4, 1, 0, 2)]),
    *map(np.ones, [(0, 1, 2, 2), (4, 1, 20, 2), (3, 1, 2, 2)]),
    np.ones((4, 3, 3), int), np.ones((2, 2, 6, 5), np.float32), np.ones((2, 2, 6, 5), bool), np.ones(4, np.float32),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in FORWARDS if not re.search("[13]d", name)])
def test_what_pytorch_refuses_of_one_argument_is_refused(torch: Any, name: str) -> None:
    taken = []
    for parameter in CALLS[name] if has_peer(torch, name) else ():
        if parameter in more_here(name):
            continue
        for value in JUNK_ARRAYS if parameter in ARRAYS else JUNK:
            there, here = both(torch, name, {parameter: value})
            if there is not None and here is None and not is_listed(TAKEN_HERE, name, there):
                taken.append((parameter, value, there))
    assert not taken


WORDS = {
    "mode": [
        "nearest",
        "nearest-exact",
        "linear",
        "bilinear",
        "bicubic",
        "area",
        "constant",
        "reflect",
        "replicate",
        "circular",
    ],
    "reduction": ["mean", "sum", "none", "max"],
}


@st.composite
def shapes(draw: st.DrawFn, near: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that is another one, or that with an axis less, more, or longer or shorter."""
    change = draw(st.integers(0, 4))
    if change == 0:
        return near[1:]
    if change == 1:
        return (1, *near)
    if change < 4 and near:
        axis = draw(st.integers(0, len(near) - 1))
        return (*near[:axis], draw(st.integers(0, 4)), *near[axis + 1 :])
    return near


@st.composite
def arguments_near(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """Up to three arguments of a call, of the right type and with other values."""
    usual = {key: value for key, value in CALLS[name].items() if key not in more_here(name)}
    others: dict[str, Any] = {}
    for key in draw(st.lists(st.sampled_from(sorted(usual)), min_size=1, max_size=3, unique=True)):
        value = usual[key]
        length = len(value) if isinstance(value, tuple) else draw(st.integers(1, 2))
        integers = st.integers(-1, 4)
        if key in ARRAYS:
            others[key] = np.ones(draw(shapes(value.shape)), value.dtype)
        elif key in WORDS:
            others[key] = draw(st.sampled_from(WORDS[key]))
        elif isinstance(value, bool):
            others[key] = draw(st.booleans())
        elif isinstance(value, float):
            others[key] = draw(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]))
        elif key == "pad":
            others[key] = tuple(draw(st.lists(st.integers(-2, 4), max_size=6)))
        elif key in ("align_corners", "value"):
            others[key] = draw(st.sampled_from([None, True, False] if key == "align_corners" else [None, 0, 1.0]))
        elif key == "divisor_override":
            others[key] = draw(st.sampled_from([None, 0, 1, -1, 2]))
        elif key == "scale_factor":
            others[key] = draw(st.sampled_from([None, 2, 1.5, (2, 3), (1.0, 0.0), -1]))
        else:
            others[key] = draw(integers | st.lists(integers, min_size=length, max_size=length).map(tuple))
    return others


@pytest.mark.filterwarnings("ignore")
@examples(800)
@given(data=st.data())
def test_what_pytorch_refuses_is_refused_and_what_it_takes_is_taken(torch: Any, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([name for name in FORWARDS if "3d" not in name and has_peer(torch, name)]))
    there, here = both(torch, name, data.draw(arguments_near(name)))
    if here is None and there is not None:
        assert is_listed(TAKEN_HERE, name, there), there
    if there is None and here is not None:
        assert is_listed(REFUSED_HERE, name, here), here
