"""Networks that are one chain of layers as graphs of the Neuromorphic Intermediate Representation.

NIR (Pedersen et al. 2024, Nature Communications 15, 8122) describes neurons in continuous time. One of
our timesteps is an Euler step of ``dt`` seconds:

======================  =====================================================================
ours                    NIR
======================  =====================================================================
LIF, hard reset         LIF(tau = dt / (1 - beta), r = gain / (1 - beta), v_threshold = theta)
the same, beta = 1      IF(r = 1 / dt, v_threshold = theta)
weights and batch norm  Affine, Linear or Conv2d with the norm's running statistics folded in
======================  =====================================================================

with ``gain = 1 - beta`` for ``decay_input``, else 1. Surrogates and the reset's part in the gradient
have no place in NIR. NIR fires at ``v > v_threshold``, we at ``>=``; the difference is a tie. Residual
sums, attention and max pooling are refused.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snn.layers import Folded, Norm, SpikingLayer, WeightLayer
from snn.models.base import SpikingNetwork
from snn.neurons import LIF

NIRGraph = Any
"""A ``nir.NIRGraph``; the package is imported only when a graph is made."""


@torch.no_grad()
def to_nir(model: SpikingNetwork, dt: float = 1e-4) -> NIRGraph:
    """The network in eval mode as a NIR graph, ``nir.write``-ready; its weights are copied as float32.

    Args:
        model: built by `snn.models.build`, or with its ``input_shape`` set.
        dt: seconds of one timestep, positive.

    Raises:
        ValueError: ``dt``, an unknown input shape, a layer that is not of a chain, a batch norm without
            running statistics, or a soft reset.
    """
    import nir

    if not 0 < dt < float("inf"):
        raise ValueError(f"dt: {dt!r} must be a positive number of seconds")
    if model.input_shape is None:
        raise ValueError("input_shape: the model's must be known to export it")
    x = torch.zeros(1, *model.input_shape, dtype=next(model.parameters()).dtype)
    x = x.to(next(model.parameters()).device)
    nodes: dict[str, Any] = {"input": nir.Input({"input": _array(x.shape[1:])})}
    for i, module in enumerate([*model.features, *model.readout]):
        exported, x = _exported(module, x, dt)
        nodes |= {f"{i}_{kind}": node for kind, node in exported}
    nodes["output"] = nir.Output({"output": _array(x.shape[1:])})
    names = list(nodes)
    return nir.NIRGraph(nodes, list(pairwise(names)))


def _exported(module: nn.Module, x: Tensor, dt: float) -> tuple[list[tuple[str, Any]], Tensor]:
    """Kinds and nodes of one module that is given ``x``, ``[1, ...]``, and an output of its shape."""
    import nir

    if isinstance(module, Folded):
        return _exported(module.module, x, dt)
    if isinstance(module, SpikingLayer):
        weights, current = _weight_node(module.weight_layer, module.norm, x)
        neurons = _neuron_node(module.neuron, current, dt)
        return [("weights", weights), ("neurons", neurons)], current
    if isinstance(module, nn.Linear):
        weights, y = _weight_node(module, None, x)
        return [("weights", weights)], y
    if isinstance(module, nn.Flatten):
        y = x.flatten(1)
        return [("flatten", nir.Flatten({"input": _array(x.shape[1:])}, 0, -1))], y
    if isinstance(module, nn.AvgPool2d) and module.kernel_size == module.stride and module.padding == 0:
        kernel = module.kernel_size if isinstance(module.kernel_size, tuple) else (module.kernel_size,) * 2
        return [("pool", _pooling(*kernel))], module(x)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        y = module(x)
        if x.shape[2] % y.shape[2] == 0 and x.shape[3] % y.shape[3] == 0:
            return [("pool", _pooling(x.shape[2] // y.shape[2], x.shape[3] // y.shape[3]))], y
    raise ValueError(f"model: {type(module).__name__} has no place in a chain of NIR nodes")


def _pooling(height: int, width: int) -> Any:
    import nir

    size = _array([height, width])
    return nir.AvgPool2d(size, size, _array([0, 0]))


def _weight_node(layer: WeightLayer, norm: Norm | None, x: Tensor) -> tuple[Any, Tensor]:
    import nir

    w = layer.weight
    b = w.new_zeros(len(w)) if layer.bias is None else layer.bias
    if norm is not None:
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError("model: a batch norm without running statistics has no place in NIR")
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight
        w, b = w * scale.view(-1, *[1] * (w.ndim - 1)), (b - norm.running_mean) * scale
        if norm.affine:
            b = b + norm.bias
    y = layer(x)
    if isinstance(layer, nn.Linear):
        if norm is None and layer.bias is None:
            return nir.Linear(_floats(w)), y
        return nir.Affine(_floats(w), _floats(b)), y
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise ValueError(f"model: a convolution padded by {layer.padding_mode!r} {layer.padding!r}")
    height, width = x.shape[2:]
    sizes = layer.stride, layer.padding, layer.dilation, layer.groups
    return nir.Conv2d((height, width), _floats(w), *sizes, _floats(b)), y


def _neuron_node(neuron: LIF, current: Tensor, dt: float) -> Any:
    import nir

    p = neuron.constants
    if p.reset != "hard":
        raise ValueError(f"reset: {p.reset!r} cannot be told in NIR, whose neurons reset to a value")

    def all_neurons(value: float) -> Any:
        return torch.full(current.shape[1:], value, dtype=torch.float64).numpy()

    if p.beta == 1:
        return nir.IF(r=all_neurons(1 / dt), v_threshold=all_neurons(p.theta))
    return nir.LIF(
        tau=all_neurons(dt / (1 - p.beta)),
        r=all_neurons(p.gain / (1 - p.beta)),
        v_leak=all_neurons(0.0),
        v_threshold=all_neurons(p.theta),
    )


def _floats(x: Tensor) -> Any:
    return x.detach().float().cpu().numpy()


def _array(sizes: Any) -> Any:
    return np.array([int(n) for n in sizes])
