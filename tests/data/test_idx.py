"""IDX files made here, byte by byte, and those that are none."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpucnn.data import read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">2xBB{array.ndim}I", CODES[array.dtype.str[1:]], array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


arrays = st.sampled_from(list(CODES)).flatmap(lambda code: hnp.arrays(code, hnp.array_shapes(min_dims=0, min_side=0)))


@given(arrays, st.booleans())
def test_every_dtype_and_shape_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, compressed: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "drawn"
    path.write_bytes(gzip.compress(idx_bytes(array)) if compressed else idx_bytes(array))
    read = read_idx(path)
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    assert read.dtype.isnative
    assert read.tobytes() == array.tobytes()
    assert read.flags.writeable


def test_the_bytes_are_big_endian(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes([0, 0, 0x0B, 1, 0, 0, 0, 2, 1, 0, 0xFF, 0xFE]))
    assert read_idx(str(tmp_path / "x")).tolist() == [256, -2]


WHOLE = idx_bytes(np.arange(12, dtype="i4").reshape(3, 4))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "of no content"),
        (b"\0\0\x08", "starts with the bytes 00 00 08"),
        (b"\x89PNG\r\n", "starts with the bytes 89 50 4e 47, expected 00 00, the code of a dtype"),
        (b"\0\0\x0a\1\0\0\0\0", "expected 00 00"),
        (WHOLE[:9], "has 9 bytes, expected a header of 12"),
        (WHOLE[:-1], r"has 59 bytes, expected 60 for int32 elements in the shape \(3, 4\)"),
        (WHOLE + b"\0", "has 61 bytes, expected 60"),
        (b"\0\0\x08\3" + b"\xff" * 12, "has 16 bytes, expected 792281"),
        (gzip.compress(WHOLE)[:-9], "cannot be decompressed"),
        (b"\x1f\x8b nothing that gzip knows", "cannot be decompressed"),
    ],
)
def test_a_foreign_or_cut_file_is_told(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=f"^read_idx: .*x .*{says}"):
        read_idx(tmp_path / "x")


@given(st.integers(0, len(WHOLE) - 1))
def test_no_cut_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    compressed = gzip.compress(WHOLE)
    for content in (WHOLE[:length], compressed[: length % len(compressed)]):
        path = tmp_path_factory.getbasetemp() / "cut"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^read_idx: "):
            read_idx(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere")
