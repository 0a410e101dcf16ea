"""Layers that run on all timesteps at once, and the record of a network's synapses.

Weights, norms and pooling treat every timestep alike, so they run folded on ``[T*B, ...]``; only the
neurons see time. Batch norm therefore takes its statistics over batch and time together.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from snn.neurons import LIF

WeightLayer = nn.Linear | nn.Conv2d
Norm = nn.BatchNorm1d | nn.BatchNorm2d


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


class SpikingLayer(nn.Module):
    """Weights, an optional norm, and the neurons they drive: ``[T, B, ...]`` to spikes ``[T, B, ...]``."""

    def __init__(self, weight_layer: WeightLayer, norm: Norm | None, neuron: LIF) -> None:
        super().__init__()
        self.weight_layer = weight_layer
        self.norm = norm
        self.neuron = neuron

    def forward(self, x_TB: Tensor) -> Tensor:
        """Spikes of the layer's neurons."""
        return self.neuron(folded(self._current, x_TB))

    def _current(self, x: Tensor) -> Tensor:
        y = self.weight_layer(x)
        return y if self.norm is None else self.norm(y)


class Folded(nn.Module):
    """A stateless module (pooling, flatten) on ``[T*B, ...]``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x_TB: Tensor) -> Tensor:
        """``module`` at every timestep."""
        return folded(self.module, x_TB)
