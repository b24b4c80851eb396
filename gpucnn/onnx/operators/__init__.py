"""The operators that run, by family; importing this fills the table of `registry`."""

import gpucnn.onnx.operators.activation
import gpucnn.onnx.operators.control
import gpucnn.onnx.operators.convolution
import gpucnn.onnx.operators.creation
import gpucnn.onnx.operators.deformable
import gpucnn.onnx.operators.detection
import gpucnn.onnx.operators.elementwise
import gpucnn.onnx.operators.indexing
import gpucnn.onnx.operators.linear
import gpucnn.onnx.operators.normalization
import gpucnn.onnx.operators.pooling
import gpucnn.onnx.operators.quantization
import gpucnn.onnx.operators.recurrent
import gpucnn.onnx.operators.reduction
import gpucnn.onnx.operators.resampling
import gpucnn.onnx.operators.shaping
import gpucnn.onnx.operators.signal  # noqa: F401
