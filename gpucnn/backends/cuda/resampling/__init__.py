"""Interpolation as CUDA kernels."""
