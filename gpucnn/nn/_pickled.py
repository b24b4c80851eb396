"""A reader of pickles that builds plain values only: no import, no class, no call but of what the caller names.

Python's own unpickler allocates what a file claims (a memo of 2**32 places, say) before it reads; this one holds no
more than a file's bytes can say.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

MOST_STEPS = 1 << 21  # opcodes of a pickle: more than a checkpoint of 50,000 tensors has

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES",
}  # fmt: skip
_KEYS = (str, int, float, bool, type(None))  # of which the hash takes no time


class Global:
    """A function or class that a pickle names, as "module.name"."""

    def __init__(self, name: str) -> None:
        self.name = name


class PickleError(ValueError):
    """A pickle that is damaged, or holds something else than plain values."""


def unpickled(
    data: BytesIO, functions: Mapping[str, Callable[..., Any]], constants: Mapping[str, Any], persistent: Any
) -> Any:
    """The value of the pickle at the position of `data`, which is then after it.

    Parameters
    ----------
    data : BytesIO
        It holds the pickle.
    functions : mapping of str to function
        What a pickle may call, by the names that it uses.
    constants : mapping of str to object
        What it may name besides.
    persistent : function
        Gives the value of a persistent id.

    Raises
    ------
    PickleError
        It is no whole pickle, or holds something else.
    """
    machine = _Machine(functions, constants, persistent)
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if step >= MOST_STEPS:
                raise PickleError(f"it has more than {MOST_STEPS} steps")
            machine.step(opcode.name, argument)
    except PickleError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, UnicodeError, OverflowError) as error:
        raise PickleError(f"it is damaged: {error}") from None
    if len(machine.stack) != 1 or machine.marks:
        raise PickleError("it is damaged: it does not end with one value")
    return machine.stack[0]


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self, functions: Mapping[str, Any], constants: Mapping[str, Any], persistent: Any) -> None:
        self.functions, self.constants, self.persistent = functions, constants, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """One opcode."""
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            stack.append(tuple(self.popped(_TUPLES[name])))
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name not in ("PROTO", "FRAME", "STOP"):
            self.composed(name, argument)

    def composed(self, name: str, argument: Any) -> None:
        """One opcode that makes a value of several, or changes one."""
        stack = self.stack
        if name == "TUPLE":
            stack.append(tuple(self.marked()))
        elif name in ("APPEND", "APPENDS"):
            items = self.popped(1) if name == "APPEND" else self.marked()
            self.expected(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.popped(2) if name == "SETITEM" else self.marked()
            if not all(isinstance(key, _KEYS) for key in items[::2]):
                raise PickleError("a key of a dict is no string or number")
            self.expected(dict).update(zip(items[::2], items[1::2], strict=True))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            words = argument.split(" ") if name == "GLOBAL" else self.popped(2)
            stack.append(self.named(".".join(words)))
        elif name == "REDUCE":
            function, arguments = self.popped(2)
            if not isinstance(function, Global) or not isinstance(arguments, tuple):
                raise PickleError("it calls what is no function")
            stack.append(self.functions[function.name](*arguments))
        elif name == "BINPERSID":
            stack.append(self.persistent(stack.pop()))
        elif name == "BUILD":  # attributes of a dict, such as the versions of a state's modules
            self.popped(1)
            self.expected(dict)
        else:
            raise PickleError(f"it holds {name}, which plain values do not need")

    def named(self, name: str) -> Any:
        """A constant, or a function that is allowed."""
        if name in self.constants:
            return self.constants[name]
        if name not in self.functions:
            raise PickleError(f"it names {name[:100]}, which is none of the types that are read; nothing was run")
        return Global(name)

    def expected(self, kind: type) -> Any:
        """The value on top of the stack."""
        if not isinstance(self.stack[-1], kind):
            raise PickleError(f"it is damaged: it changes a {type(self.stack[-1]).__name__} like a {kind.__name__}")
        return self.stack[-1]

    def popped(self, count: int) -> list[Any]:
        """The topmost values of the stack, taken from it."""
        least = self.marks[-1] if self.marks else 0
        if len(self.stack) - count < least:
            raise PickleError("it is damaged: its stack is empty")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def marked(self) -> list[Any]:
        """The values above the last mark, taken from the stack."""
        first = self.marks.pop()
        values = self.stack[first:]
        del self.stack[first:]
        return values
