"""The real CuPy over the simulated CUDA libraries: an environment that runs it on a machine without a GPU."""
