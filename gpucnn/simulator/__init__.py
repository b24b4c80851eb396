"""Runs the CUDA kernels on a CPU, with checks: a third kind of array, and what stands in for CuPy beneath it."""
