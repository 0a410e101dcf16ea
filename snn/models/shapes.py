"""Checks and sizes that the image models share."""

from collections.abc import Sequence

from torch import nn

from snn.convolution import Conv2d
from snn.layers import SpikingLayer
from snn.neurons import LIF, NeuronParameters


def image_shape(input_shape: Sequence[int], least: int = 1) -> tuple[int, int, int]:
    """``(C, H, W)``, checked.

    Raises:
        ValueError: another number of axes, a size below 1, or height or width below ``least``.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ValueError(f"input_shape: {tuple(input_shape)} must be (C, H, W), all at least 1")
    C, H, W = input_shape
    if min(H, W) < least:
        raise ValueError(f"input_shape: {tuple(input_shape)} must be at least {least} x {least} here")
    return C, H, W


def conv_layer(c_in: int, c_out: int, kernel: int, neuron: NeuronParameters, stride: int = 1) -> SpikingLayer:
    """Convolution without bias (padded to keep the size at stride 1), batch norm, LIF."""
    return SpikingLayer(conv(c_in, c_out, kernel, stride), nn.BatchNorm2d(c_out), LIF(neuron))


def conv(c_in: int, c_out: int, kernel: int, stride: int = 1) -> Conv2d:
    """Convolution without bias, padded to keep the size at stride 1."""
    return Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, bias=False)
