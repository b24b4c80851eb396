"""Convolution and locally connected layers as CUDA kernels and GEMMs."""
