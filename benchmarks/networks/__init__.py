"""Whole networks: inference and a training step of one batch, on the CPU.

==================  ==============================================================================
`cases`             the table of networks, and the selection of cases from it
`subject`           a network with its weights and data, the same for every implementation
`runners`           the network as gpucnn, PyTorch and ONNX Runtime run it
`pytorch`           the networks written with torch.nn
`onnx_graph`        the ONNX graph of a network of gpucnn.nn
`checking`          the comparison of results, gradients and learned weights
`memory`            the peak of the process's memory
`session`           prepare, check and time within a budget
`report`, `plots`   tables and the figure
==================  ==============================================================================
"""
