"""The text of a program: its types, its parameters, and headers in their place."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from gpucnn.backends.cuda.device import sources
from gpucnn.backends.cuda.device.sources import SCALARS, Kernel, source, structure
from gpucnn.backends.cuda.launch.plans import INT32_END, PAST_END, Layout, layout, needs_int64, strides
from gpucnn.backends.cuda.pooling import pooling
from gpucnn.backends.dtypes import NUMERIC
from gpucnn.geometry.geometries import pool_geometry

CONV = Kernel("conv_forward", "ConvParams")
TEXTS = [path.read_text() for path in sorted(sources.folder().glob("*.cu*"))]
STRUCTURES = {name: text for text in TEXTS for name in re.findall(r"^struct (\w+Params) ", text, re.MULTILINE)}


def fixed_of(kernel: Kernel) -> dict[str, int]:
    return {name: index + 100 for index, (name, _, live) in enumerate(structure(kernel.params).fields) if not live}


# --- Text ---------------------------------------------------------------------------------------------------------


def test_each_dtype_has_a_cuda_type() -> None:
    assert set(SCALARS) == NUMERIC | {"tf32"}  # which copies write


@pytest.mark.parametrize("dtype", sorted(SCALARS))
def test_the_text_names_its_types(dtype: str) -> None:
    made = source(CONV, dtype, False, None)
    assert made.text.startswith(
        f"#define SCALAR {SCALARS[dtype].storage}\n"
        f"#define ACCUMULATOR {SCALARS[dtype].accumulator}\n"
        "#define INDEX int\n"
    )
    assert made.kernel == "conv_forward"
    assert made.name == f"conv_forward[{dtype},int32,generic]"
    assert "#define INDEX long long" in source(CONV, dtype, True, None).text


def test_headers_stand_where_they_are_included_and_lines_keep_their_names() -> None:
    text = source(CONV, "float32", False, None).text
    assert "#include" not in text
    file, number = "", 0
    seen: dict[str, dict[int, str]] = {}
    for line in text.splitlines()[3:]:
        directive = re.match(r'#line (\d+) "([\w.]+)"$', line)
        if directive:
            number, file = int(directive[1]), directive[2]
            continue
        seen.setdefault(file, {})[number] = line
        number += 1
    assert set(seen) == {"conv_forward.cu", "common.cuh", "params.cuh", "windows.cuh"}
    for name, lines in seen.items():
        original = (sources.folder() / name).read_text().splitlines()
        assert all(original[line - 1] == content for line, content in lines.items() if content)


def test_a_specialised_build_knows_its_numbers() -> None:
    values = fixed_of(CONV)
    made = source(CONV, "float32", False, values)
    assert made.name.endswith(",specialised]")
    for name, value in values.items():
        assert f"static constexpr index_t {name} = {value}LL;" in made.text
    assert "RUN_TIME index_t n;" in made.text
    assert source(CONV, "float32", False, None).text.count("\n") == made.text.count("\n")


def test_real_numbers_become_constants_exactly() -> None:
    kernel = Kernel("average_pool", "PoolParams")
    values: dict[str, Any] = {**fixed_of(kernel), "divisor": 0.1}
    text = source(kernel, "float32", False, values).text
    assert f"static constexpr double divisor = {(0.1).hex()};" in text


def test_two_builds_never_share_a_text() -> None:
    texts = [source(CONV, dtype, wide, None).text for dtype in SCALARS for wide in (False, True)]
    texts += [source(CONV, "float32", False, fixed_of(CONV) | {"kh": kh}).text for kh in (3, 5)]
    assert len(set(texts)) == len(texts)


def test_missing_sources_are_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(sources, "_FOLDERS", (tmp_path,))
    with pytest.raises(FileNotFoundError, match=r"CUDA kernels are in none of .*; install gpucnn again"):
        sources.folder.__wrapped__()


# --- Structures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_are_read_from_their_file(name: str) -> None:
    fields = structure(name).fields
    names = [field for field, _, _ in fields]
    assert len(set(names)) == len(names)
    assert any(live for _, _, live in fields)  # the batch, or what grows with it, is never a constant
    assert not any(field == "n" and not live for field, _, live in fields)
    body = STRUCTURES[name].partition(f"struct {name} {{")[2].partition("};")[0]
    code = re.sub(r"//.*", "", body)
    assert sorted(names) == sorted(set(re.findall(r"\w+", code)) - {"RUN_TIME", "index_t", "double"})


def test_an_unknown_structure_is_an_error() -> None:
    with pytest.raises(LookupError, match="a structure NoParams"):
        structure("NoParams")


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("specialised", [False, True])
def test_values_are_packed_as_c_lays_them_out(wide: bool, specialised: bool) -> None:
    pool = structure("PoolParams")
    values: dict[str, Any] = {name: index for index, (name, _, _) in enumerate(pool.fields)} | {"divisor": 2.5}
    packed = pool.packed(values, wide, specialised)
    assert packed.shape == ()
    assert packed.dtype.kind == "V"
    index = np.dtype(np.int64 if wide else np.int32)
    raw = packed.tobytes()
    if specialised:
        assert raw == np.array([values[name] for name, _, live in pool.fields if live], index).tobytes()
    else:
        count = len(pool.fields) - 1
        np.testing.assert_array_equal(
            np.frombuffer(raw[: count * index.itemsize], index),
            [values[name] for name, is_index, _ in pool.fields if is_index],
        )
        assert np.frombuffer(raw[-8:], np.float64) == 2.5
        assert len(raw) % 8 == 0


# --- The index type -----------------------------------------------------------------------------------------------


def test_strides_are_counted_in_elements() -> None:
    x = np.zeros((4, 3, 5))
    assert strides("x", ("n", "c", "w"), layout(x)) == {"x_n": 15, "x_c": 5, "x_w": 1}
    assert strides("x", ("n", "c", "w"), layout(x[:, ::-1])) == {"x_n": 15, "x_c": -5, "x_w": 1}
    assert strides("x", ("n", "c", "w"), layout(x[:1, :, ::2])) == {"x_n": 0, "x_c": 5, "x_w": 2}
    assert strides("b", ("n", "c"), None) == {"b_n": 0, "b_c": 0}


def far(elements: int) -> np.ndarray[Any, Any]:
    """Two bytes that lie `elements` apart, without the memory between them."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, np.int8), (2,), (elements,), writeable=False)


