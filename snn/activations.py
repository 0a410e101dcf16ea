"""What training keeps between forward and backward, and in what form.

=============  ====================================================================================
``keep``       what gradients need, as it is: the fastest (default)
``pack``       what of it is spikes as bits, sums of spikes as bytes
``recompute``  of a spiking layer, or a block with a membrane shortcut, its packed input alone: its weights
               run again in the backward pass, and so do hooks on what is inside of it
=============  ====================================================================================

Outputs and gradients are the same in all three, to the last bit where the library that convolves repeats
itself. What is not whole numbers from 0 to 255 (pixels, averages, currents) is kept as it is, so nothing is
ever rounded; to see that costs one pass over the tensor, and on a GPU one wait for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from snn.weighted_norm import BatchNorm, active_weights, weighted_statistics

ACTIVATIONS = ("keep", "pack", "recompute")


class Recomputable(nn.Module):
    """What can run again in the backward pass, from its input ``[T, B, ...]`` alone."""

    activations = "keep"
    """One of `ACTIVATIONS`; set by `keep_activations`."""

    def way(self, how: str) -> str:
        """How it trains in a network that trains so."""
        return how

    def run(self, x_TB: Tensor) -> Tensor:
        """What the module computes."""
        raise NotImplementedError

    def forward(self, x_TB: Tensor) -> Tensor:
        """`run`, with more or less kept for the backward pass."""
        if self.activations == "keep" or not (self.training and torch.is_grad_enabled()):
            return self.run(x_TB)
        with saved_tensors_hooks(pack, unpack):
            return self.run(x_TB) if self.activations == "pack" else _recomputed(self, x_TB)


def keep_activations(network: nn.Module, how: str) -> None:
    """Set how a network trains from now on; nothing else about it changes.

    Args:
        network: any module made of this package's layers.
        how: one of `ACTIVATIONS`.

    Raises:
        ValueError: an unknown way.
    """
    if how not in ACTIVATIONS:
        raise ValueError(f"activations: {how!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
    for module in network.modules():
        if isinstance(module, Recomputable):
            module.activations = module.way(how)


@dataclass(frozen=True)
class Packed:
    """A tensor in its smallest exact form."""

    kind: str
    """``bits``, ``bytes``, or ``plain`` for a tensor as it was."""
    data: Tensor
    like: Tensor
    """Without memory, of the tensor's shape, strides and dtype."""


def pack(x: Tensor) -> Packed:
    """Any tensor; uint8 of an eighth as many elements where all of ``x`` are 0 or 1, as many where all are
    whole numbers from 0 to 255.
    """
    parameter, x = x.is_leaf and x.requires_grad, x.detach()
    if parameter or not (x.is_floating_point() and x.numel() and _whole(x[(0,) * (x.ndim - 1)])):
        return Packed("plain", x, x)  # most are told by their first row
    small = x.to(torch.uint8)
    if small.stride() != x.stride() or not bool((small == x).all()):  # gaps make strides differ
        return Packed("plain", x, x)
    flat, like = small.as_strided((small.numel(),), (1,)), torch.empty_like(x, device="meta")
    return Packed("bits", _to_bits(flat), like) if bool(small.max() <= 1) else Packed("bytes", flat, like)


def unpack(packed: Packed) -> Tensor:
    """The tensor that was packed, equal in every element, with its strides."""
    if packed.kind == "plain":
        return packed.data
    like = packed.like
    flat = _from_bits(packed.data, like.numel()) if packed.kind == "bits" else packed.data
    return flat.to(like.dtype).as_strided(like.shape, like.stride())


def _whole(x: Tensor) -> bool:
    return bool((x.to(torch.uint8) == x).all())


def _to_bits(flat: Tensor) -> Tensor:
    """Eight zeros and ones (uint8) to a byte, the first in the lowest bit."""
    if flat.device.type != "cpu":
        return _torch_to_bits(flat)
    return torch.from_numpy(np.packbits(flat.numpy(), bitorder="little")).clone()  # in torch's memory


def _from_bits(packed: Tensor, count: int) -> Tensor:
    if packed.device.type != "cpu":
        return _torch_from_bits(packed, count)
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count, bitorder="little"))


def _torch_to_bits(flat: Tensor) -> Tensor:
    rows = F.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (rows << _shifts(flat)).sum(1, dtype=torch.uint8)


def _torch_from_bits(packed: Tensor, count: int) -> Tensor:
    return ((packed[:, None] >> _shifts(packed)) & 1).view(-1)[:count]


def _shifts(of: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=of.device)


def _recomputed(module: Recomputable, x_TB: Tensor) -> Tensor:
    """What the module computes; the graph keeps ``x_TB`` and no more."""
    norms = [m for m in module.modules() if isinstance(m, BatchNorm)]
    weights, again = active_weights(), False

    def run(x_TB: Tensor) -> Tensor:
        nonlocal again
        if not again:
            again = True
            return module.run(x_TB)
        with weighted_statistics(weights), _unseen(norms):
            return module.run(x_TB)

    y: Tensor = checkpoint(run, x_TB, use_reentrant=False, preserve_rng_state=True)
    return y


@contextmanager
def _unseen(norms: list[BatchNorm]) -> Iterator[None]:
    """What batch norms compute on their batch is not counted in their running statistics."""
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = (
            None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
        )
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
