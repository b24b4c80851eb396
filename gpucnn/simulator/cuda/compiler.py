"""The compiler behind the simulated NVRTC: CUDA C++ and options in, the image of a module and a log out.

An image is a shared object of `gpucnn.simulator.compilation`: kernels in the table ``gpucnn_entries``, variables in
``gpucnn_variables``, and ``gpucnn_checked``, which tells whether its memory accesses are checked.

Options are NVRTC's. Those that only tune the code of a GPU are accepted and change nothing; what would change a result
and is not simulated is refused. Arithmetic is always that of ``--fmad=false --prec-div=true --prec-sqrt=true
--ftz=false``: the simulator neither contracts multiplications and additions nor flushes denormal numbers.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from gpucnn.simulator import compilation, settings, toolchain
from gpucnn.simulator.compilation import Source
from gpucnn.simulator.cuda.diagnostics import Diagnostics
from gpucnn.simulator.errors import CompileError

HEADERS = Path(__file__).parent / "headers"

SUCCESS = 0
INVALID_OPTION = 5
COMPILATION = 6

STANDARDS = ("c++03", "c++11", "c++14", "c++17", "c++20")
ARCHITECTURES = {
    12: (50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 103, 120, 121),
    13: (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121),
}
_ARCHITECTURE = re.compile(r"(compute|sm)_(\d+)[af]?")

# Options with a value, by all their names.
_VALUED = {
    "-arch": "arch",
    "--gpu-architecture": "arch",
    "-std": "std",
    "--std": "std",
    "-D": "define",
    "--define-macro": "define",
    "-U": "undefine",
    "--undefine-macro": "undefine",
    "-I": "include",
    "--include-path": "include",
    "-include": "preinclude",
    "--pre-include": "preinclude",
    "-rdc": "rdc",
    "--relocatable-device-code": "rdc",
}
# What changes nothing here, of code generation, precision and messages: options with a value, and others.
_IGNORED_VALUED = frozenset(
    f"--{name}"
    for name in (
        "maxrregcount",
        "ftz",
        "prec-sqrt",
        "prec-div",
        "fmad",
        "ptxas-options",
        "opt-level",
        "dopt",
        "optimize",
        "default-stream",
        "builtin-move-forward",
        "builtin-initializer-list",
        "diag-error",
        "diag-suppress",
        "diag-warn",
        "brief-diagnostics",
        "time",
        "split-compile",
        "optimization-info",
        "jump-table-density",
        "fdevice-time-trace",
        "pch-dir",
        "create-pch",
        "use-pch",
        "pch-verbose",
        "pch-messages",
        "device-stack-protector",
        "instantiate-templates-in-pch",
        "frandom-seed",
    )
) | {
    "-Xptxas",
    "-O",
    "-brief-diag",
    "-jtd",
    "-maxrregcount",
    "-ftz",
    "-prec-sqrt",
    "-prec-div",
    "-fmad",
    "-opt-level",
    "-dopt",
    "-diag-error",
    "-diag-suppress",
    "-diag-warn",
    "-split-compile",
    "-pch-dir",
}
_IGNORED = frozenset(
    f"--{name}"
    for name in (
        "device-debug",
        "generate-line-info",
        "use_fast_math",
        "extra-device-vectorization",
        "modify-stack-limit",
        "device-as-default-execution-space",
        "restrict",
        "disable-warnings",
        "no-source-include",
        "display-error-number",
        "no-display-error-number",
        "device-int128",
        "device-float128",
        "minimal",
        "pch",
        "no-cache",
        "extensible-whole-program",
        "version-ident",
    )
) | {
    "-G",
    "-lineinfo",
    "-use_fast_math",
    "-extra-device-vectorization",
    "-default-device",
    "-restrict",
    "-w",
    "-err-no",
    "-no-err-no",
    "-device-int128",
    "-minimal",
    "-pch",
    "-ewp",
}
_UNSUPPORTED = {
    "-dlto": "link-time optimisation is not simulated",
    "--dlink-time-opt": "link-time optimisation is not simulated",
    "-gen-opt-lto": "link-time optimisation is not simulated",
    "--gen-opt-lto": "link-time optimisation is not simulated",
    "-dc": "relocatable device code is not simulated",
    "--device-c": "relocatable device code is not simulated",
}
_SINGLE_LETTERS = ("-I", "-D", "-U", "-O")  # their values may follow without a sign in between


class Program(NamedTuple):
    """What NVRTC knows of a program after its compilation."""

    status: int
    image: bytes
    log: str
    symbols: list[str]  # of the name expressions, in their order


class OptionError(ValueError):
    """An option that NVRTC does not take; the message is its log."""


@dataclass
class Options:
    """The options of a compilation, as far as they have an effect."""

    major: int  # of CUDA's version
    architecture: str
    standard: str = "c++17"
    macros: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    preincludes: list[str] = field(default_factory=list)

    @property
    def is_virtual(self) -> bool:
        """Whether the target is a virtual architecture, whose code is PTX."""
        return self.architecture.startswith("compute")

    @property
    def capability(self) -> int:
        """The compute capability times ten, 80 for 8.0."""
        match = _ARCHITECTURE.fullmatch(self.architecture)
        assert match is not None
        return int(match.group(2))


def compile_program(
    text: str,
    name: str,
    headers: Mapping[str, str],
    options: Sequence[str],
    expressions: Sequence[str],
    major: int = 12,
) -> Program:
    """Compile a program as NVRTC does.

    Parameters
    ----------
    text, name : str
        The program, and its file name in messages.
    headers : mapping of str to str
        Texts of headers by the names that the program includes them by.
    options : sequence of str
        NVRTC's options.
    expressions : sequence of str
        Name expressions.
    major : int
        The major version of CUDA, which decides on the architectures.

    Returns
    -------
    Program
        Its status is a number of nvrtcResult.
    """
    try:
        parsed = parse_options(options, major)
    except OptionError as error:
        return Program(INVALID_OPTION, b"", f"nvrtc: error: {error}\n", [])
    diagnostics = Diagnostics(name, text, headers)
    try:
        image, symbols = _image(text, name, headers, parsed, tuple(expressions))
    except CompileError as error:
        return Program(COMPILATION, b"", diagnostics.log(error), [])
    return Program(SUCCESS, image, "", symbols)


# --- Options ------------------------------------------------------------------------------------------------------


def parse_options(options: Iterable[str], major: int = 12) -> Options:
    """NVRTC's options; an OptionError for one that is unknown, wrong or not simulated."""
    supported = ARCHITECTURES[major]
    parsed = Options(major, f"compute_{52 if major == 12 else supported[0]}")
    remaining = iter(options)
    for option in remaining:
        _take(parsed, option.strip(), remaining, supported)
    return parsed


