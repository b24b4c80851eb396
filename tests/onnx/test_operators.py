"""Operators beyond the standard's cases: attributes together, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_backends import ArrayBackend

pytest.importorskip("onnx.checker", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

import onnxruntime as runtime
from building import model, node
from onnx import helper

import gpucnn.onnx
from gpucnn.onnx import UnsupportedError

RNG = np.random.default_rng(11)


def array(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


LSTM = [array(4, 3, 5), array(2, 8, 5), array(2, 8, 2), array(2, 16)]  # x, w, r, b
GRU = [LSTM[0], array(2, 6, 5), array(2, 6, 2), array(2, 12)]
RNN = [LSTM[0], array(2, 2, 5), array(2, 2, 2), array(2, 4)]
LENGTHS = np.int32([4, 1, 3])
STATES = [array(2, 3, 2), array(2, 3, 2)]
BOTH = {"direction": "bidirectional", "hidden_size": 2}


def one_way(arrays: list[Any]) -> list[Any]:
    return [arrays[0], *(array[:1] for array in arrays[1:])]


IMAGE = array(2, 4, 7, 9)

# operator, arrays (None is one that is left out), attributes, number of outputs
CASES: dict[str, tuple[str, list[Any], dict[str, Any], int]] = {
    "conv 1d": ("Conv", [array(2, 4, 11), array(6, 2, 3), array(6)],
                {"group": 2, "strides": [2], "dilations": [2], "pads": [1, 3]}, 1),
    "conv 3d": ("Conv", [array(1, 2, 5, 6, 4), array(3, 2, 2, 3, 1)],
                {"auto_pad": "SAME_LOWER", "strides": [2, 1, 3]}, 1),
    "conv of one filter": ("Conv", [IMAGE, array(1, 4, 3, 2), array(1)],
                           {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]}, 1),
    "depthwise": ("Conv", [IMAGE, array(8, 1, 3, 2), array(8)], {"group": 4, "auto_pad": "SAME_UPPER"}, 1),
    "transposed": ("ConvTranspose", [IMAGE, array(4, 3, 3, 2), array(6)],
                   {"group": 2, "strides": [2, 3], "output_padding": [1, 2], "pads": [1, 0, 2, 1]}, 1),
    "transposed to a shape": ("ConvTranspose", [IMAGE, array(4, 2, 3, 3)],
                              {"strides": [2, 2], "output_shape": [14, 17]}, 1),
    "transposed, same": ("ConvTranspose", [IMAGE, array(4, 2, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, 1),
    "transposed 1d": ("ConvTranspose", [array(2, 3, 5), array(3, 2, 4)], {"dilations": [2]}, 1),
    "indices": ("MaxPool", [IMAGE], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, 2),
    "indices by columns": ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "storage_order": 1}, 2),
    "average, ceil": ("AveragePool", [IMAGE], {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}, 1),
    "average with padding": ("AveragePool", [IMAGE],
                             {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, 1),
    "lp": ("LpPool", [IMAGE], {"kernel_shape": [3, 2], "strides": [2, 1], "p": 3}, 1),
    "global lp": ("GlobalLpPool", [IMAGE], {"p": 2}, 1),
    "batch norm": ("BatchNormalization", [IMAGE, array(4), array(4), array(4), np.abs(array(4))], {"epsilon": 0.1}, 1),
    "instance norm": ("InstanceNormalization", [IMAGE, array(4), array(4)], {}, 1),
    "layer norm": ("LayerNormalization", [IMAGE, array(7, 9), array(7, 9)], {"axis": 2}, 3),
    "group norm": ("GroupNormalization", [IMAGE, array(4), array(4)], {"num_groups": 2}, 1),
    "response": ("LRN", [IMAGE], {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 1.5}, 1),
    "lstm": ("LSTM", one_way(LSTM), {"hidden_size": 2}, 3),
    "lstm in reverse": ("LSTM", [*one_way(LSTM), LENGTHS], {"hidden_size": 2, "direction": "reverse"}, 3),
    "lstm, all of it": ("LSTM", [*LSTM, LENGTHS, *STATES, array(2, 6)],
                        {**BOTH, "clip": 0.8, "activations": ["HardSigmoid", "Tanh", "Affine"] * 2,
                         "activation_alpha": [0.3, 0.5, 0.4, 0.6], "activation_beta": [0.4, 0.1, 0.5, 0.2]}, 3),
    "lstm without a forget gate": ("LSTM", [*LSTM, None, *STATES], {**BOTH, "input_forget": 1}, 3),
    "gru": ("GRU", [*GRU, LENGTHS, STATES[0]], {**BOTH}, 2),
    "gru, reset after": ("GRU", [*GRU], {**BOTH, "linear_before_reset": 1}, 2),
    "rnn": ("RNN", [*RNN, LENGTHS, STATES[0]], {**BOTH, "activations": ["Relu", "Tanh"], "clip": 1.5}, 2),
    "resize, cubic": ("Resize", [IMAGE, None, np.float32([1, 1, 1.7, 0.6])],
                      {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}, 1),
    "resize, antialiased": ("Resize", [IMAGE, None, None, ints(2, 4, 3, 5)], {"mode": "linear", "antialias": 1}, 1),
    "resize, cropped": ("Resize", [IMAGE, np.float32([0, 0, 0.2, -0.1, 1, 1, 0.9, 1.2]), None, ints(2, 4, 5, 6)],
                        {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize",
                         "extrapolation_value": 3.0}, 1),
    "resize, first axes": ("Resize", [array(3, 4, 5), None, np.float32([2, 1, 1.5])], {"mode": "nearest"}, 1),
    "pad, reflect": ("Pad", [IMAGE, ints(0, 0, 2, 1, 0, 0, 3, 4)], {"mode": "reflect"}, 1),
    "pad, edge and crop": ("Pad", [IMAGE, ints(-1, 2, 1, -3), None, ints(3, 2)], {"mode": "edge"}, 1),
    "pad, wrap": ("Pad", [IMAGE, ints(0, 3, 8, 1, 0, 5, -1, 2)], {"mode": "wrap"}, 1),
    "pad by a number": ("Pad", [IMAGE, ints(1, 0, 0, 2, 0, 1, 0, -1), np.float32(-2)], {}, 1),
    "slice backwards": ("Slice", [IMAGE, ints(-1, 5), ints(-9999, 1), ints(3, -2), ints(-2, -3)], {}, 1),
    "split unequally": ("Split", [IMAGE], {"axis": 3, "num_outputs": 4}, 4),
    "gather": ("Gather", [IMAGE, np.int64([[0, -1], [3, 2]])], {"axis": 1}, 1),
    "gather elements": ("GatherElements", [array(3, 4), np.int64([[0, -1], [2, 1]])], {"axis": 1}, 1),
    "gather nd": ("GatherND", [array(2, 3, 4), np.int64([[[1], [0]], [[2], [-1]]])], {"batch_dims": 1}, 1),
    "scatter and add": ("ScatterElements", [array(3, 4), np.int64([[1, 1], [0, -1]]), array(2, 2)],
                        {"axis": 1, "reduction": "add"}, 1),
    "scatter nd": ("ScatterND", [array(4, 3), np.int64([[1], [-1]]), array(2, 3)], {"reduction": "mul"}, 1),
    "one hot": ("OneHot", [np.int64([1, -1, 7]), ints(4), np.float32([-1, 5])], {"axis": 0}, 1),
    "top k": ("TopK", [np.float32([[1, 3, 3, 2, 3]]), ints(3)], {}, 2),
    "least k": ("TopK", [IMAGE, ints(3)], {"axis": 2, "largest": 0}, 2),
    "argmin, last": ("ArgMin", [np.float32([[2, 1, 1]])], {"axis": 1, "select_last_index": 1, "keepdims": 0}, 1),
    "mean": ("ReduceMean", [IMAGE, ints(-1, 1)], {"keepdims": 0}, 1),
    "mean of integers": ("ReduceMean", [np.int32([[1, 2, 6], [-3, -3, 0]]), ints(1)], {}, 1),
    "log sum exp": ("ReduceLogSumExp", [IMAGE * 100, ints(-1, 1)], {"keepdims": 0}, 1),
    "running sum": ("CumSum", [array(3, 4), ints(-1)], {"exclusive": 1, "reverse": 1}, 1),
    "gemm": ("Gemm", [array(3, 4), array(5, 3), array(4, 1)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}, 1),
    "integer division": ("Div", [np.int32([-7, 7, -6, 5]), np.int32([2, -2, 3, 5])], {}, 1),
    "remainder": ("Mod", [np.int32([-7, 7, -6]), np.int32([3, -3, 4])], {}, 1),
    "truncated remainder": ("Mod", [np.int32([-7, 7, -6]), np.int32([3, -3, 4])], {"fmod": 1}, 1),
    "erf": ("Erf", [np.float32([-3, -1e-4, 0, 1e-6, 0.5, 2, 9])], {}, 1),
    "square": ("Pow", [array(3, 4), np.float32(2)], {}, 1),
    "integers by halves": ("Pow", [np.float32([4, 9]), np.float32([0.5, -0.5])], {}, 1),
    "depth to space": ("DepthToSpace", [IMAGE], {"blocksize": 2, "mode": "CRD"}, 1),
    "einsum": ("Einsum", [array(2, 3, 4), array(2, 4, 5)], {"equation": "bij, bjk -> bki"}, 1),
    "quantised": ("QuantizeLinear", [IMAGE, np.float32([0.1, 0.2, 0.05, 0.01]), np.int8([0, 3, -5, 100])],
                  {"axis": 1}, 1),
    "quantised conv": ("QLinearConv", [
        RNG.integers(0, 256, (1, 2, 5, 4)).astype(np.uint8), np.float32(0.02), np.uint8(120),
        RNG.integers(-128, 128, (3, 2, 3, 3)).astype(np.int8), np.float32([0.01, 0.02, 0.005]), np.int8([0, 0, 0]),
        np.float32(0.05), np.uint8(128), np.int32([100, -2000, 7])], {"pads": [1, 1, 1, 1]}, 1),
    "deformed": ("DeformConv", [IMAGE, array(6, 2, 3, 2), 2 * array(2, 24, 4, 5), array(6), array(2, 12, 4, 5)],
                 {"group": 2, "offset_group": 2, "strides": [2, 2], "pads": [1, 0, 1, 1], "dilations": [1, 1]}, 1),
    "sampled": ("GridSample", [IMAGE, array(2, 3, 5, 2)], {"mode": "cubic", "padding_mode": "border"}, 1),
    "sampled volumes": ("GridSample", [array(1, 2, 3, 4, 5), array(1, 2, 3, 2, 3)],
                        {"padding_mode": "reflection", "align_corners": 1}, 1),
    "nonzero": ("NonZero", [np.float32([[0, 1], [2, 0]])], {}, 1),
    "stft": ("STFT", [array(2, 32, 1), ints(4)[0], array(8)], {}, 1),
    "softmax": ("Softmax", [IMAGE * 50], {"axis": 1}, 1),
    "hard sigmoid": ("HardSigmoid", [IMAGE], {"alpha": 0.4, "beta": 0.3}, 1),
    "selu": ("Selu", [IMAGE * 9], {}, 1),
    "softplus": ("Softplus", [IMAGE * 200], {}, 1),
}  # fmt: skip


def built(op: str, arrays: list[Any], attributes: dict[str, Any], outputs: int) -> tuple[bytes, list[Any]]:
    """The model of one node, and the array that is its input; the others are its constants."""
    names = ["" if given is None else f"i{at}" for at, given in enumerate(arrays)]
    proto = model(
        [node(op, names, [f"o{at}" for at in range(outputs)], **attributes)],
        {},
        [f"o{at}" for at in range(outputs)],
        {name: given for name, given in zip(names[1:], arrays[1:], strict=True) if name},
        opset=20 if op != "GroupNormalization" else 21,
    )
    proto.ir_version = 10
    dtype = helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
    proto.graph.input.append(helper.make_tensor_value_info("i0", dtype, arrays[0].shape))
    return proto.SerializeToString(), arrays[:1]


@pytest.mark.table(1000)
@pytest.mark.parametrize("case", CASES)
def test_operators_give_what_onnx_runtime_gives(backend: ArrayBackend, case: str) -> None:
    op, arrays, attributes, outputs = CASES[case]
    content, given = built(op, arrays, attributes, outputs)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"i0": given[0]})
    try:
        results = gpucnn.onnx.load(content).run([backend.asarray(given[0])])
    except UnsupportedError:
        assert not backend.primitives.host, "refused on a device alone"
        return
    for result, wanted in zip(results, expected, strict=True):
        found = result if isinstance(result, np.ndarray) else backend.asnumpy(result)
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-5)
