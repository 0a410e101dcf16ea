"""Layers that run on all timesteps at once, and the record of a network's synapses.

Weights, norms and pooling treat every timestep alike, so they run folded on ``[T*B, ...]``; only the
neurons see time. Batch norm therefore takes its statistics over batch and time together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snn.neurons import LIF
from snn.packing import recomputed
from snn.torch_private import has_hooks

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


def _only_computes(module: nn.Module) -> bool:
    """Whether calling the module does nothing that its class does not say."""
    return not has_hooks(module) and "forward" not in vars(module)


class Recomputable(nn.Module):
    """What can run again in the backward pass, from its input ``[T, B, ...]`` alone."""

    recompute = False
    """Keep the input alone for the backward pass; set by `snn.activations.keep_activations`."""

    def run(self, x_TB: Tensor) -> Tensor:
        """What the module computes."""
        raise NotImplementedError

    def forward(self, x_TB: Tensor) -> Tensor:
        """`run`, with more or less kept for the backward pass."""
        inner = (m for m in self.modules() if m is not self)
        if not (self.recompute and torch.is_grad_enabled() and all(map(_only_computes, inner))):
            return self.run(x_TB)
        T, static = x_TB.shape[0], is_static(x_TB)

        def again(x: Tensor) -> Tensor:
            return self.run(x.expand(T, *x.shape) if static else x.unflatten(0, (T, len(x) // T)))

        return recomputed(self, again, x_TB[0] if static else x_TB.flatten(0, 1))


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


class Folded(nn.Module):
    """A stateless module (pooling, flatten) on ``[T*B, ...]``."""

    recompute = False
    """As for `Recomputable`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x_TB: Tensor) -> Tensor:
        """``module`` at every timestep."""
        if self.recompute and torch.is_grad_enabled() and _only_computes(self.module):
            return folded(lambda x: recomputed(self, self.module, x), x_TB)
        return folded(self.module, x_TB)
