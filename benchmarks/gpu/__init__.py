"""Benchmarks on a GPU: times by the device's own events, each call from a cold cache.

==============  ==================================================================================
`device`        the device interface of timing: memory, events, a cache to flush; CuPy's, a simulated one
`sampling`      one cold call between two events, warm calls, the host's time for a call
`limits`        the rates of a copy and of matrix products, measured the same way
`cuts`          the part of a large result that is checked against float64 arithmetic
`ahead`         gpucnn's programs, compiled in threads before the first case
`session`       prepare, check, time: one case
`worker`        the work of a process that measures cases, started by `benchmarks.isolation`
`command`       the reports of such processes, shown and kept
`fallback`      the NumPy backend on the same cases, afterwards
`environment`   the GPU's name, driver, libraries, clocks
==============  ==================================================================================
"""
