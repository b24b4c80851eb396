"""``python -m benchmarks.gpu_check``: what a GPU has to show that the CUDA kernels run on it as they should.

Each part runs in processes of its own, for a kernel that reads out of bounds leaves its process without a GPU, and one
that hangs ends with its process. `__main__` is the command, `parts` what it runs, `worker` a process that runs checks.
"""
