"""Bounds of an example's gradient norm from its forward pass: the formulas behind the SADP score.

Our derivation (docs/methods-sadp.md). For logits ``z[t] = W r[t] + b`` of ``T`` timesteps, the errors
``e[t]`` (``softmax - y``; the same at all ``t`` for the loss of the mean logits), the last hidden layer's
potentials ``u[t]``, spikes ``s[t]``, surrogate slopes ``phi[t]`` and input ``x[t]``::

    h^2    = T^-2 sum_tt' <e[t], e[t']> (<r[t], r[t']> + 1)          exact for the head's weights and bias
    g[t]   = dL/ds[t] = W^T e[t] / T                                  through a pooled head by its transpose
    d[t]   = phi[t] g[t] + beta dv[t]/du[t] d[t+1]                    dL/du[t], and dL/dI[t] = k d[t]
    v      = sum_tp ||k G d[t, :, p]|| sqrt(||x[t, field of p]||^2 + 1)
    score  = sqrt(h^2 + v^2)

with ``G`` the slope of the batch norm and ``p`` the positions of a convolution. For binary ``x`` the
squared norm over a receptive field is its number of spikes. ``v`` bounds the norm of the gradient of the last
hidden layer's weights, and of a bias before its norm.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from snn.layers import Norm, WeightLayer, is_static
from snn.losses import LOSSES
from snn.neurons import NeuronParameters, lif
from snn.weighted_norm import batch_statistics

_LINEAR = (nn.Linear, nn.Flatten, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Identity, nn.Dropout)


def wide(x: Tensor) -> Tensor:
    """Half precisions to float32."""
    return x if x.dtype == torch.float64 else x.float()


def errors(logits_TBK: Tensor, labels_B: Tensor, loss: str, label_smoothing: float = 0.0) -> Tensor:
    """``e[t]``: ``T`` times the loss's gradient at the logits, ``[T, B, K]``, or ``[1, B, K]`` if constant.

    By autograd, so that it is what a training step finds on its way back, to the last bit.

    Raises:
        ValueError: an unknown loss.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss: {loss!r} is unknown; choose one of {', '.join(LOSSES)}")
    with torch.enable_grad():
        z = logits_TBK.detach().mean(0, keepdim=True) if loss == "rate_ce" else logits_TBK.detach()
        value = LOSSES[loss](z.requires_grad_(), labels_B, label_smoothing).sum()
    return torch.autograd.grad(value, z)[0] * len(z)


def head_squared(e_TBK: Tensor, r_TBN: Tensor, bias: bool) -> Tensor:
    """``h^2``: the squared norm of the gradient of the head's weights (and bias), exactly, ``[B]``.

    Args:
        e_TBK: `errors`, ``[T, B, K]`` or ``[1, B, K]``.
        r_TBN: the head's input, ``[T, B, N]``.
        bias: whether the head has one.
    """
    if len(e_TBK) == 1:
        return e_TBK[0].square().sum(-1) * (r_TBN.mean(0).square().sum(-1) + bias)
    e, r = e_TBK.transpose(0, 1), r_TBN.transpose(0, 1)
    products = (e @ e.mT) * (r @ r.mT + bias)
    return products.sum((1, 2)).clamp(min=0) / len(r_TBN) ** 2


def readout_gradient(readout: nn.Sequential, x_TB: Tensor, e_TBK: Tensor) -> Tensor:
    """``g``: the loss's gradient at the readout's input, ``[T, B, ...]``, or ``[1, B, ...]`` if constant.

    Args:
        readout: the modules from the last spikes to the logits; dropout counts as the identity.
        x_TB: its input, ``[T, B, ...]``.
        e_TBK: `errors`, ``[T, B, K]`` or ``[1, B, K]``.
    """
    T, B = x_TB.shape[:2]
    head = readout[-1]
    assert isinstance(head, nn.Linear)
    if len(readout) == 1 and x_TB.ndim == 3:
        return e_TBK @ (head.weight.detach().to(e_TBK.dtype) / T)
    # The transpose of a linear readout does not depend on where it is taken; of another it does.
    linear = all(isinstance(m, _LINEAR) for m in readout)
    point = x_TB[: len(e_TBK)] if linear else x_TB
    e = e_TBK if linear else e_TBK.expand(T, -1, -1)
    with torch.enable_grad():
        x = point.detach().flatten(0, 1).requires_grad_()
        path = nn.Sequential(*(m for m in readout if not isinstance(m, nn.Dropout)))
        # In half precision small errors would vanish on the way back.
        y = functional_call(path, {name: p.detach().to(x.dtype) for name, p in path.named_parameters()}, x)
        (g,) = torch.autograd.grad(y, x, (e / T).flatten(0, 1).to(y.dtype))
    return g.unflatten(0, (len(point), B))


