"""Machine code executed: how many instructions the warps of one block issue.

The disassembler's text of sm_90's code is interpreted, all threads of a block at once: integers and float32 as the GPU
computes them, memory as patterns of plausible values, so that branches go where they would. Predicated instructions
count whether or not they act, as they take an issue slot; threads of a warp that go different ways count twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.gpus import WARP

ARCHITECTURE = "sm_90"
PARAMETERS = 0x210  # where a kernel's parameters begin in constant bank 0
ADDRESS_BITS = 40  # of an offset in an array, whose number is in the bits above
MAX_STEPS = 400_000  # of a block, beyond which it is taken to hang

_LINE = re.compile(r"^\s*(?:(\.?[$\w]+):|/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;)", re.MULTILINE)
_GUARD = re.compile(r"@(!?)(U?P[\dT]) *\s*(.*)", re.DOTALL)
_PREDICATE = re.compile(r"(!?)(U?P[\dT])$")
_REGISTER = re.compile(r"(-?)(~?)(\|?)(U?R(?:Z|\d+))((?:\.\w+)*)\|?((?:\.\w+)*)$")
_BANK = re.compile(r"(-?)c\[0x(\w+)\]\[(?:(U?R\w+)\+?)?(?:0x(\w+))?\]")
_LABEL = re.compile(r"`\(([^)]+)\)")
_ADDRESS = re.compile(r"\[(.*)\]")
_ENDS = ("BRA", "EXIT", "BAR", "BSYNC", "CALL", "RET")

Words = np.ndarray[Any, np.dtype[Any]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Memory:
    """An array of global memory: its bytes repeat after those of `pattern`."""

    pattern: Words

    def words(self, offsets: Words, count: int, dtype: type) -> list[Words]:
        """`count` neighbouring words from each of the byte offsets."""
        size = np.dtype(dtype).itemsize
        words = self.pattern.reshape(-1).view(dtype)
        return [words[(offsets // size + k) % len(words)].astype(np.uint32) for k in range(count)]


@dataclass(frozen=True)
class Instruction:
    """One of a kernel's code."""

    name: str  # with its modifiers
    operands: tuple[str, ...]
    guard: str  # "" or its predicate

    @property
    def opcode(self) -> str:
        return self.name.partition(".")[0]

    @property
    def modifiers(self) -> list[str]:
        return self.name.split(".")[1:]


@dataclass
class Program:
    """The instructions of a kernel, and where labels and addresses are among them."""

    instructions: list[Instruction] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    addresses: dict[int, int] = field(default_factory=dict)


def program(text: str, kernel: str) -> Program:
    """The code of `kernel` in the disassembler's output."""
    start = re.search(rf"^\s*\.section\s+\.text\.{kernel},", text, re.MULTILINE)
    assert start is not None, kernel
    end = re.compile(r"^\s*\.section\s", re.MULTILINE).search(text, start.end())
    found = Program()
    for label, address, line in _LINE.findall(text, start.end(), end.start() if end else len(text)):
        if label:
            found.places[label] = len(found.instructions)
            continue
        guard = _GUARD.match(line)
        name, _, operands = (guard[3] if guard else line).partition(" ")
        parts = tuple(part.strip() for part in operands.split(",")) if operands else ()
        found.addresses[int(address, 16)] = len(found.instructions)
        found.instructions.append(Instruction(name, parts, f"{guard[1]}{guard[2]}" if guard else ""))
    return found


@dataclass(frozen=True)
class Executed:
    """What a block does.

    Attributes
    ----------
    issued
        How many instructions its warps issue, by opcode and modifiers.
    moved
        Bytes of each array that its threads load and store.
    """

    issued: Counter[str]
    moved: tuple[int, ...]


def executed(
    text: str, kernel: str, block: int, blocks: int, threads: int, parameters: bytes, arrays: Sequence[Memory | None]
) -> Executed:
    """What block number `block` of a launch does.

    Parameters
    ----------
    text, kernel
        The disassembler's output, and the kernel in it.
    blocks, threads
        Of the launch, and of a block.
    parameters
        The structure after the arrays' addresses.
    arrays
        The memory of each array parameter, None where it is null.
    """
    with np.errstate(all="ignore"):
        return _Block(program(text, kernel), block, blocks, threads, parameters, arrays).run()


