"""Networks as ONNX files."""

from gpucnn.onnx.exporting import export

__all__ = ["export"]
