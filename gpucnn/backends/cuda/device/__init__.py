"""Devices: the runtime protocol, CuPy and the simulator beneath it, and compilation from source to function."""
