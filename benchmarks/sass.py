"""The machine code of a compiled kernel, as NVIDIA's disassembler prints it: which instructions move how many bits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGE = "nvidia-cuda-nvdisasm"

_FUNCTION = re.compile(r"^\s*\.section\s+\.text\.(\w+)", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_LINE = re.compile(rf"^(?:\s*(\.L_\w+):|{_INSTRUCTION.pattern[1:]}(?:.*`\((\.L_\w+)\))?)", re.MULTILINE)
_GLOBAL = {"LDG": "load", "STG": "store", "LDGSTS": "load"}
_LOCAL = ("LDL", "STL")


@cache
def disassembler() -> str | None:
    """The path of nvdisasm: of the CUDA toolkit, or of its package."""
    found = shutil.which("nvdisasm")
    if found:
        return found
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    return next(
        (str(file.locate()) for file in files if file.stem == "nvdisasm" and os.access(file.locate(), os.X_OK)), None
    )


@dataclass(frozen=True)
class Code:
    """How many instructions of each kind a kernel has."""

    instructions: Counter[str]
    loops: tuple[Counter[str], ...] = ()  # opcodes from the target of each backward branch to it

    def main_loop(self, opcode: str) -> Counter[str] | None:
        """Opcodes of the shortest loop with an instruction of `opcode`; None where the compiler unrolled it."""
        return min((loop for loop in self.loops if loop[opcode]), key=lambda loop: loop.total(), default=None)

    @property
    def opcodes(self) -> Counter[str]:
        """How many instructions of each opcode the kernel has."""
        found: Counter[str] = Counter()
        for name, count in self.instructions.items():
            found[name.partition(".")[0]] += count
        return found

    def of(self, opcode: str) -> Counter[int]:
        """Instructions of an opcode by the bits that each moves."""
        bits: Counter[int] = Counter()
        for name, count in self.instructions.items():
            first, *modifiers = name.split(".")
            if first == opcode:
                bits[_bits(modifiers)] += count
        return bits

    @property
    def loads(self) -> Counter[int]:
        """Loads from global memory by their bits, asynchronous copies among them."""
        return self.of("LDG") + self.of("LDGSTS")

    @property
    def stores(self) -> Counter[int]:
        """Stores to global memory by their bits."""
        return self.of("STG")

    @property
    def local(self) -> int:
        """Loads and stores of values that found no register."""
        return sum(sum(self.of(opcode).values()) for opcode in _LOCAL)


def _bits(modifiers: list[str]) -> int:
    for modifier in modifiers:
        if modifier in ("64", "128"):
            return int(modifier)
        if modifier in ("U8", "S8", "U16", "S16"):
            return int(modifier[1:])
    return 32


def disassembled(image: bytes) -> str:
    """The disassembler's output for a binary."""
    path = disassembler()
    assert path is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(image)
        done = subprocess.run([path, "-c", "-ndf", str(file)], capture_output=True, check=True)  # no dataflow
    return done.stdout.decode(errors="replace")


def codes(image: bytes) -> dict[str, Code]:
    """The code of each kernel in a binary."""
    return parsed(disassembled(image))


def parsed(text: str) -> dict[str, Code]:
    """The code of each function in the disassembler's output."""
    heads = [*_FUNCTION.finditer(text)]
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return {
        head[1]: Code(Counter(_INSTRUCTION.findall(text, head.end(), end)), _loops(text[head.end() : end]))
        for head, end in zip(heads, ends, strict=True)
    }


def _loops(text: str) -> tuple[Counter[str], ...]:
    labels: dict[str, int] = {}
    opcodes: list[str] = []
    loops = []
    for label, name, target in _LINE.findall(text):
        if label:
            labels[label] = len(opcodes)
            continue
        opcodes.append(name.partition(".")[0])
        if opcodes[-1] == "BRA" and target in labels:
            loops.append(Counter(opcodes[labels[target] :]))
    return tuple(loops)
