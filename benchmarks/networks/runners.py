"""The implementations that run a network; each is one small class.

Adding one: subclass `Runner` and name it in `RUNNERS` with the provider whose threads and version it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.networks.subject import Array, Subject
from benchmarks.providers import Call, Provider
from benchmarks.providers.base import channels_last
from benchmarks.providers.gpucnn import GpucnnCompiled, GpucnnCompiledChannelsLast, GpucnnNumpy
from benchmarks.providers.onnx_runtime import OnnxRuntime, bind, make_session
from benchmarks.providers.pytorch import PyTorch, PyTorchChannelsLast, in_channels_last

LEARNING_RATE = 1e-4  # small, so that the many steps of a run stay finite
MOMENTUM = 0.9

Results = dict[str, Array]


@dataclass(frozen=True)
class Prepared:
    """A call to check and to time, and its results by name once it has returned.

    An inference has "logits"; a training step has "loss", "gradient of NAME" for each parameter, and the state after it
    by name.
    """

    call: Call
    results: Callable[[Any], Results]


class Runner:
    """One implementation of whole networks; it has a method for each operation that it takes, given the subject.

    `inference` computes the logits of the batch, in evaluation mode, with nothing kept for a backward, and norms may be
    folded into other layers beforehand; `training_step` is forward in training mode, cross entropy, backward, and a
    step of gradient descent with momentum.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def refuses(self, operation: str) -> str | None:
        """The reason why this implementation does not take an operation, or None."""
        return None if hasattr(self, operation) else "no gradients"

    def prepare(self, subject: Subject, operation: str) -> Prepared:
        """One-time preparation, with a copy of the subject's weights."""
        prepared: Prepared = getattr(self, operation)(subject)
        return prepared


class GpucnnNetwork(Runner):
    def in_order(self, images: Array) -> Array:
        """The images in this implementation's memory order, in which the network computes."""
        return images

    def inference(self, subject: Subject) -> Prepared:
        from gpucnn import nn

        model, images = nn.fused(subject.model), self.in_order(subject.images)

        def call() -> Any:
            with nn.inference():
                return model(images)

        return Prepared(call, lambda logits: {"logits": logits})

    def training_step(self, subject: Subject) -> Prepared:
        from gpucnn import nn

        model, images = subject.copied_model().train(), self.in_order(subject.images)
        model.needs_input_grad = False  # the images are data
        loss = nn.CrossEntropyLoss()
        optimizer = nn.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

        def call() -> Any:
            optimizer.zero_grad()
            value = loss(model(images), subject.labels)
            model.backward(loss.backward())
            optimizer.step()
            return value

        def results(value: Any) -> Results:
            gradients = {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
            return {"loss": np.asarray(value), **gradients, **model.state_dict()}

        return Prepared(call, results)


class GpucnnNetworkChannelsLast(GpucnnNetwork):
    def in_order(self, images: Array) -> Array:
        return channels_last(images)


class PyTorchNetwork(Runner):
    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import torch

        self.torch: Any = torch

    def in_order(self, tensor: Any) -> Any:
        """The tensor in this implementation's memory order."""
        return tensor

    def inference(self, subject: Subject) -> Prepared:
        model, images = self._twin(subject).eval(), self.in_order(self.torch.from_numpy(subject.images))

        def call() -> Any:
            with self.torch.inference_mode():
                return model(images)

        return Prepared(call, lambda logits: {"logits": logits.numpy()})

    def training_step(self, subject: Subject) -> Prepared:
        model, images = self._twin(subject).train(), self.in_order(self.torch.from_numpy(subject.images))
        labels = self.torch.from_numpy(subject.labels)
        optimizer = self.torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

        def call() -> Any:
            optimizer.zero_grad()
            loss = self.torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            return loss

        def results(loss: Any) -> Results:
            gradients = {f"gradient of {name}": value.grad.numpy() for name, value in model.named_parameters()}
            state = {name: value.numpy() for name, value in model.state_dict().items()}
            return {"loss": loss.detach().numpy(), **gradients, **state}

        return Prepared(call, results)

    def _twin(self, subject: Subject) -> Any:
        """The network of torch.nn with the subject's weights; no random ones are drawn first."""
        from benchmarks.networks import pytorch

        with self.torch.device("meta"):
            model = subject.network.twin(pytorch)
        tensors = {name: self.torch.from_numpy(np.array(array)) for name, array in subject.state.items()}
        model.load_state_dict({name: self.in_order(tensor) for name, tensor in tensors.items()}, assign=True)
        return model.requires_grad_()


class PyTorchNetworkChannelsLast(PyTorchNetwork):
    def in_order(self, tensor: Any) -> Any:
        return in_channels_last(tensor, self.torch)


class OnnxRuntimeNetwork(Runner):
    def inference(self, subject: Subject) -> Prepared:
        from benchmarks.networks.onnx_graph import graph_of

        session = make_session(graph_of(subject.model, subject.images.shape), self.threads)
        call = bind(session, {"input": subject.images})
        return Prepared(call, lambda bound: {"logits": bound.copy_outputs_to_cpu()[0]})


RUNNERS: dict[type[Provider], type[Runner]] = {
    GpucnnCompiled: GpucnnNetwork,
    GpucnnCompiledChannelsLast: GpucnnNetworkChannelsLast,
    GpucnnNumpy: GpucnnNetwork,
    PyTorch: PyTorchNetwork,
    PyTorchChannelsLast: PyTorchNetworkChannelsLast,
    OnnxRuntime: OnnxRuntimeNetwork,
}
