"""Benchmarks of gpucnn on the layers of real networks.

``python -m benchmarks`` measures; ``pytest benchmarks/`` runs the cases under pytest-benchmark.

==================  ==============================================================================
`layers`            a layer's shapes, floating-point operations and least bytes; pure arithmetic
`cases`             the one table of layers, and how cases are picked from it
`data`              a case's random arrays
`checking`          float64 expectations, independent of every provider, and the comparison
`providers`         one small class per implementation: gpucnn, PyTorch, ONNX Runtime
`timing`            interleaved medians; the measured GEMM and copy limits
`environment`       thread count, device name, versions
`session`           prepare, check, time: one case after another, within a time budget
`results`           what a run leaves: records, ratios, means, JSON
`report`, `plots`   terminal and Markdown tables; figures
==================  ==============================================================================
"""
