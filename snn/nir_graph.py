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
have no place in NIR: an imported network takes them from its caller. NIR fires at ``v > v_threshold``,
we at ``>=``; the difference is a tie. Residual sums, attention and max pooling are refused.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from snn.layers import Folded, Norm, SpikingLayer, WeightLayer
from snn.models.base import SpikingNetwork
from snn.neurons import LIF, NeuronParameters
from snn.surrogate import Surrogate

NIRGraph = Any
"""A ``nir.NIRGraph``; the package is imported only when a graph is made or read."""


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

    _check_dt(dt)
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
        y = module(x)
        return [("pool", _pooling(x, y))], y
    if isinstance(module, nn.AdaptiveAvgPool2d):
        y = module(x)
        if x.shape[2] % y.shape[2] == 0 and x.shape[3] % y.shape[3] == 0:
            return [("pool", _pooling(x, y))], y
    raise ValueError(f"model: {type(module).__name__} has no place in a chain of NIR nodes")


def _pooling(x: Tensor, y: Tensor) -> Any:
    import nir

    size = _array([x.shape[2] // y.shape[2], x.shape[3] // y.shape[3]])
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


def from_nir(
    graph: NIRGraph, dt: float = 1e-4, *, surrogate: Surrogate | None = None, detach_reset: bool = True
) -> SpikingNetwork:
    """A network from a NIR graph that is one chain and ends in a linear layer without neurons.

    Args:
        graph: of the nodes that `to_nir` writes (``nir.read`` gives it).
        dt: seconds of one timestep; time constants are whole only in relation to it.
        surrogate: of all neurons; the default when not given.
        detach_reset: of all neurons.

    Raises:
        ValueError: ``dt``, a graph that is not a chain, a node that is unknown, or neurons of one layer
            that differ or leak or reset to anything but 0.
    """
    import nir

    _check_dt(dt)
    gradient: dict[str, Any] = {"surrogate": surrogate or Surrogate(), "detach_reset": detach_reset}
    features: list[nn.Module] = []
    since: list[nn.Module] = []  # modules after the last neuron
    input_shape: tuple[int, ...] = ()
    for name, node in _chain(graph):
        if isinstance(node, nir.Input):
            input_shape = tuple(int(n) for n in node.input_type["input"])
        elif isinstance(node, nir.LIF | nir.IF):
            if not since or not isinstance(since[-1], nn.Linear | nn.Conv2d):
                raise ValueError(f"graph: neurons {name!r} must follow a weight layer")
            neuron = LIF(NeuronParameters(**_constants(name, node, dt), **gradient))
            features += [*map(Folded, since[:-1]), SpikingLayer(since[-1], None, neuron)]
            since = []
        elif not isinstance(node, nir.Output):
            since.append(_imported(name, node))
    if not since or not isinstance(since[-1], nn.Linear):
        raise ValueError("graph: must end in a linear layer without neurons")
    model = SpikingNetwork(nn.Sequential(*features), nn.Sequential(*since))
    model.input_shape = input_shape
    return model


def _chain(graph: NIRGraph) -> list[tuple[str, Any]]:
    following: dict[str, str] = {}
    for a, b in graph.edges:
        if a in following or b in following.values():
            raise ValueError(f"graph: edge {a!r} to {b!r} branches; only a chain of nodes can be imported")
        following[a] = b
    starts = [name for name in graph.nodes if name not in following.values()]
    order = starts[:1]
    while order and order[-1] in following:
        order.append(following[order[-1]])
    if len(starts) != 1 or len(order) != len(graph.nodes):
        raise ValueError("graph: must be one chain of nodes from its input to its output")
    return [(name, graph.nodes[name]) for name in order]


def _imported(name: str, node: Any) -> nn.Module:
    import nir

    if isinstance(node, nir.Flatten):
        return nn.Flatten()
    if isinstance(node, nir.AvgPool2d):
        sizes = [tuple(int(n) for n in v) for v in (node.kernel_size, node.stride, node.padding)]
        return nn.AvgPool2d(*sizes)  # type: ignore[arg-type]
    if isinstance(node, nir.Affine | nir.Linear):
        linear = nn.Linear(node.weight.shape[1], node.weight.shape[0], bias=isinstance(node, nir.Affine))
        return _filled(linear, node)
    if isinstance(node, nir.Conv2d):
        out, per_group, *kernel = node.weight.shape
        conv = nn.Conv2d(
            per_group * int(node.groups),
            out,
            kernel,
            stride=node.stride,
            padding=node.padding,
            dilation=node.dilation,
            groups=int(node.groups),
        )
        return _filled(conv, node)
    raise ValueError(f"graph: node {name!r} of type {type(node).__name__} cannot be imported")


def _filled(layer: WeightLayer, node: Any) -> WeightLayer:
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(node.weight))
        if layer.bias is not None:
            layer.bias.copy_(torch.as_tensor(node.bias))
    return layer


def _constants(name: str, node: Any, dt: float) -> dict[str, Any]:
    import nir

    values = {}
    for key in ("r", "v_threshold", "v_reset", "tau", "v_leak"):
        array = getattr(node, key, None)
        if array is not None:
            if array.min() != array.max():
                raise ValueError(
                    f"graph: neurons {name!r} differ in {key}; one value for a layer is supported"
                )
            values[key] = float(array.flat[0])
    for key in ("v_reset", "v_leak"):
        if values.get(key, 0.0) != 0.0:
            raise ValueError(f"graph: neurons {name!r} have {key} {values[key]!r}; only 0 is supported")
    if isinstance(node, nir.IF):
        beta, gain = 1.0, values["r"] * dt
    else:
        beta, gain = 1 - dt / values["tau"], values["r"] * dt / values["tau"]
    decay = abs(gain - (1 - beta)) < 1e-6 and beta != 1
    # Any other gain is a threshold in other units: the neuron is the same with both divided by it.
    return {"beta": beta, "decay_input": decay, "theta": values["v_threshold"] / (1.0 if decay else gain)}


def _check_dt(dt: float) -> None:
    if not 0 < dt < float("inf"):
        raise ValueError(f"dt: {dt!r} must be a positive number of seconds")


def _floats(x: Tensor) -> Any:
    return x.detach().float().cpu().numpy()


def _array(sizes: Any) -> Any:
    import numpy as np

    return np.array([int(n) for n in sizes])
