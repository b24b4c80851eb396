"""Memory of what pure functions made, bounded in bytes."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

ENTRY_BYTES = 512  # of the arguments, and of the tables that find a result by them


def kept(most_bytes: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Keep the latest results of a pure function, found by its positional arguments, in at most so many bytes.

    A result larger than an eighth of that is made anew each time: it takes far longer to make use of than to make, and
    would drive out many others. ``cache_bytes()`` of the decorated function tells what is kept, ``cache_clear()``
    drops it.
    """

    def decorate(make: Callable[P, R]) -> Callable[P, R]:
        results: OrderedDict[Any, tuple[R, int]] = OrderedDict()
        lock = Lock()
        total = 0

        @wraps(make)
        def recall(*arguments: P.args, **named: P.kwargs) -> R:
            nonlocal total
            with lock:
                found = results.get(arguments)
                if found is not None:
                    results.move_to_end(arguments)
                    return found[0]
            result = make(*arguments, **named)
            size = ENTRY_BYTES + bytes_of(result)
            if size <= most_bytes // 8:
                with lock:
                    if arguments not in results:
                        results[arguments] = result, size
                        total += size
                    while total > most_bytes:
                        total -= results.popitem(last=False)[1][1]
            return result

        def clear() -> None:
            nonlocal total
            with lock:
                results.clear()
                total = 0

        recall.cache_bytes, recall.cache_clear = lambda: total, clear  # type: ignore[attr-defined]
        return recall

    return decorate


def bytes_of(value: Any) -> int:
    """Bytes that `value` takes: an array's, a container's with all that it holds, or of an object of any other kind.

    Examples
    --------
    >>> bytes_of(range(10**9)) < 100 < bytes_of(tuple(range(1000)))
    True
    """
    if hasattr(value, "nbytes"):
        return sys.getsizeof(value) if value.nbytes < sys.getsizeof(value) else int(value.nbytes) + 128
    size = sys.getsizeof(value)
    if isinstance(value, tuple | list):
        size += sum(map(bytes_of, value))
    elif isinstance(value, dict):
        size += sum(bytes_of(key) + bytes_of(item) for key, item in value.items())
    elif hasattr(value, "__dict__"):
        size += bytes_of(vars(value))
    else:
        size += sum(bytes_of(getattr(value, name)) for name in getattr(type(value), "__slots__", ()))
    return size
