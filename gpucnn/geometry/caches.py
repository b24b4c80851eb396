"""Caches of the results of pure functions: of geometries, by their number, and of larger results, by their bytes."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache, update_wrapper, wraps
from threading import Lock
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

ENTRY_BYTES = 512  # of the arguments of a result, and of the tables that find it by them
SCALAR_BYTES = 64  # of a number, a slice or a short text, about
INTS, SCALARS = frozenset({int}), frozenset({int, float, bool, str, type(None)})
_SMALL = SCALARS | {slice, range}


def remembered(make: Callable[P, R]) -> Callable[P, R]:
    """`make`, a pure function, with a cache of its results, looked up before it reads and checks its arguments.

    Refused arguments are not cached. Arguments match only if their types do: 1, 1.0 and True do not, though they are
    equal. So only plain ones are looked up, positional scalars and tuples of ints or of such tuples; lists, NumPy's
    integers and the like are read each time. It saves 6 of the 14 us that a small conv2d spent outside its backend.
    A result has some hundred bytes, whatever the sizes, so that the cache takes about a megabyte.
    """
    kept = lru_cache(maxsize=1024, typed=True)(make)  # distinguishes types of arguments, but not of tuples' items

    @wraps(make)
    def recall(*arguments: P.args, **named: P.kwargs) -> R:
        if named:
            return make(*arguments, **named)
        values: Any = arguments
        for value in values:
            kind = type(value)
            if kind is tuple:
                if not INTS.issuperset(map(type, value)) and not all(map(is_ints, value)):
                    return make(*arguments, **named)
            elif kind not in SCALARS:
                return make(*arguments, **named)
        return kept(*arguments)

    return recall


def is_ints(value: Any) -> bool:
    """Whether `value` is a tuple of ints, of just these types."""
    return type(value) is tuple and INTS.issuperset(map(type, value))


class CacheInfo(NamedTuple):
    """Hits, misses, and the bytes of the results that are kept."""

    hits: int
    misses: int
    bytes: int


class Kept(Generic[P, R]):
    """A pure function that keeps its latest results, found by its positional arguments, in at most `most_bytes`.

    A result that takes more than an eighth of them is recomputed each time, or it would evict many others: using such
    a table takes far longer than making it.
    """

    def __init__(self, make: Callable[P, R], most_bytes: int) -> None:
        self._make, self._most_bytes = make, most_bytes
        self._results: OrderedDict[Any, tuple[R, int]] = OrderedDict()
        self._lock = Lock()
        self._hits = self._misses = self._bytes = 0
        update_wrapper(self, make)

    def __call__(self, *arguments: P.args, **named: P.kwargs) -> R:
        """The function's result."""
        with self._lock:
            found = self._results.get(arguments)
            if found is not None:
                self._results.move_to_end(arguments)
                self._hits += 1
                return found[0]
            self._misses += 1
        result = self._make(*arguments, **named)
        size = ENTRY_BYTES + bytes_of(result)
        if size <= self._most_bytes // 8 and not named:
            with self._lock:
                if arguments not in self._results:
                    self._results[arguments] = result, size
                    self._bytes += size
                while self._bytes > self._most_bytes:
                    self._bytes -= self._results.popitem(last=False)[1][1]
        return result

    def cache_info(self) -> CacheInfo:
        """Hits, misses and bytes."""
        return CacheInfo(self._hits, self._misses, self._bytes)

    def cache_clear(self) -> None:
        """Forget all results."""
        with self._lock:
            self._results.clear()
            self._hits = self._misses = self._bytes = 0


def kept(most_bytes: int) -> Callable[[Callable[P, R]], Kept[P, R]]:
    """A decorator that makes a pure function a `Kept` one.

    Examples
    --------
    >>> @kept(1 << 16)
    ... def squares(count):
    ...     return tuple(i * i for i in range(count))
    >>> squares(4), squares(4), len(squares(1000))
    ((0, 1, 4, 9), (0, 1, 4, 9), 1000)
    >>> squares.cache_info().hits, squares.cache_info().bytes < 1 << 16
    (1, True)
    """
    return lambda make: Kept(make, most_bytes)


def bytes_of(value: Any) -> int:
    """Bytes that `value` takes: an array's, or an object's with all that it holds, each part counted once.

    Examples
    --------
    >>> bytes_of(range(10**9)) < 100 < bytes_of(tuple(range(1000)))
    True
    """
    return _bytes_of(value, set())


def _bytes_of(value: Any, counted: set[int]) -> int:
    kind = type(value)
    if kind in _SMALL:
        return SCALAR_BYTES
    if id(value) in counted:
        return 0
    counted.add(id(value))
    if hasattr(value, "itemsize"):  # an array of any library
        return ENTRY_BYTES + int(value.size * value.itemsize)
    if isinstance(value, tuple | list):
        held: Any = value
    elif isinstance(value, dict):
        held = value.values()
    elif hasattr(value, "__dict__"):
        held = (vars(value),)
    else:
        held = [getattr(value, name) for name in getattr(kind, "__slots__", ())]
    large = (item for item in held if type(item) not in _SMALL)
    return sys.getsizeof(value) + SCALAR_BYTES * len(held) + sum(_bytes_of(item, counted) for item in large)
