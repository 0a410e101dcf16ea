"""Spiking network architectures behind one registry: ``build("mlp", input_shape=..., num_classes=...)``."""

from collections.abc import Callable, Sequence
from typing import Any

from snn.models.base import SpikingNetwork
from snn.models.convnet import convnet
from snn.models.mlp import mlp
from snn.models.resnet import ms_resnet18, ms_resnet34, sew_resnet18, sew_resnet34, sew_resnet50
from snn.models.spikformer import spikformer
from snn.models.vgg import vgg6, vgg9, vgg11, vgg16
from snn.neurons import NeuronParameters

__all__ = ["MODELS", "SpikingNetwork", "build"]

MODELS: dict[str, Callable[..., SpikingNetwork]] = {
    function.__name__: function
    for function in (
        mlp, convnet, vgg6, vgg9, vgg11, vgg16, sew_resnet18, sew_resnet34, sew_resnet50,
        ms_resnet18, ms_resnet34, spikformer,
    )
}  # fmt: skip
"""Every architecture by its name."""


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
        name: a key of ``MODELS``.
        input_shape: of one example, without time and batch.
        num_classes: ``K``.
        neuron: constants of the neurons; the defaults when not given.
        options: what the architecture's function takes beyond these.

    Raises:
        ValueError: unknown architecture, or options that it refuses.
    """
    if name not in MODELS:
        raise ValueError(f"model: {name!r} is unknown; choose one of {', '.join(MODELS)}")
    if num_classes < 1:
        raise ValueError(f"num_classes: {num_classes!r} must be at least 1")
    model = MODELS[name](
        input_shape=input_shape, num_classes=num_classes, neuron=neuron or NeuronParameters(), **options
    )
    model.input_shape = tuple(input_shape)
    return model
