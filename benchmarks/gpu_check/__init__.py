"""``python -m benchmarks.gpu_check``: what a GPU has to show that the CUDA kernels run on it as they should.

`__main__` is the command, `parts` what it runs, each in processes of its own; `worker` and `suite` are their work.
"""
