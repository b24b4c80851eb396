"""Benchmarks of gpucnn on the layers of real networks, and on whole networks.

``python -m benchmarks`` measures, on the GPU where there is one; ``pytest benchmarks/`` runs the cases under
pytest-benchmark.

======================  ==========================================================================
`layers`                a layer's shapes, floating-point operations and least bytes; pure arithmetic
`cases`                 the one table of layers, and how cases are picked from it
`data`                  a case's random arrays
`checking`              float64 expectations, independent of every provider, and the comparison
`accuracy`              rounding errors beside PyTorch's, against float64
`providers`             one small class per implementation: gpucnn, PyTorch, ONNX Runtime, plain CuPy
`timing`, `session`     the CPU: interleaved medians, limits; prepare, check, time within a budget
`networks`              whole networks on the CPU: inference and training steps
`gpu`                   layers on a GPU
`isolation`             work in processes that may be lost with the GPU, and others for what is left
`environment`           thread count, device name, versions
`results`, `targets`    the records of a run: ratios, means, JSON; the targets of a GPU's run
`report`, `plots`       reports in the terminal and in Markdown; figures
`tables`                tables for both, numbers as they show them
`progress`              the display of a run's progress
`publishing`            the files of a run, rules for replacing a committed result, exit codes
`sweep`                 layers of no network, drawn with a fixed seed, on the CPU
`kernel_profile`        the kernels' memory traffic, counted in the simulator
`kernel_gains`          what staged kernels save over plain ones, by the same counts
`gpu_check`             whether the kernels run on a GPU as they should
======================  ==========================================================================
"""
