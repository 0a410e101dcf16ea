"""Small convolutional spiking networks, for images and event frames where a VGG would be too slow."""

from collections.abc import Sequence

import torch
from torch import nn

from snn.convolution import Conv2d
from snn.layers import Folded, SpikingLayer
from snn.models.base import SpikingNetwork
from snn.neurons import LIF, NeuronParameters


def convnet(
    *,
    input_shape: Sequence[int],
    num_classes: int,
    neuron: NeuronParameters,
    channels: Sequence[int] = (24, 48),
    hidden: Sequence[int] = (128,),
) -> SpikingNetwork:
    """3x3 convolutions of stride 2 with batch norm and LIF, hidden linear layers, a linear head.

    Args:
        input_shape: ``(C, H, W)`` of one example.
        num_classes: ``K``.
        neuron: constants of all neurons.
        channels: of the convolutions; each halves height and width.
        hidden: widths of the linear spiking layers after the convolutions; may be empty.

    Raises:
        ValueError: an input that is not ``(C, H, W)``, or no channels.
    """
    if len(input_shape) != 3:
        raise ValueError(f"input_shape: {tuple(input_shape)} must be (C, H, W)")
    if not channels:
        raise ValueError("channels: needs at least one convolution")
    layers: list[nn.Module] = []
    c_in = input_shape[0]
    for c in channels:
        conv = Conv2d(c_in, c, 3, stride=2, padding=1, bias=False)
        layers.append(SpikingLayer(conv, nn.BatchNorm2d(c), LIF(neuron)))
        c_in = c
    with torch.no_grad():
        size = torch.zeros(1, *input_shape)
        for layer in layers:
            assert isinstance(layer, SpikingLayer)
            size = layer.weight_layer(size)
    layers.append(Folded(nn.Flatten()))
    width = size.numel()
    for n in hidden:
        layers.append(SpikingLayer(nn.Linear(width, n, bias=False), nn.BatchNorm1d(n), LIF(neuron)))
        width = n
    return SpikingNetwork(nn.Sequential(*layers), nn.Sequential(nn.Linear(width, num_classes)))
