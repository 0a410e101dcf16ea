"""Fully connected spiking networks."""

from collections.abc import Sequence
from math import prod

from torch import nn

from snn.layers import Folded, SpikingLayer
from snn.models.base import SpikingNetwork
from snn.neurons import LIF, NeuronParameters


def mlp(
    *,
    input_shape: Sequence[int],
    num_classes: int,
    neuron: NeuronParameters,
    hidden: Sequence[int] = (128, 128),
    norm: bool = True,
) -> SpikingNetwork:
    """Flatten, then ``len(hidden)`` linear layers with batch norm and LIF neurons, and a linear head.

    Args:
        input_shape: of one example, without time and batch; any rank, flattened.
        num_classes: ``K``.
        neuron: constants of all hidden neurons.
        hidden: widths of the hidden layers, at least one.
        norm: batch norm after each hidden linear layer (which then has no bias).

    Raises:
        ValueError: no hidden layer.
    """
    if not hidden:
        raise ValueError("hidden: needs at least one width")
    layers: list[nn.Module] = [Folded(nn.Flatten())]
    width = prod(input_shape)
    for n in hidden:
        layer = nn.Linear(width, n, bias=not norm)
        layers.append(SpikingLayer(layer, nn.BatchNorm1d(n) if norm else None, LIF(neuron)))
        width = n
    return SpikingNetwork(nn.Sequential(*layers), nn.Sequential(nn.Linear(width, num_classes)))
