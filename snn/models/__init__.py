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

__all__ = ["MODELS", "SpikingNetwork", "build", "function_of", "is_registered", "register"]

MODELS: dict[str, Callable[..., SpikingNetwork]] = {
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
"""Every architecture by its name."""
_OWN: dict[str, Callable[..., SpikingNetwork]] = {}


def register(name: str, function: Callable[..., SpikingNetwork]) -> None:
    """Make your own model, named ``module:attribute``, known to `build`, and so to checkpoints.

    The function takes ``input_shape``, ``num_classes``, ``neuron`` and its own options by name, and returns a
    network as `SpikingNetwork` describes it.

    Raises:
        ValueError: a name without a colon.
    """
    if ":" not in name:
        raise ValueError(f"model: {name!r} must have the form module:attribute")
    _OWN[name] = function


def is_registered(name: str) -> bool:
    """Whether `build` knows ``name``."""
    return name in MODELS or name in _OWN


def function_of(name: str) -> Callable[..., SpikingNetwork]:
    """The function that makes networks of this name.

    Raises:
        ValueError: unknown architecture.
    """
    if not is_registered(name):
        if ":" in name:
            raise ValueError(f"model: {name!r} is not registered; import it and call snn.models.register")
        raise ValueError(f"model: {name!r} is unknown; choose one of {', '.join(MODELS)}")
    return MODELS.get(name) or _OWN[name]


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
    function = function_of(name)
    if num_classes < 1:
        raise ValueError(f"num_classes: {num_classes!r} must be at least 1")
    model = function(
        input_shape=input_shape, num_classes=num_classes, neuron=neuron or NeuronParameters(), **options
    )
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: {name} gave a {type(model).__name__}, not a torch.nn.Module")
    model.input_shape = tuple(input_shape)
    return model
