"""Spiking network architectures behind one registry: ``build("mlp", input_shape=..., num_classes=...)``."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from snn.models.base import SpikingNetwork
from snn.models.convnet import convnet
from snn.models.mlp import mlp
from snn.models.resnet import ms_resnet18, ms_resnet34, sew_resnet18, sew_resnet34, sew_resnet50
from snn.models.spikformer import spikformer
from snn.models.vgg import vgg6, vgg9, vgg11, vgg16
from snn.neurons import NeuronParameters
from snn.registry import Registry

__all__ = ["MODELS", "SpikingNetwork", "build"]

_OURS: dict[str, Callable[..., SpikingNetwork]] = {
    "mlp": mlp,
    "convnet": convnet,
    "vgg6": vgg6,
    "vgg9": vgg9,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "sew_resnet18": sew_resnet18,
    "sew_resnet34": sew_resnet34,
    "sew_resnet50": sew_resnet50,
    "ms_resnet18": ms_resnet18,
    "ms_resnet34": ms_resnet34,
    "spikformer": spikformer,
}
MODELS = Registry("model", _OURS)
"""Every architecture by its name.

The function of a registered one takes ``input_shape``, ``num_classes``, ``neuron`` and its own options by
name, and returns a network as `SpikingNetwork` describes it.
"""


def build(
    name: str,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    neuron: NeuronParameters | None = None,
    **options: Any,
) -> SpikingNetwork:
    """A network of a registered architecture with random weights (torch's global generator).

    Args:
        name: a key of ``MODELS``, or one of your own that is registered.
        input_shape: of one example, without time and batch.
        num_classes: ``K``.
        neuron: constants of the neurons; the defaults when not given.
        options: what the architecture's function takes beyond these.

    Raises:
        ValueError: unknown architecture, or options that it refuses.
    """
    function = MODELS[name]
    if num_classes < 1:
        raise ValueError(f"num_classes: {num_classes!r} must be at least 1")
    model = function(
        input_shape=input_shape, num_classes=num_classes, neuron=neuron or NeuronParameters(), **options
    )
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: {name} gave a {type(model).__name__}, not a torch.nn.Module")
    model.input_shape = tuple(input_shape)
    return model
