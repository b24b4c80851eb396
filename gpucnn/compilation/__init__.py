"""Compilation at run time, with a disk cache: shared by the CPU backend, the simulator and the CUDA backend."""
