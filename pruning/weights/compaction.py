"""Cut out what pruning left dead: a smaller dense network with the same outputs in eval mode.

A channel can go when nothing reads it (all its outgoing weights are zero), or when it never spikes
whatever the input: all its incoming weights are zero and the constant current that bias and batch norm
leave it cannot lift it to the threshold. Cutting one makes others dead, so this repeats until
nothing changes. A channel without inputs that still spikes is kept: its spikes are a signal.

Outputs are equal up to the rounding of sums of fewer terms; in float32 that can flip a spike whose
potential is at the threshold to the last bit.
"""

import copy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from snn.layers import Folded, SpikingLayer, WeightLayer
from snn.models.base import SpikingNetwork

_CHANNELWISE = (
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.AvgPool2d,
    nn.MaxPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)


@dataclass(frozen=True)
class Compaction:
    """A network without its dead channels."""

    model: SpikingNetwork
    kept: dict[str, Tensor]
    """By layer name, the indices of the output channels that stayed."""

    @property
    def widths(self) -> dict[str, int]:
        """Output channels by layer name."""
        return {name: len(channels) for name, channels in self.kept.items()}


def compact(model: SpikingNetwork) -> Compaction:
    """A copy of ``model`` without dead channels; at least one channel stays in every layer.

    Takes chains: spiking layers with channelwise pooling and flattening between them (mlp, convnet,
    VGG), convolutions ungrouped.

    Raises:
        ValueError: a network that is no such chain, naming the module.
    """
    check_chain(model)
    model = copy.deepcopy(model)
    layers = [m for m in model.features if isinstance(m, SpikingLayer)]
    readers = [*(m.weight_layer for m in layers[1:]), model.readout[-1]]
    alive = [torch.ones(m.weight_layer.weight.shape[0], dtype=torch.bool) for m in layers]
    changed = True
    while changed:
        changed = False
        for i, layer in enumerate(layers):
            reader = readers[i]
            assert isinstance(reader, nn.Linear | nn.Conv2d)
            inputs = _input_mask(layer.weight_layer, alive[i - 1]) if i else None
            outputs = alive[i + 1] if i + 1 < len(layers) else None
            useful = _is_read(reader, len(alive[i]), outputs) & _may_spike(layer, inputs)
            useful = alive[i] & useful.to(alive[i])
            if not useful.any():
                useful[int(alive[i].nonzero()[0])] = True
            changed |= not torch.equal(useful, alive[i])
            alive[i] = useful
    for i, layer in enumerate(layers):
        _cut_outputs(layer, alive[i])
        reader = readers[i]
        assert isinstance(reader, nn.Linear | nn.Conv2d)
        _cut_inputs(reader, alive[i])
    names = [s.name for s in model.synapses()][:-1]
    return Compaction(model, {n: a.nonzero().flatten() for n, a in zip(names, alive, strict=True)})


def check_chain(model: SpikingNetwork) -> None:
    """Raise ValueError, naming the module, unless ``model`` is a chain of spiking layers.

    Between them nothing but pooling and flattening, channel by channel; no grouped convolutions.
    """
    for name, module in model.features.named_children():
        if not isinstance(module, SpikingLayer) and not (
            isinstance(module, Folded) and isinstance(module.module, _CHANNELWISE)
        ):
            raise ValueError(
                f"features.{name}: {type(module).__name__} is no part of a chain that can be compacted"
            )
    for name, module in list(model.readout.named_children())[:-1]:
        if not isinstance(module, _CHANNELWISE):
            raise ValueError(
                f"readout.{name}: {type(module).__name__} is no part of a chain that can be compacted"
            )
    layers = [m.weight_layer for m in model.features if isinstance(m, SpikingLayer)]
    for before, after in pairwise([*layers, model.readout[-1]]):
        assert isinstance(before, nn.Linear | nn.Conv2d)
        assert isinstance(after, nn.Linear | nn.Conv2d)
        if isinstance(after, nn.Conv2d) and after.groups != 1:
            raise ValueError("compaction: grouped convolutions cannot be compacted")
        if after.weight.shape[1] % before.weight.shape[0]:
            raise ValueError("compaction: a layer's inputs are no whole number per channel before it")
    if isinstance(layers[0], nn.Conv2d) and layers[0].groups != 1:
        raise ValueError("compaction: grouped convolutions cannot be compacted")


def _input_mask(layer: WeightLayer, channels: Tensor) -> Tensor:
    """Channels to a layer's inputs: flattening gives each channel as many features as it has positions."""
    return channels.repeat_interleave(layer.weight.shape[1] // len(channels))


def _is_read(reader: WeightLayer, channels: int, outputs: Tensor | None) -> Tensor:
    weight = reader.weight.detach()
    weight = weight if outputs is None else weight[outputs.to(weight.device)]
    return (weight.unflatten(1, (channels, -1)) != 0).transpose(0, 1).flatten(1).any(1)


def _may_spike(layer: SpikingLayer, inputs: Tensor | None) -> Tensor:
    weight = layer.weight_layer.weight.detach()
    driven = weight if inputs is None else weight[:, inputs.to(weight.device)]
    current = torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
    if layer.weight_layer.bias is not None:
        current += layer.weight_layer.bias.detach()
    norm = layer.norm
    if norm is not None:
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError("compaction: a batch norm without running statistics")
        current = (current - norm.running_mean) / (norm.running_var.double() + norm.eps).sqrt()
        if norm.affine:
            current = current * norm.weight.detach() + norm.bias.detach()
    p = layer.neuron.constants
    # A constant current lifts the potential towards k c / (1 - beta), never beyond; without leak any
    # positive current spikes in the end. The margin covers float32 potentials.
    silent = current <= 0 if p.beta == 1 else p.gain * current / (1 - p.beta) < p.theta * (1 - 1e-5)
    return (driven != 0).flatten(1).any(1) | ~silent


def _cut_outputs(layer: SpikingLayer, alive: Tensor) -> None:
    weights, n = layer.weight_layer, int(alive.sum())
    weights.weight = _rows(weights.weight, alive)
    if weights.bias is not None:
        weights.bias = _rows(weights.bias, alive)
    if isinstance(weights, nn.Linear):
        weights.out_features = n
    else:
        weights.out_channels = n
    norm = layer.norm
    if norm is not None:
        norm.num_features = n
        if norm.affine:
            norm.weight, norm.bias = _rows(norm.weight, alive), _rows(norm.bias, alive)
        for name in ("running_mean", "running_var"):
            buffer = getattr(norm, name)
            setattr(norm, name, buffer[alive.to(buffer.device)].clone())


def _cut_inputs(reader: WeightLayer, alive: Tensor) -> None:
    mask = _input_mask(reader, alive)
    reader.weight = nn.Parameter(
        reader.weight.detach()[:, mask.to(reader.weight.device)].clone(), reader.weight.requires_grad
    )
    if isinstance(reader, nn.Linear):
        reader.in_features = int(mask.sum())
    else:
        reader.in_channels = int(mask.sum())


def _rows(parameter: Tensor, alive: Tensor) -> nn.Parameter:
    return nn.Parameter(
        parameter.detach()[alive.to(parameter.device)].clone(), requires_grad=parameter.requires_grad
    )
