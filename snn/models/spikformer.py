"""Spikformer (Zhou et al. 2023, arXiv 2209.15425): a transformer whose attention is made of spikes."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from snn.layers import Folded
from snn.models.base import SpikingNetwork, conv_layer, image_shape, pooled_head
from snn.neurons import LIF, NeuronParameters

_ATTENTION_SCALE = 0.125


def spikformer(
    *,
    input_shape: Sequence[int],
    num_classes: int,
    neuron: NeuronParameters,
    dim: int = 256,
    depth: int = 2,
    heads: int = 8,
    mlp_ratio: int = 4,
    patch: int | None = None,
) -> SpikingNetwork:
    """Convolutional patch splitting, ``depth`` blocks of spiking self-attention and MLP, a linear head.

    ``dim=384, depth=4`` on 3x32x32 is Spikformer-4-384 (9.32 M parameters as published). Linear maps
    over tokens are 1x1 convolutions, so a layer's weight is ``[out, in, 1, 1]``, and without the
    published biases, which the batch norm behind each map makes redundant.

    Args:
        input_shape: ``(C, H, W)`` of one example.
        num_classes: ``K``.
        neuron: constants of all neurons; those behind the attention have half the threshold.
        dim: channels of a token, a multiple of 8 and of ``heads``.
        depth: blocks.
        heads: of the attention.
        mlp_ratio: hidden width of a block's MLP over ``dim``.
        patch: side of a patch in pixels: 4 or 16; 4 up to 64x64 when not given.

    Raises:
        ValueError: an input that is not ``(C, H, W)`` or smaller than a patch, or sizes that do not fit.
    """
    c, height, width = image_shape(input_shape)
    if patch is None:
        patch = 4 if max(height, width) <= 64 else 16
    if patch not in (4, 16):
        raise ValueError(f"patch: {patch!r} is unknown; choose 4 or 16")
    image_shape(input_shape, least=patch)
    if dim < 8 or dim % 8 or heads < 1 or dim % heads:
        raise ValueError(f"dim: {dim!r} must be a positive multiple of 8 and of heads ({heads!r})")
    if depth < 1 or mlp_ratio < 1:
        raise ValueError(f"depth, mlp_ratio: {depth!r}, {mlp_ratio!r} must be at least 1")
    layers: list[nn.Module] = []
    for i, c_out in enumerate((dim // 8, dim // 4, dim // 2, dim)):
        layers.append(conv_layer(c, c_out, 3, neuron))
        if patch == 16 or i >= 2:
            layers.append(Folded(nn.MaxPool2d(3, stride=2, padding=1)))
        c = c_out
    layers.append(_Residual(conv_layer(dim, dim, 3, neuron)))  # relative position embedding
    for _ in range(depth):
        hidden = mlp_ratio * dim
        mlp = nn.Sequential(conv_layer(dim, hidden, 1, neuron), conv_layer(hidden, dim, 1, neuron))
        layers += [_Residual(SpikingSelfAttention(dim, heads, neuron)), _Residual(mlp)]
    return SpikingNetwork(nn.Sequential(*layers), pooled_head(dim, num_classes))


class SpikingSelfAttention(nn.Module):
    """``Q K^T V`` of spikes without softmax, scaled, made spikes again, and projected.

    Queries, keys and values are 0 or 1, so the products are whole numbers and exact in float32 in
    whichever order they are multiplied; we take the one that is linear in the number of tokens.
    """

    def __init__(self, dim: int, heads: int, neuron: NeuronParameters) -> None:
        super().__init__()
        self.heads = heads
        self.query = conv_layer(dim, dim, 1, neuron)
        self.key = conv_layer(dim, dim, 1, neuron)
        self.value = conv_layer(dim, dim, 1, neuron)
        self.neuron = LIF(replace(neuron, theta=neuron.theta / 2))
        self.projection = conv_layer(dim, dim, 1, neuron)

    def forward(self, x_TBCHW: Tensor) -> Tensor:
        """Spike counts ``[T, B, C, H, W]`` to spikes of the same shape; tokens are positions."""
        q, k, v = (
            layer(x_TBCHW).flatten(3).unflatten(2, (self.heads, -1))  # [T, B, heads, d, tokens]
            for layer in (self.query, self.key, self.value)
        )
        mixed = torch.matmul(torch.matmul(v, k.transpose(-1, -2)), q) * _ATTENTION_SCALE
        return self.projection(self.neuron(mixed.reshape(x_TBCHW.shape)))


class _Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x_TB: Tensor) -> Tensor:
        """Sum of a branch and its input."""
        return self.branch(x_TB) + x_TB
