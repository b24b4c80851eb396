"""``python -m benchmarks.gpu_check``: checks that the CUDA kernels run correctly on a GPU.

`__main__` is the command, `parts` the parts that it runs in separate processes; `worker` and `suite` do their work.
"""
