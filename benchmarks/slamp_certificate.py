"""A sound per-example bound on what pruning does to the class scores, by interval arithmetic.

A spike is a discontinuity: no Lipschitz constant bounds it. But a neuron's spikes can only change once
its potential has moved by its distance to the threshold. From the dense network's potentials ``u`` (in
thresholds) and the pruned weights, layer by layer and step by step (docs/methods-slamp.md, section 6)::

    d[t]  = beta dv[t-1] + |dW_hat s[t]| + |W_hat'| e[t]     bound on the change of the potential
    f[t]  = 1{|u[t] - 1| <= d[t]}                            the spike may differ
    dv[t] = |u| + d (hard) or d + 1 (soft) if f;  0 if reset for certain (hard);  else d

with ``e`` the bound on the inputs' change (``f`` of the layer before, pooled as the spikes are). It holds
for every example without any assumption, and is a diagnostic: close for the head, loose for the
layer before it, and vacuous (every spike may differ) a few spiking layers further down.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.slamp_membrane import gain
from pruning.weights.masks import Masks
from snn.layers import Folded, SpikingLayer, Synapses, WeightLayer, folded
from snn.models.base import SpikingNetwork
from snn.neurons import lif, membrane_potential

_ROUNDING = 1e-9
"""Distance to the threshold, in thresholds, that float64 sums may blur."""


@dataclass(frozen=True)
class Certificate:
    """What pruning can have changed at most."""

    bound: Tensor
    """Largest possible change of each class score (time mean of the logits), ``[B, K]``."""
    flagged: dict[str, float]
    """By layer, the share of spikes (neurons x timesteps x examples) that may differ."""


@torch.no_grad()
def certify(model: SpikingNetwork, masks: Masks, x_TB: Tensor) -> Certificate:
    """Bound ``|pruned scores - dense scores|`` for every example and class, in eval mode, float64.

    Args:
        model: the dense network, a chain of spiking layers with pooling between them; it is not changed.
        masks: what pruning keeps. Norm statistics are those of ``model`` before and after.
        x_TB: inputs ``[T, B, ...]``.

    Raises:
        ValueError: a network that is no chain, or masks of another model.
    """
    _check_chain(model)
    masks.check(model)
    model = copy.deepcopy(model).double().eval()
    *hidden, head = model.synapses()
    layers = iter(hidden)
    flagged = {}
    signal, e = x_TB.double(), torch.zeros_like(x_TB, dtype=torch.float64)
    for module in model.features:
        if isinstance(module, SpikingLayer):
            s = next(layers)
            current = folded(module.current, signal)
            dI = _change(s, masks[s.name], signal, e)
            signal, e = _propagate(s, current, dI)
            flagged[s.name] = float(e.mean())
        else:
            signal, e = module(signal), module(e)
    for module in model.readout[:-1]:
        signal, e = folded(module, signal), folded(module, e)
    keep = masks[head.name].to(head.layer.weight.device)
    removed = folded(lambda x: _apply(head.layer, x, head.layer.weight * ~keep), signal).mean(0).abs()
    carried = folded(lambda x: _apply(head.layer, x, (head.layer.weight * keep).abs()), e).mean(0)
    return Certificate(removed + carried + _ROUNDING, flagged)


def _change(s: Synapses, mask: Tensor, signal: Tensor, e: Tensor) -> Tensor:
    """Bound on the change of the input current, in thresholds, ``[T, B, ...]``."""
    weight, keep = s.layer.weight, mask.to(s.layer.weight.device)
    dI = folded(lambda x: _apply(s.layer, x, weight * ~keep), signal).abs()
    dI = dI + folded(lambda x: _apply(s.layer, x, (weight * keep).abs()), e)
    factor = gain(s).abs()
    return dI * (factor.view(-1, 1, 1) if isinstance(s.layer, nn.Conv2d) else factor)


def _propagate(s: Synapses, current: Tensor, dI: Tensor) -> tuple[Tensor, Tensor]:
    """The dense network's spikes, and which of them may differ."""
    assert s.neuron is not None
    p = s.neuron.constants
    u = membrane_potential(current, p) / p.theta
    spikes = lif(current, p)[0]
    dv, flags = torch.zeros_like(u[0]), []
    for t in range(len(u)):
        d = p.beta * dv + dI[t]
        f = (u[t] - 1).abs() <= d + _ROUNDING
        if p.reset == "hard":
            dv = torch.where(f, u[t].abs() + d, torch.where(spikes[t] > 0, 0.0, d))
        else:
            dv = torch.where(f, d + 1, d)
        flags.append(f)
    return spikes, torch.stack(flags).double()


def _apply(layer: WeightLayer, x: Tensor, weight: Tensor) -> Tensor:
    """The layer with another weight and no bias."""
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(x, weight, None)
    return nn.functional.linear(x, weight)


def _check_chain(model: SpikingNetwork) -> None:
    for name, module in model.features.named_children():
        if not isinstance(module, SpikingLayer | Folded):
            raise ValueError(f"features.{name}: {type(module).__name__} is no part of a chain")
