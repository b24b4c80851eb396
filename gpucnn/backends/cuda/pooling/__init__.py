"""Pooling, unpooling and gathering as CUDA kernels."""
