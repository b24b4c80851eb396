"""Compilation of a CUDA source to a shared library with its kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gpucnn.simulator import lowering, toolchain
from gpucnn.simulator.errors import CompileError

INCLUDE = toolchain.HERE / "include"
SHIM = "cuda_shim.h"


@dataclass(frozen=True)
class Source:
    """A CUDA source, and what its compilation depends on.

    Attributes
    ----------
    text : str
        The program.
    name : str
        The file name of the text before the first ``#line``.
    preprocessor_flags : tuple of str
        Definitions, and folders of headers.
    prelude : str
        C++ that stands before the lowered text.
    epilogue : str
        C++ that follows it.
    compiler_flags : tuple of str
        Options of the compiler that follow those of the mode.
    expressions : tuple of str
        Kernels and variables, as C++ names them, whose symbols are wanted: ``add<float>``.
    """

    text: str
    name: str
    preprocessor_flags: tuple[str, ...] = (lowering.CUDA_ARCH,)
    prelude: str = ""
    epilogue: str = ""
    compiler_flags: tuple[str, ...] = ()
    expressions: tuple[str, ...] = ()


def build(text: str, name: str, mode: str, runtime: Path) -> Path:
    """The shared library of a source, from the cache if it is there."""
    flags = kernel_flags(mode)
    key = toolchain.hash_of(toolchain.compiler().identity, runtime.name, lowering_identity(), name, text, *flags)

    def compile_to(target: Path) -> None:
        compile_kernel(Source(text, name), mode, runtime, target)

    return toolchain.cached(f"kernel-{key}.so", compile_to)


def kernel_flags(mode: str) -> tuple[str, ...]:
    """The options with which a kernel is compiled."""
    is_clang = toolchain.compiler().is_clang
    return (
        *toolchain.KERNEL_FLAGS,
        *toolchain.processor_flags(),
        *toolchain.mode_flags(mode, is_clang),
    )


@cache
def lowering_identity() -> str:
    """A digest that changes with the lowering and with the commands of this file."""
    return toolchain.hash_of(*(Path(file).read_text(encoding="utf-8") for file in (lowering.__file__, __file__)))


def compile_kernel(source: Source, mode: str, runtime: Path, target: Path) -> dict[str, str]:
    """Compile a source; the symbols of its name expressions.

    The assembly code is kept next to the result.
    """
    try:
        return compile_preprocessed(preprocess(source), source, mode, runtime, target)
    except CompileError as error:
        message = f"{source.name} does not compile for the simulator:\n{error}"
        raise type(error)(message, file=error.file, line=error.line) from None


def compile_preprocessed(preprocessed: str, source: Source, mode: str, runtime: Path, target: Path) -> dict[str, str]:
    """Compile a source from its preprocessed text; the symbols of its name expressions."""
    lowered = lowering.lower(preprocessed, source.name, source.expressions)
    assembly = target.with_suffix(".s")
    compile_lowered(
        source.prelude + lowered.text + source.epilogue, (*kernel_flags(mode), *source.compiler_flags), assembly
    )
    text, symbols = lowered.finish(assembly.read_text(encoding="utf-8"))
    assembly.write_text(text, encoding="utf-8")
    # Without the flags of the mode, or the compiler would add its sanitizers' libraries.
    extra = ["--coverage"] if mode == "coverage" else []
    # An empty kernel needs nothing of the runtime, its image does. Mostly the runtime is loaded by then.
    linked = ["-Wl,--no-as-needed", str(runtime), f"-Wl,-rpath,$ORIGIN:{runtime.parent}", "-Wl,-z,defs"]
    toolchain.run([toolchain.compiler().path, "-shared", *extra, str(assembly), *linked, "-o", str(target)])
    return symbols


def preprocess(source: Source) -> str:
    """The text of a source without macros and includes."""
    command = [toolchain.compiler().path, *lowering.PREPROCESSOR_FLAGS, *source.preprocessor_flags, "-"]
    return toolchain.run(command, f'#line 1 "{source.name}"\n{source.text}')


def compile_lowered(text: str, flags: tuple[str, ...], assembly: Path) -> None:
    """Compile C++ to assembly code."""
    options = (
        *flags,
        f"-I{shim(flags, toolchain.folder())}",
        f"-I{INCLUDE}",
        "-include",
        SHIM,
        "-fno-diagnostics-show-caret",
    )
    toolchain.run([toolchain.compiler().path, *options, "-S", "-x", "c++", "-", "-o", str(assembly)], text)


@cache
def shim(flags: tuple[str, ...], cache: Path) -> Path:
    """A folder of the cache with the shim, where g++ finds it compiled already; verified once a process."""
    compiler = toolchain.compiler()
    if compiler.is_clang:
        return INCLUDE
    key = toolchain.hash_of(compiler.identity, toolchain.sources_identity(), *flags)

    def precompile(target: Path) -> None:
        toolchain.run([compiler.path, *flags, "-x", "c++-header", str(INCLUDE / SHIM), "-o", str(target)])

    return toolchain.cached(str(cache / f"shim-{key}" / f"{SHIM}.gch"), precompile).parent
