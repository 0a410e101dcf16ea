"""A spiking network of one's own: two layers with different leaks."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from torch import nn

from snn.layers import Folded, SpikingLayer
from snn.models import SpikingNetwork
from snn.neurons import LIF, NeuronParameters


def two_leaks(
    *,
    input_shape: Sequence[int],
    num_classes: int,
    neuron: NeuronParameters,
    width: int = 64,
    slow: float = 0.9,
) -> SpikingNetwork:
    """A layer with the config's leak, one that remembers longer, and a readout."""
    features = nn.Sequential(
        Folded(nn.Flatten()),
        SpikingLayer(nn.Linear(prod(input_shape), width), nn.BatchNorm1d(width), LIF(neuron)),
        SpikingLayer(nn.Linear(width, width), nn.BatchNorm1d(width), LIF(replace(neuron, beta=slow))),
    )
    return SpikingNetwork(features, nn.Sequential(nn.Linear(width, num_classes)))