def test_indices_have_64_bits_where_32_do_not_reach() -> None:
    small = layout(np.zeros(3, np.int8))
    assert not needs_int64([small, None], [5, INT32_END - 1])
    assert needs_int64([small], [INT32_END])
    assert needs_int64([small], [-INT32_END])
    assert not needs_int64([layout(far(INT32_END - PAST_END - 1))], [])
    assert needs_int64([layout(far(INT32_END - PAST_END))], [])
    assert needs_int64([layout(far(PAST_END - INT32_END))], [])


def test_the_number_of_elements_is_an_index_too() -> None:
    dense = Layout((2, 1, 1, 2**15, 2**15), (2**30, 2**30, 2**30, 2**15, 1), 1)
    assert dense.size == INT32_END
    assert needs_int64([dense], [])
    assert needs_int64([dense._replace(strides=(0, 0, 0, 2**15, 1))], [])  # images that share their memory


def test_counting_on_by_all_threads_does_not_overflow() -> None:
    geometry = pool_geometry("max_pool", (2**15, 2**15 + 1), 3, 1, 1, 1, False, "none")
    pitch = 2**15 + 2  # rows lie apart, so that nothing is staged
    image = Layout((1, 1, 1, 2**15, 2**15 + 1), (0, 0, 0, pitch, 1), 1)
    indices = Layout(image.shape, (0, 0, 0, 8 * pitch, 8), 8)
    work = pooling._max_backward_work(image, indices, image, geometry)
    assert work.fields["tile_planes"] == 0
    assert not needs_int64([image, indices], [])
    assert needs_int64([], work.extents)  # an output's number and the threads of the launch, one for each input
