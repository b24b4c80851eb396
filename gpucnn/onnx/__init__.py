"""ONNX models: `load` one and run it on arrays of any kind that gpucnn computes on, or `export` a network.

The extra ``gpucnn[onnx]`` brings the package onnx, which reads and writes the files.
"""

from gpucnn.onnx.errors import ModelError, UnsupportedError
from gpucnn.onnx.exporting import export
from gpucnn.onnx.graph import Value
from gpucnn.onnx.model import Model, load

__all__ = ["Model", "ModelError", "UnsupportedError", "Value", "export", "load"]
