"""im2col and col2im as CUDA kernels."""
