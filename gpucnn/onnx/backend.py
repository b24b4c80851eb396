"""The interface of the package onnx to runtimes, by which its own test cases run here."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper
from onnx.backend.base import Backend, BackendRep

from gpucnn.backends import backend_named
from gpucnn.onnx.errors import ModelError, UnsupportedError
from gpucnn.onnx.model import Model, load

__all__ = ["GpucnnBackend", "GpucnnRep", "is_compatible", "prepare", "run_model", "run_node", "supports_device"]

Array = Any


class GpucnnRep(BackendRep):
    """A model that is ready to run: `run` takes its inputs in order, or one array, and returns its outputs."""

    def __init__(self, model: Model, xp: Any = np) -> None:
        self._model = model
        self._xp = xp

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Array, ...]:
        """The outputs, as NumPy arrays."""
        given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        if self._xp is not np:
            given = [self._moved(np.asarray(item)) for item in given]
        results = self._model.run(given)
        return tuple(item if isinstance(item, np.ndarray) else item.get() for item in results)

    def _moved(self, array: Array) -> Array:
        try:
            return self._xp.asarray(array)
        except (TypeError, ValueError) as error:
            raise UnsupportedError(f"a device has no arrays of dtype {array.dtype}: {error}") from None


class GpucnnBackend(Backend):
    """The functions of `onnx.backend.base.Backend`: arrays in and out are NumPy's, whatever device computes."""

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether all that a model uses is supported."""
        try:
            load(model)
        except ModelError:
            return False
        return True

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> GpucnnRep:
        """Load a model for "CPU" or "CUDA".

        Raises
        ------
        ModelError
            As `gpucnn.onnx.load`.
        RuntimeError
            There is no such device here.
        """
        name = device.partition(":")[0]
        xp = np if name == "CPU" else backend_named(name.lower()).xp
        return GpucnnRep(load(model), xp)

    @classmethod
    def run_node(cls, node: Any, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any) -> Any:
        """Run one node on arrays.

        Raises
        ------
        ModelError
            As `gpucnn.onnx.load`.
        """
        names = [name for name in node.input if name]
        described = [_described(name, array) for name, array in zip(names, inputs, strict=True)]
        results = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        opsets = [helper.make_opsetid(node.domain, kwargs["opset_version"])] if "opset_version" in kwargs else None
        graph = helper.make_graph([node], "node", described, results)
        return cls.prepare(helper.make_model(graph, opset_imports=opsets), device).run(list(inputs))

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether arrays can be computed on "CPU" or "CUDA" here."""
        name = device.partition(":")[0]
        if name == "CPU":
            return True
        try:
            backend_named(name.lower())
        except (RuntimeError, ValueError):
            return False
        return True


def _described(name: str, array: Any) -> Any:
    array = np.asarray(array)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


is_compatible = GpucnnBackend.is_compatible
prepare = GpucnnBackend.prepare
run_model = GpucnnBackend.run_model
run_node = GpucnnBackend.run_node
supports_device = GpucnnBackend.supports_device
