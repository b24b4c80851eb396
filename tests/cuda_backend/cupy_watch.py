"""A record of what the CUDA backend asks of CuPy, written down while it is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Launch(NamedTuple):
    """A launch of a kernel, and the device that was the current one."""

    device: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    args: tuple[Any, ...]
    shared_bytes: int

    @property
    def addresses(self) -> tuple[int, ...]:
        """Those of the arrays among the arguments."""
        return tuple(arg.data.ptr for arg in self.args if hasattr(arg, "data"))


@dataclass
class Watch:
    """Launches of kernels, arguments of cuBLAS's products and sizes of new arrays, since the test began."""

    launches: list[Launch] = field(default_factory=list)
    products: list[tuple[Any, ...]] = field(default_factory=list)
    allocated: list[int] = field(default_factory=list)
    fails: int = 0  # the allocation that finds no memory, counted from now on; 0 for none

    def queued(self) -> int:
        """How many launches and products there were."""
        return len(self.launches) + len(self.products)

    def allocation(self, nbytes: int) -> None:
        """Write an allocation down, or let it fail."""
        self.fails -= 1
        if self.fails == 0:
            raise MemoryError
        self.allocated.append(nbytes)
