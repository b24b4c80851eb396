"""NVRTC, called directly: its library, its target architectures, and compilation of text to a binary.

It needs no GPU and no driver. CuPy's own wrapper is not used: it adds options to every program (-ftz=true among them),
needs CUDA's headers, and does not verify its cached binaries.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from gpucnn.backends.cuda.device.libraries import places

MAJORS = (13, 12)  # CUDA's major versions whose NVRTC serves, newest first
OPTIONS = ("-std=c++17", "--fmad=false")  # kernels ask for fused multiply-adds by name
INSTALL = "pip install cuda-pathfinder, and nvidia-cuda-nvrtc-cu12 for CUDA 12, nvidia-cuda-nvrtc for CUDA 13"

_SUCCESS = 0
_LOCATION = re.compile(r"^([\w.]+)\((\d+)\): (?:catastrophic )?(?:error|warning)", re.MULTILINE)
_LINE_DIRECTIVE = re.compile(r'#line (\d+) "([^"]+)"')


class NvrtcNotFoundError(RuntimeError):
    """No NVRTC library of a wanted version is installed."""


class CompilationError(RuntimeError):
    """A program does not compile, or the compiler cannot target the device."""


class Compiled(NamedTuple):
    """A cubin (an ELF file), or PTX for the driver to finish, and what the compiler said."""

    image: bytes
    log: str


# --- The library --------------------------------------------------------------------------------------------------


def load(majors: Iterable[int] = MAJORS) -> Nvrtc:
    """The first NVRTC that is found, of one of the `majors`, the preferred one first.

    Raises
    ------
    NvrtcNotFoundError
        There is none; the message says what to install.
    """
    majors = tuple(majors)
    for place in places("nvrtc", majors):
        try:
            nvrtc = Nvrtc(place)
        except OSError:
            continue
        if nvrtc.version[0] in majors:
            return nvrtc
    wanted = " or ".join(map(str, majors))
    raise NvrtcNotFoundError(f"the compiler library NVRTC of CUDA {wanted} was not found: {INSTALL}, or set CUDA_PATH")


# --- Target architectures -----------------------------------------------------------------------------------------


def architecture(capability: tuple[int, int], supported: Iterable[int]) -> str:
    """The architecture to compile for: the device's own as a binary, else PTX that its driver can translate.

    Binaries run on devices of their own kind only (within a major version on most, not on embedded ones), PTX on all
    newer ones.

    Parameters
    ----------
    capability : tuple of int
        The device's compute capability.
    supported : iterable of int
        The architectures that the compiler knows, as 90 for 9.0.

    Raises
    ------
    CompilationError
        The compiler cannot target the device.

    Examples
    --------
    >>> architecture((9, 0), [75, 80, 90])
    'sm_90'
    >>> architecture((10, 3), [75, 80, 90, 100])  # newer than the compiler: its driver translates
    'compute_100'
    """
    wanted = 10 * capability[0] + capability[1]
    supported = sorted(supported)
    if wanted in supported:
        return f"sm_{wanted}"
    older = [known for known in supported if known < wanted]
    if not older:
        raise CompilationError(
            f"NVRTC no longer compiles for compute capability {capability[0]}.{capability[1]}, only from "
            f"{supported[0] / 10} on: install an older CUDA's, as with cupy-cuda12x in place of cupy-cuda13x"
        )
    return f"compute_{older[-1]}"


# --- The compiler -------------------------------------------------------------------------------------------------


class Nvrtc:
    """The library at `path`.

    Attributes
    ----------
    version : tuple of int
        CUDA's version that it is part of.
    supported : tuple of int
        The architectures that it knows, as 90 for sm_90.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._library = ctypes.CDLL(path)
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("Version", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)
        count = ctypes.c_int()
        self._call("GetNumSupportedArchs", ctypes.byref(count))
        architectures = (ctypes.c_int * count.value)()
        self._call("GetSupportedArchs", architectures)
        self.supported = tuple(architectures)

    def compile(self, text: str, name: str, options: Sequence[str]) -> Compiled:
        """Compile the program `text`; `name` stands for it in messages.

        With ``-arch=sm_…`` among the `options` the result is a cubin, with ``-arch=compute_…`` PTX.

        Raises
        ------
        CompilationError
            With the compiler's messages and the source lines that they name.
        """
        program = ctypes.c_void_p()
        self._call("CreateProgram", ctypes.byref(program), text.encode(), name.encode(), 0, None, None)
        try:
            arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            status = self._library.nvrtcCompileProgram(program, len(options), arguments)
            log = self._output("ProgramLog", program).rstrip(b"\0").decode(errors="replace").strip()
            if status != _SUCCESS:
                raise CompilationError(self._complaint(text, name, options, log or self._error_string(status)))
            is_ptx = any(option.startswith("-arch=compute_") for option in options)
            image = self._output("PTX", program).rstrip(b"\0") if is_ptx else self._output("CUBIN", program)
            return Compiled(image, log)
        finally:
            self._call("DestroyProgram", ctypes.byref(program))

    def _complaint(self, text: str, name: str, options: Sequence[str], log: str) -> str:
        major, minor = self.version
        complaint = f"{name} does not compile with NVRTC {major}.{minor} and {' '.join(options)}:\n{log}"
        quoted = _quoted(text, log)
        return f"{complaint}\n\nThe lines named:\n{quoted}" if quoted else complaint

    def _output(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, buffer)
        return buffer.raw

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._library, f"nvrtc{function}")(*arguments)
        if status != _SUCCESS:
            raise CompilationError(f"nvrtc{function} failed: {self._error_string(status)}")

    def _error_string(self, status: int) -> str:
        message: bytes = self._library.nvrtcGetErrorString(status)
        return message.decode()


def _quoted(text: str, log: str) -> str:
    """The source lines that `log` names, each once, with their file and number."""
    lines = dict(_numbered(text))
    named = dict.fromkeys((file, int(number)) for file, number in _LOCATION.findall(log))
    return "\n".join(f"{file}:{number}: {lines[file, number]}" for file, number in named if (file, number) in lines)


def _numbered(text: str) -> Iterator[tuple[tuple[str, int], str]]:
    """Each line of a program with the file and number that its #line directives give it."""
    file, number = "", 0
    for line in text.splitlines():
        directive = _LINE_DIRECTIVE.match(line)
        if directive:
            number, file = int(directive[1]), directive[2]
        else:
            yield (file, number), line
            number += 1
