"""Spiking VGGs: 3x3 convolutions with batch norm and LIF, pooling between the stages.

========  ==================================================  ==================  ==========================
name      convolutions (P: pooling by 2)                      after them          parameters, 3x32x32, K=10
========  ==================================================  ==================  ==========================
vgg6      64 64 P 128 128 P 256 256                           8x8 grid            1,310,154
vgg9      64 64 P 128 128 P 256 256 256 P                     4x4 grid, 1024      5,943,242
vgg11     64 P 128 P 256 256 P 512 512 P 512 512 P            mean                9,228,362
vgg16     64 64 P 128 128 P 256x3 P 512x3 P 512x3 P           mean                14,724,042
========  ==================================================  ==================  ==========================

vgg11 and vgg16 are the networks of Simonyan and Zisserman 2015 (arXiv 1409.1556) in the form used on
CIFAR: one linear head. ``hidden=(4096, 4096), grid=7`` gives the ImageNet form. Inputs larger than
the grid allows are averaged down to it before the first linear layer.
"""

from collections.abc import Sequence
from functools import partial

from torch import nn

from snn.layers import Folded, SpikingLayer
from snn.models.base import SpikingNetwork, conv_layer, image_shape
from snn.neurons import LIF, NeuronParameters

_Plan = tuple[tuple[int, ...], ...]
_STAGES: dict[str, _Plan] = {
    "vgg6": ((64, 64), (128, 128), (256, 256)),
    "vgg9": ((64, 64), (128, 128), (256, 256, 256), ()),
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512), ()),
    "vgg16": ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3, ()),
}


def vgg(
    name: str,
    /,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    neuron: NeuronParameters,
    channels: Sequence[int] | None = None,
    hidden: Sequence[int] = (),
    grid: int = 1,
    pooling: str = "max",
) -> SpikingNetwork:
    """Convolutions and a linear head as in the table above.

    Args:
        name: row of the table.
        input_shape: ``(C, H, W)`` of one example; 32x32, 64x64, 224x224 and 2-channel events alike.
        num_classes: ``K``.
        neuron: constants of all neurons.
        channels: of every convolution in order; the table's when not given.
        hidden: widths of spiking linear layers between the convolutions and the head.
        grid: largest height and width that the first linear layer sees.
        pooling: ``avg``, or ``max``, which keeps spikes spikes.

    Raises:
        ValueError: an input that is not ``(C, H, W)`` or too small for the pooling, an unknown pooling, or
            another number of channels than convolutions.
    """
    stages = _STAGES[name]
    c, height, width = image_shape(input_shape, least=2 ** (len(stages) - 1))
    if pooling not in ("avg", "max"):
        raise ValueError(f"pooling: {pooling!r} is unknown; choose avg or max")
    if grid < 1:
        raise ValueError(f"grid: {grid!r} must be at least 1")
    own = [n for stage in stages for n in stage]
    if channels is not None and (len(channels) != len(own) or min(channels) < 1):
        raise ValueError(f"channels: {tuple(channels)} must be {len(own)} positive widths")
    widths = iter(channels or own)
    layers: list[nn.Module] = []
    for i, stage in enumerate(stages):
        if i:
            layers.append(Folded(nn.AvgPool2d(2) if pooling == "avg" else nn.MaxPool2d(2)))
            height, width = height // 2, width // 2
        for _ in stage:
            c_out = next(widths)
            layers.append(conv_layer(c, c_out, 3, neuron))
            c = c_out
    between: list[nn.Module] = []
    if height > grid or width > grid:
        height, width = min(height, grid), min(width, grid)
        between.append(nn.AdaptiveAvgPool2d((height, width)))
    between.append(nn.Flatten())
    features = c * height * width
    if hidden:
        layers += [Folded(module) for module in between]
        between = []
        for n in hidden:
            layers.append(SpikingLayer(nn.Linear(features, n, bias=False), nn.BatchNorm1d(n), LIF(neuron)))
            features = n
    net = SpikingNetwork(nn.Sequential(*layers), nn.Sequential(*between, nn.Linear(features, num_classes)))
    net.channels_last = True  # docs/methods-snn.md, section 2
    return net


vgg6 = partial(vgg, "vgg6", grid=8, pooling="avg")
vgg9 = partial(vgg, "vgg9", hidden=(1024,), grid=4)
vgg11 = partial(vgg, "vgg11")
vgg16 = partial(vgg, "vgg16")
