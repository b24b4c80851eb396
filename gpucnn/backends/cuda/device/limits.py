"""Sizes that all devices share: sectors, lines, banks and the shared memory of a block."""

from __future__ import annotations

MAX_SHARED_BYTES = 48 << 10  # of one block
SECTOR_BYTES = 32  # smallest transfer of global memory
BANKS = 32  # of shared memory, words of 4 bytes
LINE_BYTES = 128


def power_of_two(least: int) -> int:
    """The smallest power of two that is at least `least`."""
    return 1 << max(0, least - 1).bit_length()
