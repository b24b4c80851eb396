"""Norms as CUDA kernels."""