def current_gradient(current_TB: Tensor, g_TB: Tensor, neuron: NeuronParameters) -> Tensor:
    """``k d[t]``: the loss's gradient at the current into the last hidden neurons, ``[T, B, ...]``.

    Args:
        current_TB: the current, ``[T, B, ...]``; the potentials are computed again from it.
        g_TB: the loss's gradient at the spikes, ``[T, B, ...]`` or ``[1, B, ...]``.
        neuron: the neurons' constants.
    """
    current = current_TB.detach()
    if is_static(current):  # its gradient would be summed over time
        current = current.clone(memory_format=torch.contiguous_format)
    with torch.enable_grad():
        spikes, _ = lif(current.requires_grad_(), neuron)
    (gradient,) = torch.autograd.grad(spikes, current, g_TB.expand_as(spikes))
    return gradient


def norm_slope(
    norm: Norm | None, input: Tensor | None = None, weights_B: Tensor | None = None
) -> Tensor | None:
    """``G``: factor per channel of a batch norm, ``[C]``; ``None`` without a norm.

    Args:
        norm: in training mode its slope is that of the batch statistics, else of the running ones.
        input: what the norm was given; needed in training mode and without running statistics.
        weights_B: of the examples in the batch statistics (`snn.weighted_norm.weighted_statistics`).

    Raises:
        ValueError: a norm without running statistics in eval mode, which has no slope of its own there.
    """
    if norm is None:
        return None
    if norm.training and input is not None:
        var = batch_statistics(wide(input), weights_B)[1]
    elif norm.running_var is not None:
        var = wide(norm.running_var)
    else:
        raise ValueError("norm: needs running statistics (track_running_stats) to score examples")
    slope = (var + norm.eps).rsqrt()
    return slope if norm.weight is None else slope * wide(norm.weight.detach())


def field_squares(x: Tensor, layer: WeightLayer) -> Tensor:
    """Squared norm of the input in every receptive field (the number of spikes, for binary input).

    Args:
        x: the layer's input, ``[n, ..., N]`` (linear) or ``[n, C, H, W]`` (convolution).
        layer: the weight layer.

    Returns:
        ``[n, ...]`` (linear) or ``[n, G, H', W']`` for ``G`` groups of a convolution.

    Raises:
        ValueError: a convolution that pads with anything but zeros.
    """
    if isinstance(layer, nn.Linear):
        return torch.linalg.vector_norm(x, dim=-1).square()
    if layer.padding_mode != "zeros":
        raise ValueError(f"padding_mode: {layer.padding_mode!r} is not supported; only zeros")
    squares = x.unflatten(1, (layer.groups, -1)).square().sum(2)
    box = x.new_ones(layer.groups, 1, *layer.kernel_size)
    return F.conv2d(squares, box, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def layer_bound(delta: Tensor, squares: Tensor, slope: Tensor | None, layer: WeightLayer) -> Tensor:
    """``sum_p ||G delta[:, p]|| sqrt(squares[p] + 1)`` of each row, ``[n]``.

    Args:
        delta: the loss's gradient at the layer's (normed) output, ``[n, ..., N]`` or ``[n, C, H, W]``.
        squares: `field_squares`.
        slope: `norm_slope`, ``[C]``; ``None`` where delta is before the norm, or without one.
        layer: the weight layer.

    Raises:
        ValueError: shapes that do not belong together.
    """
    conv = isinstance(layer, nn.Conv2d)
    channel = 1 if conv else delta.ndim - 1
    scaled = delta.square()
    if slope is not None:
        shape = [1] * delta.ndim
        shape[channel] = -1
        scaled.mul_(slope.to(delta.dtype).square().view(shape))
    norms = scaled.unflatten(1, (layer.groups, -1)).sum(2) if conv else scaled.sum(-1)
    if norms.shape != squares.shape:
        raise ValueError(
            f"layer {layer}: currents of shape {tuple(delta.shape)} are not its output; "
            "what follows the last neurons belongs in the readout"
        )
    return (norms.sqrt_() * (squares + 1).sqrt()).view(len(delta), -1).sum(1)
