"""The CUDA driver, runtime and libraries, simulated on the CPU."""
