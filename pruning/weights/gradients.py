"""Squared gradients of the class scores, example by example and through time: what a weight can change.

For a random sign per class, ``v`` in {-1, 1}^K, ``E_v (d(v y) / dw)^2`` is the squared derivative of all
class scores ``y`` (time mean of the logits), so that pruning weights independently changes the scores by

    E ||y' - y||^2 ~ sum_w w^2 F_w,      F_w = mean over examples of (d(v y) / dw)^2

to first order, with the surrogate derivative at each threshold. One backward pass per batch: the gradient
of each example is the product of a layer's input and the gradient at its output, which is what the backward
pass hands over. An example's signs are drawn from its own values, so sums do not depend on batches.
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snn.layers import Synapses, WeightLayer, is_static

_ELEMENTS = 1 << 25
"""Of the per-example gradients that are held at once."""


@contextmanager
def recorded(synapses: Sequence[Synapses]) -> Iterator[list[list[tuple[Tensor, Tensor]]]]:
    """By layer, the input and output of every call within, the outputs as parts of the graph."""
    calls: list[list[tuple[Tensor, Tensor]]] = [[] for _ in synapses]

    def hook(i: int) -> Any:
        def at_layer(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:  # frozen weights
                output.requires_grad_()
            calls[i].append((inputs[0].detach(), output))
            return output

        return at_layer

    with ExitStack() as hooks:
        for i, s in enumerate(synapses):
            hooks.callback(s.layer.register_forward_hook(hook(i)).remove)
        yield calls


def signs(x_TB: Tensor, K: int) -> Tensor:
    """Random signs ``[B, K]``, a function of each example's values."""
    rows = (x_TB[:1] if is_static(x_TB) else x_TB).detach().float().cpu().transpose(0, 1).contiguous()
    out = torch.empty(len(rows), K)
    for row, own in zip(rows, out, strict=True):
        generator = torch.Generator().manual_seed(zlib.crc32(row.numpy().tobytes()))
        own.copy_(torch.randint(0, 2, (K,), generator=generator) * 2 - 1)
    return out.to(x_TB.device)


def squared_gradients(
    synapses: Sequence[Synapses],
    calls: Sequence[Sequence[tuple[Tensor, Tensor]]],
    logits_TBK: Tensor,
    signs_BK: Tensor,
) -> list[Tensor]:
    """``sum_b (d(v_b y_b) / dw)^2`` by layer, float64 in the shape of its weight, on the CPU.

    Args:
        synapses: the layers.
        calls: what `recorded` kept of one forward pass.
        logits_TBK: what the pass gave.
        signs_BK: ``v`` by example.
    """
    T, B = logits_TBK.shape[:2]
    outputs = [output for of_layer in calls for _, output in of_layer]
    directions = (signs_BK.to(logits_TBK.dtype) / T).expand(T, -1, -1)
    gradients = iter(torch.autograd.grad(logits_TBK, outputs, directions, allow_unused=True))
    found = []
    for s, of_layer in zip(synapses, calls, strict=True):
        parts = []
        for x, _ in of_layer:
            g = next(gradients)
            if g is not None:
                parts.append(_fields(s.layer, _by_example(x, T, B, s.layer), _by_example(g, T, B, s.layer)))
        found.append(_squares(s.layer, parts).double().cpu())
    return found


def _by_example(x: Tensor, T: int, B: int, layer: WeightLayer) -> Tensor:
    """``[n, B, ...]`` for n timesteps of one call (1 where the layer ran once for all of them)."""
    if len(x) == T * B:
        return x.unflatten(0, (T, B))
    if isinstance(layer, nn.Linear) and tuple(x.shape[:2]) == (T, B):
        return x
    return x[None]


def _fields(layer: WeightLayer, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs ``[B, G, positions, fan]`` and output gradients ``[B, G, C_out / G, positions]``."""
    x, g = x.transpose(0, 1), g.transpose(0, 1)  # [B, n, ...]
    if isinstance(layer, nn.Linear):
        return x.flatten(1, -2)[:, None], g.flatten(1, -2).mT[:, None]
    B, n = x.shape[:2]
    flat = x.flatten(0, 1)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    flat = F.pad(flat, layer._reversed_padding_repeated_twice, mode=mode)
    field = F.unfold(flat, layer.kernel_size, layer.dilation, 0, layer.stride)
    field = field.unflatten(0, (B, n)).unflatten(2, (layer.groups, -1))  # [B, n, G, fan, P]
    errors = g.flatten(3).unflatten(2, (layer.groups, -1))  # [B, n, G, C_out / G, P]
    return field.permute(0, 2, 1, 4, 3).flatten(2, 3), errors.permute(0, 2, 3, 1, 4).flatten(3)


def _squares(layer: WeightLayer, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    weight = layer.weight
    if not parts:
        return torch.zeros(weight.shape)
    total = torch.zeros(weight.shape, dtype=parts[0][0].dtype, device=weight.device)
    B = len(parts[0][0])
    step = max(1, _ELEMENTS // max(weight.numel(), 1))
    for start in range(0, B, step):
        own = slice(start, start + step)
        gradient = sum(errors[own] @ field[own] for field, errors in parts)  # [b, G, C_out / G, fan]
        assert isinstance(gradient, Tensor)
        total += gradient.square().sum(0).view_as(total)
    return total
