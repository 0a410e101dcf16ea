"""Layers that run on all timesteps at once, and the record of a network's synapses.

Weights, norms and pooling treat every timestep alike, so they run folded on ``[T*B, ...]``; only the
neurons see time. Batch norm therefore takes its statistics over batch and time together.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from snn.activations import Recomputable
from snn.neurons import LIF

WeightLayer = nn.Linear | nn.Conv2d
Norm = nn.BatchNorm1d | nn.BatchNorm2d
_POOLING = nn.MaxPool2d | nn.AvgPool2d | nn.AdaptiveAvgPool2d
_DEEP_CHANNELS, _SMALL_MAP = 512, 16
"""Output channels from which, and output pixels up to which, NCHW was measured to be faster."""


class Conv2d(nn.Conv2d):
    """A convolution that runs in NCHW where channels are many and maps of a few pixels.

    On CPUs torch 2.15 is slow there in channels_last: 5 % of a step of SEW-ResNet-18.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.Conv2d`."""
        pixels = input.shape[-2:].numel() // (self.stride[0] * self.stride[1])
        if input.device.type == "cpu" and self.out_channels >= _DEEP_CHANNELS and pixels <= _SMALL_MAP:
            input = input.contiguous()
        return super().forward(input)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution that takes the pixels of its stride out first, then runs on those alone.

    On CPUs torch 2.15 is slow at its gradient with a stride, and crashes with some numbers of threads.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As `torch.nn.Conv2d`."""
        down, right = self.stride
        return F.conv2d(input[..., ::down, ::right], self.weight, self.bias)


@dataclass(frozen=True)
class Synapses:
    """One weight layer of a network and the neurons that its currents drive.

    What a pruning method needs to know of a layer: where the weights are, which affine map follows
    them, and which neurons integrate the result. ``neuron`` is ``None`` for the readout.
    """

    name: str
    """Path of the weight layer in the network, as in ``named_modules``."""
    layer: WeightLayer
    norm: Norm | None
    neuron: LIF | None


def is_static(x_TB: Tensor) -> bool:
    """Whether all timesteps are one and the same memory (as `snn.coding.direct` makes them)."""
    return x_TB.shape[0] > 1 and x_TB.stride(0) == 0


def folded(function: Callable[[Tensor], Tensor], x_TB: Tensor) -> Tensor:
    """``function`` on ``[T*B, ...]``; once, and broadcast over T, when the input is static."""
    T, B = x_TB.shape[:2]
    if is_static(x_TB):
        y = function(x_TB[0])
        return y.expand(T, *y.shape)
    y = function(x_TB.flatten(0, 1))
    return y.unflatten(0, (T, B))


class SpikingLayer(Recomputable):
    """Weights, an optional norm, and the neurons they drive: ``[T, B, ...]`` to spikes ``[T, B, ...]``."""

    def __init__(self, weight_layer: WeightLayer, norm: Norm | None, neuron: LIF) -> None:
        super().__init__()
        self.weight_layer = weight_layer
        self.norm = norm
        self.neuron = neuron

    def run(self, x_TB: Tensor) -> Tensor:
        """Spikes of the layer's neurons."""
        return self.neuron(folded(self.current, x_TB))

    def current(self, x: Tensor) -> Tensor:
        """What drives the neurons, for a folded input ``[T*B, ...]``."""
        y: Tensor = self.weight_layer(x)
        return y if self.norm is None else self.norm(y)


class Folded(Recomputable):
    """A stateless module (pooling, flatten) on ``[T*B, ...]``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def way(self, how: str) -> str:
        """Pooling is cheap to run again; others keep nothing."""
        return "recompute" if how != "keep" and isinstance(self.module, _POOLING) else "keep"

    def run(self, x_TB: Tensor) -> Tensor:
        """``module`` at every timestep."""
        return folded(self.module, x_TB)
