"""Small convolutional spiking networks, for images and event frames where a VGG would be too slow."""

from collections.abc import Sequence

from torch import nn

from snn.layers import Folded, SpikingLayer
from snn.models.base import SpikingNetwork, conv_layer, image_shape
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
    c_in, height, width = image_shape(input_shape)
    if not channels:
        raise ValueError("channels: needs at least one convolution")
    layers: list[nn.Module] = []
    for c in channels:
        layers.append(conv_layer(c_in, c, 3, neuron, stride=2))
        c_in, height, width = c, -(-height // 2), -(-width // 2)
    layers.append(Folded(nn.Flatten()))
    width *= c_in * height
    for n in hidden:
        layers.append(SpikingLayer(nn.Linear(width, n, bias=False), nn.BatchNorm1d(n), LIF(neuron)))
        width = n
    return SpikingNetwork(nn.Sequential(*layers), nn.Sequential(nn.Linear(width, num_classes)))
