"""Compilation of C++ at run time, with a disk cache: shared by the CPU backend and the simulator."""
