"""The IDX format of MNIST and its successors: one array a file, big-endian."""

from __future__ import annotations

import gzip
import zlib
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}
_GZIP = b"\x1f\x8b"


def read_idx(path: str | PathLike[str]) -> np.ndarray[Any, Any]:
    """The array in an IDX file, plain or compressed by gzip.

    Parameters
    ----------
    path : str or path
        The file; its first bytes show whether it is compressed.

    Returns
    -------
    array
        In the file's shape; uint8, int8, int16, int32, float32 or float64, in this machine's byte order.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is not an IDX file, or has fewer or more bytes than its header says.

    References
    ----------
    Y. LeCun, C. Cortes, C. J. C. Burges, *The MNIST database of handwritten digits*, "File formats": two zero bytes,
    the dtype's code, the rank, one uint32 a size, then the elements in row-major order.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (Path(folder) / "x").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
    ...     read_idx(Path(folder) / "x")
    array([7, 8, 9], dtype=uint8)
    """
    path = Path(path)
    content = path.read_bytes()
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"read_idx: {path} cannot be decompressed: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES:
        raise ValueError(
            f"read_idx: {path} starts with the bytes {content[:4].hex(' ') or 'of no content'}, expected 00 00, the "
            f"code of a dtype ({', '.join(f'{code:02x}' for code in _DTYPES)}) and the rank, as IDX files do"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"read_idx: {path} has {len(content)} bytes, expected a header of {start}")
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    dtype = np.dtype(_DTYPES[content[2]])
    expected = start + prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(
            f"read_idx: {path} has {len(content)} bytes, expected {expected} for {dtype} elements in the shape {shape}"
        )
    return np.frombuffer(content, dtype.newbyteorder(">"), offset=start).reshape(shape).astype(dtype)
