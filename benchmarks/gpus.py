"""The GPUs of the kernels' models: rates of their data sheets, in SI units."""

from __future__ import annotations

from dataclasses import dataclass

LAUNCH_S = 2e-6  # that a kernel takes at least
COPY_SHARE = 0.85  # of the memory's rate that copies reach
SUBPARTITIONS = 4  # of a multiprocessor, each with a scheduler and tensor cores
WARP = 32


@dataclass(frozen=True)
class Gpu:
    """What the models know of a GPU."""

    name: str
    architecture: str
    multiprocessors: int
    clock: float
    peak: float  # floating-point operations a second, of which mma.sync reaches 62 % on an H100
    hmma_clocks: float  # of a subpartition, for 16 x 8 x 16 products of 16 bits by mma.sync
    dram: float
    l2: float
    shared: int  # bytes of a multiprocessor,
    l1: int  # and of what it shares with L1

    @property
    def issue(self) -> float:
        """Instructions of warps that it issues in a second."""
        return self.multiprocessors * SUBPARTITIONS * self.clock


GPUS = (
    Gpu("A100", "sm_80", 108, 1.41e9, 312e12, 8.0, 2.0e12, 4.8e12, 164 << 10, 192 << 10),
    Gpu("H100", "sm_90", 132, 1.755e9, 989e12, 6.4, 3.35e12, 5.5e12, 228 << 10, 256 << 10),
    Gpu("RTX 4090", "sm_89", 128, 2.52e9, 165e12, 16.0, 1.01e12, 5.0e12, 100 << 10, 128 << 10),
)