class _Block:
    """The threads of a block: registers and predicates are vectors over them."""

    def __init__(
        self,
        code: Program,
        block: int,
        blocks: int,
        threads: int,
        parameters: bytes,
        arrays: Sequence[Memory | None],
    ) -> None:
        self.code, self.arrays = code, arrays
        lanes = -(-threads // WARP) * WARP
        self.zeros = np.zeros(lanes, np.uint32)
        self.registers: dict[str, Words] = {}
        self.predicates: dict[str, Mask] = {}
        self.shared = np.zeros(256 << 10, np.uint8)
        self.special = {
            "SR_TID.X": np.arange(lanes, dtype=np.uint32),
            "SR_LANEID": np.arange(lanes, dtype=np.uint32) % WARP,
            "SR_CTAID.X": np.full(lanes, block, np.uint32),
        }
        sizes = np.array([threads, 1, 1, blocks], np.uint32).tobytes()
        addresses = [0 if array is None else (k + 1) << ADDRESS_BITS for k, array in enumerate(arrays)]
        given = np.array(addresses, np.uint64).tobytes() + parameters
        bank = sizes.ljust(PARAMETERS, b"\0") + given.ljust(len(given) + 16 - len(given) % 4, b"\0")
        self.bank = np.frombuffer(bank, np.uint32)
        self.at = np.zeros(lanes, np.int64)  # of each thread's next instruction
        self.done = np.arange(lanes) >= threads
        self.waits = np.zeros(lanes, bool)
        self.groups: dict[str, Words] = {}  # of each barrier register: the number of the BSSY that set it
        self.number = 0
        self.counts: Counter[str] = Counter()
        self.mask = np.ones(lanes, bool)
        self.moved = [0] * len(arrays)
        self.voted = False

    def run(self) -> Executed:
        joins = set(self.code.places.values())
        instructions = self.code.instructions
        for _ in range(MAX_STEPS):
            ready = ~(self.done | self.waits)
            if not ready.any():
                if self.done.all():
                    return Executed(self.counts, tuple(self.moved))
                self._release()
                continue
            at = int(self.at[ready].min())
            active = ready & (self.at == at)
            warps = int(active.reshape(-1, WARP).any(axis=1).sum())
            while True:
                one = instructions[at]
                self.counts[one.name] += warps
                at += 1
                if one.opcode in _ENDS:
                    self.at[active] = at
                    self._branch(one, active, at - 1)
                    break
                self._execute(one, active)
                if at in joins:
                    self.at[active] = at
                    break
        raise RuntimeError("the block does not end")

    # --- Control flow -----------------------------------------------------------------------------------------------

    def _branch(self, one: Instruction, active: Mask, at: int) -> None:
        taken = active & self._predicate(one.guard) if one.guard else active
        if one.opcode == "EXIT":
            self.done |= taken
        elif one.opcode == "BRA":
            if "DIV" in one.modifiers:  # to where the lanes of a warp are apart: they are not
                return
            target = self._target(one)
            first = _PREDICATE.match(one.operands[0])
            self.at[taken & self._predicate(first[0]) if first else taken] = target
        elif one.opcode == "CALL":
            self.at[taken] = self._target(one)
        elif one.opcode == "RET":
            back = self._word(one.operands[0])
            for address in np.unique(back[taken]):
                self.at[taken & (back == address)] = self.code.addresses[int(address)]
        elif one.opcode == "BAR":
            self.waits |= taken
            if "RED" in one.modifiers:
                self.voted = self.voted or bool((self._predicate(one.operands[1]) & taken).any())
        elif one.opcode == "BSYNC":
            self.waits |= taken
            self._join(one.operands[0], taken, at)

    def _join(self, name: str, lanes: Mask, at: int) -> None:
        """Release the groups of `lanes` that wait after the BSYNC at `at` to the last member."""
        group = self.groups[name]
        for number in np.unique(group[lanes]):
            members = (group == number) & ~self.done
            if (self.waits[members] & (self.at[members] == at + 1)).all():
                self.waits &= ~members

    def _release(self) -> None:
        """Release threads that wait where none runs: for members that exited, or all of them at a barrier."""
        before = self.waits.copy()
        for at in np.unique(self.at[self.waits]):
            one = self.code.instructions[int(at) - 1]
            if one.opcode == "BSYNC":
                self._join(one.operands[0], self.waits & (self.at == at), int(at) - 1)
        if (self.waits == before).all():
            here = {self.code.instructions[int(at) - 1].opcode for at in self.at[self.waits]}
            assert here == {"BAR"}, here
            self.waits[:] = False

    def _target(self, one: Instruction) -> int:
        label = _LABEL.search(one.operands[-1])
        assert label is not None, one
        return self.code.places[label[1]]

    # --- Operands ---------------------------------------------------------------------------------------------------

    def _predicate(self, text: str) -> Mask:
        match = _PREDICATE.match(text)
        assert match is not None, text
        value = self.predicates.get(match[2])
        if value is None:
            value = np.full(len(self.zeros), match[2].endswith("T"))
        return ~value if match[1] else value

    def _plain(self, name: str) -> Words:
        return self.registers.get(name, self.zeros)

    def _word(self, text: str, is_float: bool = False) -> Words:
        """A source operand's 32 bits, of float32 where `is_float`."""
        register = _REGISTER.match(text)
        if register is not None:
            minus, inverted, absolute, name = register.groups()[:4]
            value = self._plain(name)
            if absolute:
                value = value & np.uint32(0x7FFFFFFF) if is_float else np.abs(value.view(np.int32)).view(np.uint32)
            if minus:
                value = value ^ np.uint32(0x80000000) if is_float else np.uint32(0) - value
            return ~value if inverted else value
        bank = _BANK.match(text)
        if bank is not None:
            value = self._constant(text, 1)[0]
            if bank[1]:
                value = value ^ np.uint32(0x80000000) if is_float else np.uint32(0) - value
            return value
        return np.full(len(self.zeros), _immediate(text, is_float), np.uint32)

    def _constant(self, text: str, count: int) -> list[Words]:
        match = _BANK.match(text)
        assert match is not None, text
        offsets = (self._plain(match[3]) if match[3] else self.zeros).astype(np.int64) + int(match[4] or "0", 16)
        return [self.bank[offsets // 4 + k] for k in range(count)]

    def _pair(self, text: str) -> Words:
        """A source of 64 bits, as a number."""
        register = _REGISTER.match(text)
        if register is None or register[4].endswith("RZ"):
            low = self._word(text)
            return low.view(np.int32).astype(np.int64)
        kind, number = re.match(r"(U?R)(\d+)", register[4]).groups()  # type: ignore[union-attr]
        low, high = self._plain(register[4]), self._plain(f"{kind}{int(number) + 1}")
        value = low.astype(np.int64) | (high.astype(np.int64) << 32)
        return -value if register[1] else value

    def _float(self, text: str) -> Words:
        return self._word(text, True).view(np.float32)

    def _set(self, name: str, value: Words, k: int = 0) -> None:
        """Write 32 bits to the register, or the k-th after it, of the threads that act."""
        kind, number = re.match(r"(U?R)(\w+)", name).groups()  # type: ignore[union-attr]
        if number == "Z":
            return
        name = f"{kind}{int(number) + k}"
        if value.dtype != np.uint32:
            value = value.astype(np.int64).astype(np.uint32) if value.dtype.kind in "iub" else value
        if value.dtype == np.float32:
            value = value.view(np.uint32)
        before = self.registers.get(name)
        self.registers[name] = np.where(self.mask, value, self.zeros if before is None else before)

    def _set_predicate(self, name: str, value: Mask) -> None:
        if name.endswith("T"):
            return
        self.predicates[name] = np.where(self.mask, value, self._predicate(name))

    # --- Instructions -----------------------------------------------------------------------------------------------

    def _execute(self, one: Instruction, active: Mask) -> None:
        self.mask = active & self._predicate(one.guard) if one.guard else active
        getattr(self, f"_{one.opcode.removeprefix('U').lower()}")(one, *one.operands)  # of a warp as of threads

    def _sources(self, one: Instruction) -> tuple[list[str], list[str], list[str]]:
        """Results, sources and predicates after them, of an instruction with carries."""
        results = [one.operands[0]]
        rest = list(one.operands[1:])
        while _PREDICATE.match(rest[0]):
            results.append(rest.pop(0))
        last = len(rest)
        while _PREDICATE.match(rest[last - 1]):
            last -= 1
        return results, rest[:last], rest[last:]

    def _wide(self, text: str) -> Words:
        """32 bits as an unsigned number; of -x its complement plus one, whose carry counts."""
        if text.startswith("-") and not text.startswith("-c") and _REGISTER.match(text):
            return (~self._word(text[1:])).astype(np.int64) + 1
        return self._word(text).astype(np.int64)

    def _add(self, results: list[str], total: Words, carries: list[str]) -> None:
        for carry in carries:
            total = total + self._predicate(carry)
        self._set(results[0], total & 0xFFFFFFFF)
        for name in results[1:2]:
            self._set_predicate(name, (total >> 32) != 0)
        for name in results[2:]:
            self._set_predicate(name, (total >> 32) > 1)

    def _iadd3(self, one: Instruction, *_: str) -> None:
        results, sources, carries = self._sources(one)
        total = sum((self._wide(source) for source in sources), np.zeros(len(self.zeros), np.int64))
        self._add(results, total, carries if "X" in one.modifiers else [])

    def _viadd(self, one: Instruction, result: str, a: str, b: str) -> None:
        self._set(result, self._word(a) + self._word(b))

    def _imad(self, one: Instruction, *_: str) -> None:
        results, (a, b, c), carries = self._sources(one)
        words = [self._word(each) for each in (a, b)]
        unsigned = "U32" in one.modifiers
        first, second = (each.astype(np.int64) if unsigned else each.view(np.int32).astype(np.int64) for each in words)
        if "WIDE" in one.modifiers or "HI" in one.modifiers:
            with np.errstate(over="ignore"):
                total = (first.astype(np.uint64) * second.astype(np.uint64)) + self._pair(c).astype(np.uint64)
            high = (total >> np.uint64(32)).astype(np.uint32)
            if "HI" in one.modifiers:
                if not unsigned:
                    high = ((first * second + self._pair(c)) >> 32).astype(np.uint32)
                self._set(results[0], high)
                return
            self._set(results[0], total.astype(np.uint32))
            self._set(results[0], high, 1)
            for name in results[1:]:
                self._set_predicate(name, np.zeros(len(high), bool))
            return
        total = words[0] * words[1] + self._word(c)
        for carry in carries if "X" in one.modifiers else []:
            total = total + self._predicate(carry).astype(np.uint32)
        self._set(results[0], total)

    def _lea(self, one: Instruction, *_: str) -> None:
        results, sources, carries = self._sources(one)
        shift = _immediate(sources[-1], False)
        a, b = self._word(sources[0]).astype(np.int64), self._wide(sources[1])
        if "HI" in one.modifiers:
            if "SX32" in one.modifiers:
                high = a.astype(np.uint32).view(np.int32).astype(np.int64) >> (32 - shift)
            else:
                above = self._word(sources[2]).astype(np.int64)
                high = (above << shift) | (a >> (32 - shift))
            self._add(results, (high & 0xFFFFFFFF) + b, carries if "X" in one.modifiers else [])
            return
        self._add(results, ((a << shift) & 0xFFFFFFFF) + b, [])

    def _lop3(self, one: Instruction, *operands: str) -> None:
        *results, a, b, c, table, _ = operands
        words, lut = [self._word(each) for each in (a, b, c)], _immediate(table, False)
        total = self.zeros.copy()
        for k in range(8):
            if lut >> k & 1:
                terms = [word if k >> (2 - j) & 1 else ~word for j, word in enumerate(words)]
                total |= terms[0] & terms[1] & terms[2]
        for name in results:
            if _PREDICATE.match(name):
                self._set_predicate(name, total != 0)
            else:
                self._set(name, total)

    def _plop3(self, one: Instruction, *operands: str) -> None:
        first, second, a, b, c, table, other = operands
        inputs = [self._predicate(each) for each in (a, b, c)]
        for name, lut in ((first, _immediate(table, False)), (second, _immediate(other, False))):
            total = np.zeros(len(self.zeros), bool)
            for k in range(8):
                if lut >> k & 1:
                    terms = [value if k >> (2 - j) & 1 else ~value for j, value in enumerate(inputs)]
                    total |= terms[0] & terms[1] & terms[2]
            self._set_predicate(name, total)

    def _shf(self, one: Instruction, result: str, a: str, by: str, c: str) -> None:
        low, high = self._word(a).astype(np.uint64), self._word(c).astype(np.uint64)
        shift = np.minimum(self._word(by), 63).astype(np.uint64)
        both = (high << np.uint64(32)) | low
        if "L" in one.modifiers:
            total = both << shift if "HI" in one.modifiers else low << shift
            self._set(result, (total >> np.uint64(32) if "HI" in one.modifiers else total).astype(np.uint32))
        elif "HI" in one.modifiers and "S32" in one.modifiers:
            self._set(result, self._word(c).view(np.int32) >> np.minimum(shift, 31).astype(np.int32))
        elif "HI" in one.modifiers:
            self._set(result, (high >> shift).astype(np.uint32))
        else:
            self._set(result, (both >> shift).astype(np.uint32))

    def _prmt(self, one: Instruction, result: str, a: str, choice: str, c: str) -> None:
        both = self._word(a).astype(np.uint64) | (self._word(c).astype(np.uint64) << np.uint64(32))
        selected, total = self._word(choice).astype(np.uint64), self.zeros.astype(np.uint64)
        for k in range(4):
            nibble = selected >> np.uint64(4 * k)
            byte = (both >> (np.uint64(8) * (nibble & np.uint64(7)))) & np.uint64(255)
            byte = np.where(nibble & np.uint64(8), np.where(byte & np.uint64(128), 255, 0).astype(np.uint64), byte)
            total |= byte << np.uint64(8 * k)
        self._set(result, total.astype(np.uint32))

    def _iabs(self, one: Instruction, result: str, a: str) -> None:
        self._set(result, np.abs(self._word(a).view(np.int32).astype(np.int64)))

    def _minmax(self, one: Instruction, result: str, a: Words, b: Words, which: str) -> None:
        if "U32" not in one.modifiers:
            a, b = a.view(np.int32), b.view(np.int32)
        found = np.where(self._predicate(which), np.minimum(a, b), np.maximum(a, b))
        self._set(result, np.maximum(found, 0) if "RELU" in one.modifiers else found)

    def _vimnmx(self, one: Instruction, result: str, a: str, b: str, which: str) -> None:
        self._minmax(one, result, self._word(a), self._word(b), which)

    def _viaddmnmx(self, one: Instruction, result: str, a: str, b: str, c: str, which: str) -> None:
        self._minmax(one, result, self._word(a) + self._word(b), self._word(c), which)

    def _compare(self, name: str, a: Words, b: Words) -> Mask:
        found = {
            "LT": a < b, "LE": a <= b, "GT": a > b, "GE": a >= b, "EQ": a == b, "NE": (a != b) & (a == a) & (b == b),
            "LTU": ~(a >= b), "LEU": ~(a > b), "GTU": ~(a <= b), "GEU": ~(a < b), "NEU": a != b,
            "NAN": (a != a) | (b != b), "NUM": (a == a) & (b == b),
        }  # fmt: skip
        return found[name]

    def _combined(self, one: Instruction, first: str, second: str, found: Mask, other: str) -> None:
        """Write a comparison, with the predicate `other`, to `first`, and its opposite to `second`."""
        is_or = "OR" in one.modifiers
        beside = self._predicate(other)
        values = [each | beside if is_or else each & beside for each in (found, ~found)]
        self._set_predicate(first, values[0])
        self._set_predicate(second, values[1])

    def _isetp(self, one: Instruction, first: str, second: str, a: str, b: str, other: str, low: str = "") -> None:
        words = self._word(a), self._word(b)
        left, right = words if "U32" in one.modifiers else (each.view(np.int32) for each in words)
        name = one.modifiers[0]
        found = self._compare(name, left, right)
        if "EX" in one.modifiers:
            below = self._predicate(low)
            if name == "NE":
                found = found | below
            elif name == "EQ":
                found = found & below
            else:
                found = self._compare(name[0] + "T", left, right) | ((left == right) & below)
        self._combined(one, first, second, found, other)

    def _fsetp(self, one: Instruction, first: str, second: str, a: str, b: str, other: str) -> None:
        self._combined(one, first, second, self._compare(one.modifiers[0], self._float(a), self._float(b)), other)

    def _mov(self, one: Instruction, result: str, a: str, *_: str) -> None:
        self._set(result, self._word(a))

    def _cs2r(self, one: Instruction, result: str, a: str) -> None:
        self._set(result, self.zeros)
        if "32" not in one.modifiers:
            self._set(result, self.zeros, 1)

    def _s2r(self, one: Instruction, result: str, a: str) -> None:
        self._set(result, self.special.get(a, self.zeros))

    _s2ur = _s2r
    _r2ur = _mov

    def _sel(self, one: Instruction, result: str, a: str, b: str, which: str) -> None:
        is_float = one.opcode == "FSEL"
        self._set(result, np.where(self._predicate(which), self._word(a, is_float), self._word(b, is_float)))

    _fsel = _sel

    def _p2r(self, one: Instruction, result: str, _: str, a: str, mask: str) -> None:
        bits = self._word(a)
        for k in range(7):
            if _immediate(mask, False) >> k & 1:
                bits = np.where(self._predicate(f"P{k}"), bits | np.uint32(1 << k), bits & np.uint32(~(1 << k) & 127))
        self._set(result, bits)

    def _r2p(self, one: Instruction, _: str, a: str, mask: str) -> None:
        for k in range(7):
            if _immediate(mask, False) >> k & 1:
                self._set_predicate(f"P{k}", (self._word(a) >> np.uint32(k) & np.uint32(1)) != 0)

    # --- float32 and float16 ----------------------------------------------------------------------------------------

    def _fadd(self, one: Instruction, result: str, a: str, b: str) -> None:
        self._set(result, self._float(a) + self._float(b))

    def _fmul(self, one: Instruction, result: str, a: str, b: str) -> None:
        self._set(result, self._float(a) * self._float(b))

    def _ffma(self, one: Instruction, result: str, a: str, b: str, c: str) -> None:
        first, second, third = (self._float(each).astype(np.float64) for each in (a, b, c))
        self._set(result, (first * second + third).astype(np.float32))

    def _fmnmx(self, one: Instruction, result: str, a: str, b: str, which: str) -> None:
        first, second = self._float(a), self._float(b)
        self._set(result, np.where(self._predicate(which), np.fmin(first, second), np.fmax(first, second)))

    def _mufu(self, one: Instruction, result: str, a: str) -> None:
        x = self._float(a)
        values = {"RCP": lambda: 1 / x, "RSQ": lambda: 1 / np.sqrt(x), "SQRT": lambda: np.sqrt(x)}
        self._set(result, values[one.modifiers[0]]().astype(np.float32))

    def _fchk(self, one: Instruction, result: str, a: str, b: str) -> None:
        self._set_predicate(result, np.zeros(len(self.zeros), bool))  # the numbers here need no special division

    def _i2f(self, one: Instruction, result: str, a: str) -> None:
        word = self._word(a)
        self._set(result, (word if "U32" in one.modifiers else word.view(np.int32)).astype(np.float32))

    _i2fp = _i2f

    def _f2i(self, one: Instruction, result: str, a: str) -> None:
        self._set(result, np.nan_to_num(self._float(a)).astype(np.int64))

    def _f2f(self, one: Instruction, result: str, a: str) -> None:
        """A float64, in a pair of registers or in constant memory, as float32."""
        if _BANK.match(a) is None:
            value = self._pair(a)
        else:
            low, high = (word.astype(np.int64) for word in self._constant(a, 2))
            value = low | (high << 32)
        self._set(result, value.view(np.float64).astype(np.float32))

    def _f2fp(self, one: Instruction, result: str, a: str, b: str) -> None:
        halves = [self._float(each).astype(np.float16) for each in (a, b)]
        if "RELU" in one.modifiers:
            halves = [np.maximum(each, 0) for each in halves]
        high, low = (each.view(np.uint16).astype(np.uint32) for each in halves)
        self._set(result, (high << np.uint32(16)) | low)

    def _halves(self, text: str) -> list[Words]:
        """The low and the high half of an operand as float32."""
        register = _REGISTER.match(text)
        if register is None:
            value = np.full(len(self.zeros), float(text), np.float32)
            return [value, value]
        word = self._plain(register[4])
        low, high = (
            part.astype(np.uint16).view(np.float16).astype(np.float32) for part in (word, word >> np.uint32(16))
        )
        modifiers = register[5] + register[6]
        found = [low, low] if "H0_H0" in modifiers else [high, high] if "H1_H1" in modifiers else [low, high]
        return [-each for each in found] if register[1] else found

    def _hadd2(self, one: Instruction, result: str, a: str, b: str) -> None:
        first, second = self._halves(a), self._halves(b)
        if "F32" in one.modifiers:
            self._set(result, first[0] + second[0])
        else:
            self._pack(result, [first[k] + second[k] for k in range(2)])

    def _hfma2(self, one: Instruction, result: str, a: str, b: str, *c: str) -> None:
        first, second = self._halves(a), self._halves(b)
        third = [self._halves(c[-1])[0], self._halves(c[0])[1]]  # two immediates are the high one, then the low one
        self._pack(result, [first[k] * second[k] + third[k] for k in range(2)])

    def _pack(self, result: str, values: list[Words]) -> None:
        low, high = (each.astype(np.float16).view(np.uint16).astype(np.uint32) for each in values)
        self._set(result, (high << np.uint32(16)) | low)

    # --- Memory -----------------------------------------------------------------------------------------------------

    def _address(self, text: str) -> Words:
        match = _ADDRESS.search(text.rpartition("][")[2] if "][" in text else text)
        inner = match[1] if match else text.rpartition("][")[2].rstrip("]")
        total = np.zeros(len(self.zeros), np.int64)
        for part in re.findall(r"[^+]+", inner.strip("[]")):
            if part.startswith(("R", "U")):
                name, _, modifier = part.partition(".")
                value = self._pair(name) if modifier == "64" or "][" in text else self._plain(name).astype(np.int64)
                total = total + value * (int(modifier[1:]) if modifier.startswith("X") else 1)
            else:
                total = total + int(part, 16)
        return total

    def _form(self, one: Instruction) -> tuple[int, type]:
        for modifier in one.modifiers:
            if modifier in ("64", "128"):
                return int(modifier) // 32, np.uint32
            if modifier in ("U16", "S16", "U8", "S8"):
                return 1, np.uint16 if modifier.endswith("16") else np.uint8
        return 1, np.uint32

    def _touched(self, one: Instruction, place: str) -> tuple[Words, Words]:
        """The array of each thread's access to global memory, and the offset in it; its bytes are counted."""
        address, (count, dtype) = self._address(place), self._form(one)
        number = np.clip((address >> ADDRESS_BITS) - 1, 0, len(self.arrays) - 1)
        for k in np.unique(number[self.mask]):
            self.moved[k] += int((self.mask & (number == k)).sum()) * count * np.dtype(dtype).itemsize
        return number, address & ((1 << ADDRESS_BITS) - 1)

    def _ldg(self, one: Instruction, result: str, place: str, *_: str) -> None:
        number, offset = self._touched(one, place)
        mask = self.mask
        for k in np.unique(number[mask]):
            array = self.arrays[int(k)]
            assert array is not None, one
            self.mask = mask & (number == k)
            for word, value in enumerate(array.words(offset, *self._form(one))):
                self._set(result, value, word)
        self.mask = mask

    def _stg(self, one: Instruction, place: str, *_: str) -> None:
        """Keep nothing: no kernel reads global memory that it writes."""
        self._touched(one, place)

    def _nothing(self, one: Instruction, *_: str) -> None:
        """Do nothing that a branch depends on."""

    _redg = _atoms = _nop = _warpsync = _endcollective = _nothing

    def _lds(self, one: Instruction, result: str, place: str) -> None:
        address, (count, dtype) = self._address(place), self._form(one)
        size = np.dtype(dtype).itemsize
        words = self.shared.view(dtype)
        for k in range(count):
            self._set(result, words[(address // size + k) % len(words)].astype(np.uint32), k)

    def _sts(self, one: Instruction, place: str, value: str) -> None:
        address, (count, dtype) = self._address(place), self._form(one)
        size = np.dtype(dtype).itemsize
        words = self.shared.view(dtype)
        match = re.match(r"(U?R)(\w+)", value)
        assert match is not None
        for k in range(count):
            name = value if match[2] == "Z" else f"{match[1]}{int(match[2]) + k}"
            words[address[self.mask] // size + k] = self._plain(name.partition(".")[0])[self.mask].astype(dtype)

    def _ldc(self, one: Instruction, result: str, place: str) -> None:
        for k, value in enumerate(self._constant(place, 2 if "64" in one.modifiers else 1)):
            self._set(result, value, k)

    # --- Between threads --------------------------------------------------------------------------------------------

    def _bssy(self, one: Instruction, name: str, _: str) -> None:
        warps = np.arange(len(self.zeros)) // WARP
        self.number += 1
        group = self.groups.setdefault(name, np.full(len(self.zeros), -1))
        self.groups[name] = np.where(self.mask, (self.number << 10) + warps, group)

    def _shfl(self, one: Instruction, valid: str, result: str, a: str, by: str, _: str) -> None:
        lanes = np.arange(len(self.zeros))
        step = self._word(by).astype(np.int64)
        other = {"BFLY": lanes ^ step, "DOWN": lanes + step, "UP": lanes - step, "IDX": lanes // WARP * WARP + step}
        source = other[one.modifiers[0]]
        inside = source // WARP == lanes // WARP
        self._set(result, self._word(a)[np.where(inside, source, lanes)])
        self._set_predicate(valid, inside)

    def _by_warp(self, lanes: Mask) -> Words:
        """For each thread the lanes of its warp as bits."""
        bits = (lanes.reshape(-1, WARP) * (np.uint64(1) << np.arange(WARP, dtype=np.uint64))).sum(axis=1)
        return np.repeat(bits.astype(np.uint32), WARP)

    def _vote(self, one: Instruction, *operands: str) -> None:
        lanes = self._by_warp(self._predicate(operands[-1]) & self.mask)
        for name in operands[:-1]:
            if _PREDICATE.match(name):
                self._set_predicate(name, lanes != 0)
            else:
                self._set(name, lanes)

    _voteu = _vote

    def _flo(self, one: Instruction, result: str, a: str) -> None:
        self._set(result, np.log2(np.maximum(self._word(a), 1)).astype(np.int64))

    def _redux(self, one: Instruction, result: str, a: str) -> None:
        self._set(result, self._word(a))

    def _b2r(self, one: Instruction, result: str, predicate: str) -> None:
        self._set_predicate(predicate, np.full(len(self.zeros), self.voted))
        self.voted = False


def _immediate(text: str, is_float: bool) -> int:
    text = text.lstrip("+")
    if text.startswith(("0x", "-0x")):
        return int(text, 16) & 0xFFFFFFFF
    if is_float:
        named = {"INF": np.inf, "-INF": -np.inf, "QNAN": np.nan, "-QNAN": -np.nan}
        return int(np.float32(named.get(text) if text in named else float(text)).view(np.uint32))
    return int(text, 0) & 0xFFFFFFFF
