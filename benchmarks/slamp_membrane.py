"""Coefficients from membrane potentials, by forward passes alone: the first default, kept to be compared.

In units of the threshold, with the effective weight ``W_hat = k G W / theta`` (input gain ``k``, slope
``G`` of the batch norm): ``kappa[t]`` is the density of potentials at the threshold (share within 0.2, over
0.4; 1 for the head), ``P[t]`` the squared input of a neuron summed over positions, ``R[t]`` that of its
trace ``r[t] = x[t] + beta r[t-1]``. Then

    tau   = sum_t (kappa[t] / mean kappa) (R[t] / mean P) / T       leak, timesteps, threshold distance
    sigma = mean kappa mean P ||W_hat||^2 / (fan n)                 expected threshold crossings
"""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from snn.layers import Synapses, WeightLayer
from snn.models import SpikingNetwork
from snn.observing import evaluating, observe
from snn.parameters import NeuronParameters

HALF_WIDTH = 0.2


def gain(s: Synapses) -> Tensor:
    """``k G / theta`` per output channel, float64 ``[C_out]``: effective weight over raw weight."""
    weight = s.layer.weight
    factor = torch.ones(weight.shape[0], dtype=torch.float64, device=weight.device)
    if s.norm is not None:
        if s.norm.running_var is None:
            raise ValueError(f"{s.name}: its batch norm keeps no running statistics")
        factor = factor / (s.norm.running_var.double() + s.norm.eps).sqrt()
        if s.norm.weight is not None:
            factor = factor * s.norm.weight.detach().double()
    if s.neuron is not None:
        factor = factor * (s.neuron.constants.gain / s.neuron.constants.theta)
    return factor


def _taps(layer: WeightLayer, x: Tensor) -> Tensor:
    """How many outputs of one channel each input position feeds, ``[H, W]``; 1 for a linear layer."""
    if isinstance(layer, nn.Linear):
        return torch.ones((), dtype=x.dtype)
    probe = torch.zeros(1, layer.in_channels, *x.shape[-2:], dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        ones = torch.ones(1, layer.in_channels // layer.groups, *layer.kernel_size, dtype=torch.float64)
        y = layer._conv_forward(probe, ones.expand(layer.groups, -1, -1, -1), None)
        (taps,) = torch.autograd.grad(y.sum(), probe)
    return taps[0, 0].to(x)


def potentials(current_TB: Tensor, p: NeuronParameters) -> Tensor:
    """Membrane potentials ``u`` before the reset, ``[T, B, ...]``."""
    v, found = torch.zeros_like(current_TB[0]), []
    for current in current_TB:
        u = p.beta * v + p.gain * current
        spikes = (u - p.theta >= 0).to(u.dtype)
        v = u * (1 - spikes) if p.reset == "hard" else u - p.theta * spikes
        found.append(u)
    return torch.stack(found)


@torch.no_grad()
def membrane_statistics(model: SpikingNetwork, batches: Iterable[Tensor]) -> tuple[list[float], list[float]]:
    """``tau`` and ``sigma`` of every layer; 1 and 0 for a dead one."""
    synapses = model.synapses()
    batches = list(batches)
    T, examples = len(batches[0]), sum(x.shape[1] for x in batches)
    near, seen, P, R = (torch.zeros(len(synapses), T, dtype=torch.float64) for _ in range(4))
    outputs = [0] * len(synapses)
    taps: dict[int, Tensor] = {}

    def at_layer(i: int, x_TB: Tensor, count: int) -> None:
        s, outputs[i] = synapses[i], count
        weight = taps.setdefault(i, _taps(s.layer, x_TB))
        beta, trace = 0.0 if s.neuron is None else s.neuron.constants.beta, torch.zeros_like(x_TB[0])
        for t, x in enumerate(x_TB):
            trace = x + beta * trace
            P[i, t] += (x.square() * weight).sum(dtype=torch.float64)
            R[i, t] += (trace.square() * weight).sum(dtype=torch.float64)

    def at_neuron(i: int) -> Any:
        def hook(neuron: Any, inputs: tuple[Tensor, ...]) -> None:
            p = neuron.constants
            u_TX = potentials(inputs[0], p).flatten(1) / p.theta
            near[i] += ((u_TX - 1).abs() < HALF_WIDTH).sum(1)
            seen[i] += u_TX.shape[1]

        return hook

    with evaluating(model), ExitStack() as hooks:
        for i, s in enumerate(synapses):
            if s.neuron is not None:
                hooks.callback(s.neuron.register_forward_pre_hook(at_neuron(i)).remove)
        for x_TB in batches:
            observe(model, x_TB, at_layer)
    tau, sigma = [], []
    for i, s in enumerate(synapses):
        kappa = near[i] / seen[i] / (2 * HALF_WIDTH) if s.neuron is not None else torch.ones(T).double()
        energy = (s.layer.weight.detach().double().flatten(1) * gain(s)[:, None]).square().sum()
        fan = s.layer.weight[0].numel()
        static = float(kappa.mean() * P[i].mean() * energy) / examples / (fan * outputs[i])
        time = float((kappa / kappa.mean() * R[i] / P[i].mean()).mean()) if static > 0 else 1.0
        tau.append(time)
        sigma.append(static)
    return tau, sigma
