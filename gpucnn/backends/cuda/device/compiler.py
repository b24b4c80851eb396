"""Compilation of a program's text to a binary, with a disk cache of compiled binaries.

Everything that a binary depends on is in its name: the text with all headers inlined, the options, the architecture,
NVRTC's version and gpucnn's. A corrupt file is recompiled; a folder that is unusable, or where others could change
files (`gpucnn.compilation.trust`), costs time, never a result. Processes may share one: files are written atomically.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gpucnn import __version__
from gpucnn.backends.cuda.device.nvrtc import OPTIONS, CompilationError, Nvrtc
from gpucnn.backends.cuda.device.sources import Source
from gpucnn.compilation.files import write_whole
from gpucnn.compilation.trust import not_kept_message, unsafe_message, why_unsafe
from gpucnn.paths import cache_folder

_ELF64 = b"\x7fELF\x02"


@dataclass(frozen=True)
class Binary:
    """A compiled program; `path` is its file in the cache, None where it could not be stored.

    `name` is unique per program and valid as a file name.
    """

    name: str
    image: bytes
    path: Path | None
    is_new: bool = field(default=False, compare=False)  # it was compiled for this


def whole(image: bytes) -> bool:
    """Whether a binary is PTX, or an ELF file that ends no sooner than its headers say."""
    if not image.startswith(b"\x7fELF"):
        return b".version" in image
    if not image.startswith(_ELF64) or len(image) < 64:
        return False
    sections = int.from_bytes(image[0x28:0x30], "little")
    size, count = (int.from_bytes(image[at : at + 2], "little") for at in (0x3A, 0x3C))
    return sections + size * count <= len(image)


def default_folder() -> Path:
    """The folder of the binaries, within the one that ``GPUCNN_CACHE_DIR`` chooses."""
    return cache_folder() / "cubin"


class Compiler:
    """NVRTC and the disk cache of its binaries.

    Attributes
    ----------
    compiled : int
        Programs that this compiler had to compile, since they were not in the folder.
    """

    def __init__(self, nvrtc: Nvrtc, folder: Callable[[], Path] = default_folder) -> None:
        self._nvrtc = nvrtc
        self._folder = folder
        self._warned = False
        self._lock = threading.Lock()
        self._compiling: dict[str, threading.Lock] = {}
        self._in_memory: dict[str, Binary] = {}  # those that could not be stored
        self.compiled = 0

    def find(self, source: Source, architecture: str) -> Binary | None:
        """The binary of `source` for an `architecture` as ``sm_90``; None where it has to be compiled."""
        return self._find(self._name(source, architecture))

    def compile(self, source: Source, architecture: str) -> Binary:
        """The binary of `source` for an `architecture`, found or compiled; of several threads one compiles it.

        Raises
        ------
        CompilationError
            The program does not compile.
        """
        name = self._name(source, architecture)
        with self._lock:
            compiling = self._compiling.setdefault(name, threading.Lock())
        with compiling:
            binary = self._find(name)
            if binary is None:
                binary = self._store(name, self._compile(source, _options(architecture)))
                if binary.path is None:
                    self._in_memory[name] = replace(binary, is_new=False)
        return binary

    def _name(self, source: Source, architecture: str) -> str:
        parts = (__version__, *map(str, self._nvrtc.version), *_options(architecture), source.text)
        return _digest("\0".join(parts).encode()) + (".cubin" if architecture.startswith("sm_") else ".ptx")

    def _find(self, name: str) -> Binary | None:
        if name in self._in_memory:
            return self._in_memory[name]
        try:
            path = self._folder() / name
        except RuntimeError:  # there is no home folder
            return None
        image = None if why_unsafe(path) else _read(path)
        return None if image is None else Binary(name, image, path)

    def _store(self, name: str, image: bytes) -> Binary:
        """The new binary, in the folder where that can be used."""
        path = None
        try:  # the binary and its digest, each atomically: of several writers any may win, their bytes agree
            path = self._folder() / name
            reason = why_unsafe(path)
            if reason:
                self._warn(unsafe_message(reason))
                return Binary(name, image, None, is_new=True)
            write_whole(path, image)
            write_whole(path.with_suffix(".sha256"), _digest(image).encode())
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
            if path is None or _read(path) is None:  # else another process was quicker
                self._warn(not_kept_message(error))
                path = None
        return Binary(name, image, path, is_new=True)

    def _compile(self, source: Source, options: Sequence[str]) -> bytes:
        with self._lock:
            self.compiled += 1
        image = self._nvrtc.compile(source.text, source.name, options).image
        if not whole(image):
            raise CompilationError(f"{source.name}: NVRTC returned {len(image)} bytes that are no whole binary")
        return image

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(message, RuntimeWarning, stacklevel=2)


def _options(architecture: str) -> tuple[str, ...]:
    return (*OPTIONS, f"-arch={architecture}")


def _digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


def _read(path: Path) -> bytes | None:
    """The binary at `path`; None where it is missing or corrupt."""
    try:
        image, digest = path.read_bytes(), path.with_suffix(".sha256").read_bytes()
    except OSError:
        return None
    return image if _digest(image).encode() == digest and whole(image) else None
