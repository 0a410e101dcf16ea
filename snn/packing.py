"""Spikes packed without loss: zeros and ones as bits, whole numbers up to 255 as bytes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Packed:
    """How a tensor was packed; the packed tensor itself lies elsewhere, so that autograd can hold it."""

    kind: str
    """``bits``, ``bytes``, or ``plain`` for a tensor as it was."""
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def pack(x: Tensor) -> tuple[Tensor, Packed]:
    """The smallest exact form of a tensor, and what `unpack` needs to restore it.

    Args:
        x: dense, of any shape and floating dtype; without gradient.

    Returns:
        uint8 of an eighth as many elements where all of ``x`` are 0 or 1, as many where all are whole
        numbers from 0 to 255; else ``x``.
    """
    small = x.to(torch.uint8)
    if not (x.numel() and _is_dense(x) and bool((small == x).all())):
        return x, Packed("plain", x.shape, x.stride(), x.dtype)
    flat = small.as_strided((small.numel(),), (1,))  # in the order of memory
    kind = "bits" if bool(small.max() <= 1) else "bytes"
    return _to_bits(flat) if kind == "bits" else flat, Packed(kind, x.shape, small.stride(), x.dtype)


def unpack(packed: Tensor, how: Packed) -> Tensor:
    """The tensor that was packed, equal in every element, with its strides."""
    if how.kind == "plain":
        return packed
    flat = _from_bits(packed, how.shape.numel()) if how.kind == "bits" else packed
    return flat.to(how.dtype).as_strided(how.shape, how.stride)


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


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
