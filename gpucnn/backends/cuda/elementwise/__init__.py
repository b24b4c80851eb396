"""Bias, activation, masks and memory order as CUDA kernels."""