def _take(parsed: Options, option: str, remaining: Iterator[str], supported: tuple[int, ...]) -> None:
    """Apply one option, which may take the next one as its value."""
    if not option or option in _IGNORED:
        return
    if option in _UNSUPPORTED:
        raise OptionError(f"option {option} is not supported by the simulator: {_UNSUPPORTED[option]}")
    name, sign, value = option.partition("=")
    if name not in _VALUED and name not in _IGNORED_VALUED:
        if option[:2] not in _SINGLE_LETTERS or option.startswith("--"):
            raise OptionError(f"unrecognized option {option} found")
        name, sign, value = option[:2], "=", option[2:]
    if not sign:
        value = next(remaining, "")
    if name in _VALUED:
        _apply(parsed, name, value.strip(), supported)


def _apply(parsed: Options, name: str, value: str, supported: tuple[int, ...]) -> None:
    kind = _VALUED[name]
    if kind == "arch":
        match = _ARCHITECTURE.fullmatch(value)
        if not match or int(match.group(2)) not in supported:
            raise OptionError("invalid value for --gpu-architecture (-arch)")
        parsed.architecture = value
    elif kind == "std":
        if value not in STANDARDS:
            raise OptionError("invalid value for --std (-std)")
        parsed.standard = value
    elif kind == "rdc":
        if value == "true":
            raise OptionError(
                f"option {name} is not supported by the simulator: relocatable device code is not simulated"
            )
    elif kind == "include":
        parsed.folders.append(f"-I{value}")
    elif kind == "preinclude":
        parsed.preincludes.append(value)
    else:
        parsed.macros.append(f"-{'D' if kind == 'define' else 'U'}{value}")


# --- Images -------------------------------------------------------------------------------------------------------


def is_checked() -> bool:
    """Whether kernels are compiled with checks: GPUCNN_CUDA_CHECK, on unless it is 0."""
    return os.environ.get("GPUCNN_CUDA_CHECK", "1").strip().lower() not in ("0", "off", "false", "no")


def mode() -> str:
    """The simulator's mode for kernels."""
    return "check" if is_checked() else "fast"


@cache
def identity() -> str:
    """A digest that changes with everything that an image depends on except its program."""
    parts = [toolchain.sources_identity(), compilation.lowering_identity(), Path(__file__).read_text(encoding="utf-8")]
    parts += [path.read_text(encoding="utf-8") for path in sorted(HEADERS.rglob("*")) if path.is_file()]
    return toolchain.hash_of(*parts)


