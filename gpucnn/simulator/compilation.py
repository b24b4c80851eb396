"""Compilation of a CUDA source to a shared library with its kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from gpucnn.simulator import lowering, toolchain
from gpucnn.simulator.errors import CompileError


def build(text: str, name: str, mode: str, runtime: Path) -> Path:
    """The shared library of a source, from the cache if it is there."""
    flags = kernel_flags(mode)
    key = toolchain.hash_of(toolchain.compiler().identity, runtime.name, lowering_identity(), name, text, *flags)

    def compile_to(target: Path) -> None:
        compile_kernel(text, name, flags, runtime, target)

    return toolchain.cached(f"kernel-{key}.so", compile_to)


def kernel_flags(mode: str) -> tuple[str, ...]:
    """The options with which a kernel is compiled."""
    is_clang = toolchain.compiler().is_clang
    return (*toolchain.KERNEL_FLAGS, *toolchain.processor_flags(), *toolchain.mode_flags(mode, is_clang))


@cache
def lowering_identity() -> str:
    """A digest that changes with the lowering."""
    return toolchain.hash_of(Path(lowering.__file__).read_text(encoding="utf-8"))


def compile_kernel(text: str, name: str, flags: Sequence[str], runtime: Path, target: Path, epilogue: str = "") -> None:
    """Lower and compile a source; the lowered text and the object file are kept next to the result."""
    path = toolchain.compiler().path
    marked = f'#line 1 "{name}"\n{text}'
    try:
        preprocessed = toolchain.run([path, *lowering.PREPROCESSOR_FLAGS, lowering.CUDA_ARCH, "-"], marked)
        source, item = target.with_suffix(".cpp"), target.with_suffix(".o")
        source.write_text(lowering.lower(preprocessed, name).text + epilogue, encoding="utf-8")
        include = toolchain.HERE / "include"
        toolchain.run([path, *flags, f"-I{include}", "-include", "cuda_shim.h", "-c", str(source), "-o", str(item)])
        # Without the flags of the mode, or the compiler would add its sanitizers' libraries.
        extra = ["--coverage"] if "--coverage" in flags else []
        origin = "-Wl,-rpath,$ORIGIN"  # already loaded by then: this is for other tools
        toolchain.run([path, "-shared", *extra, str(item), str(runtime), origin, "-Wl,-z,defs", "-o", str(target)])
    except CompileError as error:
        message = f"{name} does not compile for the simulator:\n{error}"
        raise type(error)(message, file=error.file, line=error.line) from None
