"""Benchmarks of gpucnn on the layers of real networks, and on whole networks.

``python -m benchmarks`` measures, on the GPU where there is one; ``pytest benchmarks/`` runs the cases under
pytest-benchmark.

======================  ==========================================================================
`layers`                a layer's shapes, floating-point operations and least bytes; pure arithmetic
`cases`                 the one table of layers, and how cases are picked from it
`data`                  a case's random arrays
`checking`              float64 expectations, independent of every provider, and the comparison
`providers`             one small class per implementation: gpucnn, PyTorch, ONNX Runtime, plain CuPy
`timing`, `session`     the CPU: interleaved medians, limits; prepare, check, time within a budget
`networks`              whole networks on the CPU: inference and training steps
`gpu`                   layers on a GPU
`isolation`             work in processes that may be lost with the GPU, and others for what is left
`environment`           thread count, device name, versions
`results`, `targets`    what a run leaves: records, ratios, means, JSON; what a GPU's should reach
`report`, `plots`       terminal and Markdown tables; figures
`formatting`            numbers as tables show them
`progress`              what is seen meanwhile
`publishing`            the files of a run, what may replace a committed result, exit codes
`kernel_profile`        what the kernels do to memory, counted in the simulator
`gpu_check`             whether the kernels run on a GPU as they should
======================  ==========================================================================
"""