def version_minor() -> int:
    """The minor version that the simulated NVRTC reports.

    It is far above NVIDIA's, changes with `identity`, and is odd in check mode: programs key their caches of images by
    NVRTC's version, and an image of the simulator must not be taken for a GPU's, nor a fast one for a checked one.
    """
    return 10_000 + 2 * (int(identity()[:8], 16) % 40_000) + is_checked()


def _image(
    text: str, name: str, headers: Mapping[str, str], options: Options, expressions: tuple[str, ...]
) -> tuple[bytes, list[str]]:
    """The image of a program, from the cache if it is there, and the symbols of its name expressions."""
    with tempfile.TemporaryDirectory(prefix="gpucnn-nvrtc-") as folder:
        source = Source(
            text=text,
            name=file_name(name),
            preprocessor_flags=(*_definitions(options), *_search(folder, headers, options)),
            compiler_flags=_compiler_flags(options),
            prelude="#undef assert\n#define assert(condition) ((void)0)\n" if _has(options, "NDEBUG") else "",
            expressions=expressions,
        )
        preprocessed = compilation.preprocess(source)
    if options.is_virtual and not expressions and _is_empty(preprocessed):
        return _empty_ptx(options), []
    runtime = toolchain.runtime(settings.current().context_switch)
    parts = (source.prelude, *source.compiler_flags, *expressions, preprocessed.replace(folder, ""))
    key = toolchain.hash_of(toolchain.compiler().identity, runtime.name, identity(), mode(), *parts)

    def build(target: Path) -> None:
        image = target.with_suffix(".so")
        symbols = compilation.compile_preprocessed(preprocessed, source, mode(), runtime, image)
        head = json.dumps([symbols[expression] for expression in expressions]).encode()
        target.write_bytes(head + b"\n" + image.read_bytes())

    path = toolchain.cached(f"program-{key}.image", build)
    head, _, image = toolchain.content(path).partition(b"\n")
    return image, json.loads(head)


def file_name(name: str) -> str:
    """The name of a program in images: without its folder where that is one of the machine, often a temporary one."""
    path = PurePosixPath(name or "default_program")
    return path.name if path.is_absolute() else str(path)


def _compiler_flags(options: Options) -> tuple[str, ...]:
    """What the compiler is told besides the simulator's usual options.

    Signed integers wrap around, as they do on a GPU and as programs that follow NumPy's rules expect.
    """
    checks = ("-fno-sanitize=signed-integer-overflow,shift-base",) if is_checked() else ()
    standard = ("-std=c++20",) if options.standard == "c++20" else ()
    return ("-fwrapv", *checks, *standard)


def _definitions(options: Options) -> Iterator[str]:
    """What NVRTC defines before a program, and the program's options on top."""
    yield f"-std={options.standard}"
    yield f"-D__CUDA_ARCH__={options.capability * 10}"
    yield f"-D__CUDA_ARCH_LIST__={options.capability * 10}"
    yield from ("-D__LP64__", "-D_LP64", f"-D__CUDACC_VER_MAJOR__={options.major}", "-D__CUDACC_VER_MINOR__=9")
    yield from ("-D__CUDACC_VER_BUILD__=0", "-DNULL=__null", "-D__GPUCNN_SIMULATOR__")
    yield from options.macros


def _search(folder: str, headers: Mapping[str, str], options: Options) -> Iterator[str]:
    """Where headers are found: those of the program, the simulator's, then the folders of the options."""
    for name, text in headers.items():
        path = Path(folder, name)
        if not path.resolve().is_relative_to(Path(folder).resolve()):
            raise CompileError(f'the simulator takes no header under the name "{name}"')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    yield from (f"-I{folder}", f"-I{HEADERS}", *options.folders)
    for name in options.preincludes:
        yield from ("-include", name)


def _has(options: Options, macro: str) -> bool:
    return any(option.partition("=")[0] == f"-D{macro}" for option in options.macros)


def _is_empty(preprocessed: str) -> bool:
    return not re.sub(r"^#.*$", "", preprocessed, flags=re.M).strip()


def _empty_ptx(options: Options) -> bytes:
    """The PTX of a program without code. Programs read the versions in its comments."""
    lines = (
        "//",
        "// Generated by the CUDA simulator of gpucnn",
        "//",
        f"// {mode()} mode, build {identity()}",
        "//",
        "",
        ".version 8.8",
        f".target sm_{options.capability}",
        ".address_size 64",
        "",
    )
    return "\n".join(lines).encode()
